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

use super::{Bench, ROUNDS, Size};
use crate::comparators::pgbench::{self, Ground};
use crate::processes::{Cpu, used};
use crate::report::{Figures, Row};
use crate::world::{Buyer, House, SEATS_MAX, open_queue};

const WORKER: &str = "reservation-worker";
const HOLDS_EACH: usize = 16;
/// The part of the seats that pgbench takes row by row.
const PGBENCH_ROWS_PART: usize = 5;
const LOOK_EVERY: Duration = Duration::from_millis(20);
const CAUGHT_UP_WITHIN: Duration = Duration::from_mins(10);

/// How fast a backlog of holds is applied, until the last one's outcome is in the database; half of it in each round, in turn with Postgres
/// alone.
pub(super) async fn apply(bench: &Bench) -> Result<Row> {
    let count = match bench.size {
        Size::Full => 1_000_000,
        Size::Quick => 100_000,
        Size::Smoke => 10_000,
    } / ROUNDS;
    let each = count.min(SEATS_MAX / 2);
    let (schedules, seats) = (count / each, i64::try_from(each)?);
    let (batches, rows) = (seats / pgbench::BATCH_HOLDS, each / PGBENCH_ROWS_PART);
    // Two more in each round: for Postgres alone.
    let mut house = bench.world.house(ROUNDS * (schedules + 2), seats, open_queue()).await?;
    let buyers = bench.world.buyers(each.div_ceil(HOLDS_EACH)).await?;
    let mut figures: BTreeMap<&'static str, Figures> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let mut mine = house.schedules.split_off(house.schedules.len() - schedules - 2);
        let for_pgbench = mine.split_off(schedules);
        let (took, cpu) = applied(bench, &mine, &buyers, each).await?;
        figures.entry("ours").or_default().add_work(count as u64, took, &cpu);
        if bench.alone {
            continue;
        }
        let ground = |schedule: i64| Ground {
            database_url: &bench.database_url,
            folder: &bench.folder,
            schedule_id: ScheduleId(schedule),
            total_seats: seats,
        };
        let rate = pgbench::batch(&ground(for_pgbench[0]), batches)?;
        figures.entry("batch").or_default().add_rate((batches * pgbench::BATCH_HOLDS).cast_unsigned(), rate);
        let rate = pgbench::rows(&ground(for_pgbench[1]), i64::try_from(rows)?)?;
        figures.entry("rows").or_default().add_rate(rows as u64, rate);
    }
    Ok(Row::new("apply", figures, bench.processes.memory_mb()))
}

/// How long the worker takes for one hold of each seat of these schedules, and what CPU.
async fn applied(bench: &Bench, schedules: &[i64], buyers: &[Buyer], each: usize) -> Result<(Duration, Cpu)> {
    let (pool, count) = (&bench.world.pool, schedules.len() * each);
    // One small table says how far the log is applied: to ask it costs what is measured next to nothing.
    let applied = "SELECT coalesce(sum(next_offset), 0)::bigint FROM applied_offsets WHERE topic = $1";
    let before: i64 = sqlx::query_scalar(applied).bind(Hold::TOPIC).fetch_one(pool).await?;
    let pid = bench.processes.pid(WORKER)?.to_string();
    signal(&pid, "STOP")?;
    let appended = backlog(schedules, buyers, each);
    let (cpu, begun) = (bench.processes.cpu(), Instant::now());
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
    let measured = (begun.elapsed(), used(&cpu, &bench.processes.cpu()));
    let held = "SELECT count(*) FROM reservations WHERE schedule_id = ANY($1) AND status = 'HELD'";
    let held: i64 = sqlx::query_scalar(held).bind(schedules).fetch_one(pool).await?;
    ensure!(usize::try_from(held) == Ok(count), "{held} of {count} seats are held");
    Ok(measured)
}

fn signal(pid: &str, name: &str) -> Result<()> {
    let status = Command::new("kill").args(["-s", name, pid]).status().context("kill")?;
    ensure!(status.success(), "no process {pid}");
    Ok(())
}

/// Appends one hold for each seat.
fn backlog(schedules: &[i64], buyers: &[Buyer], each: usize) -> Result<()> {
    let servers = std::env::var("KAFKA_BOOTSTRAP_SERVERS").context("KAFKA_BOOTSTRAP_SERVERS")?;
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("partitioner", "murmur2_random")
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "2000000")
        .create()?;
    for schedule in schedules {
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
