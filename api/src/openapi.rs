//! The OpenAPI document. What the handlers say of themselves is completed here: the problems that each call can answer
//! with, headers, and how callers say who they are.

use std::collections::BTreeMap;

use common::problems::Slug;
use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;

use Slug::{
    AccessTokenInvalid, AccessTokenMissing, AlreadyPaid, AmbiguousDate, BodyTooLarge, ConcertNotFound, DeliveryUnknown,
    IdempotencyKeyReused, InsufficientBalance, InvalidParameter, InvalidRequest, MalformedBody, NotFound,
    NotRefundable, Overloaded, PaymentNotFound, QueueClosed, QueueTokenExpired, QueueTokenInvalid, QueueTokenMismatch,
    QueueTokenMissing, QueueTokenNotFound, QueueTokenWaiting, RateLimited, RequestNotFound, ReservationCancelled,
    ReservationExpired, ReservationLimitExceeded, ReservationNotFound, ReservationOfAnotherBuyer, SalesEnded,
    ScheduleNotFound, SeatNotFound, SeatUnavailable, SoldOut, Unavailable, UnsupportedMediaType, UserNotFound,
};

const DESCRIPTION: &str = "\
Boxoffice sells seats when far more people want them than there are seats. A buyer joins the queue of a concert, is admitted, sees \
dates and seats, holds seats for some minutes, and pays from a prepaid balance.

Calls that change something go through a log: they answer `202` with a `Location` to poll, or, with `Prefer: wait=N`, the final answer. \
With an `Idempotency-Key`, a repeat gets the first one's answer and has no second effect.

Money is in integer minor units, times are RFC 3339 in UTC. Unknown members of a body and unknown query parameters are refused. \
Every refusal is a problem document (RFC 9457) whose `type` is a page that says what to do next: see [/problems](/problems).";

/// Who a call is for, and its problems in groups.
type Groups = &'static [&'static [Slug]];

/// Any call.
const ALWAYS: &[Slug] = &[Overloaded, Unavailable];
/// A call of a buyer, or of an operator.
const CALLER: &[Slug] = &[AccessTokenMissing, AccessTokenInvalid];
/// The admin API may be off.
const OPERATOR: &[Slug] = &[AccessTokenMissing, AccessTokenInvalid, NotFound];
/// Parts of a path or a query.
const PARTS: &[Slug] = &[InvalidParameter];
/// A list, or another call with ranges.
const RANGES: &[Slug] = &[InvalidRequest];
/// A body.
const BODY: &[Slug] = &[MalformedBody, InvalidParameter, BodyTooLarge, UnsupportedMediaType];
/// Through the log.
const LOG: &[Slug] = &[InvalidParameter, IdempotencyKeyReused, RateLimited, DeliveryUnknown];
/// A queue token that must be usable.
const GUARD: &[Slug] =
    &[QueueTokenMissing, QueueTokenInvalid, QueueTokenMismatch, QueueTokenExpired, QueueTokenWaiting, QueueClosed];
/// A queue token that must be usable if it is sent.
const GUARD_IF_SENT: &[Slug] =
    &[QueueTokenInvalid, QueueTokenMismatch, QueueTokenExpired, QueueTokenWaiting, QueueClosed];
/// A queue token that says who calls.
const TOKEN: &[Slug] = &[QueueTokenMissing, QueueTokenInvalid, QueueTokenExpired, RateLimited];
/// What can become of a payment.
const PAYING: &[Slug] = &[InsufficientBalance, SalesEnded, ReservationNotFound];

