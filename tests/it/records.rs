//! The topics: records written by hand have their effects, what cannot be read is a dead letter, results have their shape.

use boxoffice_tests::log::{self, PAYMENTS, RESERVATIONS, RESULTS, Reader, Record, TOKENS, Writer, dead_letters};
use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, PRICE, Show, Way, database, shapes};
use chrono::{TimeDelta, Utc};
use futures::future::join_all;
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::{Value, json};

fn id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A record by hand; `members` on top of those that all have.
fn record(kind: &str, request_id: &str, user_id: Option<&str>, members: Value) -> Value {
    let mut value = json!({"type": kind, "version": 1, "request_id": request_id, "user_id": user_id});
    value.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    value
}

/// Someone who writes records by hand and reads what becomes of them.
struct Hand {
    writer: Writer,
    results: Reader,
}

impl Hand {
    fn new() -> Self {
        Self { writer: Writer::new(), results: Reader::at_the_end_of(&[RESULTS]) }
    }

    /// Appends a record and waits for its outcome, whose shape is checked.
    async fn outcome(&mut self, topic: &str, key: &str, value: Value) -> Value {
        let request_id = shapes::text(&value["request_id"]).to_owned();
        let place = self.writer.append(topic, key, &value).await;
        let record = self.results.outcome(&request_id).await;
        let result = record.json();
        is_result(&record, &result);
        let source = json!({"topic": topic, "partition": place.partition, "offset": place.offset});
        assert_eq!(result["source"], source, "{result}");
        assert_eq!((&result["user_id"], &result["kind"]), (&value["user_id"], &value["type"]), "{result}");
        result
    }

    /// The problem of a record that failed.
    async fn problem(&mut self, topic: &str, key: &str, value: Value, status: u16, slug: &str) -> Value {
        let result = self.outcome(topic, key, value).await;
        assert_eq!(result["http_status"], status, "{result}");
        shapes::problem(&result["problem"], status, slug);
        result["problem"].clone()
    }

    /// The body of a record that succeeded.
    async fn success(&mut self, topic: &str, key: &str, value: Value, status: u16) -> Value {
        let result = self.outcome(topic, key, value).await;
        assert_eq!(result["http_status"], status, "{result}");
        result["result"].clone()
    }
}

/// The shape of an outcome in the results topic, CloudEvents headers included.
fn is_result(record: &Record, result: &Value) {
    let kind = shapes::text(&result["type"]);
    let (status, present, absent) = match kind {
        "request.succeeded" => ("SUCCEEDED", "result", "problem"),
        "request.failed" => ("FAILED", "problem", "result"),
        other => panic!("{other}: {result}"),
    };
    assert_eq!((&result["status"], &result["version"]), (&status.into(), &1.into()), "{result}");
    assert!(result[present].is_object() && result[absent].is_null(), "{result}");
    assert!((200..600).contains(&shapes::int(&result["http_status"])), "{result}");
    assert_eq!(record.key_text(), shapes::uuid(&result["request_id"]));
    is_cloud_event(record, kind);
}

fn is_cloud_event(record: &Record, kind: &str) {
    assert!(record.is_log_append_time, "the broker's own clock says when: {record:?}");
    let header = |name: &str| record.header_text(name).unwrap_or_else(|| panic!("no {name}: {record:?}"));
    assert_eq!((header("ce_specversion"), header("ce_type")), ("1.0", kind));
    assert!(!header("ce_id").is_empty() && header("ce_source").starts_with('/'));
    shapes::time(&header("ce_time").into());
    assert!(header("content-type").starts_with("application/json"), "{record:?}");
}

#[tokio::test]
async fn s0_02_record_of_an_unknown_member_fails() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let (concert, schedule, nobody) = (show.concert_id, show.schedule_id, id());
    let mut hand = Hand::new();
    let issue = record("token.issue", &id(), Some(&nobody), json!({"concert_id": concert}));
    hand.problem(TOKENS, &concert.to_string(), issue, 404, "user-not-found").await;
    let charge = record("balance.charge", &id(), Some(&nobody), json!({"amount": 5}));
    hand.problem(PAYMENTS, &nobody, charge, 404, "user-not-found").await;
    let [seat] = show.pick().await;
    let hold = record("reservation.hold", &id(), Some(&nobody), json!({"schedule_id": schedule, "seat_ids": [seat]}));
    hand.problem(RESERVATIONS, &schedule.to_string(), hold, 404, "user-not-found").await;
    assert_eq!(api.queue(concert).await["joined_total"], 1, "the test's own watcher");
    show.becomes(&[seat], "AVAILABLE").await;
}

