//! How the cost of one request grows with what there is already: outcomes, those who wait, seats, workers, partitions.
//!
//! A call measures one kind of growth on the system that it finds, ours only. Workers and partitions do not change while a system runs: each
//! call adds one point to those of earlier calls, which are in a file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::messages::Message as _;
use common::messages::reservations::Hold;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde::{Deserialize, Serialize};

use crate::plots::{Line, Panel, Plot};
use crate::scenarios::{Bench, Peer, Size, progress};

/// What can grow. `cargo xtask bench --growth` gives each a system of its own.
pub(crate) const NAMES: [&str; 6] = ["requests", "waiting", "seats", "sold", "workers", "partitions"];

const REQUESTS: [i64; 4] = [0, 1_000_000, 5_000_000, 20_000_000];
const REQUESTS_QUICK: [i64; 2] = [0, 1_000_000];
const WAITING: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
const SEATS: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
const SEATS_QUICK: [usize; 3] = [1_000, 10_000, 100_000];
/// Rows of one INSERT.
const ROWS_AT_ONCE: i64 = 250_000;
/// Rows are filled in only if so many times their size is free: there are indexes, the write-ahead log, and all else on the disk.
const DISK_FACTOR: i64 = 3;
/// A process is plotted if it takes more than one in so many parts of the whole.
const SEEN_IN: f64 = 40.0;
const WORKER: &str = "reservation-worker";
const BROKER_WAIT_MAX: Duration = Duration::from_secs(10);

/// What one request costs where there is so much of what grows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Point {
    /// How much there is.
    pub(crate) x: f64,
    /// Requests a second.
    pub(crate) rate_per_s: f64,
    /// Of one request, in microseconds.
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    /// Of one request, in microseconds, by process.
    pub(crate) cpu_us_per_request: BTreeMap<String, f64>,
}

/// Points by what grows, in the order of x.
pub(crate) type Growths = BTreeMap<String, Vec<Point>>;

/// Measures what grows by this name.
///
/// # Errors
/// A scenario fails.
pub(crate) async fn measure(bench: &Bench, name: &str) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    match name {
        "requests" => {
            for rows in if bench.size == Size::Full { &REQUESTS[..] } else { &REQUESTS_QUICK[..] } {
                let Some(x) = fill_requests(bench, *rows).await? else { break };
                points.push(told(name, bench.run("holds-hot").await?.point(x)));
            }
        }
        "waiting" => {
            for waiting in WAITING {
                points.push(told(name, bench.polls(waiting).await?.point(float(waiting))));
            }
        }
        "seats" => {
            for seats in if bench.size == Size::Full { &SEATS[..] } else { &SEATS_QUICK[..] } {
                points.push(told(name, bench.best_available_of(*seats).await?.point(float(*seats))));
            }
        }
        "sold" => {
            for (quarter, row) in bench.best_available_by_quarters().await?.iter().enumerate() {
                points.push(told(name, row.point(25.0 * float(quarter))));
            }
        }
        "workers" => {
            let workers = float(bench.processes.count_of(WORKER));
            points.push(told(name, bench.run("holds-spread").await?.point(workers)));
        }
        "partitions" => {
            let partitions = float(partitions()?);
            points.push(told(name, bench.run("holds-spread").await?.point(partitions)));
        }
        other => bail!("{other} does not grow; what does: {}", NAMES.join(", ")),
    }
    Ok(points)
}

/// One line for people who wait.
fn told(name: &str, point: Point) -> Point {
    let cpu: f64 = point.cpu_us_per_request.values().sum();
    println!("{name} {}: {:.0} a second, p99 {} µs, CPU {cpu:.0} µs", point.x, point.rate_per_s, point.p99_us);
    point
}

#[expect(clippy::cast_precision_loss, reason = "for a plot")]
fn float(count: usize) -> f64 {
    count as f64
}

