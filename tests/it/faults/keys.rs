//! One request id for two requests, of which one is a hold that goes on to its payment. Until that is decided, the other one may be first.

use boxoffice_tests::log::{self, PAYMENTS, RESERVATIONS, RESULTS, Reader, Writer, dead_letters};
use boxoffice_tests::processes::Processes;
use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, Buyer, PRICE, Show, audit, database, eventually, met};
use serde_json::{Value, json};
use sqlx::PgPool;

/// What a buyer asks for by one id.
struct Asked {
    buyer: Buyer,
    request_id: String,
}

impl Asked {
    async fn by_someone(show: &Show) -> Self {
        Self { buyer: show.buyer(PRICE).await, request_id: uuid::Uuid::new_v4().to_string() }
    }

    fn record(&self, kind: &str, members: Value) -> Value {
        let mut value =
            json!({"type": kind, "version": 1, "request_id": self.request_id, "user_id": self.buyer.user_id});
        value.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        value
    }

    /// Asks for a seat, and waits until that is applied.
    async fn hold(&self, pool: &PgPool, show: &Show, seat: i64, pay: bool) {
        let hold = json!({"schedule_id": show.schedule_id, "seat_ids": [seat], "pay": pay});
        let key = show.schedule_id.to_string();
        let place = Writer::new().append(RESERVATIONS, &key, &self.record("reservation.hold", hold)).await;
        eventually("the hold is applied", s(5), async || {
            let applied = database::applied(pool).await.get(&(RESERVATIONS.to_owned(), place.partition)).copied();
            met(applied > Some(place.offset), applied)
        })
        .await;
    }

    /// What has become of the hold.
    async fn status(&self) -> Value {
        self.buyer.reservation(&json!({"reservation_id": self.request_id})).await["status"].clone()
    }
}

/// None of the holds stays behind unpaid, and none of the records is a dead letter: all can be read.
#[tokio::test]
async fn a_hold_whose_id_another_request_takes_is_paid_or_released() {
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new(), database::pool().await);
    let show = Show::new(&api).await;
    let [one, two, three, four] = show.pick().await;
    let same_seat = Asked::by_someone(&show).await;
    let other_seat = Asked::by_someone(&show).await;
    let charge = Asked::by_someone(&show).await;
    let mut letters = Reader::at_the_end_of(&[&dead_letters(RESERVATIONS), &dead_letters(PAYMENTS)]);
    // Payments wait, and what else comes is first.
    let frozen = processes.freeze("payment-worker");
    let record = charge.record("balance.charge", json!({"amount": 1}));
    Writer::new().append(PAYMENTS, &charge.buyer.user_id, &record).await;
    charge.hold(&pool, &show, one, true).await;
    for (asked, first, second) in [(&same_seat, two, two), (&other_seat, three, four)] {
        asked.hold(&pool, &show, first, true).await;
        asked.hold(&pool, &show, second, false).await;
    }
    drop(frozen);

    eventually("the holds have ended", s(10), async || {
        let now = [charge.status().await, same_seat.status().await, other_seat.status().await];
        met(now == ["CANCELLED", "CANCELLED", "PAID"], now)
    })
    .await;
    assert_eq!(charge.buyer.balance().await, PRICE + 1);
    assert_eq!((same_seat.buyer.balance().await, other_seat.buyer.balance().await), (PRICE, 0));
    for (asked, http_status, kind) in [
        (&charge, 201, "balance.charge"),
        (&same_seat, 409, "reservation.hold"),
        (&other_seat, 201, "reservation.hold"),
    ] {
        let told = Reader::at_the_beginning_of(&[RESULTS]).outcome(&asked.request_id).await.json();
        assert_eq!((&told["http_status"], &told["kind"]), (&json!(http_status), &json!(kind)), "{told}");
    }
    show.becomes(&[one, two, four], "AVAILABLE").await;
    log::caught_up(s(30)).await;
    assert!(letters.rest().await.is_empty());
    audit::audit_at_rest(&pool).await;
}
