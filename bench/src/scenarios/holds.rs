//! Holding seats: one schedule, many, everybody for the same ones, the best ones; at once, at a rate, waiting or polling.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use indicatif::ProgressBar;
use uuid::Uuid;

use super::{Bench, CALLERS, Peer, ROUNDS, Size, Turn, progress, with_warm_up};
use crate::http::{Connection, Request};
use crate::load::{Measured, Pace, at_once, open_loop};
use crate::proof::Told;
use crate::report::Row;
use crate::world::{Buyer, House, SEATS_MAX, open_queue};

/// The broker is warm before; these open and fill what all other parts need.
const WARM_UP_HOLDS: usize = 64_000;
/// Holds of one buyer in one schedule; the concert allows 20.
pub(super) const HOLDS_EACH: usize = 4;
const CONTENDED_SEATS: i64 = 20;
const SPREAD_SCHEDULES: usize = 48;
/// A caller who polls has so many requests under way, and asks for each again after this time.
const POLLED_EACH: usize = 4;
const POLL_EVERY: Duration = Duration::from_millis(250);
/// Told instead of the status of an answer that is not what it should be: nobody wants it.
const WRONG: u16 = 599;
/// Holds of one schedule, in turn with those that are compared with them.
const HOT: Peer = Peer::OursWith("hot");

/// Holds to be made: the `i`-th one's buyer and body.
pub(super) struct Holds<'a, B> {
    /// Where it is noted what comes of them.
    pub(super) told: &'a Told,
    pub(super) buyers: Vec<Buyer>,
    pub(super) body: B,
}

impl<B: Fn(usize) -> String> Holds<'_, B> {
    /// Makes one, and waits for its outcome.
    pub(super) async fn hold_waiting(&self, connection: &mut Connection, i: usize) -> io::Result<u16> {
        Ok(self.hold(connection, i, Some("wait=30")).await?.0)
    }

    pub(super) async fn hold(
        &self,
        connection: &mut Connection,
        i: usize,
        prefer: Option<&str>,
    ) -> io::Result<(u16, Uuid)> {
        let buyer = &self.buyers[i % self.buyers.len()];
        let body = (self.body)(i);
        let mut headers =
            vec![("authorization", buyer.authorization.as_str()), ("queue-token", buyer.queue_token.as_str())];
        headers.extend(prefer.map(|prefer| ("prefer", prefer)));
        let request = Request { method: "POST", path: "/v1/reservations", headers: &headers, body: &body };
        let answer = connection.call(&request).await?;
        let text = std::str::from_utf8(answer.body).unwrap_or_default();
        let id = match answer.status {
            201 if !has_seat(text, &body) => return Ok((WRONG, Uuid::nil())),
            201 => id_in(text, "reservation_id"),
            202 => id_in(text, "request_id"),
            _ => Uuid::nil(),
        };
        // Of one that was accepted its caller is told later.
        if answer.status == 201 {
            self.told.note(id);
        }
        Ok((answer.status, id))
    }

    /// What the caller of the `i`-th one is told who asks for its outcome; None: it is pending.
    async fn outcome(&self, connection: &mut Connection, i: usize, id: Uuid) -> io::Result<Option<u16>> {
        let path = format!("/v1/requests/{id}");
        let headers = [("authorization", self.buyers[i % self.buyers.len()].authorization.as_str())];
        let answer = connection.call(&Request { method: "GET", path: &path, headers: &headers, body: "" }).await?;
        let text = std::str::from_utf8(answer.body).unwrap_or_default();
        let outcome = outcome(answer.status, text, &(self.body)(i));
        if outcome == Some(201) {
            self.told.note(id);
        }
        Ok(outcome)
    }
}

/// The status of a hold whose outcome says so; None: it is pending.
fn outcome(status: u16, answer: &str, asked: &str) -> Option<u16> {
    let says = |status| answer.contains(&format!("\"status\":\"{status}\""));
    match status {
        200 if says("PENDING") => None,
        200 if says("SUCCEEDED") && has_seat(answer, asked) => Some(201),
        200 => Some(WRONG),
        other => Some(other),
    }
}

/// Whether the seat is in the answer that was asked for, if it was one. Reading all of the JSON would cost more than sending it did.
fn has_seat(answer: &str, asked: &str) -> bool {
    let Some((_, seat)) = asked.split_once("\"seat_ids\":[") else { return true };
    let Some((seat, _)) = seat.split_once(']') else { return false };
    answer.contains(&format!("\"seat_id\":{seat},"))
}

