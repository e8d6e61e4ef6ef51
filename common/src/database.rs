//! The connection pool, and the one place that tells what kind of error the database gave.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use crate::config::DatabaseConfig;

const CONNECT_WAIT_MAX: Duration = Duration::from_secs(3);

/// A pool of at most `connections`, opened when they are first needed: a process starts while the database is down.
///
/// `name` is shown in `pg_stat_activity`.
///
/// # Errors
/// The URL does not parse.
pub fn pool(config: &DatabaseConfig, name: &str, connections: u32) -> anyhow::Result<PgPool> {
    Ok(pool_options(connections).connect_lazy_with(connect_options(config, name)?))
}

/// A pool for a worker's transactions, whose every statement finds its rows by a key.
///
/// # Errors
/// The URL does not parse.
pub fn worker_pool(config: &DatabaseConfig, name: &str, connections: u32) -> anyhow::Result<PgPool> {
    // Right after tables were filled, plans with sequential scans get cached and make a batch ten times slower.
    let options = connect_options(config, name)?.options([("enable_seqscan", "off"), ("jit", "off")]);
    // A dead connection is a transient error like any other: asking before each use would cost a lone request a round trip.
    Ok(pool_options(connections).test_before_acquire(false).connect_lazy_with(options))
}

fn pool_options(connections: u32) -> PgPoolOptions {
    PgPoolOptions::new().max_connections(connections).acquire_timeout(CONNECT_WAIT_MAX)
}

fn connect_options(config: &DatabaseConfig, name: &str) -> anyhow::Result<PgConnectOptions> {
    let options: PgConnectOptions = config.database_url.expose().parse().map_err(|error| {
        anyhow::anyhow!("DATABASE_URL is no Postgres URL ({error}); write postgres://user:password@host:port/database")
    })?;
    Ok(options.application_name(name).options([
        // A statement that hangs must not hold its locks for ever.
        ("statement_timeout", "30s"),
        ("idle_in_transaction_session_timeout", "30s"),
    ]))
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// It passes: try the same again.
    Transient,
    /// It is in what was sent: find the record that brought it.
    Data,
    /// It does not pass by itself: stop.
    Fatal,
}

/// Tells transient, data and fatal errors apart.
pub fn classify(error: &sqlx::Error) -> ErrorClass {
    match error {
        sqlx::Error::Database(error) => error.code().map_or(ErrorClass::Fatal, |code| classify_sqlstate(&code)),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::WorkerCrashed => ErrorClass::Transient,
        sqlx::Error::Encode(_) => ErrorClass::Data,
        _ => ErrorClass::Fatal,
    }
}

fn classify_sqlstate(code: &str) -> ErrorClass {
    match code {
        // A standby that was just promoted, or a primary that was just demoted; a transaction that took too long, because the process or its
        // machine stood still.
        "25006" | "25P03" | "25P04" => ErrorClass::Transient,
        _ => match code.get(..2) {
            // Connection, rollback (deadlock, serialisation), resources, locks, operator's intervention (shutdown, restart),
            // system errors.
            Some("08" | "40" | "53" | "55" | "57" | "58") => ErrorClass::Transient,
            // Data exceptions and violated constraints.
            Some("22" | "23") => ErrorClass::Data,
            _ => ErrorClass::Fatal,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_what_is_in_the_data_and_what_is_fatal() {
        for code in ["08006", "40001", "40P01", "53300", "55P03", "57P01", "57P03", "58030", "25006", "25P03", "25P04"]
        {
            assert_eq!(classify_sqlstate(code), ErrorClass::Transient, "{code}");
        }
        for code in ["22021", "22003", "23505", "23514"] {
            assert_eq!(classify_sqlstate(code), ErrorClass::Data, "{code}");
        }
        for code in ["42P01", "28P01", "3D000", "XX001", "25P02", ""] {
            assert_eq!(classify_sqlstate(code), ErrorClass::Fatal, "{code}");
        }
        assert_eq!(classify(&sqlx::Error::PoolTimedOut), ErrorClass::Transient);
    }
}