/// The problems of each call, by its operation id.
const PROBLEMS: &[(&str, Groups)] = &[
    ("sign_up", &[BODY, RANGES, &[RateLimited, NotFound]]),
    ("log_in", &[BODY, &[AccessTokenInvalid, UserNotFound, RateLimited, NotFound]]),
    ("concerts", &[PARTS, RANGES]),
    ("concert", &[PARTS, &[ConcertNotFound]]),
    ("schedules", &[CALLER, GUARD, PARTS, RANGES, &[ConcertNotFound]]),
    ("seats", &[CALLER, GUARD, PARTS, RANGES, &[ScheduleNotFound]]),
    ("join_queue", &[CALLER, BODY, LOG, &[ConcertNotFound, UserNotFound, QueueClosed]]),
    ("my_queue_token", &[CALLER, PARTS, &[ConcertNotFound, QueueTokenNotFound]]),
    ("queue_token", &[TOKEN, PARTS]),
    ("leave_queue", &[TOKEN, BODY, LOG]),
    ("queue_token_events", &[TOKEN, PARTS]),
    (
        "reserve",
        &[
            CALLER,
            BODY,
            LOG,
            GUARD,
            RANGES,
            PAYING,
            &[AmbiguousDate, ConcertNotFound, ScheduleNotFound, SeatNotFound, SeatUnavailable, SoldOut],
            &[ReservationLimitExceeded, UserNotFound],
        ],
    ),
    ("reservations", &[CALLER, PARTS, RANGES]),
    ("reservation", &[CALLER, PARTS, &[ReservationNotFound]]),
    (
        "cancel_reservation",
        &[
            CALLER,
            BODY,
            LOG,
            &[ReservationNotFound, ReservationOfAnotherBuyer, ReservationExpired, ReservationCancelled, AlreadyPaid],
        ],
    ),
    (
        "pay",
        &[
            CALLER,
            BODY,
            LOG,
            GUARD,
            PAYING,
            &[ReservationOfAnotherBuyer, ReservationExpired, ReservationCancelled, AlreadyPaid],
        ],
    ),
    ("payment", &[CALLER, PARTS, &[PaymentNotFound]]),
    ("refund", &[CALLER, BODY, LOG, &[PaymentNotFound, NotRefundable]]),
    ("balance", &[CALLER, PARTS, GUARD_IF_SENT]),
    ("charge", &[CALLER, BODY, LOG, RANGES, GUARD_IF_SENT, &[UserNotFound]]),
    ("ledger_entries", &[CALLER, PARTS, RANGES, GUARD_IF_SENT]),
    ("request", &[CALLER, PARTS, &[RequestNotFound, RateLimited]]),
    ("make_concert", &[OPERATOR, BODY, RANGES]),
    ("make_schedule", &[OPERATOR, BODY, RANGES, &[ConcertNotFound]]),
    ("queue", &[OPERATOR, PARTS, &[ConcertNotFound]]),
    ("configure_queue", &[OPERATOR, BODY, LOG, RANGES, &[ConcertNotFound]]),
    ("user", &[OPERATOR, PARTS, &[UserNotFound]]),
    ("any_request", &[OPERATOR, PARTS, &[RequestNotFound]]),
];

const TAGS: &[(&str, &str)] = &[
    ("users", "Signing up and logging in, where no identity provider does it."),
    ("catalogue", "Concerts, for everybody; dates and seats, for who is admitted."),
    ("queue", "Joining the queue of a concert, and what becomes of one's place."),
    ("reservations", "Holding seats."),
    ("payments", "Paying for held seats, and giving paid seats back."),
    ("balance", "Prepaid money, and its history."),
    ("requests", "What has become of a request that went through the log."),
    ("operators", "The catalogue, queues, users. Off unless an admin key is configured."),
];

/// The document of these calls, complete.
pub(crate) fn complete(calls: &OpenApi) -> Value {
    let mut document = serde_json::to_value(calls).expect("the document is made of text and numbers");
    document["info"] = json!({
        "title": "Boxoffice",
        "version": env!("CARGO_PKG_VERSION"),
        "description": DESCRIPTION,
        "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
    });
    document["servers"] = json!([{ "url": "/" }]);
    document["tags"] =
        TAGS.iter().map(|(name, description)| json!({ "name": name, "description": description })).collect();
    document["components"]["securitySchemes"] = security_schemes();
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        for (name, schema) in &mut *schemas {
            complete_schema(name, schema);
        }
        schemas.insert("Problem".to_owned(), problem_schema());
    }
    let paths = document["paths"].as_object_mut();
    for operation in
        paths.into_iter().flat_map(Map::values_mut).filter_map(Value::as_object_mut).flat_map(Map::values_mut)
    {
        complete_call(operation);
    }
    document
}

