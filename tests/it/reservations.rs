//! Dates, seats, holds.

use boxoffice_tests::show::in_days;
use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, PRICE, Show, WAYS, Way, at, database, shapes};
use chrono::{TimeDelta, Utc};
use futures::future::join_all;
use serde_json::{Value, json};

/// An id that no schedule and no concert has.
const NO_ID: i64 = 2_000_000_000;

#[tokio::test]
async fn s0_08_reservation_holds_for_five_minutes_and_asks_for_payment() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let buyer = show.buyer(0).await;
        let [first, second] = show.pick().await;
        let body = buyer.hold(&show, &[second, first], way).await.ok(201);
        shapes::reservation(&body, "HELD");
        assert_eq!(shapes::seat_ids(&body), [first, second]);
        assert_eq!(body["total"], 2 * PRICE);
        assert_eq!((&body["schedule_id"], &body["concert_id"]), (&show.schedule_id.into(), &show.concert_id.into()));
        let left = (shapes::time(&body["hold_expires_at"]) - Utc::now()).num_seconds();
        assert!((290..=300).contains(&left), "{left} s instead of about 300");
        // A buyer reads what they were told.
        let seen = show.seats_seen_by(&buyer, "?status=all").await;
        assert!(seen[..2].iter().all(|seat| seat["status"] == "HELD"), "{seen:?}");
        assert_eq!(show.seats_seen_by(&buyer, "").await.len(), 18, "held seats are not among the available ones");
        assert_eq!(buyer.reservation(&body).await, body);
        let listed = buyer.call("GET", "/v1/reservations").send().await.is(200);
        assert_eq!(listed, json!({"reservations": [body], "next_cursor": null}));
        let stranger = show.buyer(0).await;
        let path = format!("/v1/reservations/{}", shapes::uuid(&body["reservation_id"]));
        stranger.call("GET", &path).send().await.problem(404, "reservation-not-found");
    }
}

#[tokio::test]
async fn s0_11_unavailable_seat_is_refused() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let (first, second) = (show.buyer(PRICE).await, show.buyer(0).await);
        let [held, sold, free] = show.pick().await;
        first.hold(&show, &[held], Way::Wait).await.ok(201);
        first.buy(&show, &[sold], Way::Wait).await.ok(201);
        let problem = second.hold(&show, &[held], way).await.fails(409, "seat-unavailable");
        assert_eq!(problem["seat_ids"], json!([held]));
        let problem = second.hold(&show, &[free, sold, held], way).await.fails(409, "seat-unavailable");
        let mut gone: Vec<i64> = shapes::list(&problem["seat_ids"]).iter().map(shapes::int).collect();
        gone.sort_unstable();
        assert_eq!(gone, [held, sold]);
        show.becomes(&[free], "AVAILABLE").await;
        assert_eq!(second.call("GET", "/v1/reservations").send().await.is(200)["reservations"], json!([]));
    }
}

#[tokio::test]
async fn s1_03_taken_seat_is_409_and_a_free_one_has_a_reservation_id() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let (first, second) = (show.buyer(0).await, show.buyer(0).await);
        let [taken, free] = show.pick().await;
        shapes::uuid(&first.hold(&show, &[taken], way).await.ok(201)["reservation_id"]);
        let problem = second.hold(&show, &[taken], way).await.fails(409, "seat-unavailable");
        assert_eq!(problem["seat_ids"], json!([taken]));
        shapes::uuid(&second.hold(&show, &[free], way).await.ok(201)["reservation_id"]);
    }
}

#[tokio::test]
async fn s1_03_of_all_who_want_a_seat_at_once_one_gets_it() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let wanted: [i64; 1] = show.pick().await;
    let buyers = join_all((0..20).map(|_| show.buyer(0))).await;
    let outcomes = join_all(buyers.iter().map(|buyer| buyer.hold(&show, &wanted, Way::Wait))).await;
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.iter().partition(|outcome| outcome.succeeded());
    assert_eq!(won.len(), 1);
    for outcome in lost {
        outcome.fails(409, "seat-unavailable");
    }
}

