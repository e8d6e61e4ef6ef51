//! Rows of `requests`: each POST leaves its outcome there, in the transaction of its effect.

use common::ids::{RequestId, UserId};
use common::problems::Problem;
use sqlx::{PgConnection, PgPool};

use super::call::{Answer, Failure};

/// Writes an outcome that has no other effect. Where there is one, its statement writes the outcome, too.
pub(super) const INSERT: &str = r#"
    INSERT INTO requests (request_id, user_id, kind, status, http_status, body, submitted_at, finished_at, topic, partition, "offset")
    VALUES ($1, $2, $3, $4::text::request_status, $5, $6::text::json, now(), now(), 'sync', 0, 0)"#;

/// Whose request it is, and of which kind.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) request_id: RequestId,
    pub(super) user_id: UserId,
    /// As in Boxoffice's records.
    pub(super) kind: &'static str,
    /// It has an `Idempotency-Key`.
    pub(super) may_be_repeat: bool,
}

impl Asked {
    /// Writes that it failed.
    pub(super) async fn failed(self, connection: &mut PgConnection, problem: &Problem) -> Result<Answer, sqlx::Error> {
        let instance = format!("/v1/requests/{}", self.request_id);
        let body = problem.document(&instance, Some(self.request_id)).to_string();
        self.insert(connection, "FAILED", problem.slug.status(), body).await
    }

    /// Writes that it succeeded, and had no effect but this.
    pub(super) async fn found(
        self,
        connection: &mut PgConnection,
        status: u16,
        body: String,
    ) -> Result<Answer, sqlx::Error> {
        self.insert(connection, "SUCCEEDED", status, body).await
    }

    async fn insert(
        self,
        connection: &mut PgConnection,
        status: &str,
        http_status: u16,
        body: String,
    ) -> Result<Answer, sqlx::Error> {
        sqlx::query(INSERT)
            .bind(self.request_id)
            .bind(self.user_id)
            .bind(self.kind)
            .bind(status)
            .bind(i16::try_from(http_status).unwrap_or_default())
            .bind(&body)
            .execute(connection)
            .await?;
        Ok(Answer::new(http_status, body))
    }

    /// The answer of the first request with this `Idempotency-Key`, if there was one. A repeat costs a new request nothing: its effect
    /// is refused by the primary key, or it finds what the first one left.
    pub(super) async fn or_first(self, pool: &PgPool, result: Result<Answer, Failure>) -> Result<Answer, Failure> {
        if !self.may_be_repeat || result.is_ok() {
            return result;
        }
        let first: Option<(i16, String)> =
            sqlx::query_as("SELECT http_status, body::text FROM requests WHERE request_id = $1 AND user_id = $2")
                .bind(self.request_id)
                .bind(self.user_id)
                .fetch_optional(pool)
                .await?;
        match first {
            Some((status, body)) => Ok(Answer::new(u16::try_from(status).unwrap_or_default(), body)),
            None => result,
        }
    }
}
