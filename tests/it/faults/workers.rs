//! Workers that are killed with -9, at the worst moment and in the middle of a crowd.

use std::collections::BTreeMap;
use std::time::Duration;

use boxoffice_tests::log::{self, GROUPS, PAYMENTS, RESERVATIONS, RESULTS, Reader, Writer};
use boxoffice_tests::processes::Processes;
use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, Buyer, PRICE, Show, Way, audit, database, eventually, met, setting, shapes};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{Trouble, WORKERS, crowd, each_has_one_seat, metric, purchase, workers_are_ready};

/// A worker dies after the transaction and before its offsets are committed: what it did is read again, and done once.
#[tokio::test]
async fn killed_between_database_and_offset_commit_repeats_without_effect() {
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new(), database::pool().await);
    log::caught_up(s(30)).await;
    let mut results = Reader::at_the_end_of(&[RESULTS]);
    let before: Vec<_> = GROUPS.iter().map(|(topic, _)| log::ends_of(topic)).collect();

    // The workers of the system make room for ones that commit no offsets in the time of this test.
    let dying: Vec<_> = WORKERS
        .map(|(name, _)| processes.another(name, &[("OFFSET_COMMIT_INTERVAL_MS", "3600000")]))
        .into_iter()
        .collect();
    for (name, _) in WORKERS {
        processes.end(name, "TERM").await;
    }
    let dying: Vec<_> = dying.into_iter().map(boxoffice_tests::processes::Another::start).collect();
    workers_are_ready(&api).await;

    let show = Show::new(&api).await;
    let (two_steps, one_step, doctored) = (show.buyer(3 * PRICE).await, show.buyer(PRICE).await, api.sign_up().await);
    let [one, two, three] = show.pick().await;
    let held = two_steps.hold(&show, &[one], Way::Wait).await.ok(201);
    let payment = two_steps.pay(&show, &held, Way::Wait).await.ok(201);
    let refunded = two_steps.refund(&payment, Way::Wait).await.ok(201);
    two_steps.enter(show.concert_id).await;
    let cancelled = two_steps.hold(&show, &[two], Way::Wait).await.ok(201);
    two_steps.cancel(&cancelled, Way::Wait).await.ok(200);
    let bought = one_step.buy(&show, &[three], Way::Wait).await.ok(201);
    let charge = doctored.charge(70, Way::Wait).await.ok(201);
    let told = outcomes(&results.rest().await);
    assert!(told.len() >= 12, "{told:?}");

    dying.into_iter().for_each(boxoffice_tests::processes::Running::kill);
    // In the database, and not committed: the kill fell between the two.
    for ((topic, group), before) in GROUPS.iter().zip(before) {
        let (committed, ends) = (log::committed(topic, group), log::ends_of(topic));
        let applied = database::applied(&pool).await;
        for (partition, end) in ends.iter().filter(|(partition, end)| before[*partition] < **end) {
            assert_eq!(applied[partition], *end, "{partition:?} is applied");
            assert!(committed.get(partition).copied().unwrap_or(0) < *end, "{partition:?} is committed");
        }
    }
    // The protection is the outcome that was written with the effect. Of one charge it is taken out, to see that the records
    // really come again, and what would then happen to all of them.
    forget_outcome(&pool, &charge).await;
    let mut again = Reader::at_the_end_of(&[RESULTS]);
    processes.up(1).await;
    log::caught_up(s(60)).await;

    assert_eq!(doctored.balance().await, 140, "without the protection a repeat has its effect again");
    mend(&pool, &doctored).await;
    let repeated = outcomes(&again.rest().await);
    for (request_id, outcome) in &told {
        if charge["entry_id"] != request_id.as_str() {
            assert_eq!(repeated.get(request_id), Some(outcome), "told again as it was told");
        }
    }
    let mut repeats = 0.0;
    for (_, variable) in WORKERS {
        repeats += metric(&api, variable, "boxoffice_repeats_total").await;
    }
    assert!(repeats >= 11.0, "records that were read again: {repeats}");
    assert_eq!((two_steps.balance().await, two_steps.entries().await.len()), (3 * PRICE, 3));
    assert_eq!((one_step.balance().await, one_step.entries().await.len()), (0, 2));
    for (buyer, reservation, status) in [
        (&two_steps, &refunded["reservation"], "REFUNDED"),
        (&two_steps, &cancelled, "CANCELLED"),
        (&one_step, &bought["reservation"], "PAID"),
    ] {
        assert_eq!(buyer.reservation(reservation).await["status"], status);
    }
    assert_eq!(
        two_steps.call("GET", "/v1/reservations").send().await.is(200)["reservations"].as_array().unwrap().len(),
        2
    );
    audit::audit_at_rest(&pool).await;
}

