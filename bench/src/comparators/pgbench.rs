//! Postgres alone: pgbench runs the statements of a hold, row by row as [`super::sync`] sends them, or [`BATCH_HOLDS`] in one transaction
//! as the reservation worker does with a backlog. No HTTP, no tokens, no log, no rules: what the database could do if all else were
//! free.
//!
//! Both take fresh seats of a schedule that is theirs alone, one seat a hold, and leave everything there. Buyers and reservations have
//! ids that are made from the seat's. A worker has a batch's arrays at hand; so has this one: they are in a table beforehand.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use common::config::Secret;
use common::ids::ScheduleId;

use super::sync::{HOLD_READ, HOLD_TAKE};
use crate::peers::usual;

/// Connections of the row-by-row run: as many as the synchronous service has.
const ROW_CLIENTS: i64 = 16;
/// Holds in one transaction of the batch run: as many as a worker takes at most, by default (`BATCH_RECORDS_MAX`).
pub(crate) const BATCH_HOLDS: i64 = 500;
/// Where Debian has the programs of each version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// Holds of one buyer in a batch, one after the other, as in the backlog of `apply`.
const HOLDS_EACH: i64 = 16;

/// Where the seats are.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// Postgres, as a URL.
    pub database_url: &'a Secret,
    /// Where the scripts are written; it is made if it is not there.
    pub folder: &'a Path,
    /// A schedule in which nobody else holds seats meanwhile.
    pub schedule_id: ScheduleId,
    /// How many seats it has.
    pub total_seats: i64,
}

/// Holds seats row by row, one a transaction, over 16 connections; answers holds per second. At most `transactions`, and no more than
/// there are seats.
///
/// # Errors
/// There is no pgbench, it failed, too few seats are left, or not all that it held are there afterwards.
pub fn rows(ground: &Ground<'_>, transactions: i64) -> anyhow::Result<f64> {
    let run = Run { name: "rows", clients: ROW_CLIENTS, holds: 1, settings: ROW_SETTINGS };
    let state = State::read(ground)?;
    run.measure(ground, &state, transactions, &rows_script(&state))
}

/// Holds [`BATCH_HOLDS`] seats a transaction over one connection; answers holds per second. At most `transactions`, and no more than
/// there are seats.
///
/// # Errors
/// As [`rows`].
pub fn batch(ground: &Ground<'_>, transactions: i64) -> anyhow::Result<f64> {
    let run = Run { name: "batch", clients: 1, holds: BATCH_HOLDS, settings: BATCH_SETTINGS };
    let state = State::read(ground)?;
    psql(ground, &batches(ground, &state, transactions))?;
    let rate = run.measure(ground, &state, transactions, &batch_script());
    psql(ground, "DROP TABLE pgbench_batches")?;
    rate
}

/// As the synchronous service's connections.
const ROW_SETTINGS: &str = "-c enable_seqscan=off -c plan_cache_mode=force_generic_plan";
/// As a worker's.
const BATCH_SETTINGS: &str = "-c enable_seqscan=off -c jit=off";

struct Run {
    name: &'static str,
    clients: i64,
    holds: i64,
    settings: &'static str,
}

impl Run {
    fn measure(&self, ground: &Ground<'_>, state: &State, transactions: i64, script: &str) -> anyhow::Result<f64> {
        let left = ground.total_seats - state.taken;
        let rounds = (transactions / self.clients).min(left / (self.clients * self.holds));
        ensure!(rounds > 0, "{left} seats are left in schedule {}: too few", ground.schedule_id);
        fs::create_dir_all(ground.folder).with_context(|| format!("cannot make {}", ground.folder.display()))?;
        let file = ground.folder.join(format!("{}.sql", self.name));
        fs::write(&file, script).with_context(|| format!("cannot write {}", file.display()))?;
        let first = state.first_seat(ground);
        let output = program("pgbench")?
            .args(["--no-vacuum", "--protocol=prepared", "--define=round=-1"])
            .arg(format!("--define=first={first}"))
            .arg(format!("--define=clients={}", self.clients))
            .arg(format!("--client={}", self.clients))
            .arg(format!("--transactions={rounds}"))
            .arg(format!("--file={}", file.display()))
            .arg(ground.database_url.expose())
            .env("PGOPTIONS", self.settings)
            .output()
            .context("cannot start pgbench")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&output.stderr));
        let held = State::read(ground)?.taken - state.taken;
        let expected = rounds * self.clients * self.holds;
        ensure!(held == expected, "pgbench made {held} holds instead of {expected}");
        let holds = u32::try_from(self.holds).map(f64::from)?;
        Ok(tps(&text).with_context(|| format!("pgbench told no tps: {text}"))? * holds)
    }
}

