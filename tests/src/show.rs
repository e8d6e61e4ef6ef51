//! A concert of one test alone, with one schedule: tests run side by side and never meet.

use chrono::{SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::buyer::Buyer;
use crate::http::{Api, Way};
use crate::shapes;
use crate::wait::{eventually, met, s};

/// The price of a seat, unless a test says otherwise.
pub const PRICE: i64 = 10_000;

/// A concert of one's own.
#[derive(Debug)]
pub struct Show {
    /// The API.
    pub api: Api,
    /// The concert.
    pub concert_id: i64,
    /// Its schedule.
    pub schedule_id: i64,
    /// A buyer inside who only looks.
    watcher: OnceCell<Buyer>,
}

/// A time some days ahead, as text.
pub fn in_days(days: i64) -> String {
    (Utc::now() + TimeDelta::days(days)).to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A queue that admits one buyer at once, and the next ones one a minute.
pub fn slow_queue() -> Value {
    json!({"queue": {"rate_per_minute": 1, "burst": 1}})
}

impl Show {
    /// 20 seats: `A-1-1` to `A-2-10`, in 30 days.
    pub async fn new(api: &Api) -> Self {
        Self::with(api, json!({})).await
    }

    /// With these members of the concert.
    pub async fn with(api: &Api, concert: Value) -> Self {
        Self::of(api, concert, json!({})).await
    }

    /// With these members of the concert and of the schedule.
    pub async fn of(api: &Api, concert: Value, schedule: Value) -> Self {
        let concert = api.make_concert(concert).await;
        let concert_id = shapes::int(&concert["concert_id"]);
        let schedule_id = Self::schedule(api, concert_id, schedule).await;
        Self { api: api.clone(), concert_id, schedule_id, watcher: OnceCell::new() }
    }

    /// A further schedule of a concert; its id.
    pub async fn schedule(api: &Api, concert_id: i64, mut members: Value) -> i64 {
        let object = members.as_object_mut().expect("members of a schedule");
        object.entry("starts_at").or_insert_with(|| in_days(30).into());
        let sections = json!([{"name": "A", "rows": 2, "seats_per_row": 10, "price": PRICE}]);
        object.entry("sections").or_insert(sections);
        shapes::int(&api.make_schedule(concert_id, &members).await["schedule_id"])
    }

    /// A buyer inside, with this much money.
    pub async fn buyer(&self, money: i64) -> Buyer {
        let buyer = self.api.sign_up().await;
        if money > 0 {
            buyer.charge(money, Way::Wait).await.ok(201);
        }
        buyer.enter(self.concert_id).await;
        buyer
    }

    /// Someone inside who only looks.
    async fn watcher(&self) -> &Buyer {
        self.watcher.get_or_init(|| self.buyer(0)).await
    }

    /// All seats, in the order of the schedule.
    pub async fn all_seats(&self) -> Vec<Value> {
        self.seats_seen_by(self.watcher().await, "?status=all").await
    }

    /// The seats that a buyer sees; `query` may filter them.
    pub async fn seats_seen_by(&self, buyer: &Buyer, query: &str) -> Vec<Value> {
        let path = format!("/v1/schedules/{}/seats{query}", self.schedule_id);
        let body = buyer.inside(self, "GET", &path).send().await.is(200);
        shapes::has(&body, "schedule_id concert_id starts_at as_of seats");
        assert_eq!((&body["schedule_id"], &body["concert_id"]), (&self.schedule_id.into(), &self.concert_id.into()));
        let seats = shapes::list(&body["seats"]).clone();
        for seat in &seats {
            shapes::has(seat, shapes::SEAT);
        }
        seats
    }

    /// The ids of the first seats.
    pub async fn pick<const N: usize>(&self) -> [i64; N] {
        let seats = self.all_seats().await;
        std::array::from_fn(|i| shapes::int(&seats[i]["seat_id"]))
    }

    /// The id of the seat with this label.
    pub async fn seat(&self, label: &str) -> i64 {
        let seats = self.all_seats().await;
        let seat = seats.iter().find(|seat| seat["label"] == label).unwrap_or_else(|| panic!("no seat {label}"));
        shapes::int(&seat["seat_id"])
    }

    /// Waits until all these seats have this status: a map is at most a second old.
    pub async fn becomes(&self, seat_ids: &[i64], status: &str) {
        let what = format!("the seats {seat_ids:?} become {status}");
        eventually(&what, s(3), async || {
            let seats = self.all_seats().await;
            let found: Vec<Value> =
                seats.into_iter().filter(|seat| seat_ids.contains(&shapes::int(&seat["seat_id"]))).collect();
            assert_eq!(found.len(), seat_ids.len());
            met(found.iter().all(|seat| seat["status"] == status), found)
        })
        .await;
    }
}
