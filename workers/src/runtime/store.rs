//! The runtime's own SQL: outcomes of requests, and how far the log is applied.

use std::ops::Range;

use chrono::{DateTime, Utc};
use common::ids::{RequestId, UserId};
use common::messages::results::{RequestResult, RequestStatus, Source};
use serde_json::value::RawValue;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::offsets::Positions;

/// Takes the advisory `locks`, which are sorted, until the transaction's end; with them the transaction's time, and the outcomes of those of
/// `ids` that had one before the locks were waited for. One statement: a lone request waits for each.
pub(crate) async fn lock_and_look(
    transaction: &mut PgConnection,
    locks: &[i64],
    ids: &[Uuid],
) -> Result<(DateTime<Utc>, Vec<RequestResult>), sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT now() AS "now!", r.request_id AS "request_id?: RequestId", r.user_id AS "user_id?: UserId",
                  r.kind AS "kind?", r.status AS "status?: RequestStatus", r.http_status AS "http_status?",
                  r.body AS "body?: Json<Box<RawValue>>", r.request_hash, r.submitted_at AS "submitted_at?",
                  r.finished_at AS "finished_at?", r.topic AS "topic?", r.partition AS "partition?", r."offset" AS "offset?"
           FROM (SELECT count(pg_advisory_xact_lock(id)) FROM UNNEST($1::bigint[]) AS t (id)) AS locked
           LEFT JOIN requests r ON r.request_id = ANY($2)"#,
        locks,
        ids
    )
    .fetch_all(transaction)
    .await?;
    let now = rows.first().map(|row| row.now).ok_or(sqlx::Error::RowNotFound)?;
    let known = rows.into_iter().filter_map(|row| {
        let status = row.status?;
        let (result, problem) = match status {
            RequestStatus::Succeeded => (Some(row.body?.0), None),
            RequestStatus::Failed => (None, Some(row.body?.0)),
        };
        Some(RequestResult {
            request_id: row.request_id?,
            user_id: row.user_id,
            kind: row.kind?,
            status,
            http_status: u16::try_from(row.http_status?).unwrap_or_default(),
            result,
            problem,
            source: Source { topic: row.topic?, partition: row.partition?, offset: row.offset? },
            began: None,
            request_hash: row.request_hash,
            submitted_at: row.submitted_at?,
            finished_at: row.finished_at?,
            concert_id: None,
        })
    });
    Ok((now, known.collect()))
}

/// What a batch moves in the log: each partition from where it stood before the first record to behind the last.
#[derive(Default)]
pub(crate) struct Span {
    pub(crate) first: Positions,
    pub(crate) next: Positions,
    /// When the last one was appended.
    pub(crate) log_time: DateTime<Utc>,
}