fn security_schemes() -> Value {
    json!({
        "access_token": {
            "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
            "description": "Who the buyer is: an access token of ours, or of the deployment's identity provider. Behind a gateway that \
                            vouches for its buyers, `X-User-Id` says it instead.",
        },
        "queue_token": {
            "type": "apiKey", "in": "header", "name": "Queue-Token",
            "description": "That the buyer may enter this concert: a queue token, from POST /v1/concerts/{id}/queue-tokens.",
        },
        "admin_key": { "type": "http", "scheme": "bearer", "description": "The operators' key." },
    })
}

/// A request's optional members may be left out, but are not null; a response has all of its members, some of them
/// null.
fn complete_schema(name: &str, schema: &mut Value) {
    let is_request = name.ends_with("Request");
    let parts = schema["allOf"].as_array().map_or(0, Vec::len);
    for part in 0..parts {
        complete_schema(name, &mut schema["allOf"][part]);
    }
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    if is_request {
        properties.values_mut().for_each(refuse_null);
    } else {
        let names: Vec<String> = properties.keys().cloned().collect();
        schema["required"] = names.into();
    }
}

fn refuse_null(property: &mut Value) {
    if let Some(types) = property.get_mut("type").and_then(Value::as_array_mut) {
        types.retain(|it| it != "null");
        if let [only] = types.as_slice() {
            property["type"] = only.clone();
        }
    }
    let one_of = property.get("oneOf").and_then(Value::as_array);
    if let Some(only) = one_of.and_then(|of| of.iter().find(|it| it["type"] != "null")).cloned() {
        *property = only;
    }
}

fn problem_schema() -> Value {
    let types: Vec<String> = Slug::ALL.iter().map(|slug| format!("/problems/{}", slug.as_str())).collect();
    let error = json!({
        "type": "object",
        "description": "One part that is wrong, named by one of three.",
        "required": ["detail"],
        "properties": {
            "pointer": { "type": "string", "description": "In the body: a JSON pointer." },
            "parameter": { "type": "string", "description": "In the path or the query." },
            "header": { "type": "string" },
            "detail": { "type": "string", "description": "What is expected." },
        },
    });
    json!({
        "type": "object",
        "description": "What went wrong, and what to do next (RFC 9457). Some problems have further members, which their pages name.",
        "required": ["type", "title", "status", "detail", "instance"],
        "properties": {
            "type": { "type": "string", "enum": types, "description": "The page that explains it." },
            "title": { "type": "string", "description": "The same for every occurrence." },
            "status": { "type": "integer" },
            "detail": { "type": "string", "description": "About this occurrence." },
            "instance": { "type": "string", "description": "The path that it is about." },
            "request_id": { "type": "string", "format": "uuid", "description": "The request, if it went through the log." },
            "errors": { "type": "array", "items": error },
        },
        "additionalProperties": true,
    })
}

fn complete_call(operation: &mut Value) {
    let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten();
    for parameter in parameters {
        refuse_null(&mut parameter["schema"]);
        if parameter["in"] == "path" && parameter["schema"]["type"] == "integer" {
            parameter["schema"]["minimum"] = json!(1);
        }
    }
    let through_log = operation["responses"].get("202").is_some();
    let answers = operation["responses"].as_object_mut().expect("every call has answers");
    for (status, answer) in &mut *answers {
        if status == "202" {
            answer["headers"] = json!({
                "Location": header("Where to ask what has become of it."),
                "Retry-After": header("When to ask, in seconds."),
            });
        } else if through_log {
            answer["headers"] = json!({ "Preference-Applied": header("The `wait` that was honoured.") });
        }
    }
    let id = operation["operationId"].as_str().unwrap_or_default();
    let mut by_status: BTreeMap<u16, Vec<Slug>> = BTreeMap::new();
    for slug in problems_of(id) {
        by_status.entry(slug.status()).or_default().push(slug);
    }
    let answers = operation["responses"].as_object_mut().expect("every call has answers");
    for (status, slugs) in by_status {
        answers.insert(status.to_string(), problem_answer(status, &slugs));
    }
}

