//! `cargo xtask bench`: puts load on a running system, and on its comparators, in turn, and says what came of it.

pub mod comparators;
mod growth;
mod http;
mod load;
mod peers;
mod plots;
mod processes;
mod proof;
mod report;
mod scenarios;
mod world;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use common::config::DatabaseConfig;
use common::keys::{AccessTokens, KeyRing, QueueTokens};

use crate::peers::Peers;
use crate::processes::Processes;
use crate::scenarios::{Bench, NAMES, SUSTAINED, Size};
use crate::world::World;

/// Puts load on Boxoffice, and on what it is compared with
#[derive(Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure, and print a table
    Run(RunArgs),
    /// Measure the programs as they are shipped, on a fresh system of their own in `.dev/bench`, beside what they are compared with
    // For `cargo xtask bench`: its help, and a look at its arguments before it brings a system up. Says which growths they ask for.
    #[command(hide = true, override_usage = "cargo xtask bench [OPTIONS]")]
    Check(Wanted),
    /// Serve the synchronous comparator
    Sync(comparators::sync::SyncSettings),
    /// Serve the comparator that does no work
    Bare {
        /// Where it listens
        #[arg(long)]
        listen: SocketAddr,
    },
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    wanted: Wanted,
    /// The points of growth that were measured so far; new ones are added [default: growth.json in the system's folder]
    #[arg(long, value_name = "FILE")]
    growth_file: Option<PathBuf>,
    /// The api's address
    #[arg(long, env = "BOXOFFICE_URL")]
    url: String,
    #[arg(long, env = "BOXOFFICE_ADMIN_KEY", hide_env_values = true)]
    admin_key: String,
    #[arg(long, env = "ACCESS_TOKEN_KEYS", hide_env_values = true)]
    access_token_keys: KeyRing,
    #[arg(long, env = "QUEUE_TOKEN_KEYS", hide_env_values = true)]
    queue_token_keys: KeyRing,
    /// The folder with the system's pid files
    #[arg(long, env = "BOXOFFICE_DEV_DIR")]
    dev_dir: PathBuf,
    #[command(flatten)]
    database: DatabaseConfig,
}

// What people ask for: all that does not depend on the system. (No doc comment: it would be the help's first line.)
#[derive(Args)]
struct Wanted {
    /// A few minutes instead of as long as it takes; without `sustained`
    #[arg(long)]
    quick: bool,
    /// So little that it says nothing about speed, but all about correctness: each request has one outcome, the tables are sound
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// Without those that it is compared with
    #[arg(long)]
    alone: bool,
    /// Only this scenario; may be given several times
    #[arg(long, value_name = "SCENARIO", value_parser = NAMES)]
    only: Vec<String>,
    /// No scenarios: how the cost of a request grows with what there is, on a system for each; without `=`, with everything that can grow
    #[arg(long, value_name = "WHAT", value_parser = growth::NAMES, num_args = 0..=1, require_equals = true,
          default_missing_values = growth::NAMES, conflicts_with = "only")]
    growth: Vec<String>,
    /// Write the figures to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw what can be drawn (`sustained`, and growth) as SVG files in this folder
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
}

impl Wanted {
    fn size(&self) -> Size {
        match (self.smoke, self.quick) {
            (true, _) => Size::Smoke,
            (false, true) => Size::Quick,
            (false, false) => Size::Full,
        }
    }

    /// What grows, each once.
    fn growths(&self) -> impl Iterator<Item = &'static str> {
        growth::NAMES.into_iter().filter(|name| self.growth.iter().any(|asked| asked == name))
    }

    /// Where figures are to be drawn, if any of those that are wanted can be.
    fn drawn_in(&self) -> Option<&Path> {
        let sustained = match &self.only[..] {
            [] => self.size() == Size::Full,
            only => only.iter().any(|only| only == SUSTAINED),
        };
        self.plots.as_deref().filter(|_| sustained || !self.growth.is_empty())
    }

    /// Looks whether the results can be written, before time is spent on them. What earlier runs wrote stays until then.
    fn make_room(&self) -> Result<()> {
        if let Some(file) = &self.json {
            let opened = std::fs::OpenOptions::new().create(true).append(true).open(file);
            opened.with_context(|| file.display().to_string())?;
        }
        if let Some(folder) = self.drawn_in() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        Ok(())
    }
}

/// One thread: the load generator takes as little as it can from what it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Run(args) => run(args).await,
        Command::Check(wanted) => {
            wanted.make_room()?;
            wanted.growths().for_each(|name| println!("{name}"));
            Ok(())
        }
        Command::Sync(settings) => serve(comparators::sync::serve(settings)),
        Command::Bare { listen } => serve(comparators::bare::serve(listen, comparators::bare::Bodies::typical()?)),
    }
}

/// Serves on all cores, as ours does, for as long as the load generator lives: if that is killed, it cannot end this process.
fn serve(serving: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let serving = std::thread::spawn(|| tokio::runtime::Runtime::new()?.block_on(serving));
    serving.join().map_err(|_| anyhow::anyhow!("the comparator panicked"))?
}