/// Writes the outcomes of a batch, and moves `applied_offsets` forward; never back, so a replay changes no row, and only from where the
/// batch begins or behind that: what comes before has to be applied. The partitions that were moved or had not to be, and whether there
/// was no row. An outcome that another worker wrote meanwhile fails the transaction: the retry finds it.
pub(crate) async fn conclude(
    transaction: &mut PgConnection,
    results: &[RequestResult],
    topic: &str,
    Span { first, next, log_time }: &Span,
) -> Result<Vec<(i32, bool)>, sqlx::Error> {
    let ids: Vec<Uuid> = results.iter().map(|r| r.request_id.0).collect();
    let users: Vec<Option<Uuid>> = results.iter().map(|r| r.user_id.map(|user| user.0)).collect();
    let kinds: Vec<&str> = results.iter().map(|r| r.kind.as_str()).collect();
    let statuses: Vec<RequestStatus> = results.iter().map(|r| r.status).collect();
    let http: Vec<i16> = results.iter().map(|r| i16::try_from(r.http_status).unwrap_or_default()).collect();
    let bodies: Vec<&str> = results.iter().map(|r| r.body().map_or("null", RawValue::get)).collect();
    let hashes: Vec<Option<&str>> = results.iter().map(|r| r.request_hash.as_deref()).collect();
    let submitted: Vec<DateTime<Utc>> = results.iter().map(|r| r.submitted_at).collect();
    let finished: Vec<DateTime<Utc>> = results.iter().map(|r| r.finished_at).collect();
    let topics: Vec<&str> = results.iter().map(|r| r.source.topic.as_str()).collect();
    let partitions: Vec<i32> = results.iter().map(|r| r.source.partition).collect();
    let offsets: Vec<i64> = results.iter().map(|r| r.source.offset).collect();
    let moved: Vec<i32> = next.keys().copied().collect();
    let nexts: Vec<i64> = next.values().copied().collect();
    let firsts: Vec<i64> = moved.iter().map(|partition| first.get(partition).copied().unwrap_or_default()).collect();
    // One statement: a lone request waits for each.
    let moved = sqlx::query!(
        r#"WITH told AS (
               INSERT INTO requests (request_id, user_id, kind, status, http_status, body, request_hash, submitted_at,
                                     finished_at, topic, partition, "offset")
               SELECT UNNEST($1::uuid[]), UNNEST($2::uuid[]), UNNEST($3::text[]), UNNEST($4::request_status[]),
                      UNNEST($5::smallint[]), UNNEST($6::text[])::json, UNNEST($7::text[]), UNNEST($8::timestamptz[]),
                      UNNEST($9::timestamptz[]), UNNEST($10::text[]), UNNEST($11::integer[]), UNNEST($12::bigint[])),
           t AS (SELECT * FROM UNNEST($14::integer[], $15::bigint[], $16::bigint[]) AS t (partition, next_offset, first))
           INSERT INTO applied_offsets AS a (topic, partition, next_offset, log_time)
           SELECT $13, partition, next_offset, $17 FROM t ORDER BY partition
           ON CONFLICT (topic, partition) DO UPDATE
           SET next_offset = greatest(a.next_offset, excluded.next_offset),
               log_time = CASE WHEN excluded.next_offset > a.next_offset THEN excluded.log_time ELSE a.log_time END
           WHERE a.next_offset >= (SELECT t.first FROM t WHERE t.partition = a.partition)
           RETURNING a.partition, (a.xmax = 0) AS "new!""#,
        &ids,
        &users as &[Option<Uuid>],
        &kinds as &[&str],
        &statuses as &[RequestStatus],
        &http,
        &bodies as &[&str],
        &hashes as &[Option<&str>],
        &submitted,
        &finished,
        &topics as &[&str],
        &partitions,
        &offsets,
        topic,
        &moved,
        &nexts,
        &firsts,
        log_time
    )
    .fetch_all(transaction)
    .await?;
    Ok(moved.into_iter().map(|row| (row.partition, row.new)).collect())
}

/// Deletes the outcomes of the topic in these pages of the table that are older than `kept_hours`; returns how many, and how many pages there are.
pub(crate) async fn purge(
    pool: &PgPool,
    topic: &str,
    kept_hours: u32,
    pages: Range<i64>,
) -> Result<(i64, i64), sqlx::Error> {
    // The moment is a subquery's, so that it is computed once instead of for each row.
    let swept = sqlx::query!(
        r#"WITH deleted AS (
               DELETE FROM requests
               WHERE ctid >= format('(%s,0)', $3::bigint)::tid AND ctid < format('(%s,0)', $4::bigint)::tid
                 AND topic = $1 AND finished_at < (SELECT now() - make_interval(hours => $2))
               RETURNING 1)
           SELECT count(*) AS "rows!", pg_relation_size('requests') / current_setting('block_size')::bigint AS "pages!"
           FROM deleted"#,
        topic,
        i32::try_from(kept_hours).unwrap_or(i32::MAX),
        pages.start,
        pages.end
    )
    .fetch_one(pool)
    .await?;
    Ok((swept.rows, swept.pages))
}

/// How far the topic is applied, by partition.
pub(crate) async fn applied(pool: &PgPool, topic: &str) -> Result<Positions, sqlx::Error> {
    let rows = sqlx::query!("SELECT partition, next_offset FROM applied_offsets WHERE topic = $1", topic)
        .fetch_all(pool)
        .await?;
    Ok(rows.into_iter().map(|row| (row.partition, row.next_offset)).collect())
}

/// When the last record of any topic was appended that is applied.
pub(crate) async fn last_log_time(pool: &PgPool) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar!("SELECT max(log_time) FROM applied_offsets").fetch_one(pool).await
}
