//! Outcomes that are old enough are deleted.

use boxoffice_tests::database;
use boxoffice_tests::log::PAYMENTS;
use boxoffice_tests::processes::Processes;
use boxoffice_tests::wait::s;
use boxoffice_tests::{eventually, met};
use sqlx::PgConnection;

use super::WORKERS;

/// Older than outcomes are kept.
const HOURS: i32 = 300;
/// More than are deleted at once.
const OUTCOMES: i32 = 25_000;
/// Of these, four have a page.
const LARGE_OUTCOMES: i32 = 40_000;
const LARGE_BYTES: i32 = 1_800;

/// However many there are: else a worker that is busy for long has ever more of them.
#[tokio::test]
async fn old_outcomes_are_deleted_until_there_are_no_more() {
    let processes = Processes::begin().await;
    let pool = database::pool().await;
    let mut connection = pool.acquire().await.expect("Postgres answers");
    outcomes(&mut connection, OUTCOMES, 0, HOURS).await;
    // A worker begins with it; the one that runs has its next turn in up to an hour.
    processes.end("payment-worker", "TERM").await;
    processes.up(1).await;
    eventually("no old outcome is there", s(20), async || {
        let sql = "SELECT count(*) FROM requests WHERE finished_at < now() - make_interval(hours => $1)";
        let left: i64 = sqlx::query_scalar(sql).bind(HOURS - 1).fetch_one(&pool).await.expect("Postgres answers");
        met(left == 0, left)
    })
    .await;
}

/// However large the table is and whatever lay in its pages before: batches wait for it.
#[tokio::test]
async fn a_purge_reads_few_pages_at_once() {
    let processes = Processes::begin().await;
    let pool = database::pool().await;
    let mut connection = pool.acquire().await.expect("Postgres answers");
    let worker = processes.another("payment-worker", &[]);
    // Nobody else may read the table: that counts, too.
    for (name, _) in WORKERS {
        processes.end(name, "TERM").await;
    }
    run(&mut connection, "ALTER TABLE requests SET (autovacuum_enabled = off)").await;
    // New outcomes take the place of old ones.
    outcomes(&mut connection, LARGE_OUTCOMES, LARGE_BYTES, HOURS).await;
    run(&mut connection, "VACUUM requests").await;
    run(&mut connection, "DELETE FROM requests WHERE \"offset\" < 0").await;
    run(&mut connection, "VACUUM (TRUNCATE off) requests").await;
    outcomes(&mut connection, LARGE_OUTCOMES, LARGE_BYTES, 0).await;
    // A process tells of what it read once a second at most, unless it has to.
    run(&mut connection, "SELECT pg_stat_force_next_flush()").await;
    let before = pages_read(&mut connection).await;
    let running = worker.start();
    let read = eventually("the worker reads the table", s(20), async || {
        let read = pages_read(&mut connection).await - before;
        met(read > 0, read)
    })
    .await;
    let pages: i64 = sqlx::query_scalar("SELECT pg_relation_size('requests') / current_setting('block_size')::bigint")
        .fetch_one(&mut *connection)
        .await
        .expect("Postgres answers");
    drop(running);
    run(&mut connection, "DELETE FROM requests WHERE \"offset\" < 0").await;
    run(&mut connection, "ALTER TABLE requests RESET (autovacuum_enabled)").await;
    processes.up(1).await;
    assert!(read < pages / 2, "the worker has begun, and read {read} of {pages} pages");
}

/// Writes outcomes of this age, each with a body of so many bytes. No record has an offset below 0, so they belong to none.
async fn outcomes(connection: &mut PgConnection, count: i32, bytes: i32, hours: i32) {
    sqlx::query(
        r#"INSERT INTO requests (request_id, kind, status, http_status, body, submitted_at, finished_at, topic, partition, "offset")
           SELECT gen_random_uuid(), 'balance.charge', 'SUCCEEDED', 201, to_json(repeat('x', $4)), at, at, $1, 0, -n
           FROM generate_series(1, $2) AS n, LATERAL (SELECT now() - make_interval(hours => $3) AS at) AS age"#,
    )
    .bind(PAYMENTS)
    .bind(count)
    .bind(hours)
    .bind(bytes)
    .execute(connection)
    .await
    .expect("Postgres answers");
}

async fn run(connection: &mut PgConnection, sql: &'static str) {
    sqlx::query(sql).execute(connection).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// How many pages of the table were read so far, by all.
async fn pages_read(connection: &mut PgConnection) -> i64 {
    let sql = "SELECT heap_blks_read + heap_blks_hit FROM pg_statio_user_tables WHERE relname = 'requests'";
    sqlx::query_scalar(sql).fetch_one(connection).await.expect("Postgres answers")
}
