//! The highest rate of holds that is sustained: arrivals come at a fixed rate, whoever is busy, and at the end of the step no backlog is
//! left. The rate is raised until a step is not sustained, then the limit is narrowed down between the two.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use super::holds::{HOLDS_EACH, Holds, index, rows_of_seats, seat_body, waiting};
use super::{Bench, CALLERS, Peer, Size, Turn, progress};
use crate::http::Connection;
use crate::load::{Measured, Pace, open_loop};
use crate::processes::{Cpu, used};
use crate::report::{Figures, Row, Step};
use crate::world::{Buyer, House, open_queue};

pub(super) const NAME: &str = "sustained";
const FIRST_RATE: f64 = 500.0;
const FACTOR: f64 = 1.5;
/// Rates are whole multiples of this.
const GRAIN: f64 = 50.0;
/// The load generator is one thread: beyond this it would measure itself.
const RATE_MAX: f64 = 20_000.0;
/// The last answer of a step comes so soon after its request was due; else there was a backlog that grew.
const DRAINED_WITHIN: Duration = Duration::from_millis(500);
/// What was not sent this long after the last one was due is given up: the step has failed anyway.
const PATIENCE: Duration = Duration::from_secs(1);
/// One in so many is sent late at most: on two cores that are full even the load generator waits for its turn.
const LATE_IN: u64 = 20;
/// A step that fails is tried again: a moment in which the machine is elsewhere is no limit of what is measured.
const TRIES: usize = 2;
/// Holds before each step that nobody measures: connections are open, statements are planned, the schedule is known.
const WARM_UP_HOLDS: usize = 1_000;

/// Where the limit is: above what was sustained, below what was not.
#[derive(Debug, Clone, Copy)]
struct Search {
    sustained: Option<f64>,
    failed: Option<f64>,
    bisections: usize,
}

impl Search {
    /// Narrows down so many times once a rate was not sustained.
    fn new(bisections: usize) -> Self {
        Self { sustained: None, failed: None, bisections }
    }

    /// The rate of the next step, a second; None: the limit is known as well as it was asked for.
    fn next_rate(&self) -> Option<f64> {
        let wished = match (self.sustained, self.failed) {
            (None, None) => FIRST_RATE,
            (Some(low), None) => low * FACTOR,
            (Some(low), Some(high)) if self.bisections > 0 => f64::midpoint(low, high),
            _ => return None,
        };
        let rate = ((wished / GRAIN).round() * GRAIN).min(RATE_MAX);
        let new = self.sustained != Some(rate) && self.failed != Some(rate);
        new.then_some(rate)
    }

    fn note(&mut self, rate: f64, sustained: bool) {
        if self.failed.is_some() {
            self.bisections -= 1;
        }
        let limit = if sustained { &mut self.sustained } else { &mut self.failed };
        *limit = Some(rate);
    }
}

/// What is known of one peer.
struct Climb {
    peer: Peer,
    search: Search,
    steps: Vec<Step>,
    /// Of the highest rate that was sustained.
    best: Option<(Measured, Cpu)>,
}

/// The highest rate that is sustained, and the latencies on the way there.
pub(super) async fn sustained(bench: &Bench) -> Result<Row> {
    let (seconds, bisections) = match bench.size {
        Size::Full => (6, 2),
        Size::Quick => (3, 1),
        Size::Smoke => (1, 0),
    };
    let mut house = bench.world.house(0, 0, open_queue()).await?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a constant")]
    let holds_max = RATE_MAX as usize * seconds + WARM_UP_HOLDS;
    let buyers = bench.world.insiders(&house, holds_max / HOLDS_EACH).await?;
    let peers: &[Peer] = if bench.alone { &[Peer::Ours] } else { &[Peer::Ours, Peer::Sync] };
    let climb = |peer: &Peer| Climb { peer: *peer, search: Search::new(bisections), steps: Vec::new(), best: None };
    let mut climbs: Vec<Climb> = peers.iter().map(climb).collect();
    // In turn: the machine's mood hits both.
    while climbs.iter().any(|climb| climb.search.next_rate().is_some()) {
        for climb in &mut climbs {
            if let Some(rate) = climb.search.next_rate() {
                climb.step(bench, &mut house, &buyers, rate, seconds).await?;
            }
        }
    }
    bench.turn_of(Peer::Ours).await?;
    let mut figures = BTreeMap::new();
    for Climb { peer, search, steps, best } in climbs {
        // On a machine that is busy otherwise it may be none; then the rate is 0, and what is measured is still answered as it should be.
        let mut of_peer = Figures::of_steps(search.sustained.unwrap_or_default(), steps);
        if let Some((measured, cpu)) = best {
            of_peer.add(&measured, &cpu)?;
        }
        figures.insert(peer.name(), of_peer);
    }
    Ok(Row::new(NAME, figures, bench.processes.memory_mb()))
}

