//! Outcomes of requests, read.

use std::collections::HashMap;
use std::sync::Arc;

use common::ids::{RequestId, UserId};
use common::messages::results::{RequestResult, RequestStatus, Source};
use serde_json::value::RawValue;
use sqlx::PgPool;
use sqlx::types::Json;
use uuid::Uuid;

/// The outcomes of requests; those that have none yet, or do not exist, are missing.
///
/// # Errors
/// What the database says.
pub(crate) async fn outcomes(
    pool: &PgPool,
    requests: &[RequestId],
) -> Result<HashMap<RequestId, Arc<RequestResult>>, sqlx::Error> {
    let ids: Vec<Uuid> = requests.iter().map(|request| request.0).collect();
    let rows = sqlx::query!(
        r#"SELECT request_id AS "request_id: RequestId", user_id AS "user_id: UserId", kind,
                  status AS "status: RequestStatus", http_status, body AS "body: Json<Box<RawValue>>", request_hash,
                  submitted_at, finished_at, topic, partition, "offset"
           FROM requests WHERE request_id = ANY($1)"#,
        &ids
    )
    .fetch_all(pool)
    .await?;
    let outcomes = rows.into_iter().map(|row| {
        let (result, problem) = match row.status {
            RequestStatus::Succeeded => (Some(row.body.0), None),
            RequestStatus::Failed => (None, Some(row.body.0)),
        };
        let outcome = RequestResult {
            request_id: row.request_id,
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
        };
        (row.request_id, Arc::new(outcome))
    });
    Ok(outcomes.collect())
}
