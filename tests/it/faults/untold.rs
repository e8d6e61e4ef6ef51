//! An outcome that is in the database and was never told: its worker was killed in between.

use std::time::Duration;

use boxoffice_tests::log::{self, PAYMENTS, RESULTS, Reader, Record, Writer};
use boxoffice_tests::processes::Processes;
use boxoffice_tests::wait::{eventually_each, s};
use boxoffice_tests::{Api, Show, Way, audit, database};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::late_results::{admitted_stream, complete_untold, paid_and_inside_again};

/// The api still takes the request for pending; who repeats it gets what the database has, long before there is a worker again.
#[tokio::test]
async fn a_repeat_gets_the_outcome_that_was_written_and_never_told() {
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new(), database::pool().await);
    let buyer = api.sign_up().await;
    let mut commands = Reader::at_the_end_of(&[PAYMENTS]);
    processes.end("payment-worker", "TERM").await;
    let key = uuid::Uuid::new_v4().to_string();
    let charge = buyer.call("POST", "/v1/balance/charges").json(&json!({"amount": 70})).key(&key);
    let id = charge.send().await.accepted();
    assert_eq!(charge.send().await.accepted(), id, "nobody has decided it");

    let command = commands.find("the charge's record", s(20), |it| it.json()["request_id"] == id.as_str()).await;
    let problem = fail(&pool, &command).await;
    let answer = eventually_each(Duration::from_millis(250), "the repeat has its answer", s(10), async || {
        let answer = charge.send().await;
        if answer.status == 202 { Err(answer.to_string()) } else { Ok(answer) }
    })
    .await;
    assert_eq!(answer.problem(422, "invalid-request"), problem);

    processes.up(1).await;
    log::caught_up(s(30)).await;
    assert_eq!(charge.clone().wait(20).send().await.problem(422, "invalid-request"), problem);
    assert_eq!(buyer.balance().await, 0, "what was written stands");
    audit::audit_at_rest(&pool).await;
}

/// A stream is told that its token may have ended, and the database cannot say so: it is asked again.
#[tokio::test]
async fn a_stream_looks_again_for_an_end_that_it_could_not_read() {
    let processes = Processes::begin().await;
    let api = Api::new();
    let show = Show::new(&api).await;
    let (buyer, _, outcome) = paid_and_inside_again(&show).await;
    let (leaver, witness) = (api.sign_up().await, api.sign_up().await);
    leaver.enter(show.concert_id).await;
    witness.enter(show.concert_id).await;
    let mut results = Reader::at_the_end_of(&[RESULTS]);
    leaver.leave(&show, Way::Wait).await.ok(200);
    let left = results.find("the end of a token", s(20), |it| it.json()["type"] == "token.expired").await;
    let ends_next = witness.poll(show.concert_id).await.is(200)["token_id"].clone();
    let (stream, witness_stream) = (admitted_stream(&buyer, &show).await, admitted_stream(&witness, &show).await);

    complete_untold(&buyer, &show).await;
    processes.end("postgres", "QUIT").await;
    let (writer, partition) = (Writer::new(), outcome.place.partition);
    writer.append_to(RESULTS, partition, &outcome.key_text(), &outcome.json()).await;
    let mut end = left.json();
    (end["token_id"], end["user_id"]) = (ends_next.clone(), witness.user_id.as_str().into());
    writer.append_to(RESULTS, partition, ends_next.as_str().expect("an id"), &end).await;
    // It was told later, and has waited for the database as long: the first stream has by now found out nothing.
    let told = tokio::time::timeout(s(30), witness_stream.text()).await.expect("the stream ends").expect("it is whole");
    assert!(told.contains("expired"), "{told}");
    processes.up(1).await;
    let rest = tokio::time::timeout(s(10), stream.text()).await.expect("the stream ends").expect("it is whole");
    assert!(rest.contains("expired") && rest.contains("COMPLETED"), "{rest}");
}

/// Writes a failure of a charge, as its worker does at the end of its transaction; the problem.
async fn fail(pool: &PgPool, command: &Record) -> Value {
    let charge = command.json();
    let (id, text) = (&charge["request_id"], |member: &str| charge[member].as_str().map(str::to_owned));
    let instance = format!("/v1/requests/{}", text("request_id").unwrap());
    let problem = json!({"type": "/problems/invalid-request", "title": "A part of the request is out of range or makes no sense",
                         "status": 422, "detail": "A test says so.", "instance": instance, "request_id": id});
    let sql = r#"INSERT INTO requests (request_id, user_id, kind, status, http_status, body, request_hash, submitted_at, finished_at,
                                       topic, partition, "offset")
                 VALUES ($1::uuid, $2::uuid, $3, 'FAILED', 422, $4::json, $5, now(), now(), $6, $7, $8)"#;
    let written = sqlx::query(sql)
        .bind(text("request_id"))
        .bind(text("user_id"))
        .bind(text("type"))
        .bind(problem.to_string())
        .bind(text("request_hash").expect("a request with a key has a hash"))
        .bind(&command.topic)
        .bind(command.place.partition)
        .bind(command.place.offset)
        .execute(pool)
        .await;
    assert_eq!(written.expect("Postgres answers").rows_affected(), 1);
    problem
}
