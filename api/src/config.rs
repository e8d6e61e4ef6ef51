//! Settings of the api, from the environment; `--help` lists them. Every bound has its name here.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::bail;
use clap::{Parser, ValueEnum};
use common::config::{DatabaseConfig, KafkaConfig, Secret, TelemetryConfig};
use common::keys::KeyRing;

const DEVELOPMENT_ACCESS_KEYS: &str = "development:the access key of development is no secret";
const DEVELOPMENT_QUEUE_KEYS: &str = "development:the queue key of development is no secret";
const DEVELOPMENT_REQUEST_ID_KEY: &str = "the request id key of development is no secret";
const REQUEST_ID_KEY_CHARS_MIN: usize = 32;

/// The ingress of Boxoffice: checks requests, publishes them to Kafka, and answers.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct Settings {
    /// Where to listen.
    #[arg(long, env = "API_LISTEN", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// `development`: keys that are not set get well-known values. `production`: the api does not start without its keys.
    #[arg(long, env = "API_MODE", default_value = "production")]
    pub(crate) mode: Mode,
    #[command(flatten)]
    pub(crate) database: DatabaseConfig,
    /// Connections to Postgres.
    #[arg(long, env = "DATABASE_CONNECTIONS_MAX", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=1_000))]
    pub(crate) database_connections_max: u32,
    #[command(flatten)]
    pub(crate) kafka: KafkaConfig,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryConfig,
    #[command(flatten)]
    pub(crate) identity: IdentityConfig,
    #[command(flatten)]
    pub(crate) secrets: SecretConfig,
    #[command(flatten)]
    pub(crate) bounds: Bounds,
    #[command(flatten)]
    pub(crate) read_bounds: ReadBounds,
    #[command(flatten)]
    pub(crate) rates: Rates,
    /// The deployment's one currency.
    #[arg(long, env = "CURRENCY", default_value = "KRW")]
    pub(crate) currency: String,
    /// Origins whose pages may call the api, `https://a.example[,…]`, or `*`. None: OPTIONS is refused.
    #[arg(long, env = "API_CORS_ORIGINS", value_delimiter = ',')]
    pub(crate) cors_origins: Vec<String>,
}

/// How strict the api is about its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Refuses to start without keys.
    Production,
    /// Takes well-known keys.
    Development,
}

/// Who says who a buyer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IdentityMode {
    /// Our own sign-up and access tokens.
    Own,
    /// A gateway in front, which sends `X-User-Id`.
    Gateway,
    /// An identity provider: its keys and its issuer.
    Jwks,
}

/// Identity of buyers.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct IdentityConfig {
    /// Who says who a buyer is. `gateway` trusts the header `X-User-Id`: only for an api that nobody else can reach.
    #[arg(long, env = "API_IDENTITY", default_value = "own")]
    pub(crate) identity: IdentityMode,
    /// With `jwks`: where the provider's keys are.
    #[arg(long, env = "JWKS_URL")]
    pub(crate) jwks_url: Option<String>,
    /// With `jwks`: the provider's name in `iss`.
    #[arg(long, env = "JWKS_ISSUER")]
    pub(crate) jwks_issuer: Option<String>,
    /// With `jwks`: our name in `aud`; unset: any.
    #[arg(long, env = "JWKS_AUDIENCE")]
    pub(crate) jwks_audience: Option<String>,
    /// How long our own access tokens are good, in seconds.
    #[arg(long, env = "ACCESS_TOKEN_SECONDS", default_value_t = 86_400, value_parser = clap::value_parser!(i64).range(1..=31_536_000))]
    pub(crate) access_token_seconds: i64,
}

/// Keys.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SecretConfig {
    /// The operators' key; unset: `/v1/admin` is off.
    #[arg(long, env = "ADMIN_KEY", hide_env_values = true)]
    pub(crate) admin_key: Option<Secret>,
    /// Keys of access tokens, `kid:secret[,kid:secret…]`: the first signs, all verify.
    #[arg(long, env = "ACCESS_TOKEN_KEYS", hide_env_values = true)]
    pub(crate) access_token_keys: Option<KeyRing>,
    /// Keys of queue tokens, in the same form; the token worker has the same ones.
    #[arg(long, env = "QUEUE_TOKEN_KEYS", hide_env_values = true)]
    pub(crate) queue_token_keys: Option<KeyRing>,
    /// The key that request ids prove themselves with, at least 32 characters; all api processes have the same one.
    #[arg(long, env = "REQUEST_ID_KEY", hide_env_values = true)]
    pub(crate) request_id_key: Option<Secret>,
}

