//! The buyers that this process has met. A buyer is never removed, so whoever was found once need not be looked for again.

use std::collections::HashSet;

use common::ids::UserId;

/// Buyers that are remembered before it starts afresh: some 50 MB.
const REMEMBERED_MAX: usize = 1_000_000;

/// A bounded memory of buyers who exist.
#[derive(Debug, Default)]
pub struct KnownUsers {
    known: HashSet<UserId>,
}

impl KnownUsers {
    /// Those of `users` who are not remembered, each once.
    pub fn unknown_of(&self, users: impl Iterator<Item = UserId>) -> HashSet<UserId> {
        users.filter(|user| !self.known.contains(user)).collect()
    }

    /// Remembers buyers who exist.
    pub fn remember(&mut self, users: impl Iterator<Item = UserId>) {
        if self.known.len() > REMEMBERED_MAX {
            self.known.clear();
        }
        self.known.extend(users);
    }

    /// Remembers nobody any more: a database that was restored may lack some.
    pub fn clear(&mut self) {
        self.known.clear();
    }
}