/// Of `tps = 1234.567890 (without initial connection time)`.
fn tps(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("tps = "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What is in the database before a run.
struct State {
    concert_id: i64,
    /// Seats that are held; they are taken in order, so these are the first ones.
    taken: i64,
}

impl State {
    fn read(ground: &Ground<'_>) -> anyhow::Result<Self> {
        let id = ground.schedule_id;
        let query = format!(
            "SELECT concert_id, (SELECT count(*) FROM seats WHERE seat_id BETWEEN {id}::bigint << 18
                                 AND ({id}::bigint << 18) + 262143 AND status <> 'AVAILABLE')
             FROM schedules WHERE schedule_id = {id}"
        );
        let text = psql(ground, &query)?;
        let mut numbers = text.split_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(concert_id)), Some(Ok(taken))) => Ok(Self { concert_id, taken }),
            _ => bail!("there is no schedule {id}"),
        }
    }

    /// The first one that is free.
    fn first_seat(&self, ground: &Ground<'_>) -> i64 {
        (ground.schedule_id.0 << 18) + 1 + self.taken
    }
}

/// What psql answers, in columns with a blank in between.
fn psql(ground: &Ground<'_>, sql: &str) -> anyhow::Result<String> {
    let output = program("psql")?
        .args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--tuples-only", "--no-align", "--field-separator= "])
        .args(["--command", sql])
        .arg(ground.database_url.expose())
        .output()
        .context("cannot start psql")?;
    ensure!(output.status.success(), "psql failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program of Postgres: where `pg_config` says, where Debian has it, or on the path.
fn program(name: &str) -> anyhow::Result<Command> {
    let told = match Command::new("pg_config").arg("--bindir").output() {
        Ok(output) => Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error).context("cannot start pg_config"),
    };
    let mut debian: Vec<PathBuf> = match fs::read_dir(DEBIAN) {
        Ok(versions) => versions.flatten().map(|version| version.path().join("bin")).collect(),
        Err(_) => Vec::new(),
    };
    debian.sort();
    let found = told.into_iter().chain(debian.into_iter().rev()).map(|folder| folder.join(name)).find(|it| it.exists());
    Ok(usual(found.unwrap_or_else(|| name.into())))
}

/// Puts expressions in the places of `$1`, `$2`, ….
fn fill(statement: &str, parameters: &[&str]) -> String {
    // From behind, so that `$1` is not found in `$10`.
    (1..)
        .zip(parameters)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .fold(statement.to_owned(), |text, (number, expression)| {
            text.replace(&format!("${number}"), &format!("({expression})"))
        })
}

/// The id of the buyer, the reservation and the request of a seat. A seat is taken once, so they are new.
fn id_of(seat: &str) -> String {
    format!("lpad(to_hex({seat}), 32, '0')::uuid")
}

/// A reservation's body, as long as one is. pgbench takes a colon before a word for one of its variables, so there are blanks.
fn body_of(seat: &str, id: &str) -> String {
    format!(
        r#"'{{"reservation_id": "' || {id} || '", "status": "HELD", "schedule_id": 1234, "concert_id": 1234, "seats": [{{"seat_id": ' || {seat}
           || ', "label": "A-100-42", "price": 150000}}], "total": 150000, "currency": "KRW", "hold_expires_at": "' || now()
           || '", "payment_required": true, "payment_id": null}}'"#
    )
}

/// One hold in one transaction, as in `sync::holds`; the buyer's lock comes in one round trip with BEGIN.
fn rows_script(state: &State) -> String {
    let seat = ":seat::bigint";
    let (id, seats) = (id_of(seat), format!("ARRAY[{seat}]"));
    let schedule = format!("{seat} >> 18");
    let concert = format!("{}::bigint", state.concert_id);
    let body = body_of(seat, &id);
    let read = fill(HOLD_READ, &[&id, &concert, seat, &id, &schedule, &seats]);
    let end = "now() + interval '1 hour'";
    let take = fill(HOLD_TAKE, &[&id, &id, &concert, &schedule, &seats, "150000::bigint", end, &body]);
    format!(
        r"\set round :round + 1
\set seat :first + :round * :clients + :client_id
\startpipeline
BEGIN;
SELECT pg_advisory_xact_lock({seat});
\endpipeline
{read};
{take};
COMMIT;
"
    )
}

/// The arrays of each batch, a row for each: of its holds, and of its buyers.
fn batches(ground: &Ground<'_>, state: &State, rounds: i64) -> String {
    let seat = format!("({} + round * {BATCH_HOLDS} + i)", state.first_seat(ground));
    let buyer = id_of(&format!("({seat} - i % {HOLDS_EACH})"));
    let (schedule, concert) = (format!("{}::bigint", ground.schedule_id), format!("{}::bigint", state.concert_id));
    let body = body_of(&seat, &id_of(&seat)).replace('\n', " ");
    let of_holds = [
        ("ids", id_of(&seat).as_str()),
        ("buyers", &buyer),
        ("concerts", &concert),
        ("schedules", &schedule),
        ("totals", "150000::bigint"),
        ("times", "now()"),
        ("ends", "now() + interval '1 hour'"),
        ("places", "(i + 1)::integer"),
        ("seats", &seat),
        ("kinds", "'reservation.hold'::text"),
        ("statuses", "'SUCCEEDED'::request_status"),
        ("codes", "201::smallint"),
        ("bodies", &body),
        ("hashes", "NULL::text"),
        ("topics", "'bench.pgbench'::text"),
        ("partitions", "0"),
    ]
    .map(|(name, expression)| (name, expression.to_owned(), 1));
    let of_buyers = [("own_schedules", schedule.clone(), HOLDS_EACH), ("own_buyers", buyer.clone(), HOLDS_EACH)];
    let all = of_holds.into_iter().chain(of_buyers);
    let (columns, kept): (Vec<String>, Vec<String>) = all
        .map(|(name, expression, step)| {
            let rows = format!("generate_series(0, {}, {step}) AS i", BATCH_HOLDS - 1);
            let column = format!("ARRAY(SELECT {expression} FROM {rows}) AS {name}");
            // To read it is not to decompress it.
            (column, format!("ALTER COLUMN {name} SET STORAGE EXTERNAL"))
        })
        .unzip();
    let batches =
        |rounds: i64| format!("SELECT round, {} FROM generate_series(0, {rounds} - 1) AS round", columns.join(", "));
    format!(
        "CREATE UNLOGGED TABLE pgbench_batches AS {};
         ALTER TABLE pgbench_batches ADD PRIMARY KEY (round), {};
         INSERT INTO pgbench_batches {}; ANALYZE pgbench_batches",
        batches(0),
        kept.join(", "),
        batches(rounds)
    )
}

/// A batch of the reservation worker: its statements in its order, as `workers/src/runtime/store.rs` and `workers/src/reservations/store.rs`
/// have them. It has met the buyers, and has a map of the seats, as a worker has with such a crowd.
fn batch_script() -> String {
    let arrays = |name: &str| format!("SELECT {name} FROM pgbench_batches WHERE round = :round");
    let of = |names: &str| names.split(' ').map(arrays).collect::<Vec<_>>();
    let filled = |statement: &str, arrays: &[String], others: &[&str]| {
        fill(statement, &arrays.iter().map(String::as_str).chain(others.iter().copied()).collect::<Vec<_>>())
    };
    // Without a type it would be the rows that are looked through.
    let ids = format!("({})::uuid[]", arrays("ids"));
    let known = filled(LOCK_AND_LOOK, &["ARRAY[:seat::bigint >> 18]".to_owned(), ids], &[]);
    let no_seats = ["ARRAY[]::bigint[]".to_owned()];
    let buyers = filled(LOOK, &[&no_seats[..], &of("own_schedules own_buyers")].concat(), &[]);
    let columns = of("ids buyers concerts schedules totals times ends places places seats ids");
    let hold = filled(INSERT_HOLDS, &columns, &["now() + interval '1 hour'"]);
    let told = of("ids buyers kinds statuses codes bodies hashes times times topics partitions seats");
    let next = ["'bench.pgbench'", "ARRAY[0]", "ARRAY[:seat::bigint]", "ARRAY[0]", "now()"];
    let conclude = filled(CONCLUDE, &told, &next);
    let statements = [known, buyers, hold, conclude].join(";\n");
    format!("\\set round :round + 1\n\\set seat :first + :round * {BATCH_HOLDS}\nBEGIN;\n{statements};\nCOMMIT;\n")
}

const LOCK_AND_LOOK: &str = r#"SELECT now(), r.request_id, r.user_id, r.kind, r.status, r.http_status, r.body, r.request_hash, r.submitted_at,
       r.finished_at, r.topic, r.partition, r."offset"
FROM (SELECT count(pg_advisory_xact_lock(id)) FROM UNNEST($1::bigint[]) AS t (id)) AS locked
LEFT JOIN requests r ON r.request_id = ANY($2)"#;

const LOOK: &str = "SELECT seat_id, status = 'AVAILABLE' AS free, NULL::bigint, NULL::uuid, NULL::bigint AS live
FROM seats WHERE seat_id = ANY($1)
UNION ALL
SELECT NULL, NULL, b.schedule_id, b.user_id, SUM(cardinality(r.seat_ids))::bigint
FROM UNNEST($2::bigint[], $3::uuid[]) AS b (schedule_id, user_id)
JOIN reservations r ON r.user_id = b.user_id AND r.schedule_id = b.schedule_id
WHERE r.status IN ('HELD', 'PAID')
GROUP BY b.schedule_id, b.user_id";

const INSERT_HOLDS: &str = "WITH made AS (
    INSERT INTO reservations (reservation_id, user_id, concert_id, schedule_id, total, held_at, hold_expires_at, seat_ids)
    SELECT id, user_id, concert_id, schedule_id, total, held, expires, ($10::bigint[])[first : last]
    FROM (SELECT UNNEST($1::uuid[]) AS id, UNNEST($2::uuid[]) AS user_id, UNNEST($3::bigint[]) AS concert_id,
                 UNNEST($4::bigint[]) AS schedule_id, UNNEST($5::bigint[]) AS total, UNNEST($6::timestamptz[]) AS held,
                 UNNEST($7::timestamptz[]) AS expires, UNNEST($8::integer[]) AS first, UNNEST($9::integer[]) AS last) t),
