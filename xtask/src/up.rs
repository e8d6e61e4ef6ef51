//! `cargo xtask up`: everything up, in order, and its state for as long as the command stays.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cargo::{self, Profile};
use crate::console;
use crate::demo::{self, Demo};
use crate::dev::Dev;
use crate::interrupt;
use crate::kafka;
use crate::packages::{self, Wanted};
use crate::process;
use crate::services::{self, Backing};
use crate::system::{Foreign, System};

/// How often the processes are looked at while the command stays.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What the user asked for.
pub(crate) struct Options {
    pub(crate) detach: bool,
    pub(crate) workers: u16,
    pub(crate) profile: Profile,
}

/// Brings the system up, then stays until it is asked to stop, or returns at once if detached.
pub(crate) fn up(dev: &Dev, options: &Options) -> Result<ExitCode> {
    let lock = dev.lock()?;
    let mut system = System::open(dev)?;
    let foreign = Foreign::from_environment(dev)?;
    let demo = match bring_up(&mut system, options, &foreign) {
        Ok(demo) => demo,
        Err(error) => {
            // Nothing is left half-started.
            system.stop_started();
            return Err(error);
        }
    };
    drop(lock);
    println!("\n{}", state(&system));
    println!("{}", demo::tour(&url(&system, services::API), &demo));
    if options.detach {
        println!("It runs until `cargo xtask down`.");
        return Ok(ExitCode::SUCCESS);
    }
    stay(system);
    Ok(ExitCode::SUCCESS)
}

/// Builds and starts whatever is missing; when this returns, everything is ready.
pub(crate) fn bring_up(system: &mut System, options: &Options, foreign: &Foreign) -> Result<Demo> {
    let dev = system.dev;
    let private_kafka = foreign.kafka_bootstrap_servers.is_none();
    let wanted = Wanted { postgres: foreign.database_url.is_none(), maven: private_kafka && !kafka::is_fetched(dev) };
    let tools = packages::ensure(wanted)?;
    console::note(&format!("building, {} profile (minutes the first time)", options.profile.name()));
    let programs = cargo::build_programs(dev, options.profile)?;
    let backing = system.start_backing(&tools, foreign)?;
    system.setup(&programs, &backing)?;
    system.start_services(&programs, &backing, options.workers)?;
    backing.write_env(dev, |name| url(system, name))?;
    seed(system, &backing)
}

fn seed(system: &System, backing: &Backing) -> Result<Demo> {
    let step = console::step("demo concert and buyer");
    let (demo, outcome) = demo::seed(system.dev, &url(system, services::API), backing.keys.get("ADMIN_KEY"))
        .context("the demo concert could not be made (the log of the api may say why)")?;
    step.done(outcome);
    Ok(demo)
}

fn url(system: &System, name: &str) -> String {
    format!("http://127.0.0.1:{}", system.ports.known(name).unwrap_or_default())
}

/// All processes as a table.
fn state(system: &System) -> String {
    let dev = system.dev;
    let mut lines = vec![format!("{:22} {:>8}  {:28} {}", "process", "pid", "address", "log")];
    for name in process::names(dev) {
        let Some(running) = process::find(dev, &name) else { continue };
        let address = if services::stop_turn(&name) == 2 {
            url(system, &name).replace("http://", "")
        } else {
            url(system, &name)
        };
        lines.push(format!("{name:22} {:>8}  {address:28} {}", running.pid, dev.show(&dev.log(&name))));
    }
    let api = url(system, services::API);
    lines.push(format!("\nAddresses and the admin key: {}   API: {api}/docs", dev.show(&dev.env_file())));
    lines.join("\n")
}

/// Stays, says when a process dies or comes back, and stops everything at the end.
fn stay(mut system: System) {
    println!("Ctrl-C stops what this command has started.");
    let mut alive: BTreeMap<String, i32> = pids(&system);
    while !interrupt::interrupted() {
        std::thread::sleep(LOOK_EVERY);
        system.reap();
        let now = pids(&system);
        report(&system, &alive, &now);
        alive = now;
        if process::names(system.dev).is_empty() {
            console::note("everything was stopped by another command");
            return;
        }
    }
    system.stop_started();
    let left = pids(&system);
    if !left.is_empty() {
        let names: Vec<&str> = left.keys().map(String::as_str).collect();
        console::note(&format!("left, for it ran before: {} (`cargo xtask down` stops it)", names.join(", ")));
    }
}

fn pids(system: &System) -> BTreeMap<String, i32> {
    let names = process::names(system.dev).into_iter();
    names.filter_map(|name| process::find(system.dev, &name).map(|running| (name, running.pid))).collect()
}

fn report(system: &System, before: &BTreeMap<String, i32>, now: &BTreeMap<String, i32>) {
    let dev = system.dev;
    let known = process::names(dev);
    for (name, pid) in before.iter().filter(|(name, _)| !now.contains_key(*name)) {
        if known.contains(name) {
            let log = dev.show(&dev.log(name));
            console::note(&format!("{name} (pid {pid}) died: see {log}; `cargo xtask up --detach` starts it again"));
        } else {
            console::note(&format!("{name} was stopped"));
        }
    }
    for (name, pid) in now.iter().filter(|(name, pid)| before.get(*name) != Some(pid)) {
        console::note(&format!("{name} runs (pid {pid})"));
    }
}