async fn run(args: RunArgs) -> Result<()> {
    let wanted = args.wanted;
    wanted.make_room()?;
    if wanted.plots.is_some() && wanted.drawn_in().is_none() {
        eprintln!("nothing will be drawn: of the scenarios only {SUSTAINED} can be, and it is not among these");
    }
    let api: SocketAddr =
        args.url.trim_start_matches("http://").parse().context("BOXOFFICE_URL is http://address:port")?;
    let pool = common::database::pool(&args.database, "bench", 4)?;
    // To fill tables, and to prove what must be true of them, takes as long as it takes.
    pool.set_connect_options(pool.connect_options().as_ref().clone().options([("statement_timeout", "0")]));
    let (access, queue) = (AccessTokens::new(args.access_token_keys), QueueTokens::new(args.queue_token_keys));
    let world = World::new(api, pool.clone(), access, queue, &args.admin_key);
    let bench = Bench {
        world,
        processes: Processes::new(&args.dev_dir),
        peers: Peers::default(),
        told: proof::Told::default(),
        database_url: args.database.database_url.clone(),
        folder: args.dev_dir.join("pgbench"),
        size: wanted.size(),
        // What grows is compared with itself.
        alone: wanted.alone || !wanted.growth.is_empty(),
    };
    bench.warm_up().await.context("warming up")?;
    if wanted.growth.is_empty() {
        return scenarios(&bench, &wanted).await;
    }
    let points = args.growth_file.unwrap_or_else(|| args.dev_dir.join("growth.json"));
    for name in wanted.growths() {
        growth(&bench, name, &points, &wanted).await?;
    }
    Ok(())
}

async fn growth(bench: &Bench, name: &str, file: &Path, wanted: &Wanted) -> Result<()> {
    let points = growth::measure(bench, name).await.with_context(|| name.to_owned())?;
    boxoffice_tests::audit::audit(&bench.world.pool).await;
    let growths = growth::add_to(file, name, points)?;
    if let Some(file) = &wanted.json {
        write_json(file, &serde_json::to_value(&growths)?)?;
    }
    wanted.plots.as_ref().map_or(Ok(()), |folder| growth::plot(&growths, folder))
}

async fn scenarios(bench: &Bench, wanted: &Wanted) -> Result<()> {
    // The search for a limit takes as long as half of the others.
    let is_usual = |name: &str| name != SUSTAINED || bench.size == Size::Full;
    let is_wanted = |name: &str| match &wanted.only[..] {
        [] => is_usual(name),
        only => only.iter().any(|only| only == name),
    };
    let names = NAMES.iter().filter(|name| is_wanted(name));
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for name in names {
        match bench.run(name).await {
            Ok(row) => {
                println!("{}", report::line(&row));
                rows.push(row);
            }
            // The others can be measured all the same.
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed.push(*name);
                bench.peers.end();
            }
        }
    }
    proof::prove(&bench.world.pool, &bench.told).await?;
    println!("{}", report::table(&rows));
    if let Some(file) = &wanted.json {
        write_json(file, &report::json(&rows))?;
    }
    if let (Some(folder), Some(plot)) = (&wanted.plots, report::throughput_latency(&rows)) {
        plot.write(&folder.join("throughput-latency.svg"))?;
    }
    anyhow::ensure!(failed.is_empty(), "not measured: {}; the reasons stand above", failed.join(", "));
    Ok(())
}

fn write_json(file: &Path, value: &serde_json::Value) -> Result<()> {
    std::fs::write(file, format!("{value:#}\n")).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &str) -> Result<Wanted, String> {
        let cli = Cli::try_parse_from(["bench", "check"].into_iter().chain(args.split_whitespace()));
        match cli.map_err(|error| error.to_string())?.command {
            Command::Check(wanted) => Ok(wanted),
            _ => Err("another command".to_owned()),
        }
    }

    #[test]
    fn what_cannot_be_measured_is_refused_with_what_can() {
        for (args, told) in [
            ("--only nonsense", "holds-hot"),
            ("--growth=seats --growth=money", "partitions"),
            ("--growth --only joins", "cannot be used with"),
            ("--quick --smoke", "cannot be used with"),
        ] {
            let refused = check(args).map(|_| ()).unwrap_err();
            assert!(refused.contains(told), "{args}: {refused}");
        }
    }

    #[test]
    fn growth_is_some_kinds_or_all() {
        let growths = |args| check(args).unwrap().growths().collect::<Vec<_>>();
        assert_eq!(growths("--quick --only joins"), [""; 0]);
        assert_eq!(growths("--growth --quick"), growth::NAMES);
        assert_eq!(growths("--growth=workers --growth=seats --growth=workers"), ["seats", "workers"]);
    }

    #[test]
    fn a_folder_is_for_what_can_be_drawn() {
        let is_drawn = |args: &str| check(&format!("--plots x {args}")).unwrap().drawn_in().is_some();
        assert!(["", "--alone", "--quick --only sustained", "--quick --growth=seats"].into_iter().all(is_drawn));
        assert!(!["--quick", "--smoke", "--only holds-hot"].into_iter().any(is_drawn));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_and_one_that_can_keeps_what_it_has() {
        assert!(check("--json /nowhere/figures.json").unwrap().make_room().is_err());
        let file = std::env::temp_dir().join(format!("boxoffice-figures-{}.json", std::process::id()));
        std::fs::write(&file, "{}").unwrap();
        check(&format!("--json {}", file.display())).unwrap().make_room().unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "{}");
        std::fs::remove_file(&file).unwrap();
    }
}
