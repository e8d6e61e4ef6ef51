//! Reservations: holding seats, and giving a hold back.

use std::collections::HashSet;
use std::hash::Hash;

use axum::response::Response;
use chrono::NaiveDate;
use common::bodies::ReservationBody;
use common::ids::{ConcertId, ReservationId, ScheduleId, SeatId};
use common::messages::payments::Cancel;
use common::messages::reservations::{BestAvailable, Hold, SEATS_PER_HOLD_MAX};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::auth::queue::{self, QueueToken};
use crate::body::{Nothing, Object, present};
use crate::call::Call;
use crate::error::{ApiError, Fault, both, invalid_request};
use crate::publish;
use crate::routes::{Accepted, LogHeaders};
use crate::state::App;

/// One of three forms: `schedule_id` with `seat_ids`; `concert_id` and `date` with `seats`; `schedule_id` with `best_available`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HoldRequest {
    /// The schedule.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    schedule_id: Option<i64>,
    /// These seats, by id: 1 to 20.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    seat_ids: Option<Vec<i64>>,
    /// The concert.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    concert_id: Option<i64>,
    /// A date in the concert's time zone.
    #[serde(default, deserialize_with = "date", skip_serializing_if = "Option::is_none")]
    date: Option<NaiveDate>,
    /// These seats, by label: 1 to 20.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(["A-1-12"]))]
    seats: Option<Vec<String>>,
    /// The best that there are, side by side if possible.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BestAvailableRequest>)]
    best_available: Option<Object<BestAvailableRequest>>,
    /// Go on to pay at once; if that fails the hold is released.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pay: bool,
}

/// How many seats, and in which section; left out: in any.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BestAvailableRequest {
    /// How many seats.
    #[schema(minimum = 1, maximum = 20)]
    count: i64,
    /// The section's name.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    section: Option<String>,
}

/// `YYYY-MM-DD`, and nothing that merely resembles it.
fn date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NaiveDate>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_date(&text).map(Some).ok_or_else(|| serde::de::Error::custom("it is no date; write YYYY-MM-DD"))
}

/// A date as the api writes it.
pub(crate) fn parse_date(text: &str) -> Option<NaiveDate> {
    let plain = text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    plain.then(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok())?
}

/// What a hold asks for, once it makes sense.
#[derive(Debug, Clone, PartialEq)]
struct Wish {
    place: Place,
    seat_ids: Option<Vec<SeatId>>,
    seats: Option<Vec<String>>,
    best_available: Option<BestAvailable>,
    pay: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Schedule(ScheduleId),
    Date(ConcertId, NaiveDate),
}

impl HoldRequest {
    /// Exactly one of the three forms, with seats that make sense.
    fn wish(self) -> Result<Wish, Vec<Fault>> {
        let mut faults = Vec::new();
        let forms = [self.seat_ids.is_some(), self.seats.is_some(), self.best_available.is_some()];
        if forms.iter().filter(|is_there| **is_there).count() != 1 {
            return Err(vec![Fault::pointer("", "it needs exactly one of seat_ids, seats and best_available")]);
        }
        let place = place(self.seats.is_some(), self.schedule_id, self.concert_id, self.date, &mut faults);
        if let Some(ids) = &self.seat_ids {
            faults.extend(senseless_seats("/seat_ids", ids));
            if ids.iter().any(|id| *id < 1) {
                faults.push(Fault::pointer("/seat_ids", "ids of seats are positive"));
            }
        }
        if let Some(labels) = &self.seats {
            faults.extend(senseless_seats("/seats", labels));
        }
        let best_available =
            self.best_available.map(|Object(best)| BestAvailable { count: best.count, section: best.section });
        if best_available.as_ref().is_some_and(|best| !count_range().contains(&best.count)) {
            faults.push(Fault::pointer("/best_available/count", format!("it is 1 to {SEATS_PER_HOLD_MAX}")));
        }
        match place {
            Some(place) if faults.is_empty() => Ok(Wish {
                place,
                seat_ids: self.seat_ids.map(|ids| ids.into_iter().map(SeatId).collect()),
                seats: self.seats,
                best_available,
                pay: self.pay,
            }),
            _ => Err(faults),
        }
    }
}

