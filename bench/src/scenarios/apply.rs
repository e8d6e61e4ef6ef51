//! The reservation worker alone, against a backlog.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::ids::{RequestId, ScheduleId, SeatId};
use common::messages::reservations::Hold;
use common::messages::{self, Message as _};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use uuid::Uuid;

use super::{Bench, Size};
use crate::comparators::pgbench::{self, Ground};
use crate::processes::us_each;
use crate::report::{Figures, Row};
use crate::world::{Buyer, House, SEATS_MAX, open_queue};

const WORKER: &str = "reservation-worker";
const HOLDS_EACH: usize = 16;
/// Holds of one transaction of pgbench's batch, and the part of the seats that row by row takes.
const PGBENCH_BATCH: usize = 200;
const PGBENCH_ROWS_PART: usize = 5;
const LOOK_EVERY: Duration = Duration::from_millis(20);
const CAUGHT_UP_WITHIN: Duration = Duration::from_mins(10);

/// How fast a backlog of holds is applied, until the last one's outcome is in the database.
pub(super) async fn apply(bench: &Bench) -> Result<Row> {
    let count = match bench.size {
        Size::Full => 1_000_000,
        Size::Quick => 100_000,
        Size::Smoke => 10_000,
    };
    let schedules = count / SEATS_MAX.min(count);
    let each = count / schedules;
    // Two more: for Postgres alone.
    let mut house = bench.world.house(schedules + 2, i64::try_from(each)?, open_queue()).await?;
    let alone = house.schedules.split_off(schedules);
    let buyers = bench.world.buyers(each / HOLDS_EACH).await?;
    let pool = &bench.world.pool;
    // One small table says how far the log is applied: to ask it costs what is measured next to nothing.
    let applied = "SELECT coalesce(sum(next_offset), 0)::bigint FROM applied_offsets WHERE topic = $1";
    let before: i64 = sqlx::query_scalar(applied).bind(Hold::TOPIC).fetch_one(pool).await?;
    let pid = bench.processes.pid(WORKER)?.to_string();
    signal(&pid, "STOP")?;
    let appended = backlog(&house, &buyers, each);
    let cpu_before = bench.processes.cpu();
    let begun = Instant::now();
    signal(&pid, "CONT")?;
    appended?;
    loop {
        let now: i64 = sqlx::query_scalar(applied).bind(Hold::TOPIC).fetch_one(pool).await?;
        let done = now - before;
        if usize::try_from(done) == Ok(count) {
            break;
        }
        ensure!(begun.elapsed() < CAUGHT_UP_WITHIN, "{done} of {count} are applied");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let elapsed = begun.elapsed().as_secs_f64();
    let cpu = us_each(&cpu_before, &bench.processes.cpu(), count as u64);
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let figures = Figures::of_rate(count as f64 / elapsed);
    let row = Row::new("apply", BTreeMap::from([("ours", figures)]), cpu, bench.processes.memory_mb());
    if bench.alone {
        return Ok(row);
    }
    let ground = |schedule: i64| Ground {
        database_url: &bench.database_url,
        folder: &bench.folder,
        schedule_id: ScheduleId(schedule),
        total_seats: i64::try_from(each).unwrap_or_default(),
    };
    let batch = pgbench::batch(&ground(alone[0]), i64::try_from(each / PGBENCH_BATCH)?)?;
    let rows = pgbench::rows(&ground(alone[1]), i64::try_from(each / PGBENCH_ROWS_PART)?)?;
    Ok(row.against("batch", Figures::of_rate(batch)).against("rows", Figures::of_rate(rows)))
}

fn signal(pid: &str, name: &str) -> Result<()> {
    let status = Command::new("kill").args(["-s", name, pid]).status().context("kill")?;
    ensure!(status.success(), "no process {pid}");
    Ok(())
}

/// Appends one hold for each seat.
fn backlog(house: &House, buyers: &[Buyer], each: usize) -> Result<()> {
    let servers = std::env::var("KAFKA_BOOTSTRAP_SERVERS").context("KAFKA_BOOTSTRAP_SERVERS")?;
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("partitioner", "murmur2_random")
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "2000000")
        .create()?;
    for schedule in &house.schedules {
        for n in 0..each {
            let hold = Hold {
                request_id: RequestId(Uuid::new_v4()),
                request_hash: None,
                user_id: buyers[n / HOLDS_EACH].user_id,
                schedule_id: ScheduleId(*schedule),
                seat_ids: Some(vec![SeatId(House::seat(*schedule, i64::try_from(n)?))]),
                seats: None,
                best_available: None,
                pay: false,
            };
            let (key, value) = (hold.key(), messages::write(&hold));
            let record = BaseRecord::to(Hold::TOPIC).key(&key).payload(&value);
            producer.send(record).map_err(|(error, _)| error)?;
        }
    }
    Ok(producer.flush(Duration::from_mins(1))?)
}