search AS (
    UPDATE overdue_search SET all_ended_before = LEAST(all_ended_before, $12)
    WHERE all_ended_before > $12 OR $12 < clock_timestamp())
UPDATE seats s SET status = 'HELD', reservation_id = t.reservation_id
FROM (SELECT UNNEST($10::bigint[]) AS seat_id, UNNEST($11::uuid[]) AS reservation_id) t
WHERE s.seat_id = t.seat_id AND s.status = 'AVAILABLE'";

const CONCLUDE: &str = r#"WITH told AS (
    INSERT INTO requests (request_id, user_id, kind, status, http_status, body, request_hash, submitted_at, finished_at, topic,
                          partition, "offset")
    SELECT UNNEST($1::uuid[]), UNNEST($2::uuid[]), UNNEST($3::text[]), UNNEST($4::request_status[]), UNNEST($5::smallint[]),
           UNNEST($6::text[])::json, UNNEST($7::text[]), UNNEST($8::timestamptz[]), UNNEST($9::timestamptz[]), UNNEST($10::text[]),
           UNNEST($11::integer[]), UNNEST($12::bigint[])),
t AS (SELECT * FROM UNNEST($14::integer[], $15::bigint[], $16::bigint[]) AS t (partition, next_offset, first))
INSERT INTO applied_offsets AS a (topic, partition, next_offset, log_time)
SELECT $13, partition, next_offset, $17 FROM t ORDER BY partition
ON CONFLICT (topic, partition) DO UPDATE
SET next_offset = greatest(a.next_offset, excluded.next_offset),
    log_time = CASE WHEN excluded.next_offset > a.next_offset THEN excluded.log_time ELSE a.log_time END
