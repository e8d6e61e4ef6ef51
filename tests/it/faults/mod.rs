//! What breaks: processes are killed, stopped and restarted, the log is replayed. One test at a time, for they share the
//! system with nobody.

mod backups;
mod gaps;
mod holds;
mod instances;
mod keys;
mod maps;
mod purge;
mod replay;
mod restarts;
mod untold;
mod workers;

use std::sync::Mutex;
use std::time::Duration;

use boxoffice_tests::log::{PAYMENTS, TOKENS, Writer};
use boxoffice_tests::wait::s;
use boxoffice_tests::{Answer, Api, Buyer, Call, PRICE, Show, Way, eventually, met, setting, shapes};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use sqlx::PgPool;

/// How long a purchase may take while something is broken and mended.
const PURCHASE_WITHIN: Duration = s(90);

/// The names of the workers, and the variables with their addresses.
const WORKERS: [(&str, &str); 3] = [
    ("token-worker", "TOKEN_WORKER_URL"),
    ("reservation-worker", "RESERVATION_WORKER_URL"),
    ("payment-worker", "PAYMENT_WORKER_URL"),
];

/// Waits until the workers say that they are ready.
async fn workers_are_ready(api: &Api) {
    for (name, variable) in WORKERS {
        let ready = api.clone().of(&setting(variable)).get("/readyz");
        eventually(&format!("{name} is ready"), s(30), async || match ready.try_send().await {
            Ok(answer) => met(answer.status == 200, answer.to_string()),
            Err(error) => Err(format!("{error:?}")),
        })
        .await;
    }
}

/// The sum of a metric of one process.
async fn metric(api: &Api, variable: &str, name: &str) -> f64 {
    let page = api.clone().of(&setting(variable)).get("/metrics").send().await;
    let text = String::from_utf8_lossy(&page.body).into_owned();
    let lines = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// A concert for `buyers` purchases, with room for all, and buyers inside with money for one seat.
async fn crowd(api: &Api, buyers: usize) -> (Show, Vec<Buyer>) {
    let queue = json!({"queue": {"rate_per_minute": 1_000_000, "burst": 100_000, "max_active": 100_000}});
    let sections = json!([{"name": "A", "rows": buyers.div_ceil(20), "seats_per_row": 20, "price": PRICE}]);
    let show = Show::of(api, queue, json!({"sections": sections})).await;
    let ready = stream::iter(0..buyers).map(|_| show.buyer(PRICE)).buffered(16).collect().await;
    (show, ready)
}

/// Answers of the api that say that something is broken.
#[derive(Default)]
struct Trouble {
    answers: Mutex<Vec<Answer>>,
}

impl Trouble {
    /// Takes note of a 5xx answer, which must be one that the contract has.
    fn note(&self, answer: Answer) {
        let slug = shapes::slug(&answer.json()).to_owned();
        let status = match slug.as_str() {
            "unavailable" | "overloaded" => 503,
            "delivery-unknown" => 504,
            _ => panic!("not in the contract: {answer}"),
        };
        answer.problem(status, &slug);
        self.answers.lock().unwrap().push(answer);
    }

    /// How many there were.
    fn count(&self) -> usize {
        self.answers.lock().unwrap().len()
    }
}

/// Repeats a call with the same `Idempotency-Key` until it has a final answer, as a client should.
async fn insist(call: Call, trouble: &Trouble) -> Answer {
    let call = call.key(&uuid::Uuid::new_v4().to_string()).wait(5);
    eventually(&format!("{} has a final answer", call.name()), PURCHASE_WITHIN, async || match call.try_send().await {
        Ok(answer) if answer.status >= 500 => {
            let shown = answer.to_string();
            trouble.note(answer);
            Err(shown)
        }
        Ok(answer) if answer.status == 202 || answer.status == 429 => Err(answer.to_string()),
        Ok(answer) => Ok(answer),
        Err(error) => Err(format!("{error:?}")),
    })
    .await
}

/// Holds the best seat and pays for it, in one request or in two, whatever is broken meanwhile; the payment.
async fn purchase(buyer: &Buyer, show: &Show, at_once: bool, trouble: &Trouble) -> Value {
    let mut body = json!({"schedule_id": show.schedule_id, "best_available": {"count": 1}});
    if at_once {
        body["pay"] = true.into();
    }
    let held = insist(buyer.inside(show, "POST", "/v1/reservations").json(&body), trouble).await.is(201);
    let payment = if at_once { held } else { insist(buyer.paying(show, &held), trouble).await.is(201) };
    shapes::payment(&payment, "SUCCEEDED");
    payment
}

/// Each buyer has one paid seat and no money left; nobody has another's.
async fn each_has_one_seat(pool: &PgPool, show: &Show, buyers: &[Buyer]) {
    let users: Vec<uuid::Uuid> = buyers.iter().map(|buyer| buyer.user_id.parse().unwrap()).collect();
    let wrong: Vec<String> = sqlx::query_scalar(
        "SELECT format('user %s has %s paid of %s reservations, balance %s', u.id, count(*) FILTER (WHERE r.status = 'PAID'),
                       count(r.status), max(a.balance))
         FROM unnest($1::uuid[]) AS u (id) LEFT JOIN reservations r ON r.user_id = u.id AND r.schedule_id = $2
         LEFT JOIN accounts a ON a.user_id = u.id
         GROUP BY u.id HAVING count(*) FILTER (WHERE r.status = 'PAID') <> 1 OR count(r.status) <> 1 OR max(a.balance) <> 0",
    )
    .bind(&users)
    .bind(show.schedule_id)
    .fetch_all(pool)
    .await
    .expect("Postgres answers");
    assert_eq!(wrong, Vec::<String>::new());
}

