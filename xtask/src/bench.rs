//! `cargo xtask bench`: release builds of everything, on a fresh system of their own, and load on it.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo::{self, Profile};
use crate::dev::{self, BENCH_DIR, Dev};
use crate::services::Keys;
use crate::{console, down, kafka};

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

/// Measures, as `args` say.
pub(crate) fn bench(args: &[String]) -> Result<ExitCode> {
    let folder = dev::workspace()?.join(".dev");
    std::fs::create_dir_all(&folder).context("cannot create .dev")?;
    let dev = Dev::open(Some(&folder.join(BENCH_DIR)))?;
    // Before anything is built: that may replace this very file.
    let myself = std::env::current_exe().context("cannot find myself")?;
    let is_smoke = args.iter().any(|arg| arg == SMOKE);
    let programs = cargo::build_programs(&dev, if is_smoke { Profile::Dev } else { Profile::Release })?;
    let program = programs.get(BENCH).context("cargo did not say where it put the load generator")?;
    {
        let _lock = dev.lock()?;
        down::stop_and_wipe(&dev)?;
    }
    let measured = up(&dev, &myself, is_smoke).and_then(|()| measure(&dev, program, args));
    let _lock = dev.lock()?;
    if measured.is_err() {
        down::stop(&dev)?;
        console::note(&format!("the logs are in {}", dev.show(&dev.dir.join("log"))));
    } else {
        down::stop_and_wipe(&dev)?;
    }
    measured.map(|()| ExitCode::SUCCESS)
}

/// Brings a private system up. A command of its own, because services have its environment.
fn up(dev: &Dev, myself: &Path, is_smoke: bool) -> Result<()> {
    let mut command = Command::new(myself);
    command.args(["up", "--detach", "--dir"]).arg(&dev.dir).envs(LIMITS).envs([BROKER]).stdout(Stdio::null());
    if is_smoke {
        command.arg("--debug");
    }
    // Always a private one: a foreign database could not be wiped.
    command.env_remove(dev::DATABASE_URL).env_remove(dev::KAFKA_BOOTSTRAP_SERVERS);
    let child = command.spawn().context("cannot run myself")?;
    if !cargo::wait(child)?.success() {
        bail!("the system did not come up; what it said stands above");
    }
    Ok(())
}

fn measure(dev: &Dev, program: &Path, args: &[String]) -> Result<()> {
    let keys = Keys::open(dev)?;
    let mut command = Command::new(program);
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