/// A payment ends the live token of its buyer, whatever place of the line its record names.
#[tokio::test]
async fn a_payment_that_names_another_token_ends_its_buyers_own() {
    let (api, pool) = (Api::new(), database::pool().await);
    for token_seq in [json!(1), json!(2), json!(null)] {
        let show = Show::new(&api).await;
        show.buyer(0).await;
        let buyer = show.buyer(PRICE).await;
        buyer.leave(&show, Way::Wait).await.ok(200);
        buyer.enter(show.concert_id).await;
        let [seat] = show.pick().await;
        let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
        let pay = json!({"reservation_id": held["reservation_id"], "token_seq": token_seq});
        let pay = record("payment.pay", &id(), Some(&buyer.user_id), pay);
        Hand::new().success(PAYMENTS, &buyer.user_id, pay, 201).await;
        let sql = "SELECT status::text FROM queue_tokens WHERE concert_id = $1 AND seq <= 3 ORDER BY seq";
        let tokens: Vec<String> =
            sqlx::query_scalar(sql).bind(show.concert_id).fetch_all(&pool).await.expect("Postgres answers");
        assert_eq!(tokens, ["ACTIVE", "LEFT", "COMPLETED"], "{token_seq}");
    }
}

/// A whole purchase, and all that can be done besides, with records that a person could write with kcat.
#[tokio::test]
async fn hand_made_records_of_every_type_work() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyer = api.sign_up().await;
    let user = buyer.user_id.as_str();
    let (concert, schedule) = (show.concert_id.to_string(), show.schedule_id.to_string());
    let mut hand = Hand::new();
    let of_user = |kind: &str, members: Value| record(kind, &id(), Some(user), members);

    let configure = record("queue.configure", &id(), None, json!({"concert_id": show.concert_id, "burst": 9}));
    let queue = hand.success(TOKENS, &concert, configure, 200).await;
    assert_eq!(queue["burst"], 9, "{queue}");
    let issue = of_user("token.issue", json!({"concert_id": show.concert_id}));
    let token = hand.success(TOKENS, &concert, issue.clone(), 201).await;
    shapes::token(&token, "ACTIVE");
    assert_eq!(token["token_id"], issue["request_id"], "what a request makes carries the request's id");
    let again = of_user("token.issue", json!({"concert_id": show.concert_id}));
    assert_eq!(hand.success(TOKENS, &concert, again, 200).await["token_id"], token["token_id"]);

    let charge = of_user("balance.charge", json!({"amount": 5 * PRICE}));
    assert_eq!(hand.success(PAYMENTS, user, charge, 201).await["balance"], 5 * PRICE);
    let [one, two, three] = show.pick().await;
    let by_id =
        of_user("reservation.hold", json!({"schedule_id": show.schedule_id, "seat_ids": [one], "colour": "blue"}));
    let held = hand.success(RESERVATIONS, &schedule, by_id, 201).await;
    shapes::reservation(&held, "HELD");
    let expire = of_user("reservation.expire", json!({"reservation_id": held["reservation_id"]}));
    let early = hand.outcome(PAYMENTS, user, expire).await;
    assert_eq!(buyer.reservation(&held).await["status"], "HELD", "an expiry before the end has no effect: {early}");
    let pay = of_user("payment.pay", json!({"reservation_id": held["reservation_id"]}));
    let payment = hand.success(PAYMENTS, user, pay, 201).await;
    shapes::payment(&payment, "SUCCEEDED");
    let refund = of_user("payment.refund", json!({"payment_id": payment["payment_id"]}));
    shapes::payment(&hand.success(PAYMENTS, user, refund, 201).await, "REFUNDED");

    let by_label = of_user("reservation.hold", json!({"schedule_id": show.schedule_id, "seats": ["A-1-2"]}));
    let held = hand.success(RESERVATIONS, &schedule, by_label, 201).await;
    assert_eq!(shapes::seat_ids(&held), [two]);
    let cancel = of_user("reservation.cancel", json!({"reservation_id": held["reservation_id"]}));
    shapes::reservation(&hand.success(PAYMENTS, user, cancel, 200).await, "CANCELLED");

    // Held and paid as one request over two topics; the payment was written by a worker.
    let best = json!({"schedule_id": show.schedule_id, "best_available": {"count": 3}, "pay": true});
    let both = of_user("reservation.hold", best);
    hand.writer.append(RESERVATIONS, &schedule, &both).await;
    let told = hand.results.outcome(shapes::text(&both["request_id"])).await.json();
    assert_eq!((&told["kind"], &told["source"]["topic"]), (&"reservation.hold".into(), &PAYMENTS.into()), "{told}");
    shapes::payment(&told["result"], "SUCCEEDED");
    assert_eq!(shapes::seat_ids(&told["result"]["reservation"]), [one, two, three]);

    let token =
        hand.success(TOKENS, &concert, of_user("token.issue", json!({"concert_id": show.concert_id})), 201).await;
    let leave = json!({"concert_id": show.concert_id, "token_id": token["token_id"]});
    let left = hand.success(TOKENS, &concert, of_user("token.leave", leave), 200).await;
    assert_eq!(left["status"], "LEFT");
    assert_eq!((buyer.balance().await, buyer.entries().await.len()), (2 * PRICE, 4));
}