/// The id that a member has; nil: there is none.
fn id_in(answer: &str, member: &str) -> Uuid {
    let after = answer.split_once(member).and_then(|(_, after)| after.get(3..39));
    after.and_then(|id| Uuid::try_parse(id).ok()).unwrap_or_default()
}

pub(super) fn seat_body(schedule: i64, seat: i64) -> String {
    format!("{{\"schedule_id\":{schedule},\"seat_ids\":[{}]}}", House::seat(schedule, seat))
}

pub(super) fn index(i: usize) -> i64 {
    i64::try_from(i).unwrap_or(i64::MAX)
}

pub(super) fn rows_of_seats(count: usize) -> i64 {
    (index(count) + 49) / 50 * 50
}

/// Holds by all callers at once, each of whom waits for the outcome.
pub(super) async fn waiting<B: Fn(usize) -> String>(
    turn: Turn,
    progress: &ProgressBar,
    holds: &Holds<'_, B>,
) -> Result<Measured> {
    let hold = async |connection: &mut Connection, i| holds.hold_waiting(connection, i).await;
    at_once(turn.address, CALLERS, turn.pieces(), progress, hold).await
}

/// Holds that nobody measures.
pub(super) async fn warm_up(bench: &Bench) -> Result<()> {
    let count = if bench.size == Size::Smoke { CALLERS } else { WARM_UP_HOLDS };
    let house = bench.world.house(1, rows_of_seats(count), open_queue()).await?;
    let buyers = bench.world.insiders(&house, count / HOLDS_EACH).await?;
    let turn = Turn::once(Peer::Ours, bench.world.api, count);
    let holds = Holds { told: &bench.told, buyers, body: |i| seat_body(house.schedules[0], index(i)) };
    waiting(turn, &progress("warming up", Peer::Ours), &holds).await?.expect(&[201]).map(drop)
}

/// Distinct seats of one schedule, all callers at once.
pub(super) async fn hot(bench: &Bench) -> Result<Row> {
    let count = bench.scaled(160_000);
    let all = with_warm_up(count);
    let house = bench.world.house(2 * ROUNDS, rows_of_seats(all), open_queue()).await?;
    let buyers = bench.world.insiders(&house, all / HOLDS_EACH).await?;
    bench
        .in_turn("holds-hot", &[Peer::Ours, Peer::Sync], count, async |turn, progress| {
            let schedule = house.schedules[turn.number];
            let holds = Holds { told: &bench.told, buyers: buyers.clone(), body: |i| seat_body(schedule, index(i)) };
            waiting(turn, progress, &holds).await?.expect(&[201])
        })
        .await
}

/// The same over many schedules.
pub(super) async fn spread(bench: &Bench) -> Result<Row> {
    let count = bench.scaled(160_000) / SPREAD_SCHEDULES * SPREAD_SCHEDULES;
    let all = with_warm_up(count);
    let each = all.div_ceil(SPREAD_SCHEDULES);
    let mut house = bench.world.house(SPREAD_SCHEDULES * ROUNDS, rows_of_seats(each), open_queue()).await?;
    let hot = hot_schedules(bench, &mut house, all).await?;
    let buyers = bench.world.insiders(&house, all / HOLDS_EACH).await?;
    bench
        .in_turn("holds-spread", &[Peer::Ours, HOT], count, async |turn, progress| {
            let schedules = match turn.peer {
                HOT => &hot[turn.round..][..1],
                _ => &house.schedules[turn.round * SPREAD_SCHEDULES..][..SPREAD_SCHEDULES],
            };
            let body = |i: usize| seat_body(schedules[i % schedules.len()], index(i / schedules.len()));
            waiting(turn, progress, &Holds { told: &bench.told, buyers: buyers.clone(), body }).await?.expect(&[201])
        })
        .await
}

/// A schedule of `count` seats for each round of [`HOT`], if there are any.
async fn hot_schedules(bench: &Bench, house: &mut House, count: usize) -> Result<Vec<i64>> {
    let rounds = if bench.alone { 0 } else { ROUNDS };
    let mut schedules = Vec::new();
    for _ in 0..rounds {
        schedules.push(bench.world.add_schedule(house, rows_of_seats(count)).await?);
    }
    Ok(schedules)
}

