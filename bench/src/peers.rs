//! The comparators as processes of their own: started for the run, stopped while it is another one's turn, killed after it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

const READY_WITHIN: Duration = Duration::from_secs(20);

/// Comparators that serve.
pub(crate) struct Peers {
    peers: Vec<Peer>,
}

struct Peer {
    name: &'static str,
    address: SocketAddr,
    child: Child,
}

impl Peers {
    /// Starts this program once more for each.
    pub(crate) fn start() -> Result<Self> {
        let mut started = Self { peers: Vec::new() };
        for (name, listen) in [("sync", "--sync-listen"), ("bare", "--listen")] {
            let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
            let mut command = Command::new(std::env::current_exe()?);
            command.args([name, listen, &address.to_string()]).stdin(Stdio::null());
            let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
            started.peers.push(Peer { name, address, child });
        }
        for peer in &mut started.peers {
            let begun = Instant::now();
            while TcpStream::connect(peer.address).is_err() {
                if begun.elapsed() > READY_WITHIN || peer.child.try_wait()?.is_some() {
                    bail!("{} does not listen at {}; its error stands above", peer.name, peer.address);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            peer.signal(Signal::STOP);
        }
        Ok(started)
    }

    /// Where a comparator listens; None: there is none of that name.
    pub(crate) fn address(&self, name: &str) -> Option<SocketAddr> {
        self.peers.iter().find(|peer| peer.name == name).map(|peer| peer.address)
    }

    /// Lets this one run, and no other.
    pub(crate) fn turn_of(&self, name: &str) {
        for peer in &self.peers {
            peer.signal(if peer.name == name { Signal::CONT } else { Signal::STOP });
        }
    }
}

impl Peer {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Not waited for, so the pid is still the child's. It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for peer in &mut self.peers {
            // Both fail only if it has ended already.
            let _ = peer.child.kill();
            let _ = peer.child.wait();
        }
    }
}
