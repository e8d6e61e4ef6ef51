//! Settings that several binaries share, read from the environment. Each binary adds its own; `--help` lists them all.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Where Postgres is.
#[derive(Debug, Clone, clap::Args)]
pub struct DatabaseConfig {
    /// Postgres, as a URL; `?host=/directory` makes it a unix socket, which is faster than TCP on one machine.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Secret,
}

/// Where Kafka is.
#[derive(Debug, Clone, clap::Args)]
pub struct KafkaConfig {
    /// Kafka brokers, `host:port[,host:port…]`.
    #[arg(long, env = "KAFKA_BOOTSTRAP_SERVERS")]
    pub kafka_bootstrap_servers: String,
    /// Further librdkafka properties for every client, `name=value[,name=value…]`: TLS and SASL stand here.
    #[arg(long, env = "KAFKA_PROPERTIES", default_value = "", hide_env_values = true)]
    pub kafka_properties: KafkaProperties,
}

/// How the process tells what it does.
#[derive(Debug, Clone, clap::Args)]
pub struct TelemetryConfig {
    /// Log level, or directives such as `info,workers=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_filter: String,
    /// Log lines for people (`text`) or for machines (`json`).
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// librdkafka properties from the environment.
#[derive(Clone, Default)]
pub struct KafkaProperties(pub Vec<(String, String)>);

impl KafkaProperties {
    /// Whether there is one whose name begins so.
    pub fn says(&self, prefix: &str) -> bool {
        self.0.iter().any(|(name, _)| name.starts_with(prefix))
    }
}

impl FromStr for KafkaProperties {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
        pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').ok_or("write each property as name=value")?;
                Ok((name.trim().to_owned(), value.to_owned()))
            })
            .collect::<Result<_, String>>()
            .map(Self)
    }
}

impl fmt::Debug for KafkaProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// A value that must not be seen: it has no display, and its debug form says nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The value itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// How long records are gathered, written as milliseconds: 0 to 1,000, parts allowed.
///
/// # Errors
/// It is something else.
pub fn linger(text: &str) -> Result<Duration, String> {
    let ms: f64 = text.parse().map_err(|_| "write milliseconds, such as 0.5".to_owned())?;
    if (0.0..=1_000.0).contains(&ms) {
        Ok(Duration::from_secs_f64(ms / 1_000.0))
    } else {
        Err("it is 0 to 1000 ms".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linger_is_milliseconds_in_bounds() {
        assert_eq!(linger("0.5"), Ok(Duration::from_micros(500)));
        assert_eq!(linger("0"), Ok(Duration::ZERO));
        for bad in ["", "soon", "-1", "1001", "inf", "NaN"] {
            assert!(linger(bad).is_err(), "{bad}");
        }
    }
}
