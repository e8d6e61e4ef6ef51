//! A concert to look at and a buyer with money, made through the HTTP API like anybody's.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::dev::{self, Dev};
use crate::{interrupt, services};

const CALL_TIMEOUT: Duration = Duration::from_secs(40);
/// An api whose database was started a moment ago has not met it again yet, and says 503: nothing was done.
const PATIENCE: Duration = Duration::from_secs(15);
const TRY_EVERY: Duration = Duration::from_millis(200);
/// The most that one charge may bring, in the currency's minor units.
const MONEY: i64 = 10_000_000;
/// When the two dates are, from now.
const DAYS_AHEAD: [i64; 2] = [30, 31];

/// What was made; kept in `demo.json`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Demo {
    concert_id: i64,
    schedule_ids: Vec<i64>,
    user_id: String,
    user_secret: String,
    first_starts_at: DateTime<Utc>,
}

/// Makes the concert and the buyer, if those of the last time are not there any more; and says which it was.
pub(crate) fn seed(dev: &Dev, url: &str, admin_key: &str) -> Result<(Demo, &'static str)> {
    let file = dev.dir.join("demo.json");
    let api = Api { url, agent: services::agent(CALL_TIMEOUT) };
    let known = fs::read_to_string(&file).ok().and_then(|text| serde_json::from_str::<Demo>(&text).ok());
    if let Some(known) = known.filter(|known| is_there(&api, known)) {
        return Ok((known, "there already"));
    }
    let demo = make(&api, admin_key)?;
    dev::write_private(&file, &serde_json::to_string_pretty(&demo)?)?;
    Ok((demo, "made: 2 dates, 1,000 seats"))
}

/// Whether it can still be bought from: another database, or a long time, may lie in between.
fn is_there(api: &Api, demo: &Demo) -> bool {
    let secret = json!({"user_id": demo.user_id, "user_secret": demo.user_secret});
    demo.first_starts_at > Utc::now()
        && api.get(&format!("/v1/concerts/{}", demo.concert_id)).is_ok()
        && api.post("/v1/access-tokens", None, Some(&secret)).is_ok()
}

fn make(api: &Api, admin_key: &str) -> Result<Demo> {
    let concert = json!({
        "title": "Boxoffice Demo Night",
        "max_seats_per_buyer": 20,
        "queue": {"rate_per_minute": 6000, "burst": 1000, "max_active": 1000, "active_seconds": 600},
    });
    let concert = api.post("/v1/admin/concerts", Some(admin_key), Some(&concert))?;
    let concert_id = number(&concert, "concert_id")?;
    let mut schedule_ids = Vec::new();
    for days in DAYS_AHEAD {
        let path = format!("/v1/admin/concerts/{concert_id}/schedules");
        let schedule = api.post(&path, Some(admin_key), Some(&schedule(Utc::now() + TimeDelta::days(days))))?;
        schedule_ids.push(number(&schedule, "schedule_id")?);
    }
    let user = api.post("/v1/users", None, Some(&json!({"name": "Demo Buyer"})))?;
    let access_token = text(&user, "access_token")?;
    api.post("/v1/balance/charges", Some(&access_token), Some(&json!({"amount": MONEY})))?;
    Ok(Demo {
        concert_id,
        schedule_ids,
        user_id: text(&user, "user_id")?,
        user_secret: text(&user, "user_secret")?,
        first_starts_at: Utc::now() + TimeDelta::days(DAYS_AHEAD[0]),
    })
}

/// 500 seats.
fn schedule(starts_at: DateTime<Utc>) -> Value {
    let section = |name, rows, seats_per_row, price| json!({"name": name, "rows": rows, "seats_per_row": seats_per_row, "price": price});
    json!({
        "starts_at": starts_at.to_rfc3339_opts(SecondsFormat::Secs, true),
        "sections": [section("VIP", 5, 20, 150_000), section("R", 10, 20, 110_000), section("S", 10, 20, 70_000)],
    })
}