#[tokio::test]
async fn s2_03_reserve_by_date_and_seat_number() {
    let api = Api::new();
    for way in WAYS {
        let day = (Utc::now() + TimeDelta::days(40)).date_naive();
        // Half past midnight of the next day in Seoul: the date is the concert's.
        let show = Show::of(&api, json!({}), json!({"starts_at": format!("{day}T15:30:00Z")})).await;
        let date = day.succ_opt().unwrap().to_string();
        let buyer = show.buyer(0).await;
        let body = json!({"concert_id": show.concert_id, "date": date, "seats": ["A-2-3", "A-1-10"]});
        let held = buyer.reserve(&show, body, way).await.ok(201);
        shapes::reservation(&held, "HELD");
        let mut labels: Vec<&str> =
            shapes::list(&held["seats"]).iter().map(|seat| shapes::text(&seat["label"])).collect();
        labels.sort_unstable();
        assert_eq!(
            (labels.as_slice(), &held["schedule_id"]),
            (["A-1-10", "A-2-3"].as_slice(), &show.schedule_id.into())
        );
        show.becomes(&shapes::seat_ids(&held), "HELD").await;
        let wrong_day = json!({"concert_id": show.concert_id, "date": day.to_string(), "seats": ["A-1-1"]});
        buyer.reserve(&show, wrong_day, way).await.fails(404, "schedule-not-found");
    }
}

#[tokio::test]
async fn s2_03_a_date_with_two_schedules_is_ambiguous() {
    let api = Api::new();
    let day = (Utc::now() + TimeDelta::days(40)).date_naive();
    let show = Show::of(&api, json!({}), json!({"starts_at": format!("{day}T05:00:00Z")})).await;
    let evening = Show::schedule(&api, show.concert_id, json!({"starts_at": format!("{day}T10:00:00Z")})).await;
    let buyer = show.buyer(0).await;
    let body = json!({"concert_id": show.concert_id, "date": day.to_string(), "seats": ["A-1-1"]});
    for way in WAYS {
        let problem = buyer.reserve(&show, body.clone(), way).await.fails(422, "ambiguous-date");
        assert_eq!(problem["schedule_ids"], json!([show.schedule_id, evening]));
    }
}

#[tokio::test]
async fn s2_04_overdue_holds_come_free_by_themselves() {
    let api = Api::new();
    let show = Show::with(&api, json!({"hold_seconds": 5})).await;
    let (first, second) = (show.buyer(PRICE).await, show.buyer(0).await);
    let [seat] = show.pick().await;
    let held = first.hold(&show, &[seat], Way::Wait).await.ok(201);
    let end = shapes::time(&held["hold_expires_at"]);
    at(end - TimeDelta::milliseconds(700)).await;
    second.hold(&show, &[seat], Way::Wait).await.fails(409, "seat-unavailable");
    assert_eq!(first.reservation(&held).await["status"], "HELD");
    first.becomes(&held, "EXPIRED", s(3)).await;
    let now = Utc::now();
    assert!(now >= end && now < end + TimeDelta::seconds(2), "ended {} after the end", now - end);
    second.hold(&show, &[seat], Way::Wait).await.ok(201);
    first.pay(&show, &held, Way::Wait).await.fails(409, "reservation-expired");
    assert_eq!(first.balance().await, PRICE);
}

