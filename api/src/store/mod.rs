//! The api's SQL. It reads; it writes only what the operator's catalogue and sign-up need.

pub(crate) mod catalogue;
pub(crate) mod concerts;
pub(crate) mod operators;
pub(crate) mod purchases;
pub(crate) mod queues;
pub(crate) mod requests;
pub(crate) mod reservations;
pub(crate) mod seats;
pub(crate) mod tokens;
pub(crate) mod users;

use common::ids::UserId;
use sqlx::PgPool;

/// Makes the row of a buyer whom somebody else vouches for; one that is there stays as it is.
///
/// # Errors
/// What the database says.
pub(crate) async fn make_user(pool: &PgPool, buyer: UserId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO users (user_id, name) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        buyer.0,
        buyer.to_string()
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Whether the database answers.
///
/// # Errors
/// It does not.
pub(crate) async fn ping(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1").execute(pool).await?;
    Ok(())
}