/// Everybody for the same few seats.
pub(super) async fn contended(bench: &Bench) -> Result<Row> {
    let count = bench.scaled(120_000);
    let mut house = bench.world.house(3 * ROUNDS, 50, open_queue()).await?;
    let all = with_warm_up(count);
    let hot = hot_schedules(bench, &mut house, all).await?;
    let buyers = bench.world.insiders(&house, all / HOLDS_EACH).await?;
    bench
        .in_turn("holds-contended", &[Peer::Ours, Peer::Sync, HOT], count, async |turn, progress| {
            if turn.peer == HOT {
                let holds =
                    Holds { told: &bench.told, buyers: buyers.clone(), body: |i| seat_body(hot[turn.round], index(i)) };
                return waiting(turn, progress, &holds).await?.expect(&[201]);
            }
            let schedule = house.schedules[turn.number];
            let body = |i: usize| seat_body(schedule, index(i) % CONTENDED_SEATS);
            let holds = Holds { told: &bench.told, buyers: buyers.clone(), body };
            let measured = waiting(turn, progress, &holds).await?.expect(&[201, 409])?;
            // What comes first has them all, measured or not.
            let wanted = if turn.first == 0 { CONTENDED_SEATS.cast_unsigned() } else { 0 };
            let sold = measured.with_status(201);
            ensure!(sold == wanted, "{sold} of {CONTENDED_SEATS} seats were sold instead of {wanted}");
            Ok(measured)
        })
        .await
}

/// Four together, until the house is full.
pub(super) async fn best_available(bench: &Bench) -> Result<Row> {
    let count: usize = if bench.size == Size::Smoke { 125 } else { 12_500 };
    // A row of 50 has room for twelve times four.
    let all = with_warm_up(count);
    let seats = rows_of_seats(50 * all.div_ceil(12));
    let house = bench.world.house(2 * ROUNDS, seats, open_queue()).await?;
    let buyers = bench.world.insiders(&house, all.div_ceil(5)).await?;
    bench
        .in_turn("best-available", &[Peer::Ours, Peer::Sync], count, async |turn, progress| {
            let schedule = house.schedules[turn.number];
            let body = |_| best_four(schedule);
            let holds = Holds { told: &bench.told, buyers: buyers.clone(), body };
            waiting(turn, progress, &holds).await?.expect(&[201])
        })
        .await
}

/// Four together until the largest house is full, measured quarter by quarter.
pub(super) async fn best_available_by_quarters(bench: &Bench) -> Result<Vec<Row>> {
    // A row of 50 has room for twelve times four.
    let each = bench.scaled(SEATS_MAX / 50 * 12 / 4);
    let house = bench.world.house(ROUNDS, rows_of_seats((4 * each).div_ceil(12) * 50), open_queue()).await?;
    // Each holds once: what a buyer holds already costs, too, and is the same in all quarters.
    let buyers = bench.world.insiders(&house, 4 * each).await?;
    let mut quarters = Vec::new();
    for buyers in buyers.chunks(each) {
        // A checkpoint within a quarter would make it write whole pages again.
        bench.world.checkpoint().await?;
        let quarter = bench.in_turn("best-available-quarter", &[Peer::Ours], each, async |turn, progress| {
            let body = |_| best_four(house.schedules[turn.number]);
            waiting(turn, progress, &Holds { told: &bench.told, buyers: buyers.to_vec(), body }).await?.expect(&[201])
        });
        quarters.push(quarter.await?);
    }
    Ok(quarters)
}

fn best_four(schedule: i64) -> String {
    format!("{{\"schedule_id\":{schedule},\"best_available\":{{\"count\":4}}}}")
}

/// Four together in houses of so many seats, of which no more than half are taken. A large house is several schedules, which take turns;
/// of small ones there are as many as it takes.
pub(super) async fn best_available_of(bench: &Bench, seats: usize) -> Result<Row> {
    let count = bench.scaled(24_000);
    let (schedules, holds_each) = (seats.div_ceil(SEATS_MAX), seats / 2 / 4);
    let houses = (ROUNDS * count).div_ceil(holds_each);
    let all = bench.world.house(houses * schedules, rows_of_seats(seats / schedules), open_queue()).await?;
    // Two holds of each in a turn: even in one schedule they have 16 seats at most.
    let buyers = bench.world.insiders(&all, count.div_ceil(2)).await?;
    bench
        .in_turn("best-available-of", &[Peer::Ours], count, async |turn, progress| {
            let body = |i: usize| {
                let i = turn.number * count + i;
                let schedule = all.schedules[i / holds_each * schedules + i % schedules];
                best_four(schedule)
            };
            waiting(turn, progress, &Holds { told: &bench.told, buyers: buyers.clone(), body }).await?.expect(&[201])
        })
        .await
}

/// Submitted with 202, and each outcome read by polling.
pub(super) async fn polled(bench: &Bench) -> Result<Row> {
    let count = bench.scaled(120_000);
    let house = bench.world.house(ROUNDS, rows_of_seats(count), open_queue()).await?;
    let buyers = bench.world.insiders(&house, count / HOLDS_EACH).await?;
    bench
        .in_turn("holds-polled", &[Peer::Ours], count, async |turn, progress| {
            let schedule = house.schedules[turn.number];
            let holds = Holds { told: &bench.told, buyers: buyers.clone(), body: |i| seat_body(schedule, index(i)) };
            submit_and_poll(turn, progress, &holds).await
        })
        .await
}

