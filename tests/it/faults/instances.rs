//! More than one of each process: they answer alike, and come and go without anybody noticing.

use boxoffice_tests::processes::{Processes, Running};
use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, Buyer, PRICE, Show, Way, audit, database, eventually, log, met, shapes};
use futures::future::join_all;
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use super::{Trouble, WORKERS, crowd, each_has_one_seat, metric, purchase};

/// Another process like `name`, ready, with the variable of its address set to a free one; and a client of it.
async fn another(processes: &Processes, name: &str, variable: &str) -> (Running, Api) {
    let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).unwrap().to_string();
    let running = processes.another(name, &[(variable, &address)]).start();
    let api = Api::new().of(&format!("http://{address}"));
    eventually(&format!("another {name} is ready"), s(30), async || match api.get("/readyz").try_send().await {
        Ok(answer) => met(answer.status == 200, answer.to_string()),
        Err(error) => Err(format!("{error:?}")),
    })
    .await;
    (running, api)
}

/// The same buyer at another api.
fn buyer_at(api: &Api, buyer: &Buyer) -> Buyer {
    let body = json!({"user_id": buyer.user_id, "user_secret": buyer.secret, "access_token": buyer.access});
    Buyer::new(api.clone(), &body)
}

#[tokio::test]
async fn two_apis_answer_alike() {
    let processes = Processes::begin().await;
    let first = Api::new();
    let (running, second) = another(&processes, "api", "API_LISTEN").await;
    // One key at both at once is one effect and one answer.
    let buyer = first.sign_up().await;
    let twin = buyer_at(&second, &buyer);
    let key = uuid::Uuid::new_v4().to_string();
    let charge = |buyer: &Buyer| buyer.call("POST", "/v1/balance/charges").json(&json!({"amount": PRICE})).key(&key);
    let calls: Vec<_> = (0..10).map(|i| charge(if i % 2 == 0 { &buyer } else { &twin })).collect();
    let answers: Vec<Value> =
        join_all(calls.iter().map(|call| call.ask(Way::Wait))).await.iter().map(|it| it.ok(201)).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!((buyer.balance().await, twin.entries().await.len()), (PRICE, 1));
    // What one was told the other knows: the request, the queue token, its end.
    let accepted = buyer.call("POST", "/v1/balance/charges").json(&json!({"amount": 1})).send().await.accepted();
    let done = twin.call("GET", &format!("/v1/requests/{accepted}")).wait(20).send().await.is(200);
    assert_eq!(done["status"], "SUCCEEDED");
    let show = Show::new(&first).await;
    buyer.enter(show.concert_id).await;
    shapes::token(&twin.join(show.concert_id, Way::Wait).await.ok(200), "ACTIVE");
    let [seat] = show.pick().await;
    let held = twin.hold(&show, &[seat], Way::Wait).await.ok(201);
    assert_eq!(buyer.reservation(&held).await, held);
    buyer.pay(&show, &held, Way::Wait).await.ok(201);
    eventually("the other api knows that the token has ended", s(2), async || {
        let answer = twin.poll(show.concert_id).await;
        met(answer.status == 302, answer)
    })
    .await;
    assert!(running.stop(s(11)).await, "exit code 0");
}

/// It remembers none of them, and many ask at once: each is told of his own.
#[tokio::test]
async fn an_api_that_has_just_started_knows_how_each_token_stands() {
    let processes = Processes::begin().await;
    let first = Api::new();
    let (show, buyers) = crowd(&first, 40).await;
    join_all(buyers.iter().step_by(2).map(|buyer| async { buyer.leave(&show, Way::Wait).await.ok_any() })).await;
    let (running, second) = another(&processes, "api", "API_LISTEN").await;
    let polls = buyers.iter().map(|buyer| {
        let token = buyer.queue_token(show.concert_id);
        let [known, anew] = [&first, &second].map(|api| api.get("/v1/queue-token").queue(&token));
        async move { (known.send().await, anew.send().await) }
    });
    for (i, (known, answer)) in join_all(polls).await.into_iter().enumerate() {
        if i % 2 == 0 {
            answer.token_has_ended(show.concert_id);
        } else {
            let body = answer.is(200);
            shapes::token(&body, "ACTIVE");
            assert_eq!(body, known.is(200));
        }
    }
    assert!(running.stop(s(11)).await, "exit code 0");
}

/// Nobody reads from a connection whose request is under way: only what is written to it tells that its caller has hung up.
#[tokio::test]
async fn a_reader_who_has_gone_frees_the_place_of_its_stream() {
    let _processes = Processes::begin().await;
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyer = show.buyer(0).await;
    let open = async || metric(&api, "BOXOFFICE_URL", "api_streams").await;
    let before = open().await;
    let stream = buyer.inside(&show, "GET", "/v1/queue-token/events").open().await;
    eventually("the stream is open", s(5), async || met(open().await > before, before)).await;
    drop(stream);
    eventually("its place is free", s(15), async || met(open().await <= before, before)).await;
}

/// Told to stop in the middle of purchases, each process finishes what it has and ends in good order within ten seconds.
#[tokio::test]
async fn told_to_stop_each_ends_in_good_order() {
    let processes = Processes::begin().await;
    let api = Api::new();
    let mut more = vec![another(&processes, "api", "API_LISTEN").await.0];
    for (name, _) in WORKERS {
        more.push(another(&processes, name, "WORKER_LISTEN").await.0);
    }
    let (show, buyers) = crowd(&api, 120).await;
    let trouble = Trouble::default();
    let done = std::cell::Cell::new(0);
    let purchases = stream::iter(buyers.iter().enumerate())
        .map(async |(i, buyer)| {
            purchase(buyer, &show, i % 2 == 0, &trouble).await;
            done.set(done.get() + 1);
        })
        .buffer_unordered(8)
        .for_each(async |()| {});
    let stops = async {
        eventually("the purchases run", s(30), async || met(done.get() >= 20, done.get())).await;
        join_all(more.into_iter().map(|running| running.stop(s(11)))).await
    };
    let ((), in_order) = tokio::join!(purchases, stops);
    assert_eq!(in_order, [true; 4], "exit codes 0");
    assert_eq!(trouble.count(), 0, "no buyer saw any of it");
    log::caught_up(s(30)).await;
    let pool = database::pool().await;
    each_has_one_seat(&pool, &show, &buyers).await;
    audit::audit_at_rest(&pool).await;
}
