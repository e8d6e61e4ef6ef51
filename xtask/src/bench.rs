//! `cargo xtask bench`: everything as it is shipped, on a fresh system of their own, and load on it. With `--growth`, several such systems
//! one after another.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::{self, Profile};
use crate::dev::{self, BENCH_DIR, BENCH_LOCK, Dev};
use crate::services::Keys;
use crate::{console, down, kafka, packages};

/// The program that puts the load on.
const BENCH: &str = "bench";
/// Its subcommand that only looks at arguments.
const CHECK: &str = "check";
const HELP: [&str; 2] = ["--help", "-h"];
/// Nothing is measured then, so nothing has to be fast.
const SMOKE: &str = "--smoke";
/// The limits are looked at as always, but do not bite: a few buyers stand for very many.
const LIMITS: [(&str, &str); 6] = [
    ("RATE_LIMIT_LOG_PER_SECOND", "1000000"),
    ("RATE_LIMIT_LOG_BURST", "1000000"),
    ("RATE_LIMIT_POLL_PER_SECOND", "1000000"),
    ("RATE_LIMIT_POLL_BURST", "1000000"),
    ("RATE_LIMIT_REQUESTS_PER_SECOND", "1000000"),
    ("RATE_LIMIT_REQUESTS_BURST", "1000000"),
];

/// A broker that is measured runs as one that lives for long: with its best compiler.
const BROKER: (&str, &str) = (kafka::KAFKA_OPTS, "-XX:TieredStopAtLevel=4");

/// What grows with the system itself, and the sizes of system on which it is measured; all else is measured on one of the usual size.
const GROWN: [(&str, &[Size]); 2] = [
    ("workers", &[Size::workers(1), Size::workers(2), Size::workers(4)]),
    ("partitions", &[Size::partitions(1), Size::partitions(6), Size::partitions(24), Size::partitions(96)]),
];
/// Says that growth is measured: all, or after `=` one kind.
const GROWTH: &str = "--growth";

/// How large a system is.
#[derive(Clone, Copy)]
struct Size {
    /// Of each kind.
    workers: u16,
    /// Of each topic; None: as many as usual.
    partitions: Option<u16>,
}

impl Size {
    const USUAL: Self = Self { workers: 1, partitions: None };

    const fn workers(workers: u16) -> Self {
        Self { workers, ..Self::USUAL }
    }

    const fn partitions(partitions: u16) -> Self {
        Self { partitions: Some(partitions), ..Self::USUAL }
    }
}

/// How systems are brought up.
struct Launch {
    /// This program.
    myself: PathBuf,
    profile: Profile,
}

/// Measures what is shipped, as `args` say.
pub(crate) fn bench(args: &[String]) -> Result<ExitCode> {
    if args.iter().any(|arg| HELP.contains(&arg.as_str())) {
        return help();
    }
    let _session = session()?;
    let is_smoke = args.iter().any(|arg| arg == SMOKE);
    run(if is_smoke { Profile::Dev } else { Profile::Dist }, args)?;
    Ok(ExitCode::SUCCESS)
}

/// The same of programs of this profile; for who has the [`session`].
pub(crate) fn run(profile: Profile, args: &[String]) -> Result<()> {
    let folder = folder()?;
    let dev = Dev::open(Some(&folder.join(BENCH_DIR)))?;
    // Before anything is built: that may replace this very file.
    let myself = std::env::current_exe().context("cannot find myself")?;
    let launch = Launch { myself, profile };
    let programs = cargo::build_programs(&dev, launch.profile)?;
    let program = load_generator(&programs)?;
    let growths = check(program, args)?;
    if growths.is_empty() {
        return on_a_system(&dev, &launch, Size::USUAL, program, args);
    }
    // Not in the system's own folder, which is wiped after each.
    let points = folder.join("growth.json");
    if points.exists() {
        std::fs::remove_file(&points).with_context(|| points.display().to_string())?;
    }
    // One after the other, for what one leaves behind would weigh on the next.
    for name in growths {
        let args = args_of(&name, &points, args);
        for size in sizes(&name) {
            on_a_system(&dev, &launch, *size, program, &args)?;
        }
    }
    Ok(())
}

/// Lists the arguments, which the load generator knows; built in the way that takes least.
fn help() -> Result<ExitCode> {
    let programs = cargo::build_programs(&Dev::open(None)?, Profile::Dev)?;
    let status = Command::new(load_generator(&programs)?).args([CHECK, HELP[0]]).status();
    ensure!(status.context("cannot run the load generator")?.success(), "the load generator has no help");
    Ok(ExitCode::SUCCESS)
}

