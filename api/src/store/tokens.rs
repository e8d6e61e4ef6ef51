//! How a queue token ended.

use common::bodies::TokenStatus;
use common::ids::{ConcertId, TokenId};
use sqlx::PgPool;

/// What has become of a token, found by its place.
///
/// # Errors
/// What the database says.
pub(crate) async fn end(
    pool: &PgPool,
    concert: ConcertId,
    seq: i64,
    token: TokenId,
) -> Result<Option<TokenStatus>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT status AS "status: TokenStatus" FROM queue_tokens WHERE concert_id = $1 AND seq = $2 AND token_id = $3"#,
        concert.0,
        seq,
        token.0
    )
    .fetch_optional(pool)
    .await
}
