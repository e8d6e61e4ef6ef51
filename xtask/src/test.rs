//! `cargo xtask test`: all tests, the end-to-end ones on a fresh system of their own.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cargo::{self, Profile};
use crate::dev::{self, Dev, TEST_DIR, TEST_LOCK};
use crate::system::{Foreign, System};
use crate::{console, down, up};

/// Tests in this module kill and restart processes, so they run alone, one by one, after all others.
const FAULTS: &str = "faults::";
/// Where the system and the tests' program are told of.
const DEV_DIR: &str = "BOXOFFICE_DEV_DIR";
const XTASK: &str = "BOXOFFICE_XTASK";
/// Arguments of test binaries that say how, not which.
const OUTPUT_FLAGS: [&str; 3] = ["--nocapture", "--no-capture", "--show-output"];
const LOG_LINES_SHOWN: usize = 15;

/// Runs all tests, or those that `args` name. Fails if one of them does.
pub(crate) fn test(args: &[String]) -> Result<ExitCode> {
    let xtask = std::env::current_exe().context("cannot find myself")?;
    let folder = dev::workspace()?.join(".dev");
    fs::create_dir_all(&folder).context("cannot create .dev")?;
    let _session = dev::lock(&folder.join(TEST_LOCK), "another cargo xtask test runs here; waiting for it")?;
    let dev = Dev::open(Some(&folder.join(TEST_DIR)))?;
    let result = start(&dev).and_then(|system| Session { system, xtask, args }.run());
    // Whatever happened, and whoever started it.
    let _lock = dev.lock()?;
    if result.as_ref().is_ok_and(Vec::is_empty) {
        down::stop_and_wipe(&dev)?;
        return Ok(ExitCode::SUCCESS);
    }
    down::stop(&dev)?;
    show_errors(&dev);
    let failed = result?;
    bail!("failed: {}. The logs are in {}", failed.join(", "), dev.show(&dev.dir.join("log")));
}

/// Wipes what the last run left, and brings a system up.
fn start(dev: &Dev) -> Result<System<'_>> {
    let _lock = dev.lock()?;
    down::stop_and_wipe(dev)?;
    let mut system = System::open(dev)?;
    let options = up::Options { detach: true, workers: 1, profile: Profile::Dev };
    // Always a private one: a foreign database could not be wiped.
    up::bring_up(&mut system, &options, &Foreign::default())?;
    Ok(system)
}

/// One run of the tests against the running system.
struct Session<'a> {
    system: System<'a>,
    xtask: PathBuf,
    args: &'a [String],
}

impl Session<'_> {
    /// Runs all phases; the names of those that failed.
    fn run(mut self) -> Result<Vec<&'static str>> {
        let unit = ["--workspace", "--exclude", "boxoffice-tests"];
        let end_to_end = ["--package", "boxoffice-tests", "--test", "it"];
        let mut failed = Vec::new();

        let own: Vec<String> = self.args.to_vec();
        self.phase("unit tests", &unit, &own, &mut failed)?;

        let parallel: Vec<String> = ["--skip", FAULTS].map(str::to_owned).into_iter().chain(own).collect();
        self.phase("end-to-end tests", &end_to_end, &parallel, &mut failed)?;

        if let Some(names) = self.fault_tests(&end_to_end)? {
            let alone: Vec<String> = names.into_iter().chain(["--test-threads=1".to_owned()]).collect();
            self.phase("fault tests", &end_to_end, &alone, &mut failed)?;
        }
        Ok(failed)
    }

    fn phase(
        &mut self,
        title: &'static str,
        which: &[&str],
        args: &[String],
        failed: &mut Vec<&'static str>,
    ) -> Result<()> {
        console::note(title);
        let begun = Instant::now();
        let mut command = self.cargo_test(which, args)?;
        let child = command.stdin(Stdio::null()).spawn().context("cannot run cargo")?;
        let status = cargo::wait_and(child, || self.system.reap())?;
        let outcome = if status.success() { "passed" } else { "FAILED" };
        console::note(&format!("{title}: {outcome} ({} s)", begun.elapsed().as_secs()));
        if !status.success() {
            failed.push(title);
        }
        Ok(())
    }

    /// Which of the fault tests the arguments mean: a filter for all; none if there are none of them.
    fn fault_tests(&self, which: &[&str]) -> Result<Option<Vec<String>>> {
        if self.args.is_empty() {
            return Ok(Some(vec![FAULTS.to_owned()]));
        }
        // Several filters mean "any of them", so those that are fault tests as well must be named one by one.
        let list: Vec<String> =
            self.args.iter().cloned().chain(["--list", "--format", "terse"].map(str::to_owned)).collect();
        let output = self.cargo_test(which, &list)?.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
        let names = listed_faults(&String::from_utf8_lossy(&output.stdout));
        if names.is_empty() {
            return Ok(None);
        }
        let flags = self.args.iter().filter(|arg| OUTPUT_FLAGS.contains(&arg.as_str())).cloned();
        Ok(Some(["--exact".to_owned()].into_iter().chain(names).chain(flags).collect()))
    }

    fn cargo_test(&self, which: &[&str], args: &[String]) -> Result<Command> {
        let dev = self.system.dev;
        let mut command = cargo::cargo(dev);
        command.arg("test").args(which).arg("--").args(args);
        command.envs(dev::read_settings(&dev.env_file())?).env(DEV_DIR, &dev.dir).env(XTASK, &self.xtask);
        Ok(command)
    }
}

/// The fault tests in a terse list of tests.
fn listed_faults(list: &str) -> Vec<String> {
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    names.filter(|name| name.starts_with(FAULTS)).map(str::to_owned).collect()
}

/// The last lines of each log that tell of an error.
fn show_errors(dev: &Dev) {
    let mut logs: Vec<PathBuf> =
        fs::read_dir(dev.dir.join("log")).into_iter().flatten().flatten().map(|log| log.path()).collect();
    logs.sort();
    for log in logs {
        let lines = errors(&String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()));
        if !lines.is_empty() {
            eprintln!("errors in {}:\n{lines}", dev.show(&log));
        }
    }
}

fn errors(log: &str) -> String {
    let telling = |line: &&str| ["ERROR", "PANIC", "panicked"].iter().any(|word| line.contains(word));
    let lines: Vec<&str> = log.lines().filter(telling).collect();
    let last: Vec<String> =
        lines.iter().rev().take(LOG_LINES_SHOWN).rev().map(|line| format!("    {line}\n")).collect();
    last.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_tests_are_picked_from_a_list() {
        let list = "faults::worker_is_killed: test\nseeds::s0_01_x: test\nfaults::bench: benchmark\nfaults::b: test\n";
        assert_eq!(listed_faults(list), ["faults::worker_is_killed", "faults::b"]);
    }

    #[test]
    fn errors_are_picked_from_a_log() {
        let log = "INFO fine\n2026 ERROR api: broken\nthread 'main' panicked at x\nWARN so so\n";
        assert_eq!(errors(log), "    2026 ERROR api: broken\n    thread 'main' panicked at x\n");
        assert_eq!(errors("INFO fine\n"), "");
    }
}