/// What may grow, and how far.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Bounds {
    /// The largest body of a buyer, in bytes.
    #[arg(long, env = "API_BODY_BYTES_MAX", default_value_t = 64 * 1024)]
    pub(crate) body_bytes_max: usize,
    /// The largest body of an operator, in bytes.
    #[arg(long, env = "API_ADMIN_BODY_BYTES_MAX", default_value_t = 8 * 1024 * 1024)]
    pub(crate) admin_body_bytes_max: usize,
    /// Connections at the same time; further ones wait in the listener's backlog.
    #[arg(long, env = "API_CONNECTIONS_MAX", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) connections_max: u32,
    /// Requests at the same time, waiting ones included; further ones are answered 503.
    #[arg(long, env = "API_IN_FLIGHT_MAX", default_value_t = 8_192, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) in_flight_max: u32,
    /// How long a connection may take to send a request's headers, idle time between requests included, in seconds.
    #[arg(long, env = "API_HEADER_SECONDS_MAX", default_value_t = 75, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) header_seconds_max: u64,
    /// How long a request's body may take to arrive, in seconds.
    #[arg(long, env = "API_BODY_SECONDS_MAX", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) body_seconds_max: u64,
    /// How long a request may take in all, in seconds; more than the 30 s that a caller may wait.
    #[arg(long, env = "API_REQUEST_SECONDS_MAX", default_value_t = 45, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) request_seconds_max: u64,
    /// How long the broker may take to acknowledge a record before the caller is told 504, in milliseconds.
    #[arg(long, env = "API_DELIVERY_MS_MAX", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..=120_000))]
    pub(crate) delivery_ms_max: u64,
    /// How long the records of a crowd are gathered before they are sent (`linger.ms`), in milliseconds; while 400 callers wait for their
    /// outcomes four times as long, or until 128 records of a partition are together. A lone request is sent at once, whatever this is.
    #[arg(long = "linger-ms", env = "API_LINGER_MS", default_value = "3", value_parser = common::config::linger)]
    pub(crate) linger: Duration,
    /// Finished requests that are remembered: for 5 to 10 s, longer with an `Idempotency-Key`; of a full load the last half second's.
    #[arg(long, env = "API_OUTCOMES_MAX", default_value_t = 6_000)]
    pub(crate) outcomes_max: usize,
    /// Memory for their bodies, in bytes.
    #[arg(long, env = "API_OUTCOME_BYTES_MAX", default_value_t = 24 * 1024 * 1024)]
    pub(crate) outcome_bytes_max: usize,
    /// Accepted requests without an outcome that are remembered.
    #[arg(long, env = "API_PENDING_MAX", default_value_t = 100_000)]
    pub(crate) pending_max: usize,
    /// Admitted queue tokens whose state is remembered.
    #[arg(long, env = "API_TOKEN_STATES_MAX", default_value_t = 50_000)]
    pub(crate) token_states_max: usize,
    /// Reservations that are remembered, for the check of a payment's queue token.
    #[arg(long, env = "API_RESERVATIONS_MAX", default_value_t = 65_536)]
    pub(crate) reservations_max: usize,
    /// Schedules and concerts whose facts are remembered.
    #[arg(long, env = "API_CATALOGUE_MAX", default_value_t = 10_000)]
    pub(crate) catalogue_max: u64,
}

/// What may grow because of reads, and how far.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ReadBounds {
    /// Memory for the seat maps that are looked at, in bytes.
    #[arg(long, env = "API_SEAT_MAP_BYTES_MAX", default_value_t = 256 * 1024 * 1024)]
    pub(crate) seat_map_bytes_max: u64,
    /// Event streams at the same time; further ones are answered 503. Each takes one of the connections.
    #[arg(long, env = "API_STREAMS_MAX", default_value_t = 8_192, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) streams_max: u32,
}

