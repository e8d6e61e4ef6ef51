//! Processes that outlive `xtask`: started in a group of their own, found again by pid file, stopped by signal.
//!
//! A pid file alone proves nothing, for pids are used again. Beside each stands a record of when the process began
//! (clock ticks since boot, and which boot); a process that began at another time is not ours and is never signalled.
//! Signals go through a pidfd that is opened before the check, so nothing can slip in between.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::SplitAsciiWhitespace;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::console;
use crate::dev::{self, Dev};

/// How long a process may take to end after it was asked to.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// How long the kernel may take to end a process that was killed.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// What stands beside a pid file.
#[derive(Serialize, Deserialize)]
struct Record {
    pid: i32,
    start_ticks: u64,
    boot_id: String,
    /// A hash of what the process must be started again for when it changes.
    settings: String,
}

/// A process of ours that is alive.
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) pid: i32,
    /// As given to [`start`].
    pub(crate) settings: String,
    handle: OwnedFd,
}

/// A process that was just started.
pub(crate) struct Started {
    pub(crate) child: Child,
    /// Where in its log its own lines begin, in bytes.
    pub(crate) log_offset: u64,
}

/// Starts `command` as the process `name`: no input, output appended to its log, not reached by the terminal's Ctrl-C.
pub(crate) fn start(dev: &Dev, name: &str, command: &mut Command, settings: &str) -> Result<Started> {
    let (output, log_offset) = open_log(dev, name)?;
    fs::create_dir_all(dev.run_dir()).context("cannot create a folder for pid files")?;
    let errors = output.try_clone().context("cannot share a log")?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.spawn().with_context(|| format!("cannot start {name} ({program})"))?;
    let pid = i32::try_from(child.id()).context("a pid is out of range")?;
    let record =
        Record { pid, start_ticks: start_ticks(pid).unwrap_or(0), boot_id: boot_id()?, settings: settings.to_owned() };
    // The record first: a pid file without one is not trusted, and a process without a pid file would be lost.
    dev::write_private(&record_file(dev, name), &serde_json::to_string(&record)?)?;
    dev::write_private(&pid_file(dev, name), &format!("{pid}\n"))?;
    Ok(Started { child, log_offset })
}

/// Opens a log to append to it; and where its end is now, in bytes.
pub(crate) fn open_log(dev: &Dev, name: &str) -> Result<(File, u64)> {
    let path = dev.log(name);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let end = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?.len();
    Ok((file, end))
}

/// The process of this name, if it is alive and ours.
pub(crate) fn find(dev: &Dev, name: &str) -> Option<Running> {
    let text = fs::read_to_string(pid_file(dev, name)).ok()?;
    let record: Record = serde_json::from_str(&fs::read_to_string(record_file(dev, name)).ok()?).ok()?;
    if text.trim() != record.pid.to_string() || record.boot_id != boot_id().ok()? {
        return None;
    }
    let handle = pidfd_open(Pid::from_raw(record.pid)?, PidfdFlags::empty()).ok()?;
    let ours = start_ticks(record.pid)? == record.start_ticks;
    ours.then(|| Running { name: name.to_owned(), pid: record.pid, settings: record.settings, handle })
}

/// The names of all processes that have a pid file, alive or not, sorted.
pub(crate) fn names(dev: &Dev) -> Vec<String> {
    let entries = fs::read_dir(dev.run_dir()).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = files.filter_map(|file| file.strip_suffix(".pid").map(str::to_owned)).collect();
    names.sort();
    names
}

/// Forgets a process that has ended.
pub(crate) fn forget(dev: &Dev, name: &str) {
    for file in [pid_file(dev, name), record_file(dev, name)] {
        // Nothing depends on it: a file that stays is recognised as stale.
        let _ = fs::remove_file(file);
    }
}

impl Running {
    /// Whether the program's file was replaced (built again) since the process began.
    pub(crate) fn is_outdated(&self) -> bool {
        let program = fs::read_link(format!("/proc/{}/exe", self.pid));
        program.is_ok_and(|path| path.to_string_lossy().ends_with(" (deleted)"))
    }

    fn signal(&self, signal: Signal) {
        // The only error that can come is that it has ended already, which is what is wanted.
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    /// Waits for its end; false if it is alive at `deadline`.
    fn ended_by(&self, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
            match poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&timeout)) {
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => return false,
                Ok(_) => return true,
            }
        }
    }
}

