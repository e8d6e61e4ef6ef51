//! What is measured. Each scenario prepares its own world, so that any one can run alone.

mod apply;
mod holds;
mod log;
mod payments;
mod purchases;
mod queues;
mod seat_map;
mod sustained;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use common::config::Secret;
use indicatif::{ProgressBar, ProgressStyle};

use crate::comparators::sync::SESSIONS;
use crate::load::Measured;
use crate::peers::Peers;
use crate::processes::{Processes, used};
use crate::proof::Told;
use crate::report::{Figures, Row};
use crate::world::World;

/// Ours and the comparator take turns so often: the machine's mood hits both.
const ROUNDS: usize = 2;

/// So many connections ask at once, each again as soon as it is answered. At a fixed rate so many requests can be under way: at the rates
/// that are reached it is not they that are waited for.
const CALLERS: usize = 1_024;

/// What is slower by an order gets this part of the requests, so that the run does not last for ever,
const SYNC_PART: usize = 5;
/// but so many at least, if ours has them.
const SYNC_REQUESTS_MIN: usize = 5_000;
/// Before what is measured come as many again as this part of it, one of each caller at least.
const WARM_UP_PART: usize = 20;

/// The search for the highest rate that is sustained.
pub(crate) const SUSTAINED: &str = sustained::NAME;

/// All scenarios, in the order in which they run: where latency counts, the broker has been running for a while.
pub(crate) const NAMES: [&str; 17] = [
    "holds-hot",
    "holds-polled",
    "holds-spread",
    "holds-contended",
    "best-available",
    "hold-idle",
    "hold-10k",
    "sustained",
    "payments",
    "charges",
    "joins",
    "polls-1k",
    "polls-1m",
    "purchases",
    "seatmap",
    "apply",
    "log",
];

/// What the scenarios share.
pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) processes: Processes,
    pub(crate) peers: Peers,
    /// Holds of which clients were told.
    pub(crate) told: Told,
    /// For pgbench, and the folder for its scripts.
    pub(crate) database_url: Secret,
    pub(crate) folder: PathBuf,
    pub(crate) size: Size,
    /// Nobody but ours.
    pub(crate) alone: bool,
}

/// Of 16 MB each: what Postgres writes between two checkpoints (`max_wal_size`, 6 GB, divided by 1.9). After one they are taken again.
const LOG_FILES: usize = 200;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// As much as it takes.
    Full,
    /// A few minutes in all.
    Quick,
    /// So little that only correctness is seen.
    Smoke,
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Ours,
    /// Ours, too, with the work of another scenario, to which this one is compared.
    OursWith(&'static str),
    Sync,
    Bare,
}

impl Peer {
    fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::OursWith(_))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::OursWith(work) => work,
            Self::Sync => "sync",
            Self::Bare => "bare",
        }
    }

    /// How many requests of `count` it gets.
    fn part_of(self, count: usize) -> usize {
        match self {
            Self::Sync => (count / SYNC_PART).max(SYNC_REQUESTS_MIN.min(count)),
            Self::Ours | Self::OursWith(_) | Self::Bare => count,
        }
    }
}

/// One peer's turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) peer: Peer,
    /// Where the peer is.
    pub(crate) address: SocketAddr,
    /// How many turns came before, over all peers.
    pub(crate) number: usize,
    /// How many of its own.
    pub(crate) round: usize,
    /// Its pieces of work are numbered from here.
    pub(crate) first: usize,
    /// How many there are.
    pub(crate) count: usize,
    /// Whether they only warm it up.
    pub(crate) warms_up: bool,
}

impl Turn {
    fn once(peer: Peer, address: SocketAddr, count: usize) -> Self {
        Self { peer, address, number: 0, round: 0, first: 0, count, warms_up: false }
    }

    fn pieces(self) -> Range<usize> {
        self.first..self.first + self.count
    }
}

/// Pieces of work before the measured ones, in the same turn, that nobody measures: a comparator is a new process in each turn, whose
/// memory and whose sessions' are cold. Ours has the same part of its own number.
fn warm_up_of(count: usize) -> usize {
    (count / WARM_UP_PART).max(CALLERS).min(count)
}

/// As many pieces of work as a turn of ours takes, what warms it up among them.
fn with_warm_up(count: usize) -> usize {
    warm_up_of(count) + count
}

impl Bench {
    /// Lets the broker compile what it runs, Postgres fill its files, and all parts open what they need, before anything is measured.
    pub(crate) async fn warm_up(&self) -> Result<()> {
        log::warm_up(self).await.context("warming the broker up")?;
        self.world.fill_log_files(self.scaled(LOG_FILES)).await?;
        holds::warm_up(self).await?;
        payments::warm_up(self).await
    }

