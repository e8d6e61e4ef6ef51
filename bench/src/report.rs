//! What was measured, as a table for people and as JSON for machines.

use std::collections::BTreeMap;

use anyhow::Result;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::load::Measured;

/// One peer's figures in one scenario, over all its turns.
pub(crate) struct Figures {
    latency: Histogram<u64>,
    count: u64,
    seconds: f64,
    late: u64,
    /// Of the peers that are measured otherwise than by requests.
    fixed_rate: Option<f64>,
}

impl Default for Figures {
    fn default() -> Self {
        let latency = Histogram::new(3).expect("three digits");
        Self { latency, count: 0, seconds: 0.0, late: 0, fixed_rate: None }
    }
}

impl Figures {
    /// Only a rate.
    pub(crate) fn of_rate(rate: f64) -> Self {
        Self { fixed_rate: Some(rate), ..Self::default() }
    }

    /// Adds a turn.
    pub(crate) fn add(&mut self, measured: &Measured) -> Result<()> {
        self.latency.add(&measured.latency)?;
        self.count += measured.count;
        self.seconds += measured.elapsed.as_secs_f64();
        self.late += measured.late;
        Ok(())
    }

    fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        self.fixed_rate.unwrap_or(self.count as f64 / self.seconds.max(1e-9))
    }

    fn json(&self) -> Value {
        let at = |quantile| self.latency.value_at_quantile(quantile);
        json!({
            "rate_per_s": self.rate().round(),
            "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "max_us": self.latency.max(),
            "late": self.late,
        })
    }
}

/// One scenario's result.
pub(crate) struct Row {
    name: &'static str,
    figures: BTreeMap<&'static str, Figures>,
    cpu_us: BTreeMap<String, f64>,
    rss_mb: BTreeMap<String, f64>,
}

const OURS: &str = "ours";

impl Row {
    pub(crate) fn new(
        name: &'static str,
        figures: BTreeMap<&'static str, Figures>,
        cpu_us: BTreeMap<String, f64>,
        rss_mb: BTreeMap<String, f64>,
    ) -> Self {
        Self { name, figures, cpu_us, rss_mb }
    }

    /// Adds a peer that was measured by itself.
    pub(crate) fn against(mut self, peer: &'static str, figures: Figures) -> Self {
        self.figures.insert(peer, figures);
        self
    }

    fn ours(&self) -> &Figures {
        &self.figures[OURS]
    }

    fn others(&self) -> impl Iterator<Item = (&'static str, &Figures)> {
        self.figures.iter().filter(|(peer, _)| **peer != OURS).map(|(peer, figures)| (*peer, figures))
    }

    fn ratio(&self, other: &Figures) -> f64 {
        (self.ours().rate() / other.rate().max(1e-9) * 100.0).round() / 100.0
    }

    fn json(&self) -> Value {
        let round = |values: &BTreeMap<String, f64>| -> BTreeMap<String, f64> {
            values.iter().map(|(name, value)| (name.clone(), (value * 10.0).round() / 10.0)).collect()
        };
        let mut value = self.ours().json();
        value["cpu_us_per_request"] = json!(round(&self.cpu_us));
        value["rss_mb"] = json!(round(&self.rss_mb));
        value["against"] = self.others().map(|(peer, figures)| (peer.to_owned(), figures.json())).collect();
        value["ratio"] = self.others().map(|(peer, figures)| (peer.to_owned(), json!(self.ratio(figures)))).collect();
        value
    }
}

/// One row for people who wait for the others.
pub(crate) fn line(row: &Row) -> String {
    let ours = row.ours();
    let against: Vec<String> =
        row.others().map(|(peer, figures)| format!("{:.2} × {peer}", row.ratio(figures))).collect();
    format!("{:16} {:>8.0} a second  {}", row.name, ours.rate(), against.join(", "))
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
        "scenario", "a second", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "late", "CPU µs", "of which", "against",
    ]);
    for row in rows {
        let ours = row.ours();
        let ms = |us: u64| {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
            let ms = us as f64 / 1_000.0;
            format!("{ms:.1}")
        };
        let at = |quantile| ms(ours.latency.value_at_quantile(quantile));
        let mut cpu: Vec<(&String, &f64)> = row.cpu_us.iter().filter(|(_, us)| **us >= 0.5).collect();
        cpu.sort_by(|a, b| b.1.total_cmp(a.1));
        let parts: Vec<String> = cpu.iter().map(|(name, us)| format!("{name} {us:.0}")).collect();
        let against: Vec<String> = row
            .others()
            .map(|(peer, figures)| format!("{:.2} × {peer} ({:.0})", row.ratio(figures), figures.rate()))
            .collect();
        table.add_row([
            row.name.to_owned(),
            format!("{:.0}", ours.rate()),
            at(0.5),
            at(0.99),
            at(0.999),
            ms(ours.latency.max()),
            ours.late.to_string(),
            format!("{:.0}", row.cpu_us.values().sum::<f64>()),
            parts.join(", "),
            against.join("\n"),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(7) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
