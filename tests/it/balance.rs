//! The prepaid balance and its ledger.

use boxoffice_tests::{Api, PRICE, Show, WAYS, Way, database, shapes};
use futures::future::join_all;
use serde_json::{Value, json};

#[tokio::test]
async fn s0_12_charge_for_a_member_and_failure_is_told() {
    let api = Api::new();
    for way in WAYS {
        let buyer = api.sign_up().await;
        let body = buyer.charge(3_000, way).await.ok(201);
        shapes::has(&body, "entry_id amount balance currency");
        shapes::uuid(&body["entry_id"]);
        assert_eq!(
            (&body["amount"], &body["balance"], &body["currency"]),
            (&3_000.into(), &3_000.into(), &"KRW".into())
        );
        for amount in [0, -1, 10_000_001, i64::MAX, i64::MIN] {
            let problem = buyer.charge(amount, way).await.fails(422, "invalid-request");
            assert_eq!(problem["errors"][0]["pointer"], "/amount", "{problem}");
        }
        buyer.charge(10_000_000, way).await.ok(201);
        assert_eq!(buyer.balance().await, 10_003_000);
    }
    let charge = api.post("/v1/balance/charges", json!({"amount": 1}));
    charge.send().await.problem(401, "access-token-missing");
    charge.access("x.y.z").send().await.problem(401, "access-token-invalid");
}

#[tokio::test]
async fn s0_13_balance_of_a_verified_member() {
    let api = Api::new();
    let buyer = api.sign_up().await;
    assert_eq!(buyer.balance().await, 0, "before the first charge");
    buyer.charge(1_234, Way::Wait).await.ok(201);
    assert_eq!(buyer.balance().await, 1_234);
    api.get("/v1/balance").send().await.problem(401, "access-token-missing");
    api.get("/v1/balance").access("x").send().await.problem(401, "access-token-invalid");
}

#[tokio::test]
async fn s1_07_charge_answers_the_new_balance() {
    let api = Api::new();
    for way in WAYS {
        let buyer = api.sign_up().await;
        assert_eq!(buyer.charge(700, way).await.ok(201)["balance"], 700);
        assert_eq!(buyer.charge(50, way).await.ok(201)["balance"], 750);
    }
}

#[tokio::test]
async fn s2_05_first_charge_creates_the_purse_later_ones_add() {
    let api = Api::new();
    for way in WAYS {
        let buyer = api.sign_up().await;
        assert_eq!((buyer.balance().await, buyer.entries().await.len()), (0, 0));
        let first = buyer.charge(1_000, way).await.ok(201);
        let second = buyer.charge(2_500, way).await.ok(201);
        assert_eq!(buyer.balance().await, 3_500);
        let entries = buyer.entries().await;
        let told = |entry: &Value| (entry["entry_id"].clone(), shapes::int(&entry["balance_after"]));
        let wanted = [(second["entry_id"].clone(), 3_500), (first["entry_id"].clone(), 1_000)];
        assert_eq!(entries.iter().map(told).collect::<Vec<_>>(), wanted);
    }
}

#[tokio::test]
async fn s3_04_history_of_every_charge_and_debit() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyer = show.buyer(25_000).await;
    buyer.charge(5_000, Way::Wait).await.ok(201);
    let [seat] = show.pick().await;
    let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
    let payment = buyer.pay(&show, &held, Way::Wait).await.ok(201);
    buyer.refund(&payment, Way::Wait).await.ok(201);
    let entries = buyer.entries().await;
    let shown: Vec<Value> =
        entries.iter().map(|it| json!([it["kind"], it["amount"], it["balance_after"], it["reservation_id"]])).collect();
    let reservation = &held["reservation_id"];
    let wanted = [
        json!(["REFUND", PRICE, 30_000, reservation]),
        json!(["PAYMENT", -PRICE, 20_000, reservation]),
        json!(["CHARGE", 5_000, 30_000, null]),
        json!(["CHARGE", 25_000, 25_000, null]),
    ];
    assert_eq!(shown, wanted);
    let times: Vec<_> = entries.iter().map(|entry| shapes::time(&entry["at"])).collect();
    assert!(times.is_sorted_by(|newer, older| newer >= older), "{times:?}");
}

#[tokio::test]
async fn s3_04_history_comes_page_by_page() {
    let api = Api::new();
    let buyer = api.sign_up().await;
    for amount in 1..=7 {
        buyer.charge(amount, Way::Wait).await.ok(201);
    }
    let mut amounts = Vec::new();
    let mut path = "/v1/balance/entries?limit=3".to_owned();
    for pages_left in (0..3).rev() {
        let page = buyer.call("GET", &path).send().await.is(200);
        amounts.extend(shapes::list(&page["entries"]).iter().map(|entry| shapes::int(&entry["amount"])));
        assert_eq!(page["next_cursor"].is_null(), pages_left == 0, "{page}");
        path = format!("/v1/balance/entries?limit=3&cursor={}", page["next_cursor"].as_str().unwrap_or_default());
    }
    assert_eq!(amounts, [7, 6, 5, 4, 3, 2, 1]);
}

#[tokio::test]
async fn b_08_ledger_adds_up_and_is_never_negative() {
    let api = Api::new();
    let show = Show::with(&api, json!({"max_seats_per_buyer": 20})).await;
    let buyer = show.buyer(3 * PRICE).await;
    let seats: [i64; 6] = show.pick().await;
    let held = join_all(seats.iter().map(|seat| buyer.hold(&show, std::slice::from_ref(seat), Way::Wait))).await;
    // Six payments and four charges at once, with money for three: no order of them makes the balance negative.
    let held: Vec<Value> = held.iter().map(|outcome| outcome.ok(201)).collect();
    let payments = join_all(held.iter().map(|reservation| buyer.pay(&show, reservation, Way::Wait)));
    let charges = join_all([100, 200, 300, 400].map(|amount| buyer.charge(amount, Way::Wait)));
    let (payments, charges) = tokio::join!(payments, charges);
    let paid = payments.iter().filter(|outcome| outcome.succeeded()).count();
    // The first payment ends the queue token, but a live hold can be paid with any token of its buyer.
    assert_eq!(paid, 3);
    for outcome in payments.iter().filter(|outcome| !outcome.succeeded()) {
        outcome.fails(402, "insufficient-balance");
    }
    for outcome in &charges {
        outcome.ok(201);
    }
    let entries = buyer.entries().await;
    let mut balance = 0;
    for entry in entries.iter().rev() {
        balance += shapes::int(&entry["amount"]);
        assert_eq!(entry["balance_after"], balance, "{entry}");
        assert!(balance >= 0, "{entry}");
    }
    assert_eq!((entries.len(), balance, buyer.balance().await), (8, 1_000, 1_000));
    let told: Vec<&Value> = charges.iter().map(|outcome| &outcome.body["balance"]).collect();
    let in_ledger = |balance: &&Value| entries.iter().any(|entry| entry["balance_after"] == **balance);
    assert!(told.iter().all(in_ledger), "each was told the balance right after it: {told:?}");
    boxoffice_tests::audit::audit(&database::pool().await).await;
}
