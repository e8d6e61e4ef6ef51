//! The comparators as processes of their own, started for the run and killed after it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const READY_WITHIN: Duration = Duration::from_secs(20);

/// Comparators that serve.
pub(crate) struct Peers {
    pub(crate) sync: SocketAddr,
    pub(crate) bare: SocketAddr,
    children: Vec<Child>,
}

impl Peers {
    /// Starts this program once more for each.
    pub(crate) fn start() -> Result<Self> {
        let (sync, bare) = (free_address()?, free_address()?);
        let mut peers = Self { sync, bare, children: Vec::new() };
        for (name, address) in [("sync", sync), ("bare", bare)] {
            let mut command = Command::new(std::env::current_exe()?);
            command.args([name, "--listen", &address.to_string()]).stdin(Stdio::null());
            peers.children.push(command.spawn().with_context(|| format!("cannot start {name}"))?);
        }
        for (name, address) in [("sync", sync), ("bare", bare)] {
            let begun = Instant::now();
            while TcpStream::connect(address).is_err() {
                if begun.elapsed() > READY_WITHIN {
                    bail!("{name} does not listen at {address}; its error stands above");
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(peers)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Both fail only if it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}