impl Climb {
    /// One rate; tried again if it is not sustained.
    async fn step(
        &mut self,
        bench: &Bench,
        house: &mut House,
        buyers: &[Buyer],
        rate: f64,
        seconds: usize,
    ) -> Result<()> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "RATE_MAX is small")]
        let pace = Pace { rate, count: rate as usize * seconds, patience: Some(PATIENCE) };
        for attempt in 1..=TRIES {
            let (measured, cpu) = self.attempt(bench, house, buyers, pace).await?;
            let sustained = is_sustained(&measured, pace);
            let step = Step::new(rate, &measured, sustained);
            println!("{NAME} {:5} {step}", self.peer.name());
            if !sustained && attempt < TRIES {
                continue;
            }
            self.search.note(rate, sustained);
            self.steps.push(step);
            if sustained {
                self.best = Some((measured, cpu));
            }
            return Ok(());
        }
        Ok(())
    }

    /// Holds at this rate on a schedule of their own, by buyers who have none in it.
    async fn attempt(&self, bench: &Bench, house: &mut House, buyers: &[Buyer], pace: Pace) -> Result<(Measured, Cpu)> {
        let schedule = bench.world.add_schedule(house, rows_of_seats(WARM_UP_HOLDS + pace.count)).await?;
        bench.world.analyze().await?;
        let turn = Turn::once(self.peer, bench.turn_of(self.peer).await?, WARM_UP_HOLDS);
        let holds = Holds { told: &bench.told, buyers: buyers.to_vec(), body: |i| seat_body(schedule, index(i)) };
        let progress = progress(NAME, self.peer);
        waiting(turn, &progress, &holds).await?.expect(&[201]).map(drop)?;
        let before = bench.processes.cpu();
        let work =
            async |connection: &mut Connection, i: usize| holds.hold_waiting(connection, WARM_UP_HOLDS + i).await;
        let measured = open_loop(turn.address, CALLERS, pace, &progress, work).await?;
        progress.finish_and_clear();
        let cpu = used(&before, &bench.processes.cpu());
        Ok((measured, cpu))
    }
}

/// Everything was answered as wanted, nearly all was sent when it was due, and nothing was left to do at the end.
fn is_sustained(measured: &Measured, pace: Pace) -> bool {
    let all = measured.with_status(201) == pace.count as u64;
    all && measured.late * LATE_IN <= pace.count as u64 && measured.drained_after <= DRAINED_WITHIN
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates that are tried when this one is the highest that can be sustained.
    fn rates(limit: f64) -> Vec<f64> {
        let mut search = Search::new(2);
        let mut rates = Vec::new();
        while let Some(rate) = search.next_rate() {
            rates.push(rate);
            search.note(rate, rate <= limit);
        }
        rates
    }

    #[test]
    fn the_limit_is_narrowed_down_between_the_last_two_rates() {
        assert_eq!(rates(1_200.0), [500.0, 750.0, 1_150.0, 1_750.0, 1_450.0, 1_300.0]);
        assert_eq!(rates(1_500.0), [500.0, 750.0, 1_150.0, 1_750.0, 1_450.0, 1_600.0]);
    }

    #[test]
    fn it_ends_where_nothing_or_everything_is_sustained() {
        assert_eq!(rates(100.0), [500.0]);
        assert_eq!(rates(f64::MAX).last(), Some(&RATE_MAX));
        assert_eq!(rates(14_000.0)[8..], [13_500.0, RATE_MAX, 16_750.0, 15_150.0]);
    }
}
