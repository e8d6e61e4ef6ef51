//! `cargo xtask bench`: everything as it is shipped, on a fresh system of their own, and load on it. With `--growth`, several such systems
//! one after another.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::{self, Profile};
use crate::dev::{self, BENCH_DIR, Dev};
use crate::services::Keys;
use crate::{console, down, kafka, packages};

/// The program that puts the load on.
const BENCH: &str = "bench";
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

/// What can grow, and the systems on which it is measured: one after the other, for what one leaves behind would weigh on the next.
const GROWTHS: [Growth; 6] = [
    ("requests", &[Size::USUAL]),
    ("waiting", &[Size::USUAL]),
    ("seats", &[Size::USUAL]),
    ("sold", &[Size::USUAL]),
    ("workers", &[Size::workers(1), Size::workers(2), Size::workers(4)]),
    ("partitions", &[Size::partitions(1), Size::partitions(6), Size::partitions(24), Size::partitions(96)]),
];
/// Says that growth is measured: all, or after `=` one kind.
const GROWTH: &str = "--growth";

/// What grows, and on which systems.
type Growth = (&'static str, &'static [Size]);

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
    let is_smoke = args.iter().any(|arg| arg == SMOKE);
    run(if is_smoke { Profile::Dev } else { Profile::Dist }, args)?;
    Ok(ExitCode::SUCCESS)
}

/// The same of programs of this profile.
pub(crate) fn run(profile: Profile, args: &[String]) -> Result<()> {
    let folder = dev::workspace()?.join(".dev");
    std::fs::create_dir_all(&folder).context("cannot create .dev")?;
    let dev = Dev::open(Some(&folder.join(BENCH_DIR)))?;
    // Before anything is built: that may replace this very file.
    let myself = std::env::current_exe().context("cannot find myself")?;
    let launch = Launch { myself, profile };
    let programs = cargo::build_programs(&dev, launch.profile)?;
    let program = programs.get(BENCH).context("cargo did not say where it put the load generator")?;
    match growths(args)? {
        None => on_a_system(&dev, &launch, Size::USUAL, program, args)?,
        Some((growths, others)) => {
            // Not in the system's own folder, which is wiped after each.
            let points = folder.join("growth.json");
            if points.exists() {
                std::fs::remove_file(&points).with_context(|| points.display().to_string())?;
            }
            for (name, sizes) in growths {
                let mut args = others.clone();
                args.extend([GROWTH, name, "--growth-file", &points.display().to_string()].map(str::to_owned));
                for size in sizes {
                    on_a_system(&dev, &launch, *size, program, &args)?;
                }
            }
        }
    }
    Ok(())
}

/// Which growths are asked for, and the other arguments; None: none.
fn growths(args: &[String]) -> Result<Option<(Vec<Growth>, Vec<String>)>> {
    let (asked, others): (Vec<&String>, Vec<&String>) =
        args.iter().partition(|arg| *arg == GROWTH || arg.starts_with("--growth="));
    if asked.is_empty() {
        return Ok(None);
    }
    let is_asked = |name: &str| asked.iter().any(|arg| *arg == GROWTH || arg.strip_prefix("--growth=") == Some(name));
    let growths: Vec<_> = GROWTHS.into_iter().filter(|(name, _)| is_asked(name)).collect();
    ensure!(!growths.is_empty(), "what can grow: {}", GROWTHS.map(|(name, _)| name).join(", "));
    Ok(Some((growths, others.into_iter().cloned().collect())))
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
    fn growth_is_one_kind_or_all() {
        let args = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(growths(&args("--quick --only joins")).unwrap().is_none());
        let (all, others) = growths(&args("--quick --growth --plots x")).unwrap().unwrap();
        assert_eq!((all.len(), others), (GROWTHS.len(), args("--quick --plots x")));
        let (some, _) = growths(&args("--growth=seats --growth=workers")).unwrap().unwrap();
        assert_eq!(some.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["seats", "workers"]);
        assert!(growths(&args("--growth=money")).is_err());
    }
}
