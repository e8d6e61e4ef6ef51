//! Money: paying for holds that were made before, and charging.

use std::cell::RefCell;

use anyhow::{Result, ensure};
use indicatif::ProgressBar;
use serde_json::Value;

use super::holds::rows_of_seats;
use super::{Bench, CALLERS, Peer, ROUNDS, Size, Turn, progress, with_warm_up};
use crate::http::Request;
use crate::load::{Measured, at_once};
use crate::report::Row;
use crate::world::{Buyer, House, open_queue};

const CHARGES_EACH: usize = 16;
const WARM_UP_PAYMENTS: usize = 20_000;
/// More than all holds of a buyer cost.
const MONEY: i64 = 100_000;

/// One payment each by buyers who are inside and hold a seat. They came right before: whoever buys pays within minutes.
pub(super) async fn payments(bench: &Bench) -> Result<Row> {
    let count = bench.scaled(60_000);
    let house = bench.world.house(2 * ROUNDS, rows_of_seats(with_warm_up(count)), open_queue()).await?;
    let hold = async |count: usize, turn: usize| {
        let prepared = buyers_who_hold(bench, &house, count, house.schedules[turn]).await?;
        bench.world.analyze().await?;
        Ok(prepared)
    };
    bench
        .in_prepared_turn(
            "payments",
            &[Peer::Ours, Peer::Sync],
            count,
            hold,
            async |turn, (buyers, holds), progress| pay_each(turn, buyers, holds, progress).await,
        )
        .await
}

/// Payments that nobody measures: a batch of them is spread over all partitions, which neither the broker nor the worker has met before.
pub(super) async fn warm_up(bench: &Bench) -> Result<()> {
    let count = if bench.size == Size::Smoke { CALLERS } else { WARM_UP_PAYMENTS };
    let house = bench.world.house(1, rows_of_seats(count), open_queue()).await?;
    let (buyers, holds) = buyers_who_hold(bench, &house, count, house.schedules[0]).await?;
    let turn = Turn::once(Peer::Ours, bench.world.api, count);
    pay_each(turn, &buyers, &holds, &progress("warming up", Peer::Ours)).await.map(drop)
}

/// Buyers who are inside, have money, and hold a seat each, with the ids of their reservations.
async fn buyers_who_hold(
    bench: &Bench,
    house: &House,
    count: usize,
    schedule: i64,
) -> Result<(Vec<Buyer>, Vec<String>)> {
    let buyers = bench.world.insiders(house, count).await?;
    bench.world.charge(&buyers, MONEY).await?;
    let holds = hold_each(bench, &buyers, schedule).await?;
    Ok((buyers, holds))
}

async fn hold_each(bench: &Bench, buyers: &[Buyer], schedule: i64) -> Result<Vec<String>> {
    let held = RefCell::new(vec![String::new(); buyers.len()]);
    let hidden = ProgressBar::hidden();
    let measured = at_once(bench.world.api, CALLERS, 0..buyers.len(), &hidden, async |connection, i| {
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
    let measured = at_once(turn.address, CALLERS, turn.pieces(), progress, async |connection, i| {
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
        .in_turn("charges", &[Peer::Ours, Peer::Sync], count, async |turn, progress| {
            let measured = at_once(turn.address, CALLERS, turn.pieces(), progress, async |connection, i| {
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