/// The outcome of each request. However often it was told, it was the same.
fn outcomes(records: &[log::Record]) -> BTreeMap<String, Value> {
    let mut outcomes: BTreeMap<String, Value> = BTreeMap::new();
    for value in records.iter().map(log::Record::json).filter(|value| value["request_id"].is_string()) {
        let told = json!([value["status"], value["http_status"], value["result"], value["problem"]]);
        let first = outcomes.entry(shapes::text(&value["request_id"]).to_owned()).or_insert_with(|| told.clone());
        assert_eq!(*first, told, "one request has one outcome");
    }
    outcomes
}

/// Without its outcome and before the mark of what is applied, a record would only be a dead letter; so the mark goes back, too.
async fn forget_outcome(pool: &PgPool, charge: &Value) {
    let id: uuid::Uuid = shapes::uuid(&charge["entry_id"]).parse().unwrap();
    for sql in [
        r#"UPDATE applied_offsets a SET next_offset = r."offset" FROM requests r
           WHERE r.request_id = $1 AND (a.topic, a.partition) = (r.topic, r.partition)"#,
        "DELETE FROM requests WHERE request_id = $1",
    ] {
        let done = sqlx::query(sql).bind(id).execute(pool).await.expect("Postgres answers");
        assert_eq!(done.rows_affected(), 1, "{sql}");
    }
}

/// Puts right what the missing outcome has brought about.
async fn mend(pool: &PgPool, buyer: &Buyer) {
    let user: uuid::Uuid = buyer.user_id.parse().unwrap();
    for sql in [
        "DELETE FROM ledger_entries WHERE user_id = $1 AND entry_no = 2",
        "UPDATE accounts SET balance = 70, entries = 1 WHERE user_id = $1",
    ] {
        let done = sqlx::query(sql).bind(user).execute(pool).await.expect("Postgres answers");
        assert_eq!(done.rows_affected(), 1, "{sql}");
    }
}

/// Three of each worker; one of each is killed in the middle of a thousand purchases and started again.
#[tokio::test]
async fn b_13_one_of_three_workers_killed_during_a_thousand_purchases() {
    const BUYERS: usize = 1_000;
    const KILL_AFTER: usize = 150;
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new().tolerant(), database::pool().await);
    processes.up(3).await;
    let (show, buyers) = crowd(&api, BUYERS).await;
    let mut results = Reader::at_the_end_of(&[RESULTS]);
    let trouble = Trouble::default();
    let done = std::cell::Cell::new(0);
    let purchases = stream::iter(buyers.iter().enumerate())
        .map(async |(i, buyer)| {
            let payment = purchase(buyer, &show, i % 2 == 0, &trouble).await;
            done.set(done.get() + 1);
            payment
        })
        .buffer_unordered(128)
        .collect::<Vec<Value>>();
    let kills = async {
        eventually("the purchases run", s(60), async || met(done.get() >= KILL_AFTER, done.get())).await;
        for (name, _) in WORKERS {
            processes.end(&format!("{name}-2"), "KILL").await;
        }
        let at_kill = done.get();
        processes.up(3).await;
        at_kill
    };
    let (payments, at_kill) = tokio::join!(purchases, kills);
    assert!(at_kill < BUYERS * 9 / 10, "the kill fell into the purchases: {at_kill} were done");
    assert_eq!(payments.len(), BUYERS);
    let mut seats: Vec<i64> = payments.iter().flat_map(|payment| shapes::seat_ids(&payment["reservation"])).collect();
    seats.sort_unstable();
    seats.dedup();
    assert_eq!(seats.len(), BUYERS, "no seat twice");
    log::caught_up(s(60)).await;
    each_has_one_seat(&pool, &show, &buyers).await;
    audit::audit_at_rest(&pool).await;
    let requests = outcomes(&results.rest().await).len();
    assert!(requests >= 3 * BUYERS / 2, "a hold and a payment, or both in one: {requests}");
    // Back to one of each: the others leave in good order, nothing stalls.
    processes.up(1).await;
    let begun = std::time::Instant::now();
    super::the_log_moves(&api).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "nobody waits for a worker that left: {:?}", begun.elapsed());
}

