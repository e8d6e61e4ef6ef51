//! The processes of the system: found by pid file, killed, stopped for a while, started again.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::setting;
use crate::wait::{eventually, met, s};

/// The system's processes. Only fault tests use them, one at a time.
#[derive(Debug, Clone)]
pub struct Processes {
    dir: PathBuf,
    xtask: PathBuf,
}

impl Processes {
    /// Those that `cargo xtask test` started; whatever an earlier test left broken is put right first.
    pub async fn begin() -> Self {
        let processes = Self { dir: setting("BOXOFFICE_DEV_DIR").into(), xtask: setting("BOXOFFICE_XTASK").into() };
        processes.up(1).await;
        processes
    }

    /// Starts what is down, with this many of each worker, and waits until all is ready.
    pub async fn up(&self, workers: u16) {
        let mut command = Command::new(&self.xtask);
        command.args(["up", "--detach", "--debug", "--workers", &workers.to_string(), "--dir"]).arg(&self.dir);
        output_of(command).await;
    }

    /// Runs one of Kafka's own tools; its output.
    pub async fn kafka(&self, tool: &str, args: &[&str]) -> String {
        let mut command = Command::new(&self.xtask);
        command.arg("kafka").arg("--dir").arg(&self.dir).arg(tool).args(args);
        output_of(command).await
    }

    /// The pid of a process.
    pub fn pid(&self, name: &str) -> u32 {
        let file = self.dir.join("run").join(format!("{name}.pid"));
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        text.trim().parse().unwrap_or_else(|_| panic!("{}: {text}", file.display()))
    }

    /// Sends a signal to a process and waits until it has ended.
    pub async fn end(&self, name: &str, signal: &str) {
        let pid = self.pid(name);
        send_signal(pid, signal);
        ended(pid, name).await;
    }

    /// Stops a process until the guard is dropped: it is there, but does nothing.
    pub fn freeze(&self, name: &str) -> Frozen {
        let pid = self.pid(name);
        send_signal(pid, "STOP");
        Frozen { pid }
    }

    /// Starts another one like the process `name`, with `settings` on top of its environment. Its own pid file is not
    /// written, so the system knows nothing of it.
    pub fn another(&self, name: &str, settings: &[(&str, &str)]) -> Another {
        let pid = self.pid(name);
        // The program itself, kept open: its file may have been replaced since.
        let program = fs::File::open(format!("/proc/{pid}/exe")).expect("the process runs");
        let environment = fs::read(format!("/proc/{pid}/environ")).expect("the process is ours");
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let environment = environment.split('\0').filter_map(|pair| pair.split_once('='));
        let log = self.dir.join("log").join(format!("{name}-of-a-test.log"));
        let log = fs::File::create(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command.env_clear().envs(environment).envs(settings.iter().copied()).process_group(0);
        command.stdin(Stdio::null()).stderr(log.try_clone().expect("an open file")).stdout(log);
        Another { command, _program: program }
    }
}

/// A process that is stopped; dropped, it goes on.
#[derive(Debug)]
pub struct Frozen {
    pid: u32,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        send_signal(self.pid, "CONT");
    }
}

/// A process of the test's own that is not started yet.
#[derive(Debug)]
pub struct Another {
    command: Command,
    _program: fs::File,
}

impl Another {
    /// Starts it.
    pub fn start(mut self) -> Running {
        Running { child: self.command.spawn().expect("the program of a running process") }
    }
}

/// A process of the test's own; dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// SIGKILL.
    pub fn kill(mut self) {
        self.end();
    }

    /// Stops it until the guard is dropped.
    pub fn freeze(&self) -> Frozen {
        send_signal(self.child.id(), "STOP");
        Frozen { pid: self.child.id() }
    }

    /// SIGTERM; waits for its end, and tells whether it ended in good order (exit code 0).
    pub async fn stop(mut self, within: Duration) -> bool {
        send_signal(self.child.id(), "TERM");
        eventually("the process ends", within, async || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status.success()),
            other => Err(other),
        })
        .await
    }

    fn end(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn send_signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").args(["-s", signal, &pid.to_string()]).status();
    assert!(sent.expect("kill is everywhere").success(), "no process {pid} to send {signal} to");
}

async fn ended(pid: u32, name: &str) {
    eventually(&format!("{name} ends"), s(20), async || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The second field, the name in brackets, may hold anything; the state follows it. A zombie has ended.
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        met(matches!(state, None | Some('Z' | 'X')), state)
    })
    .await;
}

async fn output_of(mut command: Command) -> String {
    let name = format!("{command:?}");
    let output = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output()).await;
    let output = output.expect("not cancelled").unwrap_or_else(|error| panic!("{name}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{name} fails ({}):\n{out}\n{errors}", output.status);
    out
}