struct Submitted {
    i: usize,
    at: Instant,
    id: Uuid,
    ask_at: Instant,
}

/// A piece of work is the outcome of hold `i`; the caller keeps several under way.
async fn submit_and_poll<B: Fn(usize) -> String>(
    turn: Turn,
    progress: &ProgressBar,
    holds: &Holds<'_, B>,
) -> Result<Measured> {
    let Range { start, end } = turn.pieces();
    let pieces = 0..turn.count.div_ceil(POLLED_EACH);
    let latencies = RefCell::new(Vec::with_capacity(turn.count));
    let mut measured = at_once(turn.address, CALLERS, pieces, progress, async |connection, piece| {
        let mut under_way = VecDeque::with_capacity(POLLED_EACH);
        for i in (start + piece * POLLED_EACH..end).take(POLLED_EACH) {
            let at = Instant::now();
            let (status, id) = holds.hold(connection, i, None).await?;
            if status != 202 {
                return Ok(status);
            }
            under_way.push_back(Submitted { i, at, id, ask_at: at + POLL_EVERY });
        }
        while let Some(mut submitted) = under_way.pop_front() {
            tokio::time::sleep_until(submitted.ask_at.into()).await;
            match holds.outcome(connection, submitted.i, submitted.id).await? {
                Some(201) => latencies.borrow_mut().push(submitted.at.elapsed()),
                Some(other) => return Ok(other),
                None => {
                    submitted.ask_at = Instant::now() + POLL_EVERY;
                    under_way.push_back(submitted);
                }
            }
        }
        Ok(201)
    })
    .await?;
    measured.retell(201, &latencies.into_inner());
    let measured = measured.expect(&[201])?;
    ensure!(measured.with_status(201) == turn.count as u64, "{} of {} outcomes came", measured.count, turn.count);
    Ok(measured)
}

/// 200 a second, on a system that has nothing else to do.
pub(super) async fn idle(bench: &Bench) -> Result<Row> {
    at_rate(bench, "hold-idle", 200.0, bench.scaled(4_000)).await
}

/// 10,000 a second.
pub(super) async fn ten_thousand(bench: &Bench) -> Result<Row> {
    at_rate(bench, "hold-10k", 10_000.0, bench.scaled(160_000)).await
}

async fn at_rate(bench: &Bench, name: &'static str, rate: f64, count: usize) -> Result<Row> {
    let house = bench.world.house(ROUNDS, rows_of_seats(count), open_queue()).await?;
    let buyers = bench.world.insiders(&house, (count / HOLDS_EACH).max(1)).await?;
    bench
        .in_turn(name, &[Peer::Ours], count, async |turn, progress| {
            let schedule = house.schedules[turn.number];
            let holds = Holds { told: &bench.told, buyers: buyers.clone(), body: |i| seat_body(schedule, index(i)) };
            let pace = Pace { rate, count: turn.count, patience: None };
            let work = async |connection: &mut Connection, i: usize| holds.hold_waiting(connection, i).await;
            open_loop(turn.address, CALLERS, pace, progress, work).await?.expect(&[201])
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_counts_only_if_it_succeeded_with_the_seat_that_was_asked_for() {
        let asked = "{\"schedule_id\":1,\"seat_ids\":[17]}";
        let told = |status: &str, seat: u32| {
            format!("{{\"status\":\"{status}\",\"result\":{{\"seats\":[{{\"seat_id\":{seat},\"label\":\"A-1-1\"}}]}}}}")
        };
        assert_eq!(outcome(200, "{\"status\":\"PENDING\"}", asked), None);
        assert_eq!(outcome(200, &told("SUCCEEDED", 17), asked), Some(201));
        assert_eq!(outcome(200, &told("SUCCEEDED", 170), asked), Some(WRONG));
        assert_eq!(outcome(200, "{\"status\":\"FAILED\"}", asked), Some(WRONG));
        assert_eq!(outcome(503, "", asked), Some(503));
    }

    #[test]
    fn an_id_is_found_by_its_name() {
        let id = "0b8f5c3e-8f0e-4d53-9d3c-1f6f3f4c1a2b";
        assert_eq!(id_in(&format!("{{\"reservation_id\":\"{id}\",\"x\":1}}"), "reservation_id").to_string(), id);
        assert!(id_in("{}", "reservation_id").is_nil());
    }
}
