//! The seats of a large house, read by many while holds go on: compressed, or 304 for those who have the newest.

use std::cell::RefCell;
use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use indicatif::ProgressBar;

use super::holds::{Holds, index, rows_of_seats, seat_body};
use super::{Bench, Peer, ROUNDS};
use crate::http::{Connection, Request};
use crate::load::{Measured, Pace, at_once, open_loop};
use crate::report::Row;
use crate::world::open_queue;

const SEATS: usize = 50_000;
const READERS: usize = 128;
const HOLDS_PER_SECOND: f64 = 200.0;
const HOLD_CALLERS: usize = 16;
/// As many as the concert allows.
const HOLDS_EACH: usize = 20;
/// So often a second the database is read at most, however many look.
const READINGS_PER_SECOND: u128 = 5;

/// Reads of the whole map; every second reader has the newest one already.
pub(super) async fn seat_map(bench: &Bench) -> Result<Row> {
    let count = bench.scaled(40_000);
    let house = bench.world.house(1, rows_of_seats(SEATS), open_queue()).await?;
    let buyers = bench.world.insiders(&house, SEATS / HOLDS_EACH).await?;
    let schedule = house.schedules[0];
    let holds = Holds { told: &bench.told, buyers: buyers.clone(), body: |i| seat_body(schedule, index(i)) };
    let path = format!("/v1/schedules/{schedule}/seats?status=all");
    let next_seat = std::cell::Cell::new(0);
    bench
        .in_turn("seatmap", &[Peer::Ours], count, async |turn, progress| {
            let (newest, maps) = (RefCell::new(String::new()), RefCell::new(HashSet::new()));
            let reads = at_once(turn.address, READERS, turn.pieces(), progress, async |connection, i| {
                let buyer = &buyers[i % buyers.len()];
                let etag = newest.borrow().clone();
                let mut headers = vec![
                    ("authorization", buyer.authorization.as_str()),
                    ("queue-token", buyer.queue_token.as_str()),
                    ("accept-encoding", "gzip"),
                ];
                if i % 2 == 1 && !etag.is_empty() {
                    headers.push(("if-none-match", etag.as_str()));
                }
                let answer =
                    connection.call(&Request { method: "GET", path: &path, headers: &headers, body: "" }).await?;
                if let Some(etag) = answer.etag {
                    etag.clone_into(&mut newest.borrow_mut());
                    if !maps.borrow().contains(etag) {
                        maps.borrow_mut().insert(etag.to_owned());
                    }
                }
                Ok(answer.status)
            });
            let holds = async {
                let hidden = ProgressBar::hidden();
                let work = async |connection: &mut Connection, _| {
                    let seat = next_seat.replace(next_seat.get() + 1);
                    match holds.hold(connection, seat, None).await? {
                        (202, id) => {
                            // Another seat each, and all free: it has to come true.
                            bench.told.note(id);
                            Ok(202)
                        }
                        (other, _) => Err(std::io::Error::other(format!("a hold was answered with {other}"))),
                    }
                };
                let pace = Pace { rate: HOLDS_PER_SECOND, count: SEATS / ROUNDS, patience: None };
                open_loop(turn.address, HOLD_CALLERS, pace, &hidden, work).await
            };
            // The holds go on as long as somebody reads.
            tokio::select! {
                read = reads => few_readings(read?.expect(&[200, 304])?, maps.borrow().len()),
                held = async { held_forever(holds.await).await } => Err(held),
            }
        })
        .await
}

/// Seats change hands all the time: each reading of the database is another map.
fn few_readings(reads: Measured, maps: usize) -> Result<Measured> {
    let elapsed = reads.elapsed;
    // One more at the beginning, and the one that was there before.
    let most = READINGS_PER_SECOND * elapsed.as_millis() / 1_000 + 2;
    ensure!(maps > 0 && maps as u128 <= most, "{maps} maps within {elapsed:?}, up to {READINGS_PER_SECOND} a second");
    Ok(reads)
}

async fn held_forever(held: Result<crate::load::Measured>) -> anyhow::Error {
    if let Err(error) = held {
        return error;
    }
    tokio::time::sleep(Duration::MAX).await;
    anyhow::anyhow!("nobody reads any more")
}