/// A purchase to paste into a shell. Needs curl and sed.
pub(crate) fn tour(url: &str, demo: &Demo) -> String {
    let Demo { concert_id, user_id, user_secret, .. } = demo;
    let schedule_id = demo.schedule_ids.first().copied().unwrap_or_default();
    format!(
        r#"A purchase to paste:

  API={url}
  JSON='content-type: application/json' WAIT='prefer: wait=10'
  pick() {{ sed -n 's/.*"'$1'": *"\([^"]*\)".*/\1/p'; }}
  # who you are
  ME="authorization: Bearer $(curl -s $API/v1/access-tokens -H "$JSON" -d '{{"user_id":"{user_id}","user_secret":"{user_secret}"}}' | pick access_token)"
  # into the queue of the concert: there is room, so you are admitted at once
  MAY="queue-token: $(curl -s -X POST $API/v1/concerts/{concert_id}/queue-tokens -H "$ME" -H "$WAIT" | pick queue_token)"
  # which seats are there
  curl -s "$API/v1/schedules/{schedule_id}/seats?section=VIP" -H "$ME" -H "$MAY" | head -c 400; echo
  # hold the two best, pay for them
  HOLD=$(curl -s $API/v1/reservations -H "$ME" -H "$MAY" -H "$JSON" -H "$WAIT" -d '{{"schedule_id":{schedule_id},"best_available":{{"count":2}}}}'); echo "$HOLD"
  curl -s $API/v1/payments -H "$ME" -H "$MAY" -H "$JSON" -H "$WAIT" -d "{{\"reservation_id\":\"$(echo "$HOLD" | pick reservation_id)\"}}"; echo
"#
    )
}

/// The api, as a client sees it.
struct Api<'a> {
    url: &'a str,
    agent: ureq::Agent,
}

impl Api<'_> {
    fn get(&self, path: &str) -> Result<Value> {
        read(path, || self.agent.get(format!("{}{path}", self.url)).call())
    }

    /// Sends a request, and waits for its outcome if it goes through the log.
    fn post(&self, path: &str, bearer: Option<&str>, body: Option<&Value>) -> Result<Value> {
        read(path, || {
            let mut request = self.agent.post(format!("{}{path}", self.url)).header("prefer", "wait=30");
            if let Some(bearer) = bearer {
                request = request.header("authorization", format!("Bearer {bearer}"));
            }
            match body {
                Some(body) => request.send_json(body),
                None => request.send_empty(),
            }
        })
    }
}

/// The body of a final success; anything else is an error that says what came.
fn read(path: &str, call: impl Fn() -> Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value> {
    let begun = Instant::now();
    let mut answer = loop {
        let answer = call().with_context(|| format!("{path} did not answer"))?;
        if answer.status().as_u16() != 503 || begun.elapsed() > PATIENCE {
            break answer;
        }
        interrupt::check()?;
        std::thread::sleep(TRY_EVERY);
    };
    let status = answer.status();
    let body = answer.body_mut().read_to_string().with_context(|| format!("{path} did not answer to the end"))?;
    if !status.is_success() || status.as_u16() == 202 {
        bail!("{path} answered {status}: {body}");
    }
    serde_json::from_str(&body).with_context(|| format!("{path} answered no JSON: {body}"))
}

fn number(body: &Value, name: &str) -> Result<i64> {
    body.get(name).and_then(Value::as_i64).with_context(|| format!("no {name} in {body}"))
}

fn text(body: &Value, name: &str) -> Result<String> {
    let value = body.get(name).and_then(Value::as_str);
    // The body may hold a secret, so it is not shown.
    Ok(value.with_context(|| format!("no {name} in an answer"))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_has_a_thousand_seats() {
        let schedule = schedule(Utc::now());
        let sections = schedule["sections"].as_array().unwrap();
        let seats: i64 =
            sections.iter().map(|s| s["rows"].as_i64().unwrap() * s["seats_per_row"].as_i64().unwrap()).sum();
        assert_eq!(seats * i64::try_from(DAYS_AHEAD.len()).unwrap(), 1_000);
        assert!(sections.len() > 1);
    }

    #[test]
    fn the_tour_has_no_placeholder_left() {
        let demo = Demo {
            concert_id: 7,
            schedule_ids: vec![11, 12],
            user_id: "u".into(),
            user_secret: "s".into(),
            first_starts_at: Utc::now(),
        };
        let tour = tour("http://127.0.0.1:8080", &demo);
        assert!(tour.contains("/v1/concerts/7/queue-tokens") && tour.contains("{\"schedule_id\":11,"));
        assert!(tour.contains("-d '{\"user_id\":\"u\",\"user_secret\":\"s\"}'"));
    }
}
