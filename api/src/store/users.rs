//! Sign-up and log-in.

use common::ids::UserId;
use sqlx::PgPool;

/// Adds a user. `secret_hash` is the SHA-256 of the secret.
///
/// # Errors
/// What the database says.
pub(crate) async fn insert_user(
    pool: &PgPool,
    user: UserId,
    name: &str,
    secret_hash: &[u8],
) -> Result<(), sqlx::Error> {
    sqlx::query!("INSERT INTO users (user_id, name, secret_hash) VALUES ($1, $2, $3)", user.0, name, secret_hash)
        .execute(pool)
        .await?;
    Ok(())
}

/// The SHA-256 of a user's secret: None if there is no such user, `Some(None)` for a user without a secret.
///
/// # Errors
/// What the database says.
pub(crate) async fn secret_hash(pool: &PgPool, user: UserId) -> Result<Option<Option<Vec<u8>>>, sqlx::Error> {
    sqlx::query_scalar!("SELECT secret_hash FROM users WHERE user_id = $1", user.0).fetch_optional(pool).await
}