/// Fills `requests` up by so many rows in all, each with the body of a hold that was made; how many there are now. None: the disk has
/// no room for them.
async fn fill_requests(bench: &Bench, rows: i64) -> Result<Option<f64>> {
    let pool = &bench.world.pool;
    let filled =
        "SELECT count(*) FILTER (WHERE \"offset\" < 0), count(*), pg_total_relation_size('requests') FROM requests";
    let (already, all, bytes): (i64, i64, i64) = sqlx::query_as(filled).fetch_one(pool).await?;
    let missing = rows - already;
    let needed = missing * (bytes / all.max(1)) * DISK_FACTOR;
    let free = free_bytes(&bench.folder)?;
    if needed > free {
        eprintln!("requests: {rows} rows are left out: they want {needed} bytes, and the disk has {free}");
        return Ok(None);
    }
    let progress = progress("filling requests", Peer::Ours);
    progress.set_length(missing.unsigned_abs());
    for first in (0..missing).step_by(usize::try_from(ROWS_AT_ONCE)?) {
        insert_requests(bench, ROWS_AT_ONCE.min(missing - first)).await?;
        progress.inc(ROWS_AT_ONCE.unsigned_abs());
    }
    progress.finish_and_clear();
    bench.world.analyze().await?;
    bench.world.checkpoint().await?;
    #[expect(clippy::cast_precision_loss, reason = "for a plot")]
    Ok(Some((all + missing) as f64))
}

async fn insert_requests(bench: &Bench, rows: i64) -> Result<()> {
    // No record has an offset below 0, so these rows belong to none.
    sqlx::query(
        "INSERT INTO requests (request_id, user_id, kind, status, http_status, body, request_hash, submitted_at, finished_at,
                               topic, partition, \"offset\")
         SELECT gen_random_uuid(), gen_random_uuid(), kind, status, http_status, body, request_hash, submitted_at, now(),
                topic, partition, -n
         FROM (SELECT * FROM requests WHERE kind = 'reservation.hold' AND status = 'SUCCEEDED' LIMIT 1) AS made,
              generate_series(1, $1) AS n",
    )
    .bind(rows)
    .execute(&bench.world.pool)
    .await?;
    Ok(())
}

/// Bytes that are free on the disk of this folder, or of the nearest one above it that exists.
fn free_bytes(folder: &Path) -> Result<i64> {
    let there = folder.ancestors().find(|folder| folder.exists()).context("no folder")?;
    let disk = rustix::fs::statvfs(there).with_context(|| there.display().to_string())?;
    Ok(i64::try_from(disk.f_bavail.saturating_mul(disk.f_frsize)).unwrap_or(i64::MAX))
}

/// Partitions of the holds' topic.
fn partitions() -> Result<usize> {
    let servers = std::env::var("KAFKA_BOOTSTRAP_SERVERS").context("KAFKA_BOOTSTRAP_SERVERS")?;
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", servers).create()?;
    let metadata = consumer.fetch_metadata(Some(Hold::TOPIC), BROKER_WAIT_MAX)?;
    Ok(metadata.topics().iter().map(|topic| topic.partitions().len()).sum())
}

/// Adds points to those in the file, and writes it; all of them.
///
/// # Errors
/// The file holds something else, or cannot be written.
pub(crate) fn add_to(file: &Path, name: &str, points: Vec<Point>) -> Result<Growths> {
    let mut growths: Growths = if file.exists() {
        let text = std::fs::read(file).with_context(|| file.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| format!("{} holds no growth", file.display()))?
    } else {
        Growths::new()
    };
    add(growths.entry(name.to_owned()).or_default(), points);
    let text = serde_json::to_string_pretty(&growths)?;
    std::fs::write(file, text + "\n").with_context(|| file.display().to_string())?;
    Ok(growths)
}

/// A point takes the place of an older one with the same x.
fn add(points: &mut Vec<Point>, new: Vec<Point>) {
    points.retain(|old| new.iter().all(|new| new.x.total_cmp(&old.x).is_ne()));
    points.extend(new);
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
}