/// Ends all that would change by itself as time passes: buyers leave their queues, holds are given back.
async fn nothing_is_under_way(pool: &PgPool) {
    let writer = Writer::new();
    let tokens: Vec<(i64, uuid::Uuid, uuid::Uuid)> =
        sqlx::query_as("SELECT concert_id, user_id, token_id FROM queue_tokens WHERE ended_at IS NULL")
            .fetch_all(pool)
            .await
            .expect("Postgres answers");
    let holds: Vec<(uuid::Uuid, uuid::Uuid)> =
        sqlx::query_as("SELECT user_id, reservation_id FROM reservations WHERE status = 'HELD'")
            .fetch_all(pool)
            .await
            .expect("Postgres answers");
    let request = |kind: &str, user: &uuid::Uuid| json!({"type": kind, "version": 1, "request_id": uuid::Uuid::new_v4(), "user_id": user});
    let leaves = tokens.iter().map(|(concert, user, token)| {
        let mut leave = request("token.leave", user);
        (leave["concert_id"], leave["token_id"]) = (json!(concert), json!(token));
        (TOKENS, concert.to_string(), leave)
    });
    let cancels = holds.iter().map(|(user, reservation)| {
        let mut cancel = request("reservation.cancel", user);
        cancel["reservation_id"] = json!(reservation);
        (PAYMENTS, user.to_string(), cancel)
    });
    stream::iter(leaves.chain(cancels))
        .map(async |(topic, key, value)| writer.append(topic, &key, &value).await)
        .buffer_unordered(64)
        .for_each(async |_| {})
        .await;
    eventually("nothing is under way", s(60), async || {
        let live: i64 = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM queue_tokens WHERE ended_at IS NULL) + (SELECT count(*) FROM reservations WHERE status = 'HELD')",
        )
        .fetch_one(pool)
        .await
        .expect("Postgres answers");
        met(live == 0, live)
    })
    .await;
}

/// Charges until the worker applies it: the log moves again.
async fn the_log_moves(api: &Api) {
    api.sign_up().await.charge(1, Way::Wait).await.ok(201);
}
