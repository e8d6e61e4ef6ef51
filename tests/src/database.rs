//! The tables, looked at from outside.

use std::collections::BTreeMap;

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::wait::s;
use crate::{Buyer, setting};

/// A pool of its own for each test: connections live in its runtime.
pub async fn pool() -> PgPool {
    let url = setting("DATABASE_URL");
    let pool = PgPoolOptions::new().max_connections(3).acquire_timeout(s(10)).connect(&url).await;
    pool.unwrap_or_else(|error| panic!("Postgres does not answer: {error}"))
}

/// The one number that a query answers; `$1` is `parameter`.
pub async fn number(pool: &PgPool, sql: &'static str, parameter: i64) -> i64 {
    sqlx::query_scalar(sql).bind(parameter).fetch_one(pool).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Rows and checksum of each table, in one snapshot.
pub async fn checksums(pool: &PgPool) -> BTreeMap<String, (i64, String)> {
    let mut snapshot = pool.begin().await.expect("Postgres answers");
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .execute(&mut *snapshot)
        .await
        .expect("Postgres answers");
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT table_name::text FROM information_schema.tables
         WHERE table_schema = 'public' AND table_type = 'BASE TABLE' ORDER BY 1",
    )
    .fetch_all(&mut *snapshot)
    .await
    .expect("Postgres answers");
    let mut checksums = BTreeMap::new();
    for table in tables {
        // A sum of hashes does not depend on the order of rows and needs no sort.
        let sql = format!("SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM \"{table}\" t");
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut *snapshot).await.expect("a table that was listed");
        checksums.insert(table, (row.get(0), row.get(1)));
    }
    checksums
}

/// `applied_offsets`: the next offset of each partition.
pub async fn applied(pool: &PgPool) -> crate::log::Offsets {
    let rows: Vec<(String, i32, i64)> = sqlx::query_as("SELECT topic, partition, next_offset FROM applied_offsets")
        .fetch_all(pool)
        .await
        .expect("rows");
    rows.into_iter().map(|(topic, partition, next)| ((topic, partition), next)).collect()
}

/// Gives a seat to a buyer who holds others, behind the workers' back: as another worker would, that had its schedule for a while.
///
/// # Panics
/// Postgres does not answer.
pub async fn give_away(pool: &PgPool, buyer: &Buyer, seat: i64) {
    sqlx::query(
        "WITH given AS (
             UPDATE reservations SET seat_ids = seat_ids || $2::bigint WHERE user_id = $1 RETURNING reservation_id)
         UPDATE seats SET status = 'HELD', reservation_id = given.reservation_id FROM given WHERE seat_id = $2",
    )
    .bind(buyer.user_id.parse::<uuid::Uuid>().expect("a buyer's id is a UUID"))
    .bind(seat)
    .execute(pool)
    .await
    .expect("Postgres answers");
}
