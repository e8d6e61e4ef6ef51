//! A client of the API, and the two ways of asking for what goes through the log.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, redirect};
use serde_json::{Value, json};

use crate::buyer::Buyer;
use crate::setting;
use crate::shapes;
use crate::wait::{eventually, s};

/// How long an answer may take before a test fails.
const ANSWER_WITHIN: Duration = s(30);

/// How a request that goes through the log is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `Prefer: wait`.
    Wait,
    /// 202, then `GET /v1/requests/{id}`.
    Poll,
}

/// Both.
pub const WAYS: [Way; 2] = [Way::Wait, Way::Poll];

/// The API.
#[derive(Debug, Clone)]
pub struct Api {
    url: String,
    admin_key: String,
    http: Client,
    /// Whether the system may be out of order for a while: 5xx answers and broken connections are shown to the test.
    tolerant: bool,
}

impl Api {
    /// The one that the environment names. Each test has its own: connections live in its runtime.
    pub fn new() -> Self {
        let http = Client::builder().redirect(redirect::Policy::none()).no_proxy().timeout(s(45)).build();
        Self {
            url: setting("BOXOFFICE_URL").trim_end_matches('/').to_owned(),
            admin_key: setting("BOXOFFICE_ADMIN_KEY"),
            http: http.expect("a client without TLS has nothing that can be missing"),
            tolerant: false,
        }
    }

    /// For tests that break the system: polling goes on through 5xx answers.
    #[must_use]
    pub fn tolerant(mut self) -> Self {
        self.tolerant = true;
        self
    }

    /// The same paths on another process (a worker's health).
    #[must_use]
    pub fn of(mut self, url: &str) -> Self {
        url.trim_end_matches('/').clone_into(&mut self.url);
        self
    }

    /// A call without any credentials.
    pub fn call(&self, method: &str, path: &str) -> Call {
        Call {
            api: self.clone(),
            method: method.parse().expect("a method is one word"),
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: None,
        }
    }

    /// GET without any credentials.
    pub fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    /// POST without any credentials.
    pub fn post(&self, path: &str, body: Value) -> Call {
        self.call("POST", path).json(&body)
    }

    /// An operator's call; `path` without `/v1/admin`.
    pub fn admin(&self, method: &str, path: &str) -> Call {
        self.call(method, &format!("/v1/admin{path}")).access(&self.admin_key)
    }

