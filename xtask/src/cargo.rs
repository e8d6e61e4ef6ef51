//! Calls of Cargo: builds, and where their programs lie.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::dev::Dev;
use crate::{interrupt, pgo};

/// The programs of the system.
pub(crate) const PROGRAMS: [&str; 5] = ["setup", "api", "token-worker", "reservation-worker", "payment-worker"];

/// How often a child is looked at while it works.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Which of Cargo's profiles is built.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Quick to build, slow to run
    Dev,
    /// Fast
    Release,
    /// As it is shipped: fastest, and slowest to build
    Dist,
    /// The same, and counts what it executes (`cargo xtask pgo`)
    #[value(hide = true)]
    Instrumented,
}

impl Profile {
    /// Its name, as `up` knows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Instrumented => "instrumented",
            others => others.cargo_name(),
        }
    }

    fn cargo_name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
            Self::Dist | Self::Instrumented => "dist",
        }
    }
}

/// The programs of the system by name.
pub(crate) type Programs = BTreeMap<String, PathBuf>;

/// Cargo in the workspace. SQL is checked against the committed `.sqlx/`, whatever database the environment names.
pub(crate) fn cargo(dev: &Dev) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(&dev.root).env("SQLX_OFFLINE", "true");
    // `cargo run` tells us about our own package. Build scripts that look at these variables (ring's) would take every build from
    // here for another one than a developer's, and compile themselves and all that leans on them anew.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

/// Builds the system's programs. Cargo shows its own progress.
pub(crate) fn build_programs(dev: &Dev, profile: Profile) -> Result<Programs> {
    let mut command = cargo(dev);
    // All of the workspace: a selection of packages has other features in common, and would compile what they lean on anew.
    command.args(["build", "--workspace", "--bins", "--message-format=json-render-diagnostics"]);
    command.args(["--profile", profile.cargo_name()]);
    pgo::guide(&mut command, dev, profile)?;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let reader = std::thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).filter_map(|line| executable(&line)).collect::<Programs>()
    });
    let status = wait(child)?;
    let built = reader.join().ok().context("cannot read what cargo says")?;
    if !status.success() {
        bail!("the build failed");
    }
    if let Some(missing) = PROGRAMS.iter().find(|name| !built.contains_key(**name)) {
        bail!("cargo did not say where it put {missing}");
    }
    Ok(built)
}

/// Name and place of the program that one line of Cargo's messages tells of.
fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let path = message.get("executable")?.as_str()?;
    let name = message.get("target")?.get("name")?.as_str()?;
    Some((name.to_owned(), PathBuf::from(path)))
}

/// Waits for a child; when somebody asks to stop, the child is asked too, and this is an error.
pub(crate) fn wait(child: Child) -> Result<ExitStatus> {
    wait_and(child, || {})
}

/// The same; `meanwhile` is called again and again.
pub(crate) fn wait_and(mut child: Child, mut meanwhile: impl FnMut()) -> Result<ExitStatus> {
    loop {
        meanwhile();
        if let Some(status) = child.try_wait().context("cannot wait for a child")? {
            interrupt::check()?;
            return Ok(status);
        }
        if interrupt::interrupted() {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // Not waited for yet, so the pid is still the child's. It may have ended by itself.
                let _ = kill_process(pid, Signal::TERM);
            }
            child.wait().context("cannot wait for a child")?;
            bail!("interrupted");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"name":"api","kind":["bin"]},"executable":"/t/debug/api"}"#;
        assert_eq!(executable(line), Some(("api".to_owned(), PathBuf::from("/t/debug/api"))));
        assert_eq!(executable(r#"{"target":{"name":"common"},"executable":null}"#), None);
        assert_eq!(executable("warning: not JSON"), None);
    }
}
