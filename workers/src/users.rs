//! Which buyers exist. Users are never deleted, so whoever was seen once is known, until the database is restored from a backup.

use std::collections::HashSet;

use common::ids::UserId;
use sqlx::PgConnection;
use uuid::Uuid;

/// Users that a worker remembers before it starts afresh: 16 bytes each.
const REMEMBERED_MAX: usize = 500_000;

/// The users that a worker has seen in the database.
#[derive(Debug, Default)]
pub(crate) struct Users {
    known: HashSet<UserId>,
}

impl Users {
    /// Looks up those that are not known yet.
    pub(crate) async fn load(
        &mut self,
        connection: &mut PgConnection,
        users: impl Iterator<Item = UserId> + Clone,
    ) -> Result<(), sqlx::Error> {
        if self.known.len() > REMEMBERED_MAX {
            self.known.clear();
        }
        let unknown: Vec<Uuid> = users.filter(|user| !self.known.contains(user)).map(|user| user.0).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let found =
            sqlx::query_scalar!(r#"SELECT user_id AS "user_id: UserId" FROM users WHERE user_id = ANY($1)"#, &unknown)
                .fetch_all(connection)
                .await?;
        self.known.extend(found);
        Ok(())
    }

    /// Asks again for everyone: the database may be another one.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }

    /// Whether [`Self::load`] found this user.
    pub(crate) fn exists(&self, user: UserId) -> bool {
        self.known.contains(&user)
    }
}