    /// Runs one scenario.
    pub(crate) async fn run(&self, name: &str) -> Result<Row> {
        match name {
            "hold-idle" => holds::idle(self).await,
            "hold-10k" => holds::ten_thousand(self).await,
            "sustained" => sustained::sustained(self).await,
            "holds-hot" => holds::hot(self).await,
            "holds-polled" => holds::polled(self).await,
            "holds-spread" => holds::spread(self).await,
            "holds-contended" => holds::contended(self).await,
            "best-available" => holds::best_available(self).await,
            "payments" => payments::payments(self).await,
            "charges" => payments::charges(self).await,
            "joins" => queues::joins(self).await,
            "polls-1k" => queues::polls_1k(self).await,
            "polls-1m" => queues::polls_1m(self).await,
            "purchases" => purchases::purchases(self).await,
            "seatmap" => seat_map::seat_map(self).await,
            "apply" => apply::apply(self).await,
            "log" => log::log(self).await,
            other => bail!("there is no scenario {other}; there are {}", NAMES.join(", ")),
        }
    }

    /// Polls while `waiting` wait.
    pub(crate) async fn polls(&self, waiting: usize) -> Result<Row> {
        queues::polls(self, "polls", waiting, &[Peer::Ours]).await
    }

    /// Holds of the best four in houses of `seats` seats.
    pub(crate) async fn best_available_of(&self, seats: usize) -> Result<Row> {
        holds::best_available_of(self, seats).await
    }

    /// Holds of the best four until the house is full, by its quarters.
    pub(crate) async fn best_available_by_quarters(&self) -> Result<Vec<Row>> {
        holds::best_available_by_quarters(self).await
    }

    /// `full`, or a part of it when there is less time.
    fn scaled(&self, full: usize) -> usize {
        match self.size {
            Size::Full => full,
            Size::Quick => full / 6,
            Size::Smoke => full / 100,
        }
    }

    /// Lets this one run, and no other; where it is. Sessions of a `sync` that was ended outlive it for a moment, and Postgres counts their
    /// transactions only when they end: that is waited for.
    async fn turn_of(&self, peer: Peer) -> Result<SocketAddr> {
        self.peers.end();
        self.world.sessions_end(SESSIONS).await?;
        Ok(self.peers.start(peer.name())?.unwrap_or(self.world.api))
    }

    /// Lets the peers take turns, ours first: A B A B. Each turn of ours has `count` pieces of work, and is warmed up with others of the same
    /// kind if it is compared.
    async fn in_turn(
        &self,
        name: &'static str,
        peers: &[Peer],
        count: usize,
        turn: impl AsyncFn(Turn, &ProgressBar) -> Result<Measured>,
    ) -> Result<Row> {
        let nothing = async |_, _| Ok(());
        self.in_prepared_turn(name, peers, count, nothing, async |now, (), progress| turn(now, progress).await).await
    }

    /// The same, each turn with what was prepared right before it, for so many pieces of work and the turn of this number.
    async fn in_prepared_turn<T>(
        &self,
        name: &'static str,
        peers: &[Peer],
        count: usize,
        prepare: impl AsyncFn(usize, usize) -> Result<T>,
        turn: impl AsyncFn(Turn, &T, &ProgressBar) -> Result<Measured>,
    ) -> Result<Row> {
        let mut figures: BTreeMap<&'static str, Figures> = BTreeMap::new();
        let peers = if self.alone { &[Peer::Ours] } else { peers };
        let turns = (0..ROUNDS).flat_map(|_| peers.iter().copied()).enumerate();
        for (number, peer) in turns {
            self.turn_of(Peer::Ours).await?;
            let count = peer.part_of(count);
            let first = if peers.len() > 1 { warm_up_of(count) } else { 0 };
            let prepared = prepare(first + count, number).await?;
            let progress = progress(name, peer);
            let address = self.turn_of(peer).await?;
            let round = number / peers.len();
            let measured_part = Turn { peer, address, number, round, first, count, warms_up: false };
            if first > 0 {
                turn(Turn { first: 0, count: first, warms_up: true, ..measured_part }, &prepared, &progress).await?;
                progress.reset();
            }
            let before = self.processes.cpu();
            let measured = turn(measured_part, &prepared, &progress).await?;
            progress.finish_and_clear();
            let cpu = used(&before, &self.processes.cpu());
            figures.entry(peer.name()).or_default().add(&measured, &cpu)?;
        }
        self.turn_of(Peer::Ours).await?;
        Ok(Row::new(name, figures, self.processes.memory_mb()))
    }
}

/// A line that says how far the peer is.
pub(crate) fn progress(name: &str, peer: Peer) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:24} {bar:30} {pos}/{len} {per_sec} {elapsed}");
    let bar = ProgressBar::new(0).with_prefix(format!("{name} {}", peer.name()));
    style.map(|style| bar.clone().with_style(style)).unwrap_or(bar)
}