fn count_range() -> std::ops::RangeInclusive<i64> {
    1..=i64::try_from(SEATS_PER_HOLD_MAX).unwrap_or(i64::MAX)
}

/// Seats by label go with a concert and a date, all others with a schedule.
fn place(
    by_label: bool,
    schedule: Option<i64>,
    concert: Option<i64>,
    date: Option<NaiveDate>,
    faults: &mut Vec<Fault>,
) -> Option<Place> {
    let place = match (by_label, schedule, concert, date) {
        (false, Some(schedule), None, None) => Some((schedule, "/schedule_id", Place::Schedule(ScheduleId(schedule)))),
        (true, None, Some(concert), Some(date)) => {
            Some((concert, "/concert_id", Place::Date(ConcertId(concert), date)))
        }
        _ => None,
    };
    match place {
        None => {
            let wanted = if by_label {
                "seats go with concert_id and date, and no schedule_id"
            } else {
                "seat_ids and best_available go with schedule_id, and neither concert_id nor date"
            };
            faults.push(Fault::pointer("", wanted));
            None
        }
        Some((id, pointer, place)) => {
            if id < 1 {
                faults.push(Fault::pointer(pointer, "ids are positive"));
            }
            Some(place)
        }
    }
}

fn senseless_seats<T: Eq + Hash>(pointer: &str, seats: &[T]) -> Vec<Fault> {
    let mut faults = Vec::new();
    if seats.is_empty() {
        faults.push(Fault::pointer(pointer, "it names no seat"));
    }
    if seats.len() > SEATS_PER_HOLD_MAX {
        faults.push(Fault::pointer(pointer, format!("it names more than {SEATS_PER_HOLD_MAX} seats")));
    }
    let distinct: HashSet<&T> = seats.iter().collect();
    if distinct.len() < seats.len() {
        faults.push(Fault::pointer(pointer, "it names a seat twice"));
    }
    faults
}

/// Holds seats, all or none; with `pay: true`, pays them in the same request.
#[utoipa::path(
    post, path = "/v1/reservations", operation_id = "reserve",
    tag = "reservations", security(("access_token" = [], "queue_token" = [])),
    params(LogHeaders), request_body = HoldRequest,
    responses(
        (status = 201, description = "Held; with `pay: true` a payment", body = ReservationBody),
        (status = 202, description = "Accepted", body = Accepted),
    )
)]
pub(crate) async fn hold(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    call.app.limits.log.check(&buyer)?;
    let body = call.body::<HoldRequest>()?;
    let ticket = publish::begin(&call, Some(buyer), &body).await?;
    let token = queue::of_buyer(&call.app, call.headers(), buyer)?;
    let request = ticket.form(&call, body.checked())?;
    let wish = request.wish().map_err(|faults| invalid_request(&faults))?;
    let schedule_id = may_hold(&call.app, token, wish.place).await?;
    let message = Hold {
        request_id: ticket.request_id,
        request_hash: ticket.request_hash.clone(),
        user_id: buyer,
        schedule_id,
        seat_ids: wish.seat_ids,
        seats: wish.seats,
        best_available: wish.best_available,
        pay: wish.pay,
    };
    publish::submit(call, ticket, message).await
}

/// The schedule, once this queue token lets its buyer take seats of it.
async fn may_hold(app: &App, token: QueueToken, place: Place) -> Result<ScheduleId, ApiError> {
    let schedule_id = match place {
        Place::Schedule(schedule) => schedule,
        Place::Date(concert, date) => app.catalogue.on_date(app, concert, date).await?,
    };
    let schedule = app.catalogue.schedule(app, schedule_id).await?;
    queue::for_concert(&token, schedule.concert_id)?;
    queue::usable(app, &token).await?;
    Ok(schedule_id)
}

