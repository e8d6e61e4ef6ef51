//! What was measured, as a table for people and as JSON for machines.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::growth::Point;
use crate::load::Measured;
use crate::plots::{Line, Panel, Plot};
use crate::processes::{Cpu, in_all};

/// One rate at which requests came, and what became of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// Arrivals a second.
    pub(crate) rate: f64,
    /// From when a request was due to its answer, in microseconds.
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    /// Whether nothing was left to do at the end.
    pub(crate) sustained: bool,
    late: u64,
    dropped: u64,
    drained_after_ms: u128,
}

impl Step {
    pub(crate) fn new(rate: f64, measured: &Measured, sustained: bool) -> Self {
        Self {
            rate,
            p50_us: measured.latency.value_at_quantile(0.5),
            p99_us: measured.latency.value_at_quantile(0.99),
            sustained,
            late: measured.late,
            dropped: measured.dropped,
            drained_after_ms: measured.drained_after.as_millis(),
        }
    }

    fn json(self) -> Value {
        json!({
            "rate_per_s": self.rate, "p50_us": self.p50_us, "p99_us": self.p99_us, "sustained": self.sustained,
            "late": self.late, "dropped": self.dropped, "drained_after_ms": self.drained_after_ms,
        })
    }
}

/// One line for people who wait.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, late, dropped, drained_after_ms, .. } = self;
        let verdict = if self.sustained { "sustained" } else { "not sustained" };
        write!(f, "{rate:>6.0} a second: p50 {} ms, p99 {} ms, ", ms(self.p50_us), ms(self.p99_us))?;
        write!(f, "{late} late, {dropped} dropped, the last answer {drained_after_ms} ms after it was due: {verdict}")
    }
}

/// Microseconds as milliseconds for people.
fn ms(us: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
    let ms = us as f64 / 1_000.0;
    format!("{ms:.1}")
}

/// One peer's figures in one scenario, over all its turns.
pub(crate) struct Figures {
    latency: Histogram<u64>,
    count: u64,
    seconds: f64,
    late: u64,
    dropped: u64,
    /// Seconds, by process.
    cpu: Cpu,
    /// Of the peers whose rate was raised step by step: the highest that was sustained, and the steps.
    sustained: Option<f64>,
    steps: Vec<Step>,
}

impl Default for Figures {
    fn default() -> Self {
        let latency = Histogram::new(3).expect("three digits");
        let (cpu, steps) = (Cpu::new(), Vec::new());
        Self { latency, count: 0, seconds: 0.0, late: 0, dropped: 0, cpu, sustained: None, steps }
    }
}

impl Figures {
    /// The highest rate that was sustained, and all steps on the way; what was measured at that rate is still to be added.
    pub(crate) fn of_steps(rate: f64, steps: Vec<Step>) -> Self {
        Self { sustained: Some(rate), steps, ..Self::default() }
    }

    /// Adds work: so many requests took that long, and this CPU.
    pub(crate) fn add_work(&mut self, count: u64, took: Duration, cpu: &Cpu) {
        self.count += count;
        self.seconds += took.as_secs_f64();
        for (name, seconds) in cpu {
            *self.cpu.entry(name.clone()).or_default() += seconds;
        }
    }

    /// Adds requests of which only the rate is known.
    pub(crate) fn add_rate(&mut self, count: u64, rate: f64) {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        self.add_work(count, Duration::from_secs_f64(count as f64 / rate), &Cpu::new());
    }

    /// Adds a turn.
    pub(crate) fn add(&mut self, measured: &Measured, cpu: &Cpu) -> Result<()> {
        self.latency.add(&measured.latency)?;
        self.add_work(measured.count, measured.elapsed, cpu);
        self.late += measured.late;
        self.dropped += measured.dropped;
        Ok(())
    }

    fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        self.sustained.unwrap_or(self.count as f64 / self.seconds.max(1e-9))
    }

    /// In microseconds, of one request, by process.
    fn cpu_us(&self) -> BTreeMap<String, f64> {
        #[expect(clippy::cast_precision_loss, reason = "a mean")]
        let count = self.count.max(1) as f64;
        self.cpu.iter().map(|(name, seconds)| (name.clone(), rounded(seconds * 1e6 / count))).collect()
    }

    /// In microseconds; None: nobody waited for an answer.
    fn latency_at(&self, quantile: f64) -> Option<u64> {
        (!self.latency.is_empty()).then(|| self.latency.value_at_quantile(quantile))
    }

    fn json(&self) -> Value {
        let at = |quantile| self.latency_at(quantile);
        let mut value = json!({
            "rate_per_s": self.rate().round(),
            "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "max_us": at(1.0),
            "late": self.late, "dropped": self.dropped,
        });
        let cpu_us = self.cpu_us();
        if !cpu_us.is_empty() {
            value["cpu_us_per_request"] = json!(cpu_us);
        }
        if !self.steps.is_empty() {
            value["steps"] = self.steps.iter().map(|step| step.json()).collect();
        }
        value
    }
}

/// One scenario's result.
pub(crate) struct Row {
    name: &'static str,
    figures: BTreeMap<&'static str, Figures>,
    rss_mb: BTreeMap<String, f64>,
}

const OURS: &str = "ours";

impl Row {
    pub(crate) fn new(
        name: &'static str,
        figures: BTreeMap<&'static str, Figures>,
        rss_mb: BTreeMap<String, f64>,
    ) -> Self {
        Self { name, figures, rss_mb }
    }

