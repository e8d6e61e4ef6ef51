//! Ports on 127.0.0.1, remembered so that a process comes back under the address that others know.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::dev::{self, Dev, Settings};

/// Where ports are looked for: below the range that the system takes outgoing ports from (32768 and up on Linux), so
/// that a port that is free for a moment during a restart is not taken by somebody's connection.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// The ports of one system.
pub(crate) struct Ports {
    file: PathBuf,
    known: Settings,
    /// Where this directory starts to look: different directories at different places.
    start: u16,
}

impl Ports {
    /// The remembered ports of the system.
    pub(crate) fn open(dev: &Dev) -> Result<Self> {
        let file = dev.dir.join("ports");
        let known = dev::read_settings(&file)?;
        let place = dev::stable_hash(&dev.dir.to_string_lossy()) % u64::from(COUNT);
        Ok(Self { file, known, start: u16::try_from(place).unwrap_or_default() })
    }

    /// The port that `name` had last, whatever has become of it.
    pub(crate) fn known(&self, name: &str) -> Option<u16> {
        self.known.get(name)?.parse().ok()
    }

    /// A free port for `name`: the one that it had before, if that is free, or `wish`, or another, which is remembered.
    pub(crate) fn free(&mut self, name: &str, wish: Option<u16>) -> Result<u16> {
        let known = self.known(name);
        if let Some(port) = known.filter(|port| is_free(*port)) {
            return Ok(port);
        }
        let taken: Vec<String> = self.known.values().cloned().collect();
        let scan = (0..COUNT).map(|i| FIRST + (self.start + i) % COUNT);
        let port = wish
            .into_iter()
            .chain(scan)
            .find(|port| !taken.contains(&port.to_string()) && is_free(*port))
            .with_context(|| format!("no free port for {name} from {FIRST} on"))?;
        self.known.insert(name.to_owned(), port.to_string());
        dev::write_settings(&self.file, self.known.iter().map(|(key, value)| (key.as_str(), value.as_str())))?;
        Ok(port)
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_kept_while_it_is_free_and_replaced_when_it_is_not() {
        let dir = std::env::temp_dir().join(format!("boxoffice-ports-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let dev = Dev { root: dir.clone(), dir: dir.clone() };
        let first = Ports::open(&dev).unwrap().free("a", None).unwrap();
        assert_eq!(Ports::open(&dev).unwrap().free("a", None).unwrap(), first);
        let other = Ports::open(&dev).unwrap().free("b", Some(first)).unwrap();
        assert_ne!(other, first, "a remembered port is not given to another process");

        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).unwrap();
        let moved = Ports::open(&dev).unwrap().free("a", None).unwrap();
        assert!(moved != first && moved != other);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
