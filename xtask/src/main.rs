//! `cargo xtask up | down | test | bench | pgo | kafka | sqlx | packages`: the development and test system.
//!
//! A private Kafka and a private Postgres under `.dev/`, the api and the workers on top of them, without Docker.
//! Linux only: it tells processes apart by `/proc`.

mod bench;
mod cargo;
mod console;
mod demo;
mod dev;
mod down;
mod interrupt;
mod kafka;
mod kafka_tools;
mod packages;
mod pgo;
mod ports;
mod postgres;
mod process;
mod services;
mod sqlx;
mod system;
mod test;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::cargo::Profile;
use crate::dev::Dev;

/// Development and test system of Boxoffice
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start everything: Kafka, Postgres, the api, the workers; what runs already is left
    ///
    /// `DATABASE_URL` and `KAFKA_BOOTSTRAP_SERVERS`, when set, are used instead of a private Postgres and Kafka.
    Up(UpArgs),
    /// Stop everything that `up` started
    Down {
        /// Also delete the data, keys and logs (the downloaded Kafka jars stay)
        #[arg(long)]
        wipe: bool,
        #[command(flatten)]
        dir: DirArg,
    },
    /// Run all tests, the end-to-end ones on a fresh system of their own in `.dev/test`
    Test {
        /// Names of tests to run, and other arguments of the test binaries
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Measure the programs as they are shipped, on a fresh system of their own in `.dev/bench`, beside what they are compared with
    // Its `--help` is the load generator's.
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments of the load generator; `cargo xtask bench --help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Count anew what the programs execute under load, for builds of the profile `dist`; half an hour on two cores
    Pgo,
    /// Install what the other commands need (Java, Maven, Postgres, compilers), if it is missing, and nothing else
    Packages,
    /// Run one of Kafka's own tools against the running system; without a name, list them
    Kafka {
        #[command(flatten)]
        dir: DirArg,
        /// The tool, for instance `kafka-topics`, and its arguments; `--bootstrap-server` is filled in
        #[arg(value_name = "TOOL [ARGS]", trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Write the offline data of all SQL queries (`.sqlx/`) from a freshly migrated Postgres
    Sqlx {
        /// Write nothing; fail if `.sqlx/` is not what would be written
        #[arg(long)]
        check: bool,
    },
}

#[derive(Args)]
struct UpArgs {
    /// Return when everything is ready, and leave it running
    #[arg(long)]
    detach: bool,
    /// How many of each worker
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Which of Cargo's profiles to build and run
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
    /// Short for --profile dev
    #[arg(long, conflicts_with = "profile")]
    debug: bool,
    #[command(flatten)]
    dir: DirArg,
}

#[derive(Args)]
struct DirArg {
    /// Where the system keeps its data, logs and state [default: .dev]
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl DirArg {
    fn open(&self) -> anyhow::Result<Dev> {
        Dev::open(self.dir.as_deref())
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    interrupt::watch()?;
    match command {
        Command::Up(args) => {
            let dev = args.dir.open()?;
            let profile = if args.debug { Profile::Dev } else { args.profile };
            up::up(&dev, &up::Options { detach: args.detach, workers: args.workers, profile })
        }
        Command::Down { wipe, dir } => down::down(&dir.open()?, wipe),
        Command::Test { args } => test::test(&args),
        Command::Bench { args } => bench::bench(&args),
        Command::Pgo => pgo::pgo(),
        Command::Packages => {
            packages::ensure(packages::Wanted { postgres: true, maven: true })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Kafka { dir, words } => kafka_tools::run(&dir.open()?, &words),
        Command::Sqlx { check } => sqlx::run(check),
    }
}