    /// The steps of each peer whose rate was raised step by step; ours first.
    pub(crate) fn steps(&self) -> Vec<(&'static str, &[Step])> {
        let peers = std::iter::once((OURS, self.ours())).chain(self.others());
        peers.map(|(peer, figures)| (peer, figures.steps.as_slice())).filter(|(_, steps)| !steps.is_empty()).collect()
    }

    /// Ours, where there is `x` of what grows.
    pub(crate) fn point(&self, x: f64) -> Point {
        let (ours, at) = (self.ours(), |quantile| self.ours().latency.value_at_quantile(quantile));
        let cpu_us_per_request = ours.cpu_us();
        Point { x, rate_per_s: ours.rate().round(), p50_us: at(0.5), p99_us: at(0.99), cpu_us_per_request }
    }

    fn ours(&self) -> &Figures {
        &self.figures[OURS]
    }

    fn others(&self) -> impl Iterator<Item = (&'static str, &Figures)> {
        self.figures.iter().filter(|(peer, _)| **peer != OURS).map(|(peer, figures)| (*peer, figures))
    }

    /// None: the other has no rate.
    fn ratio(&self, other: &Figures) -> Option<f64> {
        (other.rate() > 0.0).then(|| (self.ours().rate() / other.rate() * 100.0).round() / 100.0)
    }

    /// `2.50 × sync`, as far as there is a ratio.
    fn against(&self, peer: &str, other: &Figures) -> String {
        self.ratio(other).map_or_else(|| peer.to_owned(), |ratio| format!("{ratio:.2} × {peer}"))
    }

    fn json(&self) -> Value {
        let mut value = self.ours().json();
        let rss_mb: BTreeMap<_, _> = self.rss_mb.iter().map(|(name, mb)| (name, rounded(*mb))).collect();
        value["rss_mb"] = json!(rss_mb);
        value["against"] = self.others().map(|(peer, figures)| (peer.to_owned(), figures.json())).collect();
        value["ratio"] = self.others().map(|(peer, figures)| (peer.to_owned(), json!(self.ratio(figures)))).collect();
        value
    }
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// One row for people who wait for the others.
pub(crate) fn line(row: &Row) -> String {
    let ours = row.ours();
    let against: Vec<String> = row.others().map(|(peer, figures)| row.against(peer, figures)).collect();
    format!("{:16} {:>8.0} a second  {}", row.name, ours.rate(), against.join(", "))
}

/// What each process takes, the most first; not what is next to nothing.
fn by_process(values: &BTreeMap<String, f64>) -> String {
    let mut parts: Vec<(&String, &f64)> = values.iter().filter(|(_, value)| **value >= 0.5).collect();
    parts.sort_by(|a, b| b.1.total_cmp(a.1));
    let parts: Vec<String> = parts.iter().map(|(name, value)| format!("{name} {value:.0}")).collect();
    parts.join(", ")
}

/// All rows: `{scenario: {rate_per_s, p50_us, …}}`.
pub(crate) fn json(rows: &[Row]) -> Value {
    rows.iter().map(|row| (row.name.to_owned(), row.json())).collect()
}

/// The table for people: times in milliseconds, CPU in microseconds a request.
pub(crate) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "scenario", "a second", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "late", "dropped", "CPU µs", "of which",
        "peak MB", "against",
    ]);
    for row in rows {
        let ours = row.ours();
        let at = |quantile| ours.latency_at(quantile).map(ms).unwrap_or_default();
        let against: Vec<String> = row
            .others()
            .map(|(peer, figures)| {
                let cpu = in_all(&figures.cpu_us());
                let cpu = if cpu > 0.0 { format!("; {cpu:.0} µs") } else { String::new() };
                format!("{} ({:.0}{cpu})", row.against(peer, figures), figures.rate())
            })
            .collect();
        let cpu_us = ours.cpu_us();
        table.add_row([
            row.name.to_owned(),
            format!("{:.0}", ours.rate()),
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0),
            ours.late.to_string(),
            ours.dropped.to_string(),
            format!("{:.0}", in_all(&cpu_us)),
            by_process(&cpu_us),
            by_process(&row.rss_mb),
            against.join("\n"),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(8) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Latency against the rate at which requests came, where that was raised step by step; None: in no row.
pub(crate) fn throughput_latency(rows: &[Row]) -> Option<Plot> {
    let steps: Vec<_> = rows.iter().flat_map(Row::steps).collect();
    let line = |peer: &str, quantile: &str, of: fn(&Step) -> u64, steps: &[Step]| {
        let mut steps = steps.to_vec();
        steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
        let points = steps.iter().map(|step| (step.rate, of(step).max(1) as f64 / 1_000.0)).collect();
        Line { name: format!("{peer} {quantile}"), points }
    };
    let lines = steps
        .iter()
        .flat_map(|(peer, steps)| {
            [line(peer, "p50", |step| step.p50_us, steps), line(peer, "p99", |step| step.p99_us, steps)]
        })
        .collect();
    (!steps.is_empty()).then(|| Plot {
        title: "Holds of one schedule: latency against the rate of arrivals".to_owned(),
        x: "arrivals a second",
        x_log: true,
        panels: vec![Panel { y: "latency, ms", y_log: true, lines }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sustains_nothing_has_no_ratio() {
        let figures = |rate| Figures::of_steps(rate, Vec::new());
        let all = [(OURS, figures(500.0)), ("sync", figures(0.0)), ("bare", figures(200.0))];
        let row = Row::new("sustained", all.into(), BTreeMap::new());
        assert_eq!(row.json()["ratio"], json!({ "sync": null, "bare": 2.5 }));
        assert!(line(&row).ends_with("2.50 × bare, sync"), "{}", line(&row));
    }
}
