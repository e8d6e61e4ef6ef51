//! What buyers look at: `GET /v1/concerts/{id}/schedules` and `GET /v1/schedules/{id}/seats`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::Response;
use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use common::catalogue::Schedule;
use common::ids::{ConcertId, ScheduleId, SeatId};
use common::problems::{Problem, Slug};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use super::App;
use super::call::{Answer, Call, Failure, GZIP};
use super::guard::QueueToken;

/// Bytes of JSON that a seat takes, about.
const SEAT_JSON_BYTES: usize = 128;

/// A schedule's seats are one range of the primary key.
const SCHEDULES: &str = "
    SELECT s.schedule_id, s.starts_at, (s.starts_at AT TIME ZONE c.time_zone)::date AS date,
           (SELECT count(*) FROM seats x
            WHERE x.seat_id BETWEEN s.schedule_id << 18 AND (s.schedule_id << 18) + 262143 AND x.status = 'AVAILABLE'
           ) AS available_seats, s.total_seats
    FROM schedules s JOIN concerts c USING (concert_id)
    WHERE s.concert_id = $1 AND s.starts_at > now()
    ORDER BY s.starts_at, s.schedule_id";

/// The states of a range of seats as one value, a letter each: a map of 50,000 seats is one row.
const SEATS: &str = "
    SELECT now(), coalesce(string_agg(letter, ''), '')
    FROM (SELECT CASE status WHEN 'AVAILABLE' THEN 'A' WHEN 'HELD' THEN 'H' ELSE 'S' END AS letter
          FROM seats WHERE seat_id BETWEEN $1 AND $2 ORDER BY seat_id) AS in_order";

/// What of a schedule is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct View {
    schedule: ScheduleId,
    /// Index of the one section; None: all.
    section: Option<usize>,
    /// Also what is held or sold.
    all: bool,
    /// Compressed.
    gzip: bool,
}

#[derive(Serialize, sqlx::FromRow)]
struct ScheduleBody {
    schedule_id: ScheduleId,
    starts_at: DateTime<Utc>,
    date: NaiveDate,
    available_seats: i64,
    total_seats: i32,
}

#[derive(Serialize)]
struct SchedulesBody {
    concert_id: ConcertId,
    schedules: Vec<ScheduleBody>,
}

/// The schedules of a concert that are to come.
pub(super) async fn schedules(State(app): State<Arc<App>>, call: Call) -> Response {
    call.answer(try_schedules(&app, &call).await)
}

async fn try_schedules(app: &App, call: &Call) -> Result<Answer, Failure> {
    let buyer = call.buyer(app)?;
    let token = QueueToken::of_buyer(app, call.headers(), buyer)?;
    let concert_id = ConcertId(call.path_id()?);
    token.is_for(concert_id)?;
    token.usable(&app.pool).await?;
    let read = async || {
        let schedules = sqlx::query_as(SCHEDULES).bind(concert_id).fetch_all(&app.pool).await?;
        let body = serde_json::to_vec(&SchedulesBody { concert_id, schedules }).unwrap_or_default();
        Ok::<_, Failure>(Bytes::from(body))
    };
    Ok(Answer::new(200, app.schedule_lists.get(concert_id, read).await?))
}

/// The seats of a schedule.
pub(super) async fn seats(State(app): State<Arc<App>>, call: Call) -> Response {
    call.answer(try_seats(&app, &call).await)
}

async fn try_seats(app: &App, call: &Call) -> Result<Answer, Failure> {
    let buyer = call.buyer(app)?;
    let token = QueueToken::of_buyer(app, call.headers(), buyer)?;
    let schedule = app.schedule(ScheduleId(call.path_id()?)).await?;
    let sections = schedule.layout.sections();
    let section = call.parameter("section").map(|name| sections.iter().position(|section| section.name == name));
    if section == Some(None) {
        return Err(Problem::new(Slug::InvalidRequest, "The schedule has no such section.").into());
    }
    token.is_for(schedule.concert_id)?;
    token.usable(&app.pool).await?;
    let all = call.parameter("status") == Some("all");
    let gzip = call.headers().get(header::ACCEPT_ENCODING).is_some_and(|value| value.as_bytes() == GZIP.as_bytes());
    let view = View { schedule: schedule.schedule_id, section: section.flatten(), all, gzip };
    let read = async || {
        let (first, last) = view.range(&schedule);
        let (as_of, letters): (DateTime<Utc>, String) =
            sqlx::query_as(SEATS).bind(first).bind(last).fetch_one(&app.pool).await?;
        let json = view.json(&schedule, as_of, &letters);
        Ok::<_, Failure>(if gzip { compressed(&json) } else { json.into() })
    };
    Ok(Answer { gzip, ..Answer::new(200, app.seat_lists.get(view, read).await?) })
}

/// Once for all who ask within its age.
fn compressed(json: &str) -> Bytes {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    let written = gzip.write_all(json.as_bytes()).and_then(|()| gzip.finish());
    written.expect("writing to a vector never fails").into()
}

impl View {
    /// The first and the last seat that it shows.
    fn range(self, schedule: &Schedule) -> (SeatId, SeatId) {
        let layout = &schedule.layout;
        let Some(index) = self.section else { return layout.seat_range() };
        let before: i64 = layout.sections()[..index].iter().map(common::seating::Section::seats).sum();
        (layout.seat_at(before), layout.seat_at(before + layout.sections()[index].seats() - 1))
    }

    fn json(self, schedule: &Schedule, as_of: DateTime<Utc>, letters: &str) -> String {
        let mut json = String::with_capacity(letters.len() * SEAT_JSON_BYTES);
        let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
        let (id, concert) = (schedule.schedule_id, schedule.concert_id);
        let (starts_at, as_of) = (time(schedule.starts_at), time(as_of));
        let head = format!(
            r#"{{"schedule_id":{id},"concert_id":{concert},"starts_at":"{starts_at}","as_of":"{as_of}","seats":["#
        );
        json.push_str(&head);
        let first = self.range(schedule).0.0;
        for (seat, letter) in (first..).zip(letters.bytes()).filter(|(_, letter)| self.all || *letter == b'A') {
            let Some(seat) = schedule.layout.seat(SeatId(seat)) else { continue };
            let status = match letter {
                b'A' => "AVAILABLE",
                b'H' => "HELD",
                _ => "SOLD",
            };
            // A section's name is letters, digits, spaces, `_` and `.`: nothing in it needs an escape.
            let (name, price, row, number) = (&seat.section.name, seat.section.price, seat.row, seat.number);
            let comma = if json.len() > head.len() { "," } else { "" };
            let written = write!(
                json,
                r#"{comma}{{"seat_id":{},"section":"{name}","row":{row},"number":{number},"label":"{name}-{row}-{number}","price":{price},"status":"{status}"}}"#,
                seat.seat_id
            );
            written.expect("writing to a string never fails");
        }
        json.push_str("]}");
        json
    }
}