/// A record: its type, its members, its topic, its key.
type Wrong<'a> = (&'a str, Value, &'a str, &'a str);

/// What can be read but is wrong gets an outcome, not a dead letter.
#[tokio::test]
async fn records_that_are_wrong_fail_with_the_problem_of_the_contract() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyer = show.buyer(0).await;
    let user = buyer.user_id.as_str();
    let (concert, schedule) = (show.concert_id.to_string(), show.schedule_id.to_string());
    let [seat] = show.pick().await;
    let mut hand = Hand::new();
    let hold = |members: Value| {
        let mut members = members;
        members["schedule_id"] = show.schedule_id.into();
        ("reservation.hold", members, RESERVATIONS, schedule.as_str())
    };
    let unknown = "2000000000";
    let cases: Vec<(Wrong<'_>, u16, &str)> = vec![
        (("balance.charge", json!({"amount": -5}), PAYMENTS, user), 422, "invalid-request"),
        (("balance.charge", json!({"amount": 0}), PAYMENTS, user), 422, "invalid-request"),
        (("balance.charge", json!({"amount": i64::MAX}), PAYMENTS, user), 422, "invalid-request"),
        (("payment.pay", json!({"reservation_id": id()}), PAYMENTS, user), 404, "reservation-not-found"),
        (("payment.refund", json!({"payment_id": id()}), PAYMENTS, user), 404, "payment-not-found"),
        (("reservation.cancel", json!({"reservation_id": id()}), PAYMENTS, user), 404, "reservation-not-found"),
        (("reservation.expire", json!({"reservation_id": id()}), PAYMENTS, user), 404, "reservation-not-found"),
        (hold(json!({})), 422, "invalid-request"),
        (hold(json!({"seat_ids": []})), 422, "invalid-request"),
        (hold(json!({"seat_ids": [seat, seat]})), 422, "invalid-request"),
        (hold(json!({"seat_ids": [seat], "seats": ["A-1-1"]})), 422, "invalid-request"),
        (hold(json!({"seat_ids": (0..21).map(|i| seat + i).collect::<Vec<_>>()})), 422, "invalid-request"),
        (hold(json!({"best_available": {"count": 0}})), 422, "invalid-request"),
        (hold(json!({"best_available": {"count": 21}})), 422, "invalid-request"),
        (hold(json!({"seat_ids": [1]})), 404, "seat-not-found"),
        (hold(json!({"seat_ids": [-1]})), 404, "seat-not-found"),
        (hold(json!({"seats": ["A-9-9"]})), 404, "seat-not-found"),
        (
            ("reservation.hold", json!({"schedule_id": 2_000_000_000, "seat_ids": [1]}), RESERVATIONS, unknown),
            404,
            "schedule-not-found",
        ),
        (("token.issue", json!({"concert_id": 2_000_000_000}), TOKENS, unknown), 404, "concert-not-found"),
        (
            ("token.leave", json!({"concert_id": show.concert_id, "token_id": id()}), TOKENS, &concert),
            404,
            "queue-token-not-found",
        ),
    ];
    for ((kind, members, topic, key), status, slug) in cases {
        hand.problem(topic, key, record(kind, &id(), Some(user), members), status, slug).await;
    }
    for (settings, status, slug) in [
        (json!({"concert_id": show.concert_id, "rate_per_minute": 0}), 422, "invalid-request"),
        (json!({"concert_id": show.concert_id}), 422, "invalid-request"),
        (json!({"concert_id": 2_000_000_000, "burst": 1}), 404, "concert-not-found"),
    ] {
        let key = settings["concert_id"].to_string();
        hand.problem(TOKENS, &key, record("queue.configure", &id(), None, settings), status, slug).await;
    }
    assert_eq!(buyer.entries().await.len(), 0);
}

