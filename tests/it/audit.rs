//! The audit itself: it sees what it is there for.

use boxoffice_tests::log::{Offsets, PAYMENTS};
use boxoffice_tests::{Api, PRICE, Show, Way, audit, database, shapes};
use sqlx::{AssertSqlSafe, Connection};

/// What breaks a rule, and the rule. Words with a colon stand for what the test has bought.
const BREAKS: &[(&str, &str)] = &[
    ("UPDATE seats SET status = 'HELD' WHERE seat_id = :one", "a seat that is HELD or SOLD belongs"),
    ("UPDATE seats SET status = 'AVAILABLE' WHERE seat_id = :two", "a seat that is HELD or SOLD belongs"),
    ("UPDATE reservations SET status = 'EXPIRED' WHERE reservation_id = :held", "a seat that is HELD or SOLD belongs"),
    (
        "UPDATE reservations SET seat_ids = seat_ids || :three WHERE reservation_id = :held",
        "all seats of a live reservation",
    ),
    ("UPDATE reservations SET seat_ids = ARRAY[:one] WHERE reservation_id = :held", "no seat is in two"),
    (
        "UPDATE reservations SET seat_ids = array_fill(:two, ARRAY[4]) WHERE reservation_id = :held",
        "nobody has more live seats",
    ),
    ("UPDATE overdue_search SET all_ended_before = 'infinity'", "no hold stands that ended"),
    ("UPDATE accounts SET balance = balance + 1 WHERE user_id = :user", "a balance is the sum"),
    ("UPDATE accounts SET entries = 3 WHERE user_id = :user", "a balance is the sum"),
    ("UPDATE ledger_entries SET entry_no = 7 WHERE user_id = :user AND entry_no = 2", "entries are numbered densely"),
    (
        "UPDATE ledger_entries SET balance_after = 1 WHERE user_id = :user AND entry_no = 1",
        "entries are numbered densely",
    ),
    ("UPDATE ledger_entries SET entry_id = :payment WHERE user_id = :user", "no request moved money twice"),
    (
        "UPDATE reservations SET status = 'REFUNDED' WHERE reservation_id = :reservation",
        "a paid reservation has one payment",
    ),
    ("DELETE FROM payments WHERE payment_id = :payment", "a paid reservation has one payment"),
    ("UPDATE payments SET amount = amount + 1 WHERE payment_id = :payment", "a paid reservation has one payment"),
    ("DELETE FROM ledger_entries WHERE user_id = :user AND kind = 'PAYMENT'", "each payment was debited once"),
    ("UPDATE payments SET status = 'REFUNDED' WHERE payment_id = :payment", "each payment was debited once"),
    ("DELETE FROM requests WHERE user_id = :user AND kind = 'balance.charge'", "each charge, payment and refund"),
    ("DELETE FROM ledger_entries WHERE user_id = :user AND kind = 'CHARGE'", "each charge that succeeded"),
    ("UPDATE queues SET next_seq = next_seq + 1 WHERE concert_id = :concert", "places in a queue are dense"),
    ("UPDATE queues SET admitted_seq = 0 WHERE concert_id = :concert", "who was admitted is behind the mark"),
    ("UPDATE queues SET admitted_total = 1 WHERE concert_id = :concert", "who was admitted is behind the mark"),
    (
        "UPDATE queue_tokens SET ended_at = now() WHERE concert_id = :concert AND status = 'ACTIVE'",
        "a token has ended exactly",
    ),
    ("DELETE FROM requests WHERE request_id = :held", "each reservation has the outcome"),
    ("DELETE FROM reservations WHERE reservation_id = :held", "each hold that succeeded has its reservation"),
    ("DELETE FROM requests WHERE user_id = :user AND kind = 'token.issue'", "each token was issued"),
];

/// Each rule is broken in a transaction that is rolled back, and the audit names it.
#[tokio::test]
async fn the_audit_sees_each_rule_broken() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyer = show.buyer(5 * PRICE).await;
    let [one, two, three] = show.pick().await;
    let paid = buyer.buy(&show, &[one], Way::Wait).await.ok(201);
    let id = |body: &serde_json::Value| shapes::uuid(body);
    let (payment, reservation) = (id(&paid["payment_id"]), id(&paid["reservation"]["reservation_id"]));
    buyer.enter(show.concert_id).await;
    let held = id(&buyer.hold(&show, &[two], Way::Wait).await.ok(201)["reservation_id"]);
    let names = [":one", ":two", ":three", ":payment", ":reservation", ":held", ":user", ":concert"];
    let quoted = |id: &str| format!("'{id}'");
    let values = [
        one.to_string(),
        two.to_string(),
        three.to_string(),
        quoted(&payment),
        quoted(&reservation),
        quoted(&held),
        quoted(&buyer.user_id),
        show.concert_id.to_string(),
    ];
    let pool = database::pool().await;
    let mut connection = pool.acquire().await.unwrap();
    for (breaks, rule) in BREAKS {
        let replaced =
            names.iter().zip(&values).fold((*breaks).to_owned(), |sql, (name, value)| sql.replace(name, value));
        let mut transaction = connection.begin().await.unwrap();
        let done = sqlx::query(AssertSqlSafe(replaced)).execute(&mut *transaction).await;
        assert!(done.unwrap_or_else(|error| panic!("{breaks}: {error}")).rows_affected() > 0, "{breaks}");
        let broken = audit::broken(&mut transaction, true).await;
        transaction.rollback().await.unwrap();
        assert!(broken.iter().any(|line| line.contains(rule)), "{breaks} is not seen: {broken:?}");
    }
}

/// A record of the log without an outcome is seen, wherever it is.
#[tokio::test]
async fn the_audit_sees_a_record_that_was_lost() {
    let api = Api::new();
    let charge = api.sign_up().await.charge(1, Way::Poll).await;
    let pool = database::pool().await;
    let find = r#"SELECT partition, "offset" FROM requests WHERE request_id = $1::uuid"#;
    let id = charge.request_id.as_deref().unwrap();
    let (partition, offset): (i32, i64) = sqlx::query_as(find).bind(id).fetch_one(&pool).await.unwrap();
    let at = |offset| Offsets::from([((PAYMENTS.to_owned(), partition), offset)]);
    let (first, next) = (at(offset), at(offset + 1));
    let mut transaction = pool.begin().await.unwrap();
    assert_eq!(audit::without_outcome(&mut transaction, &first, &next).await, [""; 0]);
    sqlx::query("DELETE FROM requests WHERE request_id = $1::uuid").bind(id).execute(&mut *transaction).await.unwrap();
    let lost = audit::without_outcome(&mut transaction, &first, &next).await;
    assert_eq!(lost, [format!("{PAYMENTS}-{partition}: 1 records from {offset} on have 0 outcomes")]);
}