WHERE a.next_offset >= (SELECT t.first FROM t WHERE t.partition = a.partition)
RETURNING a.partition, (a.xmax = 0)"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_take_the_places_of_parameters() {
        let expressions = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
        assert_eq!(fill("SELECT $1, $10, $2", &expressions), "SELECT (a), (j), (b)");
    }

    /// A statement without blanks, and without the types that sqlx wants to know of its columns.
    fn plain(statement: &str) -> String {
        let mut parts = statement.split(" AS \"");
        let first = parts.next().unwrap_or_default().to_owned();
        let rest = parts.map(|part| part.split_once('"').map_or(part, |(_, rest)| rest));
        (first + &rest.collect::<String>()).split_whitespace().collect()
    }

    #[test]
    fn a_batch_has_the_statements_of_the_worker() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.sqlx");
        let queries: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| {
                let query: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap();
                plain(query["query"].as_str().unwrap())
            })
            .collect();
        for ours in [LOCK_AND_LOOK, LOOK, INSERT_HOLDS, CONCLUDE] {
            assert!(queries.contains(&plain(ours)), "no worker has this statement any more:\n{ours}");
        }
    }

    #[test]
    fn the_rate_is_found() {
        let text = "latency average = 1.2 ms\ninitial connection time = 7 ms\ntps = 5123.4 (without initial connection time)\n";
        assert_eq!(tps(text), Some(5123.4));
        assert_eq!(tps("nothing"), None);
    }
}