/// One request id has one outcome, however often and with whatever contents its record comes.
#[tokio::test]
async fn a_repeated_record_has_its_first_outcome_and_no_effect() {
    let api = Api::new();
    let buyer = api.sign_up().await;
    let user = buyer.user_id.as_str();
    let mut hand = Hand::new();
    let charge = record("balance.charge", &id(), Some(user), json!({"amount": 70}));
    let first = hand.outcome(PAYMENTS, user, charge.clone()).await;
    let other = record("balance.charge", shapes::text(&charge["request_id"]), Some(user), json!({"amount": 9_999}));
    for again in [&charge, &other] {
        hand.writer.append(PAYMENTS, user, again).await;
        let told = hand.results.outcome(shapes::text(&charge["request_id"])).await.json();
        for member in ["status", "http_status", "result", "request_id", "kind", "source"] {
            assert_eq!(told[member], first[member], "{member} of {told}");
        }
    }
    assert_eq!((buyer.balance().await, buyer.entries().await.len()), (70, 1));
    let shown =
        buyer.call("GET", &format!("/v1/requests/{}", shapes::text(&charge["request_id"]))).send().await.is(200);
    assert_eq!(
        (&shown["status"], &shown["result"]),
        (&"SUCCEEDED".into(), &first["result"]),
        "a row is shown whatever its id"
    );
}

/// What the api writes: keys, CloudEvents, the trace of the caller; and the events of a queue token's life.
#[tokio::test]
async fn records_and_events_of_a_purchase_have_the_shapes_of_the_contract() {
    let api = Api::new();
    let mut topics = Reader::at_the_end_of(&[TOKENS, RESERVATIONS, PAYMENTS, RESULTS]);
    let show = Show::new(&api).await;
    let buyer = show.buyer(PRICE).await;
    let [seat] = show.pick().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let body = json!({"schedule_id": show.schedule_id, "seat_ids": [seat], "pay": true});
    let call = buyer.inside(&show, "POST", "/v1/reservations").json(&body);
    call.header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01")).ask(Way::Wait).await.ok(201);
    buyer.token_ends(show.concert_id, s(3)).await;
    let records = topics.rest().await;
    let own: Vec<&Record> = records.iter().filter(|it| it.json()["user_id"] == buyer.user_id.as_str()).collect();
    let of = |topic: &str, kind: &str| {
        let found = own.iter().find(|it| it.topic == topic && it.json()["type"] == kind);
        *found.unwrap_or_else(|| panic!("no {kind} in {topic}: {own:?}"))
    };
    let (concert, schedule) = (show.concert_id.to_string(), show.schedule_id.to_string());
    let user = buyer.user_id.clone();
    for (topic, kind, key) in [
        (TOKENS, "token.issue", &concert),
        (PAYMENTS, "balance.charge", &user),
        (RESERVATIONS, "reservation.hold", &schedule),
        (PAYMENTS, "payment.pay", &user),
    ] {
        let command = of(topic, kind);
        assert_eq!((&command.key_text(), &command.json()["version"]), (key, &1.into()), "{command:?}");
        shapes::uuid(&command.json()["request_id"]);
        is_cloud_event(command, kind);
    }
    for command in [of(RESERVATIONS, "reservation.hold"), of(PAYMENTS, "payment.pay")] {
        let parent = command.header_text("traceparent").expect("a trace");
        assert!(parent.contains(trace), "the caller's trace goes on: {parent}");
    }
    assert_eq!(
        of(RESERVATIONS, "reservation.hold").json()["request_id"],
        of(PAYMENTS, "payment.pay").json()["request_id"]
    );
    for record in
        own.iter().filter(|it| it.topic == RESULTS && it.json()["type"].as_str().unwrap().starts_with("request."))
    {
        is_result(record, &record.json());
    }
    for kind in ["token.admitted", "token.expired"] {
        let event = of(RESULTS, kind);
        let value = event.json();
        assert_eq!(event.key_text(), shapes::uuid(&value["token_id"]));
        assert_eq!((&value["version"], &value["concert_id"]), (&1.into(), &show.concert_id.into()));
        assert!((Utc::now() - shapes::time(&value["at"])).abs() < TimeDelta::seconds(30));
        is_cloud_event(event, kind);
    }
    // No token string and no secret is ever in the log, but in the answer to the buyer who asked for it.
    let token = buyer.queue_token(show.concert_id);
    for record in records.iter().filter(|it| it.topic != RESULTS) {
        let text = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned();
        assert!(!text.contains(&token) && !text.contains(&buyer.access) && !text.contains(&buyer.secret), "{text}");
    }
}