/// Gives a hold back.
#[utoipa::path(
    delete, path = "/v1/reservations/{id}", operation_id = "cancel_reservation",
    tag = "reservations", security(("access_token" = [])),
    params(("id" = ReservationId, Path, description = "The reservation"), LogHeaders),
    responses(
        (status = 200, description = "CANCELLED: the seats are available again", body = ReservationBody),
        (status = 202, description = "Accepted", body = Accepted),
    )
)]
pub(crate) async fn cancel(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    call.app.limits.log.check(&buyer)?;
    let body = call.optional_body::<Nothing>()?;
    let ticket = publish::begin(&call, Some(buyer), &body).await?;
    let (id, _) = ticket.form(&call, both(call.path_uuid(), body.checked()))?;
    let message = Cancel {
        request_id: ticket.request_id,
        request_hash: ticket.request_hash.clone(),
        user_id: buyer,
        reservation_id: ReservationId(id),
    };
    publish::submit(call, ticket, message).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body;

    fn wish(text: &str) -> Result<Wish, Vec<Fault>> {
        body::parse::<HoldRequest>(text.as_bytes()).expect("JSON").checked().expect("of the right form").wish()
    }

    #[test]
    fn each_of_the_three_forms_makes_sense() {
        let by_id = wish(r#"{"schedule_id": 7, "seat_ids": [3, 4]}"#).unwrap();
        assert_eq!((by_id.place, by_id.seat_ids), (Place::Schedule(ScheduleId(7)), Some(vec![SeatId(3), SeatId(4)])));
        let by_label = wish(r#"{"concert_id": 1, "date": "2026-12-24", "seats": ["A-1-12"], "pay": true}"#).unwrap();
        let date = NaiveDate::from_ymd_opt(2026, 12, 24).unwrap();
        assert_eq!((by_label.place, by_label.pay), (Place::Date(ConcertId(1), date), true));
        let best = wish(r#"{"schedule_id": 7, "best_available": {"count": 2, "section": "A"}}"#).unwrap();
        assert_eq!(best.best_available.unwrap().count, 2);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let twenty_one: Vec<i64> = (1..=21).collect();
        for text in [
            "{}",
            r#"{"schedule_id": 7}"#,
            r#"{"schedule_id": 7, "seat_ids": []}"#,
            r#"{"schedule_id": 7, "seat_ids": [1, 1]}"#,
            r#"{"schedule_id": 7, "seat_ids": [0]}"#,
            r#"{"schedule_id": 0, "seat_ids": [1]}"#,
            r#"{"seat_ids": [1]}"#,
            r#"{"schedule_id": 7, "concert_id": 1, "seat_ids": [1]}"#,
            r#"{"schedule_id": 7, "seat_ids": [1], "best_available": {"count": 1}}"#,
            r#"{"schedule_id": 7, "best_available": {"count": 0}}"#,
            r#"{"schedule_id": 7, "best_available": {"count": 21}}"#,
            r#"{"concert_id": 1, "seats": ["A-1-1"]}"#,
            r#"{"schedule_id": 1, "seats": ["A-1-1"]}"#,
            r#"{"concert_id": 1, "date": "2026-12-24", "seats": ["A-1-1", "A-1-1"]}"#,
            &format!(r#"{{"schedule_id": 7, "seat_ids": {twenty_one:?}}}"#),
        ] {
            assert!(wish(text).is_err_and(|faults| !faults.is_empty()), "{text}");
        }
    }

    #[test]
    fn a_date_has_one_form() {
        assert!(parse_date("2026-12-24").is_some());
        for bad in ["2026-12-32", "2026-2-3", "24.12.2026", "", "2026-12-24T00:00:00Z", "+026-12-24", "2026-02-30"] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }
}