/// Asks the processes to end, all at once, kills those that do not within [`GRACE`], and forgets them.
pub(crate) fn stop(dev: &Dev, processes: &[Running]) {
    for process in processes {
        // To Postgres, SIGTERM means to wait until every client has gone by itself; SIGINT is its orderly end.
        let signal = if process.name == crate::postgres::NAME { Signal::INT } else { Signal::TERM };
        process.signal(signal);
    }
    let deadline = Instant::now() + GRACE;
    for process in processes {
        if !process.ended_by(deadline) {
            console::note(&format!("{} did not end within {} s: killed", process.name, GRACE.as_secs()));
            process.signal(Signal::KILL);
            if !process.ended_by(Instant::now() + KILL_WAIT) {
                console::note(&format!("{} (pid {}) is still there", process.name, process.pid));
                continue;
            }
        }
        forget(dev, &process.name);
    }
}

fn pid_file(dev: &Dev, name: &str) -> PathBuf {
    dev.run_dir().join(format!("{name}.pid"))
}

fn record_file(dev: &Dev, name: &str) -> PathBuf {
    dev.run_dir().join(format!("{name}.json"))
}

fn boot_id() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    Ok(text.context("cannot read /proc (this needs Linux)")?.trim().to_owned())
}

/// Whether a process has ended, but its exit status was not collected yet.
pub(crate) fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| state(&stat) == Some("Z"))
}

/// Whether a process works in this folder (as far as this user may know).
pub(crate) fn anyone_in(folder: &Path) -> bool {
    let mut processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.any(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == folder))
}

/// When a process began; none if there is none, or only its exit status is left.
fn start_ticks(pid: i32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22 of `/proc/<pid>/stat`.
fn parse_stat(stat: &str) -> Option<u64> {
    let ended = matches!(state(stat)?, "Z" | "X");
    if ended { None } else { behind_name(stat)?.nth(19)?.parse().ok() }
}

/// Field 3 of `/proc/<pid>/stat`.
fn state(stat: &str) -> Option<&str> {
    behind_name(stat)?.next()
}

/// The fields from the third on. The second one, the name in brackets, may hold anything, brackets and blanks too.
fn behind_name(stat: &str) -> Option<SplitAsciiWhitespace<'_>> {
    Some(stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dev(name: &str) -> Dev {
        let dir = std::env::temp_dir().join(format!("boxoffice-{name}-{}", std::process::id()));
        Dev { root: dir.clone(), dir }
    }

    #[test]
    fn start_of_a_process_is_read_behind_its_name() {
        let rest = "1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 100";
        assert_eq!(parse_stat(&format!("42 (a) S b) S {rest}")), Some(987_654));
        assert_eq!(parse_stat(&format!("42 (api) Z {rest}")), None, "a zombie has ended");
        assert_eq!(parse_stat("42"), None);
    }

    #[test]
    fn a_process_is_found_until_it_is_stopped() {
        let dev = dev("found");
        let mut started = start(&dev, "sleeper", Command::new("sleep").arg("60"), "x").unwrap();
        let running = find(&dev, "sleeper").unwrap();
        assert_eq!((running.pid.cast_unsigned(), running.settings.as_str()), (started.child.id(), "x"));
        assert_eq!(names(&dev), ["sleeper"]);
        stop(&dev, &[running]);
        assert!(find(&dev, "sleeper").is_none());
        assert!(names(&dev).is_empty());
        started.child.wait().unwrap();
        fs::remove_dir_all(&dev.dir).unwrap();
    }

    #[test]
    fn a_pid_that_another_process_has_got_is_not_ours() {
        let dev = dev("recycled");
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(other.id()).unwrap();
        let began = start_ticks(pid).unwrap();
        let mut record = Record { pid, start_ticks: began, boot_id: boot_id().unwrap(), settings: String::new() };
        let mut write = |start_ticks| {
            record.start_ticks = start_ticks;
            dev::write_private(&record_file(&dev, "w"), &serde_json::to_string(&record).unwrap()).unwrap();
            dev::write_private(&pid_file(&dev, "w"), &format!("{pid}\n")).unwrap();
        };
        write(began - 1);
        assert!(find(&dev, "w").is_none());
        write(began);
        assert!(find(&dev, "w").is_some(), "the same pid with the right start is found");
        other.kill().unwrap();
        other.wait().unwrap();
        fs::remove_dir_all(&dev.dir).unwrap();
    }
}
