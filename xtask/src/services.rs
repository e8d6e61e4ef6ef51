//! The api and the workers: their names, settings and addresses.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::cargo::Programs;
use crate::dev::{self, BOXOFFICE_ADMIN_KEY, BOXOFFICE_URL, DATABASE_URL, Dev, KAFKA_BOOTSTRAP_SERVERS, Settings};
use crate::kafka;
use crate::postgres;

/// The api's name among the processes.
pub(crate) const API: &str = "api";
/// The workers' names, and those of the first one's address in `.dev/env`.
pub(crate) const WORKERS: [(&str, &str); 3] = [
    ("token-worker", "TOKEN_WORKER_URL"),
    ("reservation-worker", "RESERVATION_WORKER_URL"),
    ("payment-worker", "PAYMENT_WORKER_URL"),
];
/// Where the api listens if it can.
pub(crate) const API_PORT_WISH: u16 = 8080;

const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// What all services are told.
pub(crate) struct Backing {
    pub(crate) database_url: String,
    pub(crate) kafka_bootstrap_servers: String,
    pub(crate) keys: Keys,
}

/// Secrets of one system; made once, kept in `keys`.
pub(crate) struct Keys(Settings);

impl Keys {
    /// Reads them, making those that are missing.
    pub(crate) fn open(dev: &Dev) -> Result<Self> {
        let file = dev.dir.join("keys");
        let mut keys = dev::read_settings(&file)?;
        let before = keys.len();
        for (name, prefix) in [
            ("ADMIN_KEY", ""),
            ("ACCESS_TOKEN_KEYS", "dev:"),
            ("QUEUE_TOKEN_KEYS", "dev:"),
            ("REQUEST_ID_KEY", ""),
            ("POSTGRES_PASSWORD", ""),
        ] {
            if !keys.contains_key(name) {
                keys.insert(name.to_owned(), format!("{prefix}{}", dev::random_hex()?));
            }
        }
        if keys.len() > before {
            dev::write_settings(&file, keys.iter().map(|(key, value)| (key.as_str(), value.as_str())))?;
        }
        Ok(Self(keys))
    }

    /// One of them; [`Keys::open`] made all that there are.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

impl Backing {
    /// Changes when services must be started again to see it.
    pub(crate) fn fingerprint(&self) -> String {
        format!("{:016x}", dev::stable_hash(&format!("{} {}", self.database_url, self.kafka_bootstrap_servers)))
    }

    /// The command of `setup`: topics and migrations.
    pub(crate) fn setup(&self, programs: &Programs) -> Command {
        let mut command = Command::new(program(programs, "setup"));
        command.env(DATABASE_URL, &self.database_url).env(KAFKA_BOOTSTRAP_SERVERS, &self.kafka_bootstrap_servers);
        command
    }

    /// The command of one service, listening on `port`.
    pub(crate) fn service(&self, programs: &Programs, name: &str, port: u16) -> Command {
        let kind = worker_of(name).map_or(API, |(kind, _)| kind);
        let mut command = Command::new(program(programs, kind));
        command.env(DATABASE_URL, &self.database_url).env(KAFKA_BOOTSTRAP_SERVERS, &self.kafka_bootstrap_servers);
        let listen = format!("127.0.0.1:{port}");
        let names: &[&str] = if kind == API {
            command.env("API_LISTEN", listen).env("API_MODE", "production");
            &["ADMIN_KEY", "ACCESS_TOKEN_KEYS", "QUEUE_TOKEN_KEYS", "REQUEST_ID_KEY"]
        } else {
            command.env("WORKER_LISTEN", listen);
            &["QUEUE_TOKEN_KEYS"]
        };
        command.envs(names.iter().map(|name| (name, self.keys.get(name))));
        command
    }

