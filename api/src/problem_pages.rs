//! `/problems/<slug>`: what each problem means, what to do next, and what its document looks like. `type` of a problem
//! document points here.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use common::ids::RequestId;
use common::problems::{Problem, Slug};
use serde_json::json;
use uuid::Uuid;

use crate::edge;
use crate::state::App;

/// What a problem means, and what to do about it.
struct Page {
    slug: Slug,
    meaning: &'static str,
    next: &'static str,
}

const fn page(slug: Slug, meaning: &'static str, next: &'static str) -> Page {
    Page { slug, meaning, next }
}

/// Every problem, in the order of the contract.
const PAGES: &[Page] = &[
    page(
        Slug::MalformedBody,
        "The body of the request could not be read as JSON.",
        "Check the body with a JSON parser: quotes, commas, UTF-8. Then send it again.",
    ),
    page(
        Slug::InvalidParameter,
        "A part of the request has the wrong form: a wrong type, an unknown member or parameter, an id, date or time zone that does not parse.",
        "`errors` names each part, by JSON pointer, parameter or header, and says what is expected. Correct it and send the request again.",
    ),
    page(
        Slug::InvalidRequest,
        "Every part of the request has the right form, but one is out of range or they make no sense together.",
        "`errors` names the part and its range. Correct it and send the request again.",
    ),
    page(
        Slug::AmbiguousDate,
        "The concert has several schedules on the date that was named.",
        "Choose one of `schedule_ids` and name the seats by `schedule_id` and `seat_ids`.",
    ),
    page(
        Slug::IdempotencyKeyReused,
        "The Idempotency-Key was used before, for another call or another body.",
        "Use a new key for a new request. To repeat a request, send exactly what was sent with its key the first time.",
    ),
    page(
        Slug::AccessTokenMissing,
        "The call needs to know who makes it, and no access token was sent.",
        "POST /v1/access-tokens (or sign up by POST /v1/users), then send `Authorization: Bearer <access token>`.",
    ),
    page(
        Slug::AccessTokenInvalid,
        "The access token, secret or admin key is not accepted: not ours, changed on the way, out of date, or wrong. A queue token is no access token.",
        "Log in again by POST /v1/access-tokens.",
    ),
    page(
        Slug::QueueTokenMissing,
        "The call needs a queue token of this concert, and none was sent.",
        "POST /v1/concerts/{id}/queue-tokens to join the queue, then send `Queue-Token: <queue token>`.",
    ),
    page(
        Slug::QueueTokenInvalid,
        "The queue token was not made here, or was changed on the way. An access token is no queue token.",
        "POST /v1/concerts/{id}/queue-tokens: it answers the live token that you have, or a new one.",
    ),
    page(
        Slug::QueueTokenExpired,
        "The queue token has ended: its time is over, it was completed by a payment, or it was given back.",
        "`Location` says where to POST for a new one. What is held can still be paid with the old one.",
    ),
    page(
        Slug::QueueTokenWaiting,
        "The buyer is still in line; `position` says where.",
        "Poll GET /v1/queue-token, not sooner than `Retry-After` says, until it says ACTIVE; or listen to GET /v1/queue-token/events.",
    ),
    page(
        Slug::QueueTokenMismatch,
        "The queue token was given to another buyer, or for another concert.",
        "Send the queue token that this buyer has for this concert.",
    ),
    page(
        Slug::InsufficientBalance,
        "The balance is lower than what is to be paid; nothing was debited.",
        "Add money by POST /v1/balance/charges and pay again before the hold ends. If `seats_released` is true, the seats are free again: hold them anew.",
    ),
    page(Slug::ConcertNotFound, "There is no concert with this id.", "GET /v1/concerts lists all concerts."),
    page(
        Slug::ScheduleNotFound,
        "There is no schedule with this id, or none on this date.",
        "GET /v1/concerts/{id}/schedules lists the schedules to come.",
    ),
    page(
        Slug::QueueTokenNotFound,
        "The buyer has no live queue token for this concert.",
        "POST to the same path to join the queue.",
    ),
    page(
        Slug::RequestNotFound,
        "There is no request with this id, or it is another buyer's.",
        "Take the id from `Location` or `request_id` of the answer 202.",
    ),
    page(Slug::UserNotFound, "There is no user with this id.", "Sign up by POST /v1/users."),
    page(
        Slug::SeatNotFound,
        "A seat that was named is not in this schedule.",
        "GET /v1/schedules/{id}/seats lists its seats.",
    ),
    page(
        Slug::ReservationNotFound,
        "There is no reservation with this id, or it is another buyer's.",
        "GET /v1/reservations lists yours.",
    ),
    page(
        Slug::PaymentNotFound,
        "There is no payment with this id, or it is another buyer's.",
        "`payment_id` of a paid reservation names its payment.",
    ),
    page(
        Slug::NotFound,
        "There is nothing at this path. A trailing slash makes another path; the calls of operators are there only if an admin key is set.",
        "/openapi.json and /docs list all calls.",
    ),
    page(
        Slug::MethodNotAllowed,
        "The path is there, but not with this method.",
        "The header `Allow` names its methods.",
    ),
    page(
        Slug::SeatUnavailable,
        "A seat that was asked for is held or sold. A reservation gets all of its seats or none.",
        "`seat_ids` are those that are gone: choose others.",
    ),
    page(
        Slug::SoldOut,
        "There are not as many seats left as were asked for; `available` says how many there are.",
        "Ask for fewer, in another section, or for another date. Holds that run out put seats back on sale.",
    ),
    page(Slug::SalesEnded, "The schedule has begun.", "GET /v1/concerts/{id}/schedules lists the schedules to come."),
    page(
        Slug::QueueClosed,
        "The operator has closed the queue of this concert, or drains it: nobody joins, and when it is closed nobody enters.",
        "What is held can still be paid. Come again when the queue is open.",
    ),
    page(
        Slug::ReservationLimitExceeded,
        "One buyer may have `limit` seats in this schedule, held or paid, and has `live` already.",
        "Ask for fewer seats, or give a hold back by DELETE /v1/reservations/{id}.",
    ),
    page(
        Slug::ReservationExpired,
        "The hold ran out before it was paid; its seats are free again.",
        "Hold seats anew by POST /v1/reservations.",
    ),
    page(
        Slug::ReservationCancelled,
        "The reservation was cancelled or refunded; its seats are free again.",
        "Hold seats anew by POST /v1/reservations.",
    ),
    page(
        Slug::AlreadyPaid,
        "The reservation is paid; nothing was debited again.",
        "Nothing is left to do. GET /v1/reservations/{id} names the payment; POST /v1/payments/{id}/refunds gives it back.",
    ),
    page(
        Slug::NotRefundable,
        "The payment was refunded before, or its schedule has begun.",
        "GET /v1/payments/{id} tells which.",
    ),
    page(
        Slug::ReservationOfAnotherBuyer,
        "The reservation belongs to another buyer.",
        "GET /v1/reservations lists yours.",
    ),
    page(
        Slug::BodyTooLarge,
        "The body is larger than is taken: 64 KiB, 8 MiB for operators, unless configured otherwise.",
        "Send less.",
    ),
    page(Slug::UnsupportedMediaType, "The body is not declared as JSON.", "Send `Content-Type: application/json`."),
    page(
        Slug::RateLimited,
        "Requests come faster than one buyer, token or address may send them. Nothing was done.",
        "Wait as long as `Retry-After` says, and keep to the pace that answers give.",
    ),
    page(
        Slug::Overloaded,
        "The service has as much to do as it can. Nothing was done.",
        "Wait as long as `Retry-After` says and send the request again.",
    ),
    page(
        Slug::Unavailable,
        "Something that the service needs does not answer right now, or the answer took too long.",
        "Wait as long as `Retry-After` says and send the request again, with the same Idempotency-Key if it had one.",
    ),
    page(
        Slug::DeliveryUnknown,
        "The request was handed on, and it is not known whether it arrived.",
        "Send it again with the same Idempotency-Key: it has one effect at most. Without a key, GET /v1/requests/{request_id} tells what became of it.",
    ),
];

