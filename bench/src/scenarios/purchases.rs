//! Whole buyers: join, dates, seats, hold, pay; one after another, as many at once as it takes.

use anyhow::Result;
use serde_json::Value;

use super::{Bench, CALLERS, Peer, ROUNDS, with_warm_up};
use crate::http::{Connection, Request};
use crate::load::at_once;
use crate::report::Row;
use crate::world::{Buyer, House, open_queue};

const MONEY: i64 = 1_000;
/// Seats of a section: what a buyer looks at before choosing.
const SECTION_SEATS: usize = 1_000;

/// Buyers who find the concert, choose a seat and pay.
pub(super) async fn purchases(bench: &Bench) -> Result<Row> {
    let count = bench.scaled(24_000);
    let all = with_warm_up(count);
    let seats = i64::try_from(all.div_ceil(SECTION_SEATS) * SECTION_SEATS)?;
    let mut houses = Vec::new();
    for _ in 0..2 * ROUNDS {
        houses.push(bench.world.house(1, seats, open_queue()).await?);
    }
    let buyers = bench.world.buyers(all).await?;
    bench.world.charge(&buyers, MONEY).await?;
    bench.world.analyze().await?;
    bench
        .in_turn("purchases", &[Peer::Ours, Peer::Sync], count, async |turn, progress| {
            let house = &houses[turn.number];
            let measured = at_once(turn.address, CALLERS, turn.pieces(), progress, async |connection, i| {
                purchase(connection, house, &buyers[i], i).await
            });
            measured.await?.expect(&[201])
        })
        .await
}

async fn purchase(connection: &mut Connection, house: &House, buyer: &Buyer, i: usize) -> std::io::Result<u16> {
    let authorization = ("authorization", buyer.authorization.as_str());
    let wait = ("prefer", "wait=30");
    let path = format!("/v1/concerts/{}/queue-tokens", house.concert_id);
    let joining = Request { method: "POST", path: &path, headers: &[authorization, wait], body: "" };
    let joined = value(connection, &joining, 201).await?;
    let token = joined["queue_token"].as_str().unwrap_or_default().to_owned();
    let guarded = [authorization, ("queue-token", token.as_str()), wait];
    let path = format!("/v1/concerts/{}/schedules", house.concert_id);
    value(connection, &Request { method: "GET", path: &path, headers: &guarded[..2], body: "" }, 200).await?;
    let schedule = house.schedules[0];
    let path = format!("/v1/schedules/{schedule}/seats?section=S{}", i / SECTION_SEATS);
    // As browsers do.
    let looking = [guarded[0], guarded[1], ("accept-encoding", "gzip")];
    status(connection, &Request { method: "GET", path: &path, headers: &looking, body: "" }, 200).await?;
    let seat = House::seat(schedule, i64::try_from(i).unwrap_or_default());
    let body = format!("{{\"schedule_id\":{schedule},\"seat_ids\":[{seat}]}}");
    let holding = Request { method: "POST", path: "/v1/reservations", headers: &guarded, body: &body };
    let held = value(connection, &holding, 201).await?;
    let body = format!("{{\"reservation_id\":{}}}", held["reservation_id"]);
    status(connection, &Request { method: "POST", path: "/v1/payments", headers: &guarded, body: &body }, 201).await
}

async fn status(connection: &mut Connection, request: &Request<'_>, wanted: u16) -> std::io::Result<u16> {
    body(connection, request, wanted).await.map(|_| wanted)
}

async fn value(connection: &mut Connection, request: &Request<'_>, wanted: u16) -> std::io::Result<Value> {
    Ok(serde_json::from_slice(body(connection, request, wanted).await?).unwrap_or_default())
}

/// The body of an answer that has the wanted status.
async fn body<'a>(connection: &'a mut Connection, request: &Request<'_>, wanted: u16) -> std::io::Result<&'a [u8]> {
    let answer = connection.call(request).await?;
    if answer.status == wanted {
        return Ok(answer.body);
    }
    let body = String::from_utf8_lossy(answer.body);
    Err(std::io::Error::other(format!("{} {}: {} {body}", request.method, request.path, answer.status)))
}
