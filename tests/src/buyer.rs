//! A buyer: who they are, which queue tokens they have, and what they do.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use crate::http::{Answer, Api, Call, Outcome, Way};
use crate::shapes;
use crate::show::Show;
use crate::wait::{eventually, eventually_each, met, s};

/// How often a waiting token is polled: below the limit of five a second.
const POLL_EVERY: Duration = Duration::from_millis(250);

/// A buyer.
#[derive(Debug)]
pub struct Buyer {
    /// The API.
    pub api: Api,
    /// Who.
    pub user_id: String,
    /// For log-ins.
    pub secret: String,
    /// The access token.
    pub access: String,
    /// The last queue token of each concert.
    tokens: Mutex<HashMap<i64, String>>,
}

impl Buyer {
    /// From the answer to a sign-up.
    pub fn new(api: Api, body: &Value) -> Self {
        let text = |member: &str| shapes::text(&body[member]).to_owned();
        let (user_id, secret, access) = (shapes::uuid(&body["user_id"]), text("user_secret"), text("access_token"));
        Self { api, user_id, secret, access, tokens: Mutex::default() }
    }

    /// A call with the access token.
    pub fn call(&self, method: &str, path: &str) -> Call {
        self.api.call(method, path).access(&self.access)
    }

    /// A call with the access token and the queue token of this concert.
    pub fn inside(&self, show: &Show, method: &str, path: &str) -> Call {
        self.call(method, path).queue(&self.queue_token(show.concert_id))
    }

    /// The last queue token that this buyer got for the concert.
    pub fn queue_token(&self, concert_id: i64) -> String {
        let tokens = self.tokens.lock().expect("nobody panics while holding it");
        tokens.get(&concert_id).cloned().expect("the test has joined this queue")
    }

    /// The call that joins a queue.
    pub fn joining(&self, concert_id: i64) -> Call {
        self.call("POST", &format!("/v1/concerts/{concert_id}/queue-tokens"))
    }

    /// Joins the queue, or asks again; keeps the token.
    pub async fn join(&self, concert_id: i64, way: Way) -> Outcome {
        let outcome = self.joining(concert_id).ask(way).await;
        if outcome.succeeded() {
            shapes::token(&outcome.body, shapes::text(&outcome.body["status"]));
            assert_eq!(outcome.body["concert_id"], concert_id, "{}", outcome.body);
            let token = shapes::text(&outcome.body["queue_token"]).to_owned();
            self.tokens.lock().expect("nobody panics while holding it").insert(concert_id, token);
        }
        outcome
    }

    /// `GET /v1/queue-token`
    pub async fn poll(&self, concert_id: i64) -> Answer {
        self.api.get("/v1/queue-token").queue(&self.queue_token(concert_id)).send().await
    }

    /// Polls until the token is admitted; its body.
    pub async fn admitted(&self, concert_id: i64) -> Value {
        eventually_each(POLL_EVERY, "the token is admitted", s(15), async || {
            let body = self.poll(concert_id).await.is(200);
            met(body["admitted"] == true, body)
        })
        .await
    }

    /// Polls until the token has ended.
    pub async fn token_ends(&self, concert_id: i64, within: Duration) -> Answer {
        eventually_each(POLL_EVERY, "the queue token ends", within, async || {
            let answer = self.poll(concert_id).await;
            met(answer.status == 302, answer)
        })
        .await
    }

    /// Joins and waits for admission.
    pub async fn enter(&self, concert_id: i64) {
        if self.join(concert_id, Way::Wait).await.ok_any()["admitted"] != true {
            self.admitted(concert_id).await;
        }
    }

    /// Gives the queue token back.
    pub async fn leave(&self, show: &Show, way: Way) -> Outcome {
        // Only the queue token is needed; the access token is for polling the request.
        self.inside(show, "DELETE", "/v1/queue-token").ask(way).await
    }

    /// Holds these seats.
    pub async fn hold(&self, show: &Show, seat_ids: &[i64], way: Way) -> Outcome {
        self.reserve(show, json!({"schedule_id": show.schedule_id, "seat_ids": seat_ids}), way).await
    }