    /// The operator's key.
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// A new buyer without money.
    pub async fn sign_up(&self) -> Buyer {
        let name = format!("Buyer {}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let body = self.post("/v1/users", json!({"name": name})).send().await.is(201);
        shapes::has(&body, "user_id name user_secret access_token token_type expires_in");
        Buyer::new(self.clone(), &body)
    }

    /// New buyers, made side by side.
    pub async fn sign_up_many(&self, count: usize) -> Vec<Buyer> {
        use futures::{StreamExt, stream};
        stream::iter(0..count).map(|_| self.sign_up()).buffered(32).collect().await
    }

    /// A new concert with these members.
    pub async fn make_concert(&self, mut members: Value) -> Value {
        let title = format!("Test {}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        members.as_object_mut().expect("members of a concert").entry("title").or_insert(title.into());
        self.admin("POST", "/concerts").json(&members).send().await.is(201)
    }

    /// A new schedule; its body.
    pub async fn make_schedule(&self, concert_id: i64, members: &Value) -> Value {
        let body = self.admin("POST", &format!("/concerts/{concert_id}/schedules")).json(members).send().await.is(201);
        shapes::has(&body, "schedule_id total_seats");
        body
    }

    /// Changes a queue's settings; the queue after it.
    pub async fn configure(&self, concert_id: i64, settings: Value) -> Value {
        let call = self.admin("PATCH", &format!("/concerts/{concert_id}/queue")).json(&settings);
        let queue = call.ask(Way::Wait).await.ok(200);
        shapes::has(&queue, shapes::QUEUE);
        queue
    }

    /// A queue, as operators see it.
    pub async fn queue(&self, concert_id: i64) -> Value {
        let queue = self.admin("GET", &format!("/concerts/{concert_id}/queue")).send().await.is(200);
        shapes::has(&queue, shapes::QUEUE);
        queue
    }
}

impl Default for Api {
    fn default() -> Self {
        Self::new()
    }
}

/// A call that is being put together. It can be sent any number of times.
#[derive(Debug, Clone)]
pub struct Call {
    api: Api,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Option<Vec<u8>>,
}

impl Call {
    /// `Authorization: Bearer …`
    #[must_use]
    pub fn access(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// `Queue-Token: …`
    #[must_use]
    pub fn queue(self, token: &str) -> Self {
        self.header("queue-token", token)
    }

    /// `Idempotency-Key: …`
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    /// `Prefer: wait=N`
    #[must_use]
    pub fn wait(self, seconds: u64) -> Self {
        self.header("prefer", &format!("wait={seconds}"))
    }

    /// Any header; text that is not ASCII is sent as UTF-8.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().expect("a header's name");
        self.headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header's value"));
        self
    }

    /// Without this header.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    /// With another path.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// A JSON body.
    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    /// Any body.
    #[must_use]
    pub fn body(self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let mut call = self.header("content-type", content_type);
        call.body = Some(body.into());
        call
    }

    /// What it is, for messages.
    pub fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Sends it. The answer, whatever it is.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn try_send(&self) -> Result<Answer, reqwest::Error> {
        let mut request = self.api.http.request(self.method.clone(), format!("{}{}", self.api.url, self.path));
        request = request.headers(self.headers.clone());
        if let Some(body) = &self.body {
            request = request.body(body.clone());
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { call: self.name(), status, headers, body: response.bytes().await?.to_vec() })
    }

    /// Sends it and reads the answer as it comes, for event streams.
    pub async fn open(&self) -> reqwest::Response {
        let request = self.api.http.request(self.method.clone(), format!("{}{}", self.api.url, self.path));
        let sent = request.headers(self.headers.clone()).send().await;
        sent.unwrap_or_else(|error| panic!("{}: {error:?}", self.name()))
    }

    /// Sends it.
    ///
    /// # Panics
    /// No answer, or 5xx: nothing that a client sends may bring that about. (A tolerant client is shown the 5xx.)
    pub async fn send(&self) -> Answer {
        let answer = self.try_send().await.unwrap_or_else(|error| panic!("{}: {error:?}", self.name()));
        assert!(answer.status < 500 || self.api.tolerant, "{answer}");
        answer
    }

    /// Sends it, for calls that are made on the spot.
    pub async fn send_owned(self) -> Answer {
        self.send().await
    }

    /// Asks for something that goes through the log and waits for the end, one way or the other.
    pub async fn ask(&self, way: Way) -> Outcome {
        match way {
            Way::Wait => self.ask_waiting().await,
            Way::Poll => self.ask_polling().await,
        }
    }

    async fn ask_waiting(&self) -> Outcome {
        let answer = self.clone().wait(ANSWER_WITHIN.as_secs()).send().await;
        assert_ne!(answer.status, 202, "no final answer within {ANSWER_WITHIN:?}: {answer}");
        let body = answer.json();
        if answer.status < 300 {
            assert_eq!(answer.header("preference-applied"), Some("wait=30"), "{answer}");
        }
        let request_id = body["request_id"].as_str().map(str::to_owned);
        Outcome { way: Way::Wait, status: Some(answer.status), body, request_id, answer }
    }

    async fn ask_polling(&self) -> Outcome {
        let answer = self.send().await;
        if answer.status != 202 {
            // Refused before the log, or the final answer to a repeat.
            let known = answer.status >= 300 || self.headers.contains_key("idempotency-key");
            assert!(known, "202, not {answer}");
            let body = answer.json();
            return Outcome { way: Way::Poll, status: Some(answer.status), body, request_id: None, answer };
        }
        let request_id = answer.accepted();
        let location = answer.header("location").expect("checked by accepted()").to_owned();
        let done = self.finish(&location).await;
        let (status, body) = match done["status"].as_str() {
            Some("SUCCEEDED") => (None, done["result"].clone()),
            _ => {
                (done["problem"]["status"].as_u64().and_then(|status| status.try_into().ok()), done["problem"].clone())
            }
        };
        Outcome { way: Way::Poll, status, body, request_id: Some(request_id), answer }
    }

    /// Polls the request at `location` with this call's credentials until it has ended.
    pub async fn finish(&self, location: &str) -> Value {
        self.finish_within(location, ANSWER_WITHIN).await
    }

    /// The same, with another patience.
    pub async fn finish_within(&self, location: &str, within: Duration) -> Value {
        let mut poll = self.api.get(location);
        if let Some(access) = self.headers.get("authorization") {
            poll.headers.insert("authorization", access.clone());
        }
        eventually(&format!("{location} ends"), within, async || {
            let answer = match poll.try_send().await {
                Ok(answer) => answer,
                Err(error) if self.api.tolerant => return Err(format!("{error:?}")),
                Err(error) => panic!("{}: {error:?}", poll.name()),
            };
            if self.api.tolerant && (answer.status >= 500 || answer.status == 429) {
                return Err(answer.to_string());
            }
            let has_retry_after = answer.header("retry-after").is_some();
            let body = answer.is(200);
            ended_request(&body, has_retry_after).then_some(()).ok_or_else(|| body.to_string())?;
            Ok(body)
        })
        .await
    }
}

/// Checks the shape of a request's answer; whether the request has ended.
fn ended_request(body: &Value, has_retry_after: bool) -> bool {
    let of_operators = body.get("user_id").is_some();
    shapes::has(body, if of_operators { shapes::ADMIN_REQUEST } else { shapes::REQUEST });
    shapes::uuid(&body["request_id"]);
    let null = |member: &str| body[member].is_null();
    match body["status"].as_str() {
        Some("PENDING") => {
            assert!(has_retry_after, "PENDING comes with Retry-After: {body}");
            assert!(null("finished_at") && null("result") && null("problem"), "{body}");
            return false;
        }
        Some("SUCCEEDED") => assert!(null("problem") && body["result"].is_object(), "{body}"),
        Some("FAILED") => assert!(null("result") && body["problem"].is_object(), "{body}"),
        other => panic!("no such status {other:?}: {body}"),
    }
    assert!(shapes::text(&body["kind"]).contains('.'), "{body}");
    assert!(shapes::time(&body["submitted_at"]) <= shapes::time(&body["finished_at"]), "{body}");
    true
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    call: String,
    /// Its status.
    pub status: u16,
    headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.body);
        let shown: String = text.chars().take(600).collect();
        write!(f, "{} answers {}: {shown}", self.call, self.status)
    }
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self}"))
    }

    /// The body of an answer with this status.
    #[track_caller]
    pub fn is(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self}");
        assert!(self.header("content-type").is_some_and(|media| media.starts_with("application/json")), "{self}");
        self.json()
    }

    /// The request id of a 202 answer, with all that belongs to one.
    #[track_caller]
    pub fn accepted(&self) -> String {
        let body = self.is(202);
        shapes::has(&body, "request_id status");
        assert_eq!(body["status"], "PENDING", "{self}");
        let id = shapes::uuid(&body["request_id"]);
        let path = if self.call.contains("/v1/admin/") { "/v1/admin/requests" } else { "/v1/requests" };
        assert_eq!(self.header("location"), Some(format!("{path}/{id}").as_str()), "{self}");
        assert!(self.retry_after() >= 1, "{self}");
        id
    }

    /// The seconds of `Retry-After`.
    #[track_caller]
    pub fn retry_after(&self) -> i64 {
        let seconds = self.header("retry-after").and_then(|value| value.parse().ok());
        seconds.unwrap_or_else(|| panic!("Retry-After in seconds is missing: {self}"))
    }

    /// The problem document, with this status and slug, and the headers that belong to it.
    #[track_caller]
    pub fn problem(&self, status: u16, slug: &str) -> Value {
        assert_eq!(self.status, status, "{self}");
        assert!(
            self.header("content-type").is_some_and(|media| media.starts_with("application/problem+json")),
            "{self}"
        );
        let body = self.json();
        shapes::problem(&body, status, slug);
        match status {
            401 => {
                let scheme = if slug.starts_with("queue-token") { "Queue-Token" } else { "Bearer" };
                assert!(self.header("www-authenticate").is_some_and(|it| it.starts_with(scheme)), "{self}: {scheme}");
            }
            302 => assert!(self.header("location").is_some_and(|it| it.ends_with("/queue-tokens")), "{self}"),
            405 => assert!(self.header("allow").is_some_and(|it| !it.is_empty()), "{self}: no Allow"),
            429 | 503 => assert!(self.retry_after() >= 1, "{self}"),
            _ => {}
        }
        body
    }

    /// 302 to where the buyer can join this concert's queue again.
    #[track_caller]
    pub fn token_has_ended(&self, concert_id: i64) {
        self.problem(302, "queue-token-expired");
        assert_eq!(self.header("location"), Some(format!("/v1/concerts/{concert_id}/queue-tokens").as_str()), "{self}");
    }
}