#[tokio::test]
async fn s4_03_unknown_concert_date_or_seat_fails_the_reservation() {
    let api = Api::new();
    let day = (Utc::now() + TimeDelta::days(40)).date_naive();
    let show = Show::of(&api, json!({}), json!({"starts_at": format!("{day}T10:00:00Z")})).await;
    let buyer = show.buyer(0).await;
    let [seat] = show.pick().await;
    let (concert, schedule, date) = (show.concert_id, show.schedule_id, day.to_string());
    let next_day = day.succ_opt().unwrap().to_string();
    let cases = [
        (json!({"concert_id": NO_ID, "date": date, "seats": ["A-1-1"]}), "concert-not-found"),
        (json!({"concert_id": concert, "date": next_day, "seats": ["A-1-1"]}), "schedule-not-found"),
        (json!({"schedule_id": NO_ID, "seat_ids": [1]}), "schedule-not-found"),
        (json!({"concert_id": concert, "date": date, "seats": ["A-1-11"]}), "seat-not-found"),
        (json!({"concert_id": concert, "date": date, "seats": ["A-1-1", "nonsense"]}), "seat-not-found"),
        (json!({"schedule_id": schedule, "seat_ids": [seat, NO_ID]}), "seat-not-found"),
    ];
    for way in WAYS {
        for (body, slug) in &cases {
            buyer.reserve(&show, body.clone(), way).await.fails(404, slug);
        }
        api.sign_up().await.join(NO_ID, way).await.fails(404, "concert-not-found");
    }
    show.becomes(&[seat], "AVAILABLE").await;
}

#[tokio::test]
async fn s4_04_a_hold_that_failed_fails_the_reservation() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let (first, second) = (show.buyer(0).await, show.buyer(PRICE).await);
        let [seat] = show.pick().await;
        first.hold(&show, &[seat], Way::Wait).await.ok(201);
        let problem = second.buy(&show, &[seat], way).await.fails(409, "seat-unavailable");
        assert_eq!(problem["seat_ids"], json!([seat]));
        assert_eq!(second.balance().await, PRICE);
        assert_eq!(second.call("GET", "/v1/reservations").send().await.is(200)["reservations"], json!([]));
    }
}

#[tokio::test]
async fn s4_04_a_hold_that_ran_out_cannot_be_paid() {
    let api = Api::new();
    let case = async |way| {
        let show = Show::with(&api, json!({"hold_seconds": 5})).await;
        let buyer = show.buyer(PRICE).await;
        let [seat] = show.pick().await;
        let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
        at(shapes::time(&held["hold_expires_at"]) + TimeDelta::milliseconds(50)).await;
        buyer.pay(&show, &held, way).await.fails(409, "reservation-expired");
        assert_eq!(buyer.balance().await, PRICE);
        buyer.becomes(&held, "EXPIRED", s(3)).await;
        show.becomes(&[seat], "AVAILABLE").await;
    };
    tokio::join!(case(Way::Wait), case(Way::Poll));
}

#[tokio::test]
async fn b_05_several_seats_all_or_none() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let seats: [i64; 20] = show.pick().await;
    let buyers = join_all((0..10).map(|_| show.buyer(0))).await;
    // Ten buyers, each wanting three seats that overlap with the next one's.
    let wanted: Vec<[i64; 3]> = (0..10).map(|i| std::array::from_fn(|k| seats[(2 * i + k) % 20])).collect();
    let outcomes = join_all(buyers.iter().zip(&wanted).map(|(buyer, seats)| buyer.hold(&show, seats, Way::Wait))).await;
    let mut held = Vec::new();
    for (outcome, wanted) in outcomes.iter().zip(&wanted) {
        if outcome.succeeded() {
            let mut wanted = wanted.to_vec();
            wanted.sort_unstable();
            assert_eq!(shapes::seat_ids(&outcome.body), wanted);
            held.extend(wanted);
        } else {
            outcome.fails(409, "seat-unavailable");
        }
    }
    held.sort_unstable();
    let count = held.len();
    held.dedup();
    assert_eq!(held.len(), count, "no seat twice");
    assert!(count >= 12, "one of two neighbours gets theirs: {count}");
    let now = show.all_seats().await;
    let shown: Vec<i64> =
        now.iter().filter(|seat| seat["status"] == "HELD").map(|seat| shapes::int(&seat["seat_id"])).collect();
    assert_eq!(shown, held);
}