/// What cannot be read goes to the dead letters as it is, with the headers that stock tools know, and the worker goes on.
#[tokio::test]
async fn what_cannot_be_read_is_a_dead_letter_and_the_worker_goes_on() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyer = api.sign_up().await;
    let (concert, schedule, user) = (show.concert_id.to_string(), show.schedule_id.to_string(), buyer.user_id.clone());
    let good = [
        record("token.issue", &id(), Some(&user), json!({"concert_id": show.concert_id})),
        record(
            "reservation.hold",
            &id(),
            Some(&user),
            json!({"schedule_id": show.schedule_id, "best_available": {"count": 1}}),
        ),
        record("balance.charge", &id(), Some(&user), json!({"amount": 5})),
    ];
    let keys = [concert, schedule, user];
    let members = ["concert_id", "schedule_id", "amount"];
    let cases = log::GROUPS.iter().zip(good).zip(keys).zip(members);
    join_all(cases.map(|(((group, good), key), member)| dead_letters_of(*group, good, key, member))).await;
    assert_eq!(buyer.balance().await, 5);
}

/// A key or a value.
type Bytes = Option<Vec<u8>>;

async fn dead_letters_of((topic, group): (&'static str, &'static str), good: Value, key: String, member: &str) {
    let with = |member: &str, value: Value| {
        let mut changed = good.clone();
        changed[member] = value;
        changed.to_string().into_bytes()
    };
    let without = |member: &str| {
        let mut changed = good.clone();
        changed.as_object_mut().unwrap().remove(member);
        changed.to_string().into_bytes()
    };
    let whole = good.to_string().into_bytes();
    let cases: Vec<(Bytes, Bytes, &str)> = vec![
        (Some(key.clone().into()), Some(vec![0xff, 0x00, 0xfe, b'{', 0x80]), "boxoffice.NotAnObject"),
        (None, Some(b"not json".to_vec()), "boxoffice.NotAnObject"),
        (Some(key.clone().into()), Some(b"[1, 2]".to_vec()), "boxoffice.NotAnObject"),
        (Some(key.clone().into()), Some(Vec::new()), "boxoffice.NotAnObject"),
        (Some(key.clone().into()), None, "boxoffice.NullValue"),
        (Some(key.clone().into()), Some(with("type", "no.such.type".into())), "boxoffice.UnknownType"),
        (Some(key.clone().into()), Some(with("version", 2.into())), "boxoffice.UnknownVersion"),
        (Some(key.clone().into()), Some(with("user_id", 5.into())), "boxoffice.InvalidMember"),
        (Some(key.clone().into()), Some(with("request_id", "5".into())), "boxoffice.InvalidMember"),
        (Some(key.clone().into()), Some(with(member, "many".into())), "boxoffice.InvalidMember"),
        (Some(key.clone().into()), Some(without(member)), "boxoffice.InvalidMember"),
        (Some(b"another key".to_vec()), Some(whole.clone()), "boxoffice.KeyMismatch"),
        (None, Some(whole), "boxoffice.KeyMismatch"),
    ];
    let dlt = dead_letters(topic);
    let writer = Writer::new();
    for (key, value, name) in cases {
        let mut letters = Reader::at_the_end_of(&[&dlt]);
        let own = OwnedHeaders::new().insert(Header { key: "of", value: Some("the test") });
        let place = writer.append_record(topic, key.as_deref(), value.as_deref(), own).await;
        let written = written_at(topic, place).await;
        let what = format!("the dead letter of {name}");
        let letter = letters.find(&what, s(20), |it| is_of(it, topic, place)).await;
        assert_eq!((&letter.key, &letter.value), (&key, &value), "the original bytes");
        assert_eq!(letter.header_text("of"), Some("the test"), "the original headers");
        assert_eq!(letter.header_text("kafka_dlt-exception-fqcn"), Some(name), "{letter:?}");
        assert!(letter.header_text("kafka_dlt-exception-message").is_some_and(|it| !it.is_empty()), "{letter:?}");
        assert_eq!(letter.header_text("kafka_dlt-original-consumer-group"), Some(group));
        assert_eq!(letter.header_text("kafka_dlt-original-timestamp-type"), Some("LogAppendTime"));
        assert_eq!(letter.header("kafka_dlt-original-timestamp"), Some(written.to_be_bytes().as_slice()));
    }
    // The worker goes on: the good record behind them has its outcome.
    let mut results = Reader::at_the_end_of(&[RESULTS]);
    writer.append(topic, &key, &good).await;
    let outcome = results.outcome(shapes::text(&good["request_id"])).await.json();
    assert_eq!(outcome["status"], "SUCCEEDED", "{outcome}");
}