/// How a request that goes through the log ended, or the refusal before it, whichever way it was asked for.
#[derive(Debug, Clone)]
pub struct Outcome {
    way: Way,
    /// None: it succeeded, and was polled (which does not show the status of success).
    pub status: Option<u16>,
    /// The result or the problem.
    pub body: Value,
    /// The request's id, when it was told.
    pub request_id: Option<String>,
    /// The answer to the call itself.
    pub answer: Answer,
}

impl Outcome {
    /// The result of a request that succeeded with this status.
    #[track_caller]
    pub fn ok(&self, status: u16) -> Value {
        let as_wanted = self.status.is_none() || self.status == Some(status);
        assert!(as_wanted, "{:?}, {status} wanted: {} ({})", self.way, self.body, self.answer);
        self.body.clone()
    }

    /// Whether it succeeded.
    pub fn succeeded(&self) -> bool {
        self.status.is_none_or(|status| status < 300)
    }

    /// The problem of a request that failed with this status and slug.
    #[track_caller]
    pub fn fails(&self, status: u16, slug: &str) -> Value {
        assert_eq!(self.status, Some(status), "{:?}, {slug} wanted: {} ({})", self.way, self.body, self.answer);
        shapes::problem(&self.body, status, slug);
        if self.answer.status != 202 {
            self.answer.problem(status, slug);
        }
        self.body.clone()
    }
}
