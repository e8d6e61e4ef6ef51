//! Money: paying for holds that were made before, and charging.

use std::cell::RefCell;

use anyhow::{Result, ensure};
use indicatif::ProgressBar;
use serde_json::Value;

use super::{Bench, CALLERS, Peer, ROUNDS, Turn};
use crate::http::Request;
use crate::load::{Measured, at_once};
use crate::report::Row;
use crate::world::{Buyer, House, open_queue};

const SYNC_PART: usize = 5;
const CHARGES_EACH: usize = 16;
/// More than all holds of a buyer cost.
const MONEY: i64 = 100_000;

/// One payment each by buyers who are inside and hold a seat. They came right before: whoever buys pays within minutes.
pub(super) async fn payments(bench: &Bench) -> Result<Row> {
    let count = bench.scaled(60_000);
    let seats = i64::try_from(count)? / 50 * 50 + 50;
    let house = bench.world.house(2 * ROUNDS, seats, open_queue()).await?;
    let hold = async |peer, turn: usize| {
        let count = if peer == Peer::Ours { count } else { count / SYNC_PART };
        let buyers = bench.world.insiders(&house, count).await?;
        bench.world.charge(&buyers, MONEY).await?;
        let holds = hold_each(bench, &buyers, house.schedules[turn]).await?;
        bench.world.analyze().await?;
        Ok((buyers, holds))
    };
    bench
        .in_prepared_turn("payments", &[Peer::Ours, Peer::Sync], hold, async |turn, (buyers, holds), progress| {
            pay_each(turn, &buyers, &holds, progress).await
        })
        .await
}

async fn hold_each(bench: &Bench, buyers: &[Buyer], schedule: i64) -> Result<Vec<String>> {
    let held = RefCell::new(vec![String::new(); buyers.len()]);
    let hidden = ProgressBar::hidden();
    let measured = at_once(bench.world.api, CALLERS, buyers.len(), &hidden, async |connection, i| {
        let headers = [
            ("authorization", buyers[i].authorization.as_str()),
            ("queue-token", buyers[i].queue_token.as_str()),
            ("prefer", "wait=30"),
        ];
        let seat = House::seat(schedule, i64::try_from(i).unwrap_or_default());
        let body = format!("{{\"schedule_id\":{schedule},\"seat_ids\":[{seat}]}}");
        let request = Request { method: "POST", path: "/v1/reservations", headers: &headers, body: &body };
        let answer = connection.call(&request).await?;
        let value: Value = serde_json::from_slice(answer.body).unwrap_or_default();
        value["reservation_id"].as_str().unwrap_or_default().clone_into(&mut held.borrow_mut()[i]);
        Ok(answer.status)
    });
    measured.await?.expect(&[201])?;
    let held = held.into_inner();
    ensure!(held.iter().all(|id| !id.is_empty()), "not all holds were made");
    Ok(held)
}

async fn pay_each(turn: Turn, buyers: &[Buyer], holds: &[String], progress: &ProgressBar) -> Result<Measured> {
    let measured = at_once(turn.address, CALLERS, holds.len(), progress, async |connection, i| {
        let headers = [
            ("authorization", buyers[i].authorization.as_str()),
            ("queue-token", buyers[i].queue_token.as_str()),
            ("prefer", "wait=30"),
        ];
        let body = format!("{{\"reservation_id\":\"{}\"}}", holds[i]);
        let request = Request { method: "POST", path: "/v1/payments", headers: &headers, body: &body };
        Ok(connection.call(&request).await?.status)
    });
    measured.await?.expect(&[201])
}

/// Charges, several by each buyer.
pub(super) async fn charges(bench: &Bench) -> Result<Row> {
    let count = bench.scaled(160_000);
    let buyers = bench.world.buyers(count / CHARGES_EACH).await?;
    bench
        .in_turn("charges", &[Peer::Ours, Peer::Sync], async |turn, progress| {
            let count = if turn.peer == Peer::Ours { count } else { count / SYNC_PART };
            let measured = at_once(turn.address, CALLERS, count, progress, async |connection, i| {
                let buyer = &buyers[i % buyers.len()];
                let headers = [("authorization", buyer.authorization.as_str()), ("prefer", "wait=30")];
                let request =
                    Request { method: "POST", path: "/v1/balance/charges", headers: &headers, body: "{\"amount\":1}" };
                Ok(connection.call(&request).await?.status)
            });
            measured.await?.expect(&[201])
        })
        .await
}
