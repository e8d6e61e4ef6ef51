//! Outcomes that are told late, or again, as a worker does that was killed before it told, or before its offsets were committed: they change
//! nothing that is newer, and what was not told the first time is found out all the same.

use boxoffice_tests::log::{PAYMENTS, RESULTS, Reader, Record, TOKENS, Writer};
use boxoffice_tests::show::slow_queue;
use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, Buyer, PRICE, Show, Way, database, shapes};

/// A buyer who has paid and is inside again, with the payment's record and its outcome as it was told the first time.
pub(crate) async fn paid_and_inside_again(show: &Show) -> (Buyer, Record, Record) {
    let buyer = show.buyer(PRICE).await;
    let [seat] = show.pick().await;
    let held = buyer.hold(show, &[seat], Way::Wait).await.ok(201);
    let (mut commands, mut results) = (Reader::at_the_end_of(&[PAYMENTS]), Reader::at_the_end_of(&[RESULTS]));
    let payment = buyer.pay(show, &held, Way::Wait).await.ok(201);
    let id = shapes::uuid(&payment["payment_id"]);
    let command = commands.find("the payment's record", s(20), |it| it.json()["request_id"] == id.as_str()).await;
    let outcome = results.outcome(&id).await;
    let paid_with = buyer.queue_token(show.concert_id);
    buyer.enter(show.concert_id).await;
    assert_ne!(buyer.queue_token(show.concert_id), paid_with);
    shapes::token(&buyer.poll(show.concert_id).await.is(200), "ACTIVE");
    (buyer, command, outcome)
}

/// Follows the buyer's token, which is admitted.
pub(crate) async fn admitted_stream(buyer: &Buyer, show: &Show) -> reqwest::Response {
    let mut stream = buyer.api.get("/v1/queue-token/events").queue(&buyer.queue_token(show.concert_id)).open().await;
    let admitted = stream.chunk().await.expect("the stream is whole").expect("the first event comes at once");
    assert!(String::from_utf8_lossy(&admitted).contains("admitted"), "{admitted:?}");
    stream
}

/// Ends the buyer's token as a worker does that is killed after its transaction: nobody is told.
pub(crate) async fn complete_untold(buyer: &Buyer, show: &Show) {
    let sql = "UPDATE queue_tokens SET status = 'COMPLETED', ended_at = now()
               WHERE concert_id = $1 AND user_id = $2::uuid AND ended_at IS NULL";
    let ended = sqlx::query(sql).bind(show.concert_id).bind(&buyer.user_id).execute(&database::pool().await).await;
    assert_eq!(ended.expect("Postgres answers").rows_affected(), 1);
}

/// Waits until the api has read what was told of the buyer's money up to now: the next outcome comes after it, in the same partition.
async fn the_api_has_read_it(buyer: &Buyer) {
    buyer.charge(1, Way::Wait).await.ok(201);
}

/// Without the protection every outcome of a payment ended the token that the api knew, whichever that was.
#[tokio::test]
async fn a_payments_outcome_that_comes_late_leaves_the_buyers_newer_token_alone() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let (buyer, _, outcome) = paid_and_inside_again(&show).await;
    let told = outcome.json();
    assert_eq!(told["concert_id"], show.concert_id, "as a payment that has ended a token: {told}");
    Writer::new().append_to(RESULTS, outcome.place.partition, &outcome.key_text(), &told).await;
    the_api_has_read_it(&buyer).await;
    shapes::token(&buyer.poll(show.concert_id).await.is(200), "ACTIVE");
}

/// A repeat's outcome does not say whether a token has ended with it, and the event that says so is not told again: the api looks.
#[tokio::test]
async fn a_token_that_ended_untold_is_found_ended_once_the_payments_outcome_is_told_again() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let (buyer, command, outcome) = paid_and_inside_again(&show).await;
    let stream = admitted_stream(&buyer, &show).await;
    complete_untold(&buyer, &show).await;
    buyer.poll(show.concert_id).await.is(200);
    let again = told_again(&command, &outcome).await;
    assert!(again.json()["concert_id"].is_null(), "{:?}", again.json());
    the_api_has_read_it(&buyer).await;
    buyer.poll(show.concert_id).await.token_has_ended(show.concert_id);
    let rest = tokio::time::timeout(s(10), stream.text()).await.expect("the stream ends").expect("it is whole");
    assert!(rest.contains("expired") && rest.contains("COMPLETED"), "{rest}");
}

/// `token.leave` says itself what has ended, so its repeat does, too.
#[tokio::test]
async fn a_repeated_leave_tells_again_which_queue_was_left() {
    let api = Api::new();
    let show = Show::with(&api, slow_queue()).await;
    let buyers = api.sign_up_many(2).await;
    for buyer in &buyers {
        buyer.join(show.concert_id, Way::Wait).await.ok(201);
    }
    for buyer in &buyers {
        let (mut commands, mut results) = (Reader::at_the_end_of(&[TOKENS]), Reader::at_the_end_of(&[RESULTS]));
        buyer.leave(&show, Way::Wait).await.ok(200);
        let of_buyer =
            |it: &Record| it.json()["type"] == "token.leave" && it.json()["user_id"] == buyer.user_id.as_str();
        let command = commands.find("the leave's record", s(20), of_buyer).await;
        let outcome = results.outcome(shapes::text(&command.json()["request_id"])).await;
        assert_eq!(outcome.json()["concert_id"], show.concert_id, "{:?}", outcome.json());
        let again = told_again(&command, &outcome).await;
        assert_eq!(again.json()["concert_id"], show.concert_id, "{:?}", again.json());
    }
}

/// Appends a record once more; its outcome, told again as it was told.
async fn told_again(command: &Record, outcome: &Record) -> Record {
    let mut results = Reader::at_the_end_of(&[RESULTS]);
    Writer::new().append_bytes(&command.topic, command.key.as_deref(), command.value.as_deref()).await;
    let again = results.outcome(shapes::text(&outcome.json()["request_id"])).await;
    assert_eq!(again.place.partition, outcome.place.partition);
    for member in ["kind", "status", "http_status", "result", "source", "submitted_at", "finished_at"] {
        assert_eq!(again.json()[member], outcome.json()[member], "{member}");
    }
    again
}