/// Two workers hold seats of one schedule, as for a moment after a rebalance; here because somebody wrote records to partitions that their key
/// does not choose. One waits for the seats, the other for the schedule; without that lock both would count the buyer's seats before either has
/// made a hold.
#[tokio::test]
async fn two_workers_with_one_schedule_keep_the_limit_of_live_seats() {
    const SEATS_MAX: i64 = 4;
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new(), database::pool().await);
    processes.up(2).await;
    let partitions = i64::try_from(log::ends_of(RESERVATIONS).len()).unwrap();
    let sections = json!([{"name": "A", "rows": partitions, "seats_per_row": SEATS_MAX, "price": PRICE}]);
    let show = Show::of(&api, json!({"max_seats_per_buyer": SEATS_MAX}), json!({"sections": sections})).await;
    let buyer = show.buyer(0).await;

    let mut blocker = pool.begin().await.expect("Postgres answers");
    let seats: Vec<i64> =
        sqlx::query_scalar("SELECT seat_id FROM seats WHERE schedule_id = $1 ORDER BY seat_id FOR UPDATE")
            .bind(show.schedule_id)
            .fetch_all(&mut *blocker)
            .await
            .expect("Postgres answers");
    let writer = Writer::new();
    for (partition, seats) in (0..).zip(seats.chunks(usize::try_from(SEATS_MAX).unwrap())) {
        let hold = json!({"type": "reservation.hold", "version": 1, "request_id": uuid::Uuid::new_v4(), "user_id": buyer.user_id,
                          "schedule_id": show.schedule_id, "seat_ids": seats});
        writer.append_to(RESERVATIONS, partition, &show.schedule_id.to_string(), &hold).await;
    }
    blocked(&pool, "reservation-worker", 2).await;
    blocker.rollback().await.expect("Postgres answers");

    let user: uuid::Uuid = buyer.user_id.parse().unwrap();
    let told = eventually("all holds are decided", s(30), async || {
        let told: Vec<(String, i64)> = sqlx::query_as(
            "SELECT coalesce(body->>'type', body->>'status'), count(*) FROM requests
             WHERE user_id = $1 AND kind = 'reservation.hold' GROUP BY 1 ORDER BY 2",
        )
        .bind(user)
        .fetch_all(&pool)
        .await
        .expect("Postgres answers");
        met(told.iter().map(|(_, count)| count).sum::<i64>() == partitions, told)
    })
    .await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], ("HELD".to_owned(), 1), "{told:?}");
    assert!(told[1].0.ends_with("reservation-limit-exceeded"), "{told:?}");
    assert_eq!(told[1].1, partitions - 1);
    // Their offsets, too, although the group was still changing hands when they were to be committed.
    log::caught_up(s(30)).await;
    audit::audit_at_rest(&pool).await;
    processes.up(1).await;
}

