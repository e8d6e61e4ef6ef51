//! Outcomes that are old enough are deleted.

use boxoffice_tests::database;
use boxoffice_tests::log::PAYMENTS;
use boxoffice_tests::processes::Processes;
use boxoffice_tests::wait::s;
use boxoffice_tests::{eventually, met};

/// Older than outcomes are kept.
const HOURS: i32 = 300;
/// More than are deleted at once.
const OUTCOMES: i32 = 25_000;

/// However many there are: else a worker that is busy for long has ever more of them.
#[tokio::test]
async fn old_outcomes_are_deleted_until_there_are_no_more() {
    let processes = Processes::begin().await;
    let pool = database::pool().await;
    sqlx::query(
        r#"INSERT INTO requests (request_id, kind, status, http_status, body, submitted_at, finished_at, topic, partition, "offset")
           SELECT gen_random_uuid(), 'balance.charge', 'SUCCEEDED', 201, '{}', old, old, $1, 0, -n
           FROM generate_series(1, $2) AS n, LATERAL (SELECT now() - make_interval(hours => $3) AS old) AS age"#,
    )
    .bind(PAYMENTS)
    .bind(OUTCOMES)
    .bind(HOURS)
    .execute(&pool)
    .await
    .expect("Postgres answers");
    // A worker begins with it; the one that runs has its next turn in up to a minute.
    processes.end("payment-worker", "TERM").await;
    processes.up(1).await;
    eventually("no old outcome is there", s(20), async || {
        let sql = "SELECT count(*) FROM requests WHERE finished_at < now() - make_interval(hours => $1)";
        let left: i64 = sqlx::query_scalar(sql).bind(HOURS - 1).fetch_one(&pool).await.expect("Postgres answers");
        met(left == 0, left)
    })
    .await;
}