    /// Writes what others need to know to use the system.
    pub(crate) fn write_env(&self, dev: &Dev, url: impl Fn(&str) -> String) -> Result<()> {
        let api = url(API);
        let workers = WORKERS.map(|(name, variable)| (variable, url(name)));
        let fixed = [
            (BOXOFFICE_URL, api.as_str()),
            (BOXOFFICE_ADMIN_KEY, self.keys.get("ADMIN_KEY")),
            (DATABASE_URL, &self.database_url),
            (KAFKA_BOOTSTRAP_SERVERS, &self.kafka_bootstrap_servers),
        ];
        let workers = workers.iter().map(|(variable, url)| (*variable, url.as_str()));
        dev::write_settings(&dev.env_file(), fixed.into_iter().chain(workers))
    }
}

fn program(programs: &Programs, name: &str) -> PathBuf {
    programs.get(name).cloned().unwrap_or_else(|| PathBuf::from(name))
}

/// The names of all services when there are `workers` of each worker, in the order of their start.
pub(crate) fn names(workers: u16) -> Vec<String> {
    let instance = |kind: &str, number| if number == 1 { kind.to_owned() } else { format!("{kind}-{number}") };
    let workers = (1..=workers).flat_map(|number| WORKERS.map(|(kind, _)| instance(kind, number)));
    workers.chain([API.to_owned()]).collect()
}

/// Which worker a process is, and its number.
pub(crate) fn worker_of(name: &str) -> Option<(&'static str, u16)> {
    WORKERS.iter().find_map(|(kind, _)| match name.strip_prefix(kind)? {
        "" => Some((*kind, 1)),
        rest => Some((*kind, rest.strip_prefix('-')?.parse().ok()?)),
    })
}

/// In which turn a process is stopped: first who takes requests, then who works them off, then what both lean on.
pub(crate) fn stop_turn(name: &str) -> u8 {
    match name {
        kafka::NAME | postgres::NAME => 2,
        name if worker_of(name).is_some() => 1,
        _ => 0,
    }
}

/// Whether the process that listens on `port` says that it is ready.
pub(crate) fn is_ready(port: u16) -> bool {
    let answer = agent(PROBE_TIMEOUT).get(format!("http://127.0.0.1:{port}/readyz")).call();
    answer.is_ok_and(|answer| answer.status().is_success())
}

/// An HTTP client for this machine: no proxy, and a status is an answer like any other.
pub(crate) fn agent(timeout: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder().proxy(None).timeout_global(Some(timeout)).http_status_as_error(false);
    config.build().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services() {
        assert_eq!(names(1), ["token-worker", "reservation-worker", "payment-worker", "api"]);
        assert_eq!(names(3).len(), 10);
        assert!(names(2).contains(&"payment-worker-2".to_owned()));
    }

    #[test]
    fn workers_are_known_by_their_names() {
        assert_eq!(worker_of("token-worker"), Some(("token-worker", 1)));
        assert_eq!(worker_of("reservation-worker-12"), Some(("reservation-worker", 12)));
        for other in ["api", "kafka", "token-workers", "token-worker-x", "token-worker2"] {
            assert_eq!(worker_of(other), None, "{other}");
        }
    }

    #[test]
    fn what_others_lean_on_is_stopped_last() {
        let mut order = ["kafka", "payment-worker-2", "api", "postgres", "token-worker"];
        order.sort_by_key(|name| stop_turn(name));
        assert_eq!(order, ["api", "payment-worker-2", "token-worker", "kafka", "postgres"]);
    }

    #[test]
    fn keys_are_made_once() {
        let dir = std::env::temp_dir().join(format!("boxoffice-keys-{}", std::process::id()));
        let dev = Dev { root: dir.clone(), dir: dir.clone() };
        let first = Keys::open(&dev).unwrap();
        assert_eq!(first.get("ADMIN_KEY").len(), 64);
        assert!(first.get("QUEUE_TOKEN_KEYS").starts_with("dev:"));
        assert_eq!(Keys::open(&dev).unwrap().0, first.0);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