/// The token of a buyer who pays is changed by another's hand while the payment waits for its row: it ends all the same, and one that has
/// ended does not end once more.
#[tokio::test]
async fn a_token_that_changes_while_its_buyer_pays_ends_once() {
    const CHANGES: [(&str, &str); 2] = [
        ("UPDATE queue_tokens SET expires_at = expires_at + interval '1 s' WHERE concert_id = $1", "COMPLETED"),
        ("UPDATE queue_tokens SET status = 'EXPIRED', ended_at = now() WHERE concert_id = $1", "EXPIRED"),
    ];
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new(), database::pool().await);
    processes.up(1).await;
    for (change, wanted) in CHANGES {
        let show = Show::new(&api).await;
        let buyer = show.buyer(PRICE).await;
        let [seat] = show.pick().await;
        let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
        let mut other = pool.begin().await.expect("Postgres answers");
        sqlx::query(change).bind(show.concert_id).execute(&mut *other).await.expect("Postgres answers");
        let (paid, ()) = tokio::join!(buyer.pay(&show, &held, Way::Wait), async {
            blocked(&pool, "payment-worker", 1).await;
            other.commit().await.expect("Postgres answers");
        });
        paid.ok(201);
        let sql = "SELECT status::text FROM queue_tokens WHERE concert_id = $1 AND user_id::text = $2";
        let status: String = sqlx::query_scalar(sql)
            .bind(show.concert_id)
            .bind(&buyer.user_id)
            .fetch_one(&pool)
            .await
            .expect("Postgres answers");
        assert_eq!(status, wanted, "{change}");
    }
}

/// Two workers charge one buyer and cancel one hold, as for a moment after a rebalance; here because somebody wrote records to partitions that
/// their key does not choose. Both have read the row before either writes it: the second one looks at it again. Without the check of what was read,
/// both would cancel the hold; a charge would still be kept by the ledger's key.
#[tokio::test]
async fn two_workers_with_one_buyer_do_not_write_over_each_other() {
    let processes = Processes::begin().await;
    let (api, pool, writer) = (Api::new(), database::pool().await, Writer::new());
    processes.up(2).await;
    let partitions = log::ends_of(PAYMENTS).len();
    let show = Show::new(&api).await;
    let buyer = show.buyer(PRICE).await;
    let [seat] = show.pick().await;
    let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
    let charge = json!({"type": "balance.charge", "amount": 1});
    let cancel = json!({"type": "reservation.cancel", "reservation_id": held["reservation_id"]});
    let account = "SELECT 1 FROM accounts WHERE user_id::text = $1 FOR UPDATE";
    let reservation = "SELECT 1 FROM reservations WHERE user_id::text = $1 FOR UPDATE";
    for (row, command, succeed) in [(account, charge, partitions), (reservation, cancel, 1)] {
        let mut blocker = pool.begin().await.expect("Postgres answers");
        sqlx::query(row).bind(&buyer.user_id).execute(&mut *blocker).await.expect("Postgres answers");
        let mut requests = Vec::new();
        for (partition, request) in (0..).zip(std::iter::repeat_with(uuid::Uuid::new_v4)).take(partitions) {
            let mut record = command.clone();
            record["version"] = json!(1);
            record["request_id"] = json!(request);
            record["user_id"] = json!(buyer.user_id);
            writer.append_to(PAYMENTS, partition, &buyer.user_id, &record).await;
            requests.push(request);
        }
        blocked(&pool, "payment-worker", 2).await;
        blocker.rollback().await.expect("Postgres answers");
        let decided = eventually("all are decided", s(30), async || {
            let sql = "SELECT status::text FROM requests WHERE request_id = ANY($1)";
            let decided: Vec<String> =
                sqlx::query_scalar(sql).bind(&requests).fetch_all(&pool).await.expect("Postgres answers");
            met(decided.len() == requests.len(), decided)
        })
        .await;
        let succeeded = decided.iter().filter(|status| *status == "SUCCEEDED").count();
        assert_eq!(succeeded, succeed, "{command}");
    }
    assert_eq!(buyer.balance().await, PRICE + i64::try_from(partitions).unwrap());
    log::caught_up(s(30)).await;
    audit::audit_at_rest(&pool).await;
    processes.up(1).await;
}