    /// Holds these seats and pays for them, as one request.
    pub async fn buy(&self, show: &Show, seat_ids: &[i64], way: Way) -> Outcome {
        let body = json!({"schedule_id": show.schedule_id, "seat_ids": seat_ids, "pay": true});
        self.reserve(show, body, way).await
    }

    /// `POST /v1/reservations`
    pub async fn reserve(&self, show: &Show, body: Value, way: Way) -> Outcome {
        self.inside(show, "POST", "/v1/reservations").json(&body).ask(way).await
    }

    /// Pays a reservation of this concert.
    pub async fn pay(&self, show: &Show, reservation: &Value, way: Way) -> Outcome {
        self.paying(show, reservation).ask(way).await
    }

    /// The call that pays a reservation of this concert.
    pub fn paying(&self, show: &Show, reservation: &Value) -> Call {
        let body = json!({"reservation_id": reservation["reservation_id"]});
        self.inside(show, "POST", "/v1/payments").json(&body)
    }

    /// Gives a hold back.
    pub async fn cancel(&self, reservation: &Value, way: Way) -> Outcome {
        self.call("DELETE", &path_of(reservation)).ask(way).await
    }

    /// Gives a payment back.
    pub async fn refund(&self, payment: &Value, way: Way) -> Outcome {
        let path = format!("/v1/payments/{}/refunds", shapes::uuid(&payment["payment_id"]));
        self.call("POST", &path).ask(way).await
    }

    /// Charges the balance.
    pub async fn charge(&self, amount: i64, way: Way) -> Outcome {
        self.call("POST", "/v1/balance/charges").json(&json!({"amount": amount})).ask(way).await
    }

    /// The balance now.
    pub async fn balance(&self) -> i64 {
        let body = self.call("GET", "/v1/balance").send().await.is(200);
        shapes::has(&body, "user_id balance currency");
        assert_eq!((&body["user_id"], &body["currency"]), (&self.user_id.as_str().into(), &"KRW".into()));
        shapes::int(&body["balance"])
    }

    /// The ledger's entries, newest first.
    pub async fn entries(&self) -> Vec<Value> {
        let body = self.call("GET", "/v1/balance/entries").send().await.is(200);
        shapes::has(&body, "entries next_cursor");
        let entries = shapes::list(&body["entries"]).clone();
        for entry in &entries {
            shapes::has(entry, shapes::ENTRY);
            shapes::uuid(&entry["entry_id"]);
            shapes::time(&entry["at"]);
        }
        entries
    }

    /// A reservation now.
    pub async fn reservation(&self, reservation: &Value) -> Value {
        let body = self.call("GET", &path_of(reservation)).send().await.is(200);
        shapes::reservation(&body, shapes::text(&body["status"]));
        body
    }

    /// Waits until a reservation has this status.
    pub async fn becomes(&self, reservation: &Value, status: &str, within: Duration) -> Value {
        let what = format!("the reservation becomes {status}");
        eventually(&what, within, async || {
            let now = self.reservation(reservation).await;
            met(now["status"] == status, now)
        })
        .await
    }

    /// The five calls of seed 001 that look at the queue token: poll, dates, seats, reserve, pay. None: without one.
    pub fn five_calls(&self, show: &Show, token: Option<&str>, reservation_id: &str) -> [(&'static str, Call); 5] {
        let reserve = json!({"schedule_id": show.schedule_id, "seat_ids": [show.schedule_id]});
        let calls = [
            ("poll", self.api.get("/v1/queue-token")),
            ("dates", self.call("GET", &format!("/v1/concerts/{}/schedules", show.concert_id))),
            ("seats", self.call("GET", &format!("/v1/schedules/{}/seats", show.schedule_id))),
            ("reserve", self.call("POST", "/v1/reservations").json(&reserve)),
            ("pay", self.call("POST", "/v1/payments").json(&json!({"reservation_id": reservation_id}))),
        ];
        calls.map(|(name, call)| (name, if let Some(token) = token { call.queue(token) } else { call }))
    }
}

fn path_of(reservation: &Value) -> String {
    format!("/v1/reservations/{}", shapes::uuid(&reservation["reservation_id"]))
}

impl Outcome {
    /// The result of a request that succeeded with 200 or 201.
    #[track_caller]
    pub fn ok_any(&self) -> Value {
        self.ok(if self.status == Some(200) { 200 } else { 201 })
    }
}