/// Requests a second, and how many may come at once after a quiet time. 0 a second: no limit.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Rates {
    /// Requests through the log, a second and buyer.
    #[arg(long, env = "RATE_LIMIT_LOG_PER_SECOND", default_value_t = 20)]
    pub(crate) log_per_second: u32,
    /// … at once.
    #[arg(long, env = "RATE_LIMIT_LOG_BURST", default_value_t = 40)]
    pub(crate) log_burst: u32,
    /// Polls a second and queue token.
    #[arg(long, env = "RATE_LIMIT_POLL_PER_SECOND", default_value_t = 5)]
    pub(crate) poll_per_second: u32,
    /// … at once.
    #[arg(long, env = "RATE_LIMIT_POLL_BURST", default_value_t = 20)]
    pub(crate) poll_burst: u32,
    /// Reads of requests a second and buyer.
    #[arg(long, env = "RATE_LIMIT_REQUESTS_PER_SECOND", default_value_t = 50)]
    pub(crate) requests_per_second: u32,
    /// … at once.
    #[arg(long, env = "RATE_LIMIT_REQUESTS_BURST", default_value_t = 100)]
    pub(crate) requests_burst: u32,
    /// Log-ins a second, by user and by address.
    #[arg(long, env = "RATE_LIMIT_LOGIN_PER_SECOND", default_value_t = 5)]
    pub(crate) login_per_second: u32,
    /// … at once.
    #[arg(long, env = "RATE_LIMIT_LOGIN_BURST", default_value_t = 10)]
    pub(crate) login_burst: u32,
    /// Sign-ups a second and address.
    #[arg(long, env = "RATE_LIMIT_SIGN_UP_PER_SECOND", default_value_t = 0)]
    pub(crate) sign_up_per_second: u32,
    /// … at once.
    #[arg(long, env = "RATE_LIMIT_SIGN_UP_BURST", default_value_t = 10)]
    pub(crate) sign_up_burst: u32,
    /// Take a caller's address from the last entry of `X-Forwarded-For`: only behind a proxy that writes it.
    #[arg(long, env = "API_TRUST_FORWARDED_FOR", default_value_t = false, action = clap::ArgAction::Set)]
    pub(crate) trust_forwarded_for: bool,
}

/// The keys that the api works with.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    pub(crate) access: KeyRing,
    pub(crate) queue: KeyRing,
    pub(crate) request_id: Secret,
}

impl Settings {
    /// The keys, well-known ones in development.
    ///
    /// # Errors
    /// In production, one is missing; the error says how to make it.
    pub(crate) fn keys(&self) -> anyhow::Result<Keys> {
        let secrets = &self.secrets;
        let own = self.identity.identity == IdentityMode::Own;
        let missing: Vec<&str> = [
            ("ACCESS_TOKEN_KEYS", own && secrets.access_token_keys.is_none()),
            ("QUEUE_TOKEN_KEYS", secrets.queue_token_keys.is_none()),
            ("REQUEST_ID_KEY", secrets.request_id_key.is_none()),
        ]
        .into_iter()
        .filter_map(|(name, is_missing)| is_missing.then_some(name))
        .collect();
        if !missing.is_empty() {
            let names = missing.join(", ");
            if self.mode == Mode::Production {
                bail!(
                    "{names} must be set. Make a key with `openssl rand -hex 32`; write ACCESS_TOKEN_KEYS and \
                     QUEUE_TOKEN_KEYS as `a:KEY`, REQUEST_ID_KEY as `KEY`, the same in all processes. \
                     API_MODE=development takes well-known keys instead"
                );
            }
            tracing::warn!(missing = names, "development mode: well-known keys are used, so anybody can forge tokens");
        }
        let request_id = secrets.request_id_key.clone().unwrap_or_else(|| known(DEVELOPMENT_REQUEST_ID_KEY));
        if request_id.expose().len() < REQUEST_ID_KEY_CHARS_MIN {
            bail!(
                "REQUEST_ID_KEY needs at least {REQUEST_ID_KEY_CHARS_MIN} characters; `openssl rand -hex 32` makes 64"
            );
        }
        Ok(Keys {
            access: secrets.access_token_keys.clone().unwrap_or_else(|| known(DEVELOPMENT_ACCESS_KEYS)),
            queue: secrets.queue_token_keys.clone().unwrap_or_else(|| known(DEVELOPMENT_QUEUE_KEYS)),
            request_id,
        })
    }
}

fn known<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("the well-known keys are of the right form")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(more: &[&str]) -> Settings {
        let base = ["api", "--database-url", "postgres://localhost/x", "--kafka-bootstrap-servers", "localhost:9092"];
        Settings::try_parse_from(base.iter().chain(more)).unwrap()
    }

    #[test]
    fn production_refuses_to_start_without_keys_and_says_how_to_make_them() {
        let error = settings(&[]).keys().unwrap_err().to_string();
        for part in ["ACCESS_TOKEN_KEYS", "QUEUE_TOKEN_KEYS", "REQUEST_ID_KEY", "openssl rand -hex 32"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn development_takes_known_keys() {
        assert!(settings(&["--mode", "development"]).keys().is_ok());
        let short = ["--mode", "development", "--request-id-key", "short"];
        assert!(settings(&short).keys().is_err());
    }
}