#[tokio::test]
async fn b_05_best_available_is_side_by_side_in_front() {
    let api = Api::new();
    let sections = json!([{"name": "A", "rows": 2, "seats_per_row": 4, "price": 9}, {"name": "B", "rows": 1, "seats_per_row": 3, "price": 5}]);
    for way in WAYS {
        let show = Show::of(&api, json!({"max_seats_per_buyer": 20}), json!({"sections": sections})).await;
        let buyer = show.buyer(0).await;
        let best = async |best: Value| {
            let body = json!({"schedule_id": show.schedule_id, "best_available": best});
            buyer.reserve(&show, body, way).await
        };
        let labels = |held: Value| {
            let seats = shapes::list(&held["seats"]).iter();
            let mut labels: Vec<String> = seats.map(|seat| shapes::text(&seat["label"]).to_owned()).collect();
            labels.sort();
            labels
        };
        assert_eq!(labels(best(json!({"count": 3})).await.ok(201)), ["A-1-1", "A-1-2", "A-1-3"]);
        assert_eq!(labels(best(json!({"count": 2})).await.ok(201)), ["A-2-1", "A-2-2"], "side by side before in front");
        assert_eq!(labels(best(json!({"count": 1})).await.ok(201)), ["A-1-4"]);
        assert_eq!(labels(best(json!({"count": 1, "section": "B"})).await.ok(201)), ["B-1-1"]);
        let middle = show.seat("B-1-2").await;
        buyer.hold(&show, &[middle], way).await.ok(201);
        // Left: A-2-3, A-2-4, B-1-3. Three are nowhere side by side: the first single ones.
        let problem = best(json!({"count": 4})).await.fails(409, "sold-out");
        assert_eq!(problem["available"], 3);
        let problem = best(json!({"count": 2, "section": "B"})).await.fails(409, "sold-out");
        assert_eq!(problem["available"], 1, "of the section that was asked for");
        assert_eq!(labels(best(json!({"count": 3})).await.ok(201)), ["A-2-3", "A-2-4", "B-1-3"]);
        assert_eq!(best(json!({"count": 1})).await.fails(409, "sold-out")["available"], 0);
    }
}

#[tokio::test]
async fn b_05_best_available_for_all_at_once_gives_each_their_own() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyers = join_all((0..12).map(|_| show.buyer(0))).await;
    let body = json!({"schedule_id": show.schedule_id, "best_available": {"count": 2}});
    let outcomes = join_all(buyers.iter().map(|buyer| buyer.reserve(&show, body.clone(), Way::Wait))).await;
    let mut taken: Vec<i64> = Vec::new();
    for outcome in outcomes.iter().filter(|outcome| outcome.succeeded()) {
        let seats = shapes::seat_ids(&outcome.body);
        assert_eq!(seats[1] - seats[0], 1, "side by side: {seats:?}");
        taken.extend(seats);
    }
    taken.sort_unstable();
    taken.dedup();
    assert_eq!(taken.len(), 20, "ten pairs of twenty seats");
    let lost: Vec<_> = outcomes.iter().filter(|outcome| !outcome.succeeded()).collect();
    assert_eq!(lost.len(), 2);
    for outcome in lost {
        outcome.fails(409, "sold-out");
    }
}

/// A worker remembers which seats are free. If its partition was another's for a while, some of them are not, and nobody told it.
#[tokio::test]
async fn b_05_best_available_takes_no_seat_that_another_worker_has_given_away() {
    let (api, pool) = (Api::new(), database::pool().await);
    let show = Show::new(&api).await;
    let buyer = show.buyer(0).await;
    let best = async |count: i64| {
        let body = json!({"schedule_id": show.schedule_id, "best_available": {"count": count}});
        shapes::seat_ids(&buyer.reserve(&show, body, Way::Wait).await.ok(201))
    };
    let [first, second, third] = show.pick().await;
    assert_eq!(best(1).await, [first]);
    database::give_away(&pool, &buyer, second).await;
    assert_eq!(best(1).await, [third]);
}