fn is_of(letter: &Record, topic: &str, place: log::Place) -> bool {
    letter.header_text("kafka_dlt-original-topic") == Some(topic)
        && letter.header("kafka_dlt-original-partition") == Some(place.partition.to_be_bytes().as_slice())
        && letter.header("kafka_dlt-original-offset") == Some(place.offset.to_be_bytes().as_slice())
}

/// The append time of a record, in milliseconds.
async fn written_at(topic: &str, place: log::Place) -> i64 {
    let mut reader = Reader::at_the_beginning_of(&[topic]);
    reader.find("a record that was just written", s(20), |it| it.place == place).await.appended_ms
}

/// Unknown members are ignored wherever they stand; a known one of the wrong form is not.
#[tokio::test]
async fn inside_a_record_unknown_members_are_ignored_and_mistyped_ones_make_a_dead_letter() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyer = show.buyer(0).await;
    let (concert, schedule) = (show.concert_id.to_string(), show.schedule_id.to_string());
    let mut hand = Hand::new();
    let hold = |best: Value| {
        let members = json!({"schedule_id": show.schedule_id, "best_available": best});
        record("reservation.hold", &id(), Some(&buyer.user_id), members)
    };
    let configure = |state: Value| {
        let members = json!({"concert_id": show.concert_id, "state": state, "colour": {"blue": null}});
        record("queue.configure", &id(), None, members)
    };
    hand.success(RESERVATIONS, &schedule, hold(json!({"count": 1, "colour": "blue"})), 201).await;
    assert_eq!(hand.success(TOKENS, &concert, configure("PAUSED".into()), 200).await["state"], "PAUSED");
    for (topic, key, value) in [
        (TOKENS, &concert, configure(json!({"OPEN": null}))),
        (TOKENS, &concert, configure("open".into())),
        (TOKENS, &concert, configure(json!(["OPEN"]))),
        (RESERVATIONS, &schedule, hold(json!([1]))),
        (RESERVATIONS, &schedule, hold(json!({"count": 1, "section": 1}))),
    ] {
        let mut letters = Reader::at_the_end_of(&[&dead_letters(topic)]);
        let place = hand.writer.append(topic, key, &value).await;
        let letter = letters.find(&format!("the dead letter of {value}"), s(20), |it| is_of(it, topic, place)).await;
        assert_eq!(letter.header_text("kafka_dlt-exception-fqcn"), Some("boxoffice.InvalidMember"), "{letter:?}");
    }
    assert_eq!(api.queue(show.concert_id).await["state"], "PAUSED");
}

/// The header of a redriven record makes it earlier, never later: nobody's own expiry is put off by it.
#[tokio::test]
async fn a_first_append_time_that_is_later_than_the_records_own_is_not_believed() {
    let api = Api::new();
    let show = Show::with(&api, json!({"hold_seconds": 5})).await;
    let buyer = show.buyer(PRICE).await;
    let [seat] = show.pick().await;
    let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
    let later = (shapes::time(&held["hold_expires_at"]) + TimeDelta::seconds(60)).timestamp_millis().to_string();
    let mut hand = Hand::new();
    for kind in ["reservation.expire", "payment.pay"] {
        let value = record(kind, &id(), Some(&buyer.user_id), json!({"reservation_id": held["reservation_id"]}));
        let headers = OwnedHeaders::new().insert(Header { key: "boxoffice-first-append-ms", value: Some(&later) });
        let bytes = value.to_string().into_bytes();
        hand.writer.append_record(PAYMENTS, Some(buyer.user_id.as_bytes()), Some(&bytes), headers).await;
        let told = hand.results.outcome(shapes::text(&value["request_id"])).await.json();
        let status = &buyer.reservation(&held).await["status"];
        assert_eq!(status, if kind == "payment.pay" { "PAID" } else { "HELD" }, "{told}");
    }
}