/// The pages.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/problems", get(async || html(&index()))).route("/problems/{slug}", get(one))
}

async fn one(Path(slug): Path<String>) -> Response {
    match PAGES.iter().find(|page| page.slug.as_str() == slug) {
        Some(page) => html(&write_page(page)),
        None => edge::not_found().await.into_response(),
    }
}

fn index() -> String {
    let mut rows = String::new();
    for Page { slug, .. } in PAGES {
        let (name, status, title) = (slug.as_str(), slug.status(), slug.title());
        writeln!(rows, "<tr><td>{status}</td><td><a href=\"/problems/{name}\">{name}</a></td><td>{title}</td></tr>")
            .expect("writing to a string never fails");
    }
    let text = "Every answer that is not a success is a problem document (RFC 9457, <code>application/problem+json</code>). \
                Its <code>type</code> names one of these.";
    document("Problems", &format!("<p>{text}</p>\n<table>\n{rows}</table>"))
}

fn write_page(page: &Page) -> String {
    let slug = page.slug;
    let example = serde_json::to_string_pretty(&example(slug)).expect("a problem document is JSON");
    let body = format!(
        "<p class=\"status\">{} {}</p>\n<p>{}</p>\n<h2>What to do next</h2>\n<p>{}</p>\n<h2>Example</h2>\n<pre>{}</pre>\n\
         <p><a href=\"/problems\">All problems</a></p>",
        slug.status(),
        slug.as_str(),
        prose(page.meaning),
        prose(page.next),
        escaped(&example),
    );
    document(slug.title(), &body)
}

