//! A queue token's life as an event stream.

use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, Call, Show, Way, shapes};
use serde_json::{Value, json};

#[tokio::test]
async fn s0_05_events_tell_position_admission_and_end() {
    let api = Api::new();
    let show = Show::with(&api, json!({})).await;
    api.configure(show.concert_id, json!({"state": "PAUSED"})).await;
    let buyers = api.sign_up_many(2).await;
    for buyer in &buyers {
        buyer.join(show.concert_id, Way::Wait).await.ok(201);
    }
    let by_header = api.get("/v1/queue-token/events").queue(&buyers[0].queue_token(show.concert_id));
    let by_query = format!("/v1/queue-token/events?queue_token={}", buyers[1].queue_token(show.concert_id));
    let mut streams = [Events::open(by_header).await, Events::open(api.get(&by_query)).await];
    for (place, events) in (1..).zip(&mut streams) {
        let body = events.next("position").await;
        shapes::token(&body, "WAITING");
        assert_eq!(body["position"], place, "the first at once: {body}");
    }
    api.configure(show.concert_id, json!({"state": "OPEN"})).await;
    for events in &mut streams {
        shapes::token(&events.next("admitted").await, "ACTIVE");
    }
    for (buyer, mut events) in buyers.iter().zip(streams) {
        buyer.leave(&show, Way::Wait).await.ok(200);
        let body = events.next("expired").await;
        assert_eq!(body["status"], "LEFT", "{body}");
        events.ends().await;
    }
    api.get("/v1/queue-token/events").queue("nonsense").send().await.problem(401, "queue-token-invalid");
    api.get("/v1/queue-token/events").send().await.problem(401, "queue-token-missing");
    let ended = api.get("/v1/queue-token/events").queue(&buyers[0].queue_token(show.concert_id));
    ended.send().await.token_has_ended(show.concert_id);
}

/// An event stream that is read as it comes.
struct Events {
    response: reqwest::Response,
    text: String,
}

impl Events {
    async fn open(call: Call) -> Self {
        let response = call.open().await;
        assert_eq!(response.status(), 200);
        let media = response.headers()["content-type"].to_str().unwrap();
        assert!(media.starts_with("text/event-stream"), "{media}");
        Self { response, text: String::new() }
    }

    /// The data of the next event of this name; those before it are passed over.
    async fn next(&mut self, name: &str) -> Value {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |field: &str| event.lines().find_map(|line| line.strip_prefix(field)).map(str::trim);
                let data = field("data:").and_then(|data| serde_json::from_str(data).ok());
                let found = field("event:") == Some(name);
                let rest = rest.to_owned();
                self.text = rest;
                if found {
                    return data.expect("an event has a token body");
                }
            }
            let chunk = self.chunk().await.unwrap_or_else(|| panic!("the stream ends before `{name}`"));
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn chunk(&mut self) -> Option<Vec<u8>> {
        let chunk = tokio::time::timeout(s(20), self.response.chunk()).await;
        chunk.expect("an event or a heartbeat within 20 s").expect("the stream is whole").map(|bytes| bytes.to_vec())
    }

    async fn ends(mut self) {
        while self.chunk().await.is_some() {}
    }
}