/// Writes `growth-<what>.svg` for each that has points.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn plot(growths: &Growths, folder: &Path) -> Result<()> {
    for (name, points) in growths.iter().filter(|(_, points)| !points.is_empty()) {
        // What there can be none of has no place on a logarithmic axis.
        let x_log = name != "sold";
        let (title, x) = match name.as_str() {
            "requests" => ("Holds of one schedule, by the outcomes that are stored", "rows in requests"),
            "waiting" => ("Polls, by how many wait", "waiting tokens"),
            "seats" => ("Best available, four together, by the seats of the house", "seats"),
            "sold" => ("Best available, four together, by what is sold of the house", "percent sold before"),
            "workers" => ("Holds of 48 schedules, by workers", "workers of each kind"),
            _ => ("Holds of 48 schedules, by partitions", "partitions of each topic"),
        };
        let rate = Line { name: "a second".to_owned(), points: line(points, |point| Some(point.rate_per_s)) };
        let panels = vec![
            Panel { y: "CPU of one request, µs", y_log: false, lines: cpu_lines(points) },
            Panel { y: "requests a second", y_log: false, lines: vec![rate] },
            Panel {
                y: "latency, ms",
                y_log: true,
                lines: vec![
                    Line { name: "p50".to_owned(), points: line(points, |point| Some(ms(point.p50_us))) },
                    Line { name: "p99".to_owned(), points: line(points, |point| Some(ms(point.p99_us))) },
                ],
            },
        ];
        Plot { title: title.to_owned(), x, x_log, panels }.write(&folder.join(format!("growth-{name}.svg")))?;
    }
    Ok(())
}

fn line(points: &[Point], y: impl Fn(&Point) -> Option<f64>) -> Vec<(f64, f64)> {
    points.iter().filter_map(|point| Some((point.x, y(point)?))).collect()
}

#[expect(clippy::cast_precision_loss, reason = "for a plot")]
fn ms(us: u64) -> f64 {
    us.max(1) as f64 / 1_000.0
}

/// The whole, and each process that takes part; all workers of one kind are one.
fn cpu_lines(points: &[Point]) -> Vec<Line> {
    let of = |point: &Point, kind: &str| -> f64 {
        point.cpu_us_per_request.iter().filter(|(name, _)| kind_of(name) == kind).map(|(_, us)| us).sum()
    };
    let kinds: BTreeSet<&str> =
        points.iter().flat_map(|point| point.cpu_us_per_request.keys().map(|name| kind_of(name))).collect();
    let is_seen = |point: &Point, kind: &str| of(point, kind) * SEEN_IN > point.cpu_us_per_request.values().sum();
    let taking_part = kinds.into_iter().filter(|kind| points.iter().any(|point| is_seen(point, kind)));
    let all =
        Line { name: "all".to_owned(), points: line(points, |point| Some(point.cpu_us_per_request.values().sum())) };
    let each =
        taking_part.map(|kind| Line { name: kind.to_owned(), points: line(points, |point| Some(of(point, kind))) });
    std::iter::once(all).chain(each).collect()
}

/// `payment-worker` of `payment-worker-2`.
fn kind_of(process: &str) -> &str {
    process.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(x: f64, cpu: &[(&str, f64)]) -> Point {
        let cpu_us_per_request = cpu.iter().map(|(name, us)| ((*name).to_owned(), *us)).collect();
        Point { x, rate_per_s: 100.0, p50_us: 1_000, p99_us: 2_000, cpu_us_per_request }
    }

    #[test]
    fn points_of_several_calls_are_in_order_and_the_newest_counts() {
        let mut points = vec![point(4.0, &[]), point(1.0, &[("api", 9.0)])];
        add(&mut points, vec![point(2.0, &[]), point(1.0, &[("api", 5.0)])]);
        assert_eq!(points.iter().map(|point| point.x).collect::<Vec<_>>(), [1.0, 2.0, 4.0]);
        assert!((points[0].cpu_us_per_request["api"] - 5.0).abs() < 1e-9);
    }

    #[test]
    fn workers_of_one_kind_are_one_line_and_who_does_nothing_has_none() {
        let points = [
            point(1.0, &[("api", 90.0), ("reservation-worker", 30.0), ("token-worker", 0.1)]),
            point(2.0, &[("api", 80.0), ("reservation-worker", 20.0), ("reservation-worker-2", 15.0)]),
        ];
        let lines = cpu_lines(&points);
        let shown: Vec<_> = lines.iter().map(|line| (line.name.as_str(), line.points[1].1)).collect();
        assert_eq!(shown, [("all", 115.0), ("api", 80.0), ("reservation-worker", 35.0)]);
    }
}
