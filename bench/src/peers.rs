//! The comparators as processes of their own: each is started for its turn and ended after it, so that none disturbs another.

use std::ffi::OsStr;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Sets how a program is scheduled; `xtask` uses it for this one, where it is installed.
const CHRT: &str = "chrt";
const READY_WITHIN: Duration = Duration::from_secs(20);
/// Comparators that serve, and the argument that says where.
const SERVERS: [(&str, &str); 2] = [("sync", "--sync-listen"), ("bare", "--listen")];

/// The comparator whose turn it is.
#[derive(Default)]
pub(crate) struct Peers {
    running: Mutex<Option<Peer>>,
}

impl Peers {
    /// Ends the one whose turn it was.
    pub(crate) fn end(&self) {
        *self.running() = None;
    }

    /// Starts this one; where it listens. None: there is none of that name.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(&self, name: &str) -> Result<Option<SocketAddr>> {
        let Some((name, listen)) = SERVERS.iter().find(|(server, _)| *server == name) else { return Ok(None) };
        let peer = Peer::start(name, listen)?;
        let address = peer.address;
        *self.running() = Some(peer);
        Ok(Some(address))
    }

    fn running(&self) -> MutexGuard<'_, Option<Peer>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The command that runs `program` as ours run: what this process starts would otherwise be as patient as it is itself, when `xtask` has
/// started it so.
pub(crate) fn usual(program: impl AsRef<OsStr>) -> Command {
    if Command::new(CHRT).arg("--version").output().is_err() {
        return Command::new(program);
    }
    let mut command = Command::new(CHRT);
    command.args(["--other", "0"]).arg(program);
    command
}

struct Peer {
    address: SocketAddr,
    child: Child,
}

impl Peer {
    /// Starts this program once more, and waits until it listens.
    fn start(name: &str, listen: &str) -> Result<Self> {
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let mut command = usual(std::env::current_exe()?);
        command.args([name, listen, &address.to_string()]).stdin(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let mut peer = Self { address, child };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            if begun.elapsed() > READY_WITHIN || peer.child.try_wait()?.is_some() {
                bail!("{name} does not listen at {address}; its error stands above");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(peer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail only if it has ended already. It is asked, not killed: `cargo xtask pgo` wants to know what it executed.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