/// A problem document as it may come.
fn example(slug: Slug) -> serde_json::Value {
    let error = |place: &str, name: &str, detail: &str| json!([{ place: name, "detail": detail }]);
    let (instance, detail) = match slug {
        Slug::InsufficientBalance => ("/v1/payments", "The balance is 5,000, the reservation costs 20,000."),
        Slug::InvalidParameter => ("/v1/concerts", "In the parameter limit: it is an integer from 1 to 200."),
        Slug::InvalidRequest => ("/v1/balance/charges", "In the body at /amount: it is 1 to 10000000."),
        _ => ("/v1/reservations", slug.title()),
    };
    let problem = Problem::new(slug, detail);
    let problem = match slug {
        Slug::InvalidParameter => problem.with("errors", error("parameter", "limit", "it is an integer from 1 to 200")),
        Slug::InvalidRequest => problem.with("errors", error("pointer", "/amount", "it is 1 to 10000000")),
        Slug::AmbiguousDate => problem.with("schedule_ids", json!([42, 43])),
        Slug::QueueTokenWaiting => problem.with("position", 1_204),
        Slug::InsufficientBalance => problem.with("balance", 5_000).with("required", 20_000),
        Slug::SeatUnavailable => problem.with("seat_ids", json!([11_010_049])),
        Slug::SoldOut => problem.with("available", 1),
        Slug::ReservationLimitExceeded => problem.with("limit", 4).with("live", 3),
        _ => problem,
    };
    let request = RequestId(Uuid::from_u128(0x6a1f_0e5c_8b3d_8c21_9d4e_7f60_1a2b_3c4d));
    let has_request = matches!(slug, Slug::InsufficientBalance | Slug::DeliveryUnknown);
    problem.document(instance, has_request.then_some(request))
}

fn document(title: &str, body: &str) -> String {
    const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem;color:#1c1c1c;\
        background:#fff}h1{font-size:1.5rem}h2{font-size:1.1rem}td{padding:.15rem 1rem .15rem 0;vertical-align:top}\
        pre,code{font-family:ui-monospace,monospace;font-size:.9em;background:#f3f3f3}pre{padding:1rem;overflow:auto}\
        .status{color:#666}a{color:#0b57d0}";
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title} · Boxoffice</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n\
         {body}\n</body>\n</html>\n"
    )
}

fn html(page: &str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'")),
    ];
    (headers, page.to_owned()).into_response()
}

/// Text as HTML; what stands between backticks is code.
fn prose(text: &str) -> String {
    let mut html = String::new();
    for (index, part) in text.split('`').enumerate() {
        let part = escaped(part);
        if index % 2 == 1 {
            write!(html, "<code>{part}</code>").expect("writing to a string never fails");
        } else {
            html.push_str(&part);
        }
    }
    html
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_has_one_page_that_says_what_to_do_next() {
        for slug in Slug::ALL {
            let pages: Vec<_> = PAGES.iter().filter(|page| page.slug == *slug).collect();
            let [page] = pages.as_slice() else { panic!("{} has {} pages", slug.as_str(), pages.len()) };
            let html = write_page(page);
            assert!(html.contains(slug.as_str()) && html.contains(slug.title()), "{html}");
            assert!(page.meaning.ends_with('.') && page.next.ends_with('.'), "{}", slug.as_str());
            assert!(page.meaning.matches('`').count() % 2 == 0 && page.next.matches('`').count() % 2 == 0);
            assert!(index().contains(&format!("/problems/{}\"", slug.as_str())));
        }
    }

    #[test]
    fn text_is_escaped_and_code_is_marked() {
        assert_eq!(prose("send `A: <b>` & go"), "send <code>A: &lt;b&gt;</code> &amp; go");
    }
}
