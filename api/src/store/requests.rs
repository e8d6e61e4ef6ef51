//! Outcomes of requests, read.

use common::ids::{RequestId, UserId};
use common::messages::results::{RequestResult, RequestStatus, Source};
use serde_json::value::RawValue;
use sqlx::PgPool;
use sqlx::types::Json;

/// The outcome of a request; None: there is none yet, or there is no such request.
///
/// # Errors
/// What the database says.
pub(crate) async fn outcome(pool: &PgPool, request: RequestId) -> Result<Option<RequestResult>, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT user_id AS "user_id: UserId", kind, status AS "status: RequestStatus", http_status,
                  body AS "body: Json<Box<RawValue>>", request_hash, submitted_at, finished_at, topic, partition, "offset"
           FROM requests WHERE request_id = $1"#,
        request.0
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| {
        let (result, problem) = match row.status {
            RequestStatus::Succeeded => (Some(row.body.0), None),
            RequestStatus::Failed => (None, Some(row.body.0)),
        };
        RequestResult {
            request_id: request,
            user_id: row.user_id,
            kind: row.kind,
            status: row.status,
            http_status: u16::try_from(row.http_status).unwrap_or_default(),
            result,
            problem,
            source: Source { topic: row.topic, partition: row.partition, offset: row.offset },
            began: None,
            request_hash: row.request_hash,
            submitted_at: row.submitted_at,
            finished_at: row.finished_at,
            concert_id: None,
        }
    }))
}
