//! `cargo xtask bench`: puts load on a running system, and on its comparators, in turn, and says what came of it.

pub mod comparators;
mod growth;
mod http;
mod load;
mod peers;
mod plots;
mod processes;
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
    /// A few minutes instead of as long as it takes
    #[arg(long)]
    quick: bool,
    /// So little that it says nothing about speed, but all about correctness: each request has one outcome, the tables are sound
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// Without those that it is compared with
    #[arg(long)]
    alone: bool,
    #[command(flatten)]
    wanted: Wanted,
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

/// What is measured, and where it is written.
#[derive(Args)]
struct Wanted {
    /// No scenarios: how the cost of a request grows with this, on the system as it is
    #[arg(long, value_name = "WHAT", value_parser = growth::NAMES, requires = "growth_file")]
    growth: Option<String>,
    /// The points of growth that were measured so far; new ones are added
    #[arg(long, value_name = "FILE")]
    growth_file: Option<PathBuf>,
    /// Only these scenarios
    #[arg(long, value_name = "SCENARIO", value_parser = NAMES)]
    only: Vec<String>,
    /// Write the figures to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw what can be drawn, as SVG files in this folder
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
}

/// One thread: the load generator takes as little as it can from what it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Run(args) => run(args).await,
        // A service has all cores, as ours has.
        Command::Sync(settings) => on_all_cores(comparators::sync::serve(settings)),
        Command::Bare { listen } => {
            on_all_cores(comparators::bare::serve(listen, comparators::bare::Bodies::typical()?))
        }
    }
}

fn on_all_cores(serve: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    let serving = std::thread::spawn(|| tokio::runtime::Runtime::new()?.block_on(serve));
    serving.join().map_err(|_| anyhow::anyhow!("the comparator panicked"))?
}

async fn run(args: RunArgs) -> Result<()> {
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
        database_url: args.database.database_url.clone(),
        folder: args.dev_dir.join("pgbench"),
        size: match (args.smoke, args.quick) {
            (true, _) => Size::Smoke,
            (false, true) => Size::Quick,
            (false, false) => Size::Full,
        },
        // What grows is compared with itself.
        alone: args.alone || args.wanted.growth.is_some(),
    };
    bench.warm_up().await.context("warming up")?;
    let wanted = args.wanted;
    if let Some(folder) = &wanted.plots {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    match (&wanted.growth, &wanted.growth_file) {
        (Some(name), Some(file)) => growth(&bench, name, file, &wanted).await,
        _ => scenarios(&bench, &wanted).await,
    }
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
    // Every request has one outcome, no seat two owners, every balance its entries; or it panics.
    boxoffice_tests::audit::audit_at_rest(&bench.world.pool).await;
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