/// The problems that a call can answer with, each once.
fn problems_of(id: &str) -> Vec<Slug> {
    let groups = PROBLEMS.iter().find(|(call, _)| *call == id).map_or(&[][..], |(_, groups)| groups);
    let mut slugs: Vec<Slug> = Vec::new();
    for slug in groups.iter().copied().flatten().chain(ALWAYS) {
        if !slugs.contains(slug) {
            slugs.push(*slug);
        }
    }
    slugs
}

fn problem_answer(status: u16, slugs: &[Slug]) -> Value {
    let line = |slug: &Slug| format!("[`{0}`](/problems/{0}): {1}.", slug.as_str(), slug.title());
    let mut headers = Map::new();
    match status {
        302 => headers.insert("Location".to_owned(), header("Where to POST for a new queue token.")),
        401 => {
            headers.insert("WWW-Authenticate".to_owned(), header("Which token is wanted: `Bearer` or `Queue-Token`."))
        }
        429 | 503 => headers.insert("Retry-After".to_owned(), header("When to come again, in seconds.")),
        _ => None,
    };
    let mut answer = json!({
        "description": slugs.iter().map(line).collect::<Vec<_>>().join("\n\n"),
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
    });
    if !headers.is_empty() {
        answer["headers"] = headers.into();
    }
    answer
}

fn header(description: &str) -> Value {
    json!({ "description": description, "schema": { "type": "string" } })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn document() -> Value {
        complete(&crate::router::calls().into_openapi())
    }

    fn operations(document: &Value) -> Vec<&Value> {
        let paths = document["paths"].as_object().unwrap();
        paths.values().flat_map(|path| path.as_object().unwrap().values()).collect()
    }

    #[test]
    fn every_call_has_a_name_of_its_own_and_its_problems() {
        let document = document();
        let names: Vec<&str> = operations(&document).iter().map(|it| it["operationId"].as_str().unwrap()).collect();
        let distinct: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(names.len(), distinct.len(), "{names:?}");
        assert_eq!(distinct, PROBLEMS.iter().map(|(id, _)| *id).collect());
        for operation in operations(&document) {
            assert!(operation["responses"]["503"].is_object() && operation["summary"].is_string(), "{operation}");
            assert!(operation.get("parameters").is_none_or(Value::is_array), "{operation}");
            assert!(TAGS.iter().any(|(tag, _)| operation["tags"][0] == *tag), "{operation}");
        }
    }

    #[test]
    fn everything_that_is_referred_to_is_there() {
        let document = document();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some_and(Value::is_object), "{reference}");
        }
        for operation in operations(&document) {
            let schemes = operation["security"].as_array().into_iter().flatten().filter_map(Value::as_object);
            for scheme in schemes.flat_map(Map::keys) {
                assert!(document["components"]["securitySchemes"][scheme].is_object(), "{scheme}");
            }
        }
    }

    #[test]
    fn a_request_has_no_nulls_and_a_response_has_all_its_members() {
        let document = document();
        let schema = |name: &str| document["components"]["schemas"][name].clone();
        assert_eq!(schema("ConcertRequest")["properties"]["hold_seconds"]["type"], "integer");
        assert_eq!(schema("ConcertRequest")["properties"]["queue"]["$ref"], "#/components/schemas/ConfigureRequest");
        assert_eq!(schema("ConcertRequest")["required"], json!(["title"]));
        let members = schema("TokenBody")["required"].as_array().unwrap().len();
        assert_eq!(members, 11);
        assert_eq!(schema("TokenBody")["properties"]["expires_at"]["type"], json!(["string", "null"]));
    }
}