/// Two workers change one account in turn, as for a moment after a rebalance: each remembers it, and none tells anything of it that the other has
/// changed since, not even to whom it writes nothing.
#[tokio::test]
async fn two_workers_tell_one_balance() {
    let processes = Processes::begin().await;
    let (api, pool, writer) = (Api::new(), database::pool().await, Writer::new());
    processes.up(2).await;
    let partitions = i32::try_from(log::ends_of(PAYMENTS).len()).unwrap();
    let show = Show::new(&api).await;
    let buyer = show.buyer(0).await;
    let [seat] = show.pick().await;
    let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
    let ask = async |partition, mut record: Value| {
        let request = uuid::Uuid::new_v4();
        record["version"] = json!(1);
        record["request_id"] = json!(request);
        record["user_id"] = json!(buyer.user_id);
        writer.append_to(PAYMENTS, partition % partitions, &buyer.user_id, &record).await;
        eventually("it is decided", s(20), async || {
            let sql = "SELECT body::text FROM requests WHERE request_id = $1";
            let body: Option<String> =
                sqlx::query_scalar(sql).bind(request).fetch_optional(&pool).await.expect("Postgres answers");
            met(body.is_some(), body)
        })
        .await
        .map(|body| serde_json::from_str::<Value>(&body).expect("JSON"))
    };
    // The first time around each of the two gets to know the account.
    for balance in 1..=2 * partitions {
        let charged = ask(balance, json!({"type": "balance.charge", "amount": 1})).await;
        assert_eq!(charged.map(|body| body["balance"].clone()), Some(balance.into()));
        let pay = json!({"type": "payment.pay", "reservation_id": held["reservation_id"]});
        let refused = ask(balance + 1, pay).await.expect("it is decided");
        assert_eq!((&refused["balance"], &refused["required"]), (&balance.into(), &PRICE.into()), "{refused}");
    }
    log::caught_up(s(30)).await;
    audit::audit_at_rest(&pool).await;
    processes.up(1).await;
}

/// A worker that stands still in the middle of a transaction for longer than Postgres waits for one goes on. Over TCP, where it is told so; over
/// a socket of Unix it finds a broken pipe.
#[tokio::test]
async fn a_worker_that_stood_still_in_a_transaction_goes_on() {
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new(), database::pool().await);
    let database_url = setting("DATABASE_URL");
    let over_tcp = database_url.split('?').next().unwrap_or_default();
    let worker = processes.another("payment-worker", &[("DATABASE_URL", over_tcp)]);
    processes.end("payment-worker", "TERM").await;
    let worker = worker.start();
    workers_are_ready(&api).await;
    let buyer = api.sign_up().await;
    buyer.charge(1, Way::Wait).await.ok(201);
    let mut blocker = pool.begin().await.expect("Postgres answers");
    let account = "SELECT 1 FROM accounts WHERE user_id::text = $1 FOR UPDATE";
    sqlx::query(account).bind(&buyer.user_id).execute(&mut *blocker).await.expect("Postgres answers");
    let charge = json!({"type": "balance.charge", "version": 1, "request_id": uuid::Uuid::new_v4(), "user_id": buyer.user_id,
                        "amount": 10});
    Writer::new().append(PAYMENTS, &buyer.user_id, &charge).await;
    blocked(&pool, "payment-worker", 1).await;
    let frozen = worker.freeze();
    blocker.rollback().await.expect("Postgres answers");
    for (what, open) in [("the transaction is idle", 1), ("Postgres has ended it", 0)] {
        eventually(what, s(40), async || {
            let idle: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'payment-worker' AND state = 'idle in transaction'",
            )
            .fetch_one(&pool)
            .await
            .expect("Postgres answers");
            met(idle == open, idle)
        })
        .await;
    }
    drop(frozen);
    eventually("the charge is applied", s(30), async || {
        let balance = buyer.balance().await;
        met(balance == 11, balance)
    })
    .await;
    assert!(worker.stop(s(20)).await);
    processes.up(1).await;
}

/// So many of these workers wait for a row or a lock that another transaction has.
async fn blocked(pool: &PgPool, worker: &str, workers: i64) {
    eventually("workers wait for a lock", s(20), async || {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'",
        )
        .bind(worker)
        .fetch_one(pool)
        .await
        .expect("Postgres answers");
        met(waiting == workers, waiting)
    })
    .await;
}