/// Waits until nobody else measures here: there is one folder for the system, and one machine. Held until dropped.
pub(crate) fn session() -> Result<File> {
    dev::lock(&folder()?.join(BENCH_LOCK), "another cargo xtask bench or pgo runs here; waiting for it")
}

fn folder() -> Result<PathBuf> {
    let folder = dev::workspace()?.join(".dev");
    std::fs::create_dir_all(&folder).context("cannot create .dev")?;
    Ok(folder)
}

fn load_generator(programs: &cargo::Programs) -> Result<&Path> {
    programs.get(BENCH).map(PathBuf::as_path).context("cargo did not say where it put the load generator")
}

/// Lets the load generator look at its arguments before a system is brought up for them. Which growths they ask for; empty: scenarios.
fn check(program: &Path, args: &[String]) -> Result<Vec<String>> {
    let output = Command::new(program).arg(CHECK).args(args).stderr(Stdio::inherit()).output();
    let output = output.context("cannot run the load generator")?;
    ensure!(output.status.success(), "nothing was measured; the reason stands above");
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// The same arguments for this growth alone, with the file of all points.
fn args_of(growth: &str, points: &Path, args: &[String]) -> Vec<String> {
    let others = args.iter().filter(|arg| !arg.starts_with(GROWTH)).cloned();
    others.chain([format!("{GROWTH}={growth}"), format!("--growth-file={}", points.display())]).collect()
}

fn sizes(growth: &str) -> &'static [Size] {
    GROWN.iter().find(|(name, _)| *name == growth).map_or(&[Size::USUAL], |(_, sizes)| sizes)
}

/// Brings a fresh system up, measures, and wipes it; if that fails, its logs stay.
fn on_a_system(dev: &Dev, launch: &Launch, size: Size, program: &Path, args: &[String]) -> Result<()> {
    {
        let _lock = dev.lock()?;
        down::stop_and_wipe(dev)?;
    }
    let measured = launch.up(dev, size).and_then(|()| measure(dev, program, args));
    let _lock = dev.lock()?;
    if measured.is_err() {
        down::stop(dev)?;
        console::note(&format!("the logs are in {}", dev.show(&dev.dir.join("log"))));
    } else {
        down::stop_and_wipe(dev)?;
    }
    measured
}

impl Launch {
    /// Brings a private system up. A command of its own, because services have its environment.
    fn up(&self, dev: &Dev, size: Size) -> Result<()> {
        let mut command = Command::new(&self.myself);
        command.args(["up", "--detach", "--workers", &size.workers.to_string(), "--dir"]).arg(&dev.dir);
        command.args(["--profile", self.profile.name()]);
        command.envs(LIMITS).envs([BROKER]).stdout(Stdio::null());
        command.envs(size.partitions.map(|partitions| ("TOPIC_PARTITIONS", partitions.to_string())));
        // Always a private one: a foreign database could not be wiped.
        command.env_remove(dev::DATABASE_URL).env_remove(dev::KAFKA_BOOTSTRAP_SERVERS);
        let child = command.spawn().context("cannot run myself")?;
        if !cargo::wait(child)?.success() {
            bail!("the system did not come up; what it said stands above");
        }
        Ok(())
    }
}

fn measure(dev: &Dev, program: &Path, args: &[String]) -> Result<()> {
    let keys = Keys::open(dev)?;
    let mut command = patient(program);
    command.arg("run").args(args).envs(dev::read_settings(&dev.env_file())?).env("BOXOFFICE_DEV_DIR", &dev.dir);
    for name in ["ACCESS_TOKEN_KEYS", "QUEUE_TOKEN_KEYS"] {
        command.env(name, keys.get(name));
    }
    let child = command.spawn().context("cannot run the load generator")?;
    if !cargo::wait(child)?.success() {
        bail!("not all was measured; the reason stands above");
    }
    Ok(())
}

/// The command that runs `program` so that what wakes it does not interrupt those who work: else each answer to the load generator takes the
/// core away from the api that writes it.
fn patient(program: &Path) -> Command {
    let Some(chrt) = packages::on_path("chrt") else { return Command::new(program) };
    let mut command = Command::new(chrt);
    command.args(["--batch", "0"]).arg(program);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_growth_has_its_own_arguments() {
        let args = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let seats = args_of("seats", Path::new("f"), &args("--quick --growth=seats --growth --plots x"));
        assert_eq!(seats, args("--quick --plots x --growth=seats --growth-file=f"));
    }

    #[test]
    fn what_grows_with_the_system_is_known_to_the_load_generator() {
        let measured = include_str!("../../bench/src/growth.rs");
        for (name, sizes) in GROWN {
            assert!(measured.contains(&format!("\"{name}\" => {{")), "{name} is not measured");
            assert!(sizes.len() > 1, "{name} does not grow");
        }
    }
}