#[tokio::test]
async fn b_06_limit_of_live_seats_holds_under_concurrency() {
    let api = Api::new();
    let show = Show::with(&api, json!({"max_seats_per_buyer": 4})).await;
    let buyer = show.buyer(3 * PRICE).await;
    let seats: [i64; 20] = show.pick().await;
    let outcomes = join_all(seats.iter().map(|seat| buyer.hold(&show, std::slice::from_ref(seat), Way::Wait))).await;
    let (held, refused): (Vec<_>, Vec<_>) = outcomes.iter().partition(|outcome| outcome.succeeded());
    assert_eq!(held.len(), 4);
    for outcome in refused {
        let problem = outcome.fails(409, "reservation-limit-exceeded");
        assert_eq!((&problem["limit"], &problem["live"]), (&4.into(), &4.into()));
    }
    let pool = database::pool().await;
    let live = "SELECT coalesce(sum(cardinality(seat_ids)), 0)::bigint FROM reservations WHERE schedule_id = $1 AND status IN ('HELD', 'PAID')";
    assert_eq!(database::number(&pool, live, show.schedule_id).await, 4);
    // A paid seat counts, one that was given back does not.
    buyer.pay(&show, &held[0].body, Way::Wait).await.ok(201);
    buyer.enter(show.concert_id).await;
    let free = show.seats_seen_by(&buyer, "").await;
    let free: Vec<i64> = free.iter().map(|seat| shapes::int(&seat["seat_id"])).collect();
    buyer.hold(&show, &free[..1], Way::Wait).await.fails(409, "reservation-limit-exceeded");
    buyer.cancel(&held[1].body, Way::Wait).await.ok(200);
    buyer.hold(&show, &free[..2], Way::Wait).await.fails(409, "reservation-limit-exceeded");
    buyer.hold(&show, &free[..1], Way::Wait).await.ok(201);
}

#[tokio::test]
async fn b_07_a_cancelled_hold_puts_its_seats_back_at_once() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let (first, second) = (show.buyer(PRICE).await, show.buyer(0).await);
        let [one, two] = show.pick().await;
        let held = first.hold(&show, &[one, two], Way::Wait).await.ok(201);
        second.cancel(&held, way).await.fails(403, "reservation-of-another-buyer");
        let cancelled = first.cancel(&held, way).await.ok(200);
        shapes::reservation(&cancelled, "CANCELLED");
        second.hold(&show, &[one, two], way).await.ok(201);
        first.cancel(&held, way).await.fails(409, "reservation-cancelled");
        first.pay(&show, &held, way).await.fails(409, "reservation-cancelled");
        assert_eq!(first.balance().await, PRICE);
    }
}

/// A schedule that has begun sells nothing, and is not shown among those to come.
#[tokio::test]
async fn sales_end_when_the_schedule_begins() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let begun = Show::schedule(&api, show.concert_id, json!({"starts_at": in_days(-1)})).await;
    let buyer = show.buyer(PRICE).await;
    let seats = buyer.inside(&show, "GET", &format!("/v1/schedules/{begun}/seats")).send().await.is(200);
    let seat = shapes::int(&seats["seats"][0]["seat_id"]);
    for way in WAYS {
        for mut body in [json!({"seat_ids": [seat]}), json!({"best_available": {"count": 1}})] {
            body["schedule_id"] = begun.into();
            buyer.reserve(&show, body, way).await.fails(409, "sales-ended");
        }
    }
    let listed =
        buyer.inside(&show, "GET", &format!("/v1/concerts/{}/schedules", show.concert_id)).send().await.is(200);
    assert_eq!(shapes::list(&listed["schedules"]).len(), 1, "{listed}");
}

/// Reservations come newest first, page by page.
#[tokio::test]
async fn reservations_are_listed_page_by_page() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyer = show.buyer(0).await;
    let seats: [i64; 4] = show.pick().await;
    let mut made = Vec::new();
    for seat in seats {
        made.insert(0, buyer.hold(&show, &[seat], Way::Wait).await.ok(201));
    }
    let mut listed = Vec::new();
    let mut path = "/v1/reservations?limit=3".to_owned();
    loop {
        let page = buyer.call("GET", &path).send().await.is(200);
        shapes::has(&page, "reservations next_cursor");
        listed.extend(shapes::list(&page["reservations"]).clone());
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/reservations?limit=3&cursor={cursor}");
    }
    assert_eq!(listed, made);
}
