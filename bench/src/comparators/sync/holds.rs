//! Holding seats: `POST /v1/reservations`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::response::Response;
use common::bodies::{Reservation, ReservationStatus};
use common::catalogue::Schedule;
use common::ids::{ReservationId, ScheduleId, SeatId, UserId};
use common::messages::reservations::{BestAvailable, SEATS_PER_HOLD_MAX};
use common::problems::{Problem, Slug};
use serde::Deserialize;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Transaction};

use super::App;
use super::best::{Choice, Proposal};
use super::call::{Answer, Call, Failure, Tries};
use super::guard::{QueueToken, Use};
use super::outcomes::Asked;

/// Seats that are remembered as gone before it starts afresh.
const GONE_MAX: usize = 100_000;
/// How often best available is chosen again when somebody else took its choice meanwhile.
const CHOICES_MAX: usize = 5;

/// All that the rules ask for, by index probes: `$1` buyer, `$2` concert, `$3` place of the token, `$4` token, `$5` schedule, `$6` named
/// seats. It locks nothing; who is to hold seats by it has the buyer's lock.
pub(in crate::comparators) const READ: &str = "
    SELECT now() AS now, t.status, t.expires_at, q.state, q.admitted_seq,
           EXISTS (SELECT FROM users WHERE user_id = $1) AS is_user,
           coalesce((SELECT sum(cardinality(r.seat_ids)) FROM reservations r
                     WHERE r.user_id = $1 AND r.schedule_id = $5 AND r.status IN ('HELD', 'PAID')), 0)::bigint AS live,
           ARRAY(SELECT s.seat_id FROM seats s WHERE s.seat_id = ANY($6) AND s.status <> 'AVAILABLE') AS gone,
           coalesce((SELECT releases FROM seat_releases WHERE schedule_id = $5), 0) AS releases
    FROM queues q
    LEFT JOIN queue_tokens t ON t.concert_id = q.concert_id AND t.seq = $3 AND t.token_id = $4
    WHERE q.concert_id = $2";

/// Locks the seats, those that are free, in the order of their ids, and if all are, takes them and writes the reservation and the
/// outcome: `$1` reservation, `$2` buyer, `$3` concert, `$4` schedule, `$5` seats, `$6` total, `$7` end of the hold, `$8` the body.
pub(in crate::comparators) const TAKE: &str = r#"
    WITH locked AS MATERIALIZED (
        SELECT seat_id FROM seats WHERE seat_id = ANY($5) AND status = 'AVAILABLE' ORDER BY seat_id FOR UPDATE),
    enough AS MATERIALIZED (SELECT count(*) = cardinality($5::bigint[]) AS is_so FROM locked),
    taken AS (
        UPDATE seats SET status = 'HELD', reservation_id = $1
        WHERE seat_id = ANY($5) AND (SELECT is_so FROM enough)),
    made AS (
        INSERT INTO reservations (reservation_id, user_id, concert_id, schedule_id, seat_ids, total, held_at, hold_expires_at)
        SELECT $1::uuid, $2::uuid, $3::bigint, $4::bigint, $5::bigint[], $6::bigint, now(), $7::timestamptz
        FROM enough WHERE is_so),
    noted AS (
        INSERT INTO requests (request_id, user_id, kind, status, http_status, body, submitted_at, finished_at, topic, partition, "offset")
        SELECT $1, $2, 'reservation.hold', 'SUCCEEDED', 201, $8::text::json, now(), now(), 'sync', 0, 0
        FROM enough WHERE is_so)
    SELECT is_so FROM enough"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HoldRequest {
    schedule_id: ScheduleId,
    seat_ids: Option<Vec<SeatId>>,
    best_available: Option<BestAvailable>,
}

/// Which seats.
enum Wish {
    Seats(Vec<SeatId>),
    Best { count: usize, section: Option<usize> },
}

/// One request, once it makes sense.
struct Hold {
    asked: Asked,
    token: QueueToken,
    schedule: Arc<Schedule>,
    wish: Wish,
}

#[derive(sqlx::FromRow)]
struct Read {
    #[sqlx(flatten)]
    token: Use,
    is_user: bool,
    live: i64,
    gone: Vec<SeatId>,
    releases: i64,
}

/// Seats that somebody was refused: who asks for one of them most likely is, too.
#[derive(Default)]
pub(super) struct Gone(Mutex<HashSet<SeatId>>);

impl Gone {
    fn likely(&self, wish: &Wish) -> bool {
        let gone = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(wish, Wish::Seats(seats) if seats.iter().any(|seat| gone.contains(seat)))
    }

    /// What was read of these seats.
    fn note(&self, wish: &Wish, read: &Read) {
        let Wish::Seats(seats) = wish else { return };
        let mut gone = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if gone.len() >= GONE_MAX {
            gone.clear();
        }
        for seat in seats {
            if read.gone.contains(seat) {
                gone.insert(*seat);
            } else {
                gone.remove(seat);
            }
        }
    }
}

/// Holds seats, all or none.
pub(super) async fn hold(State(app): State<Arc<App>>, call: Call) -> Response {
    call.answer(try_hold(&app, &call).await)
}

async fn try_hold(app: &App, call: &Call) -> Result<Answer, Failure> {
    let buyer = call.buyer(app)?;
    let request: HoldRequest = call.body()?;
    let token = QueueToken::of_buyer(app, call.headers(), buyer)?;
    let schedule = app.schedule(request.schedule_id).await?;
    token.is_for(schedule.concert_id)?;
    let wish = request.wish(&schedule)?;
    let asked = call.asked(app, buyer, "reservation.hold");
    let hold = Hold { asked, token, schedule, wish };
    let mut tries = Tries::default();
    loop {
        let result = attempt(app, &hold).await;
        if !tries.again(&result) {
            return asked.or_first(&app.pool, result).await;
        }
    }
}

impl HoldRequest {
    fn wish(self, schedule: &Schedule) -> Result<Wish, Failure> {
        match (self.seat_ids, self.best_available) {
            (Some(seats), None) => {
                let distinct: HashSet<&SeatId> = seats.iter().collect();
                if seats.is_empty() || seats.len() > SEATS_PER_HOLD_MAX || distinct.len() < seats.len() {
                    let detail = format!("Name 1 to {SEATS_PER_HOLD_MAX} seats, each once.");
                    return Err(Problem::invalid_request("/seat_ids", detail).into());
                }
                Ok(Wish::Seats(seats))
            }
            (None, Some(best)) => {
                let count = usize::try_from(best.count).ok().filter(|count| (1..=SEATS_PER_HOLD_MAX).contains(count));
                let count = count.ok_or_else(|| {
                    let detail = format!("Ask for 1 to {SEATS_PER_HOLD_MAX} seats.");
                    Problem::invalid_request("/best_available/count", detail)
                })?;
                let sections = schedule.layout.sections();
                let section = best.section.map(|name| sections.iter().position(|known| known.name == name));
                if section == Some(None) {
                    return Err(Problem::new(Slug::SeatNotFound, "The schedule has no such section.").into());
                }
                Ok(Wish::Best { count, section: section.flatten() })
            }
            _ => Err(Problem::invalid_request("", "Say in exactly one way which seats.").into()),
        }
    }
}

async fn attempt(app: &App, hold: &Hold) -> Result<Answer, Failure> {
    if app.gone.likely(&hold.wish)
        && let Some(answer) = refused_at_once(app, hold).await?
    {
        return Ok(answer);
    }
    transaction(app, hold).await
}

/// What is refused without a lock would be refused with it, if it came at the moment of the reading.
async fn refused_at_once(app: &App, hold: &Hold) -> Result<Option<Answer>, Failure> {
    let mut connection = app.pool.acquire().await?;
    let read = read(&mut connection, hold).await?;
    read.token.usable(&hold.token)?;
    app.gone.note(&hold.wish, &read);
    match refused(hold, &read) {
        Some(problem) => Ok(Some(hold.asked.failed(&mut connection, &problem).await?)),
        None => Ok(None),
    }
}

async fn transaction(app: &App, hold: &Hold) -> Result<Answer, Failure> {
    let mut transaction = begin(app, hold.schedule.schedule_id, hold.asked.user_id).await?;
    let read = read(&mut transaction, hold).await?;
    read.token.usable(&hold.token)?;
    let (answer, proposal) = match decide(app, &mut transaction, hold, read).await? {
        Ok((answer, proposal)) => (answer, proposal),
        Err(problem) => (hold.asked.failed(&mut transaction, &problem).await?, None),
    };
    transaction.commit().await?;
    match (&hold.wish, proposal) {
        (_, Some(proposal)) => proposal.taken(),
        (Wish::Seats(seats), None) if answer.status == 201 => app.best.taken(hold.schedule.schedule_id, seats),
        _ => {}
    }
    Ok(answer)
}

/// Begins, and takes the lock under which this buyer's live seats of the schedule are counted and added to. One round trip; nothing
/// in it is text from outside.
async fn begin(app: &App, schedule: ScheduleId, buyer: UserId) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let key = lock_key(schedule, buyer);
    app.pool.begin_with(AssertSqlSafe(format!("BEGIN; SELECT pg_advisory_xact_lock({key})"))).await
}

/// Two pairs with one key wait for each other and nothing worse.
fn lock_key(schedule: ScheduleId, buyer: UserId) -> i64 {
    let (first, second) = buyer.0.as_u64_pair();
    (first ^ second.rotate_left(32)).cast_signed() ^ schedule.0.rotate_left(40)
}

async fn read(connection: &mut PgConnection, hold: &Hold) -> Result<Read, Failure> {
    let named: &[SeatId] = match &hold.wish {
        Wish::Seats(seats) => seats,
        Wish::Best { .. } => &[],
    };
    let claims = &hold.token.claims;
    sqlx::query_as(READ)
        .bind(hold.asked.user_id)
        .bind(claims.concert_id)
        .bind(claims.seq)
        .bind(claims.jti)
        .bind(hold.schedule.schedule_id)
        .bind(named)
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| Problem::new(Slug::QueueTokenInvalid, "The concert of this queue token is gone.").into())
}

/// The rules, in Boxoffice's order.
async fn decide(
    app: &App,
    connection: &mut PgConnection,
    hold: &Hold,
    mut read: Read,
) -> Result<Result<(Answer, Option<Proposal>), Problem>, Failure> {
    for _ in 0..CHOICES_MAX {
        app.gone.note(&hold.wish, &read);
        if let Some(problem) = refused(hold, &read) {
            return Ok(Err(problem));
        }
        match &hold.wish {
            Wish::Seats(seats) => {
                if let Some(answer) = take(app, connection, hold, seats, &read).await? {
                    return Ok(Ok((answer, None)));
                }
            }
            Wish::Best { count, section } => {
                let schedule = &hold.schedule;
                match app.best.choose(connection, schedule, *count, *section, read.releases).await? {
                    Choice::TooFew(available) => return Ok(Err(sold_out(available, *count))),
                    Choice::Seats(proposal) => {
                        if let Some(answer) = take(app, connection, hold, &proposal.seats, &read).await? {
                            return Ok(Ok((answer, Some(proposal))));
                        }
                    }
                }
            }
        }
        // Somebody was first since it was read.
        read = self::read(connection, hold).await?;
    }
    Err(sqlx::Error::Protocol("the seats were taken by others again and again".to_owned()).into())
}

fn refused(hold: &Hold, read: &Read) -> Option<Problem> {
    let schedule = &hold.schedule;
    if !read.is_user {
        let detail = format!("There is no user {}; sign up first.", hold.asked.user_id);
        return Some(Problem::new(Slug::UserNotFound, detail));
    }
    if schedule.starts_at <= read.token.now() {
        let detail = format!("The schedule began at {}; choose another date.", schedule.starts_at.to_rfc3339());
        return Some(Problem::new(Slug::SalesEnded, detail));
    }
    let (wanted, named): (usize, &[SeatId]) = match &hold.wish {
        Wish::Seats(seats) => (seats.len(), seats),
        Wish::Best { count, .. } => (*count, &[]),
    };
    let unknown: Vec<_> = named.iter().filter(|seat| schedule.layout.place_of(**seat).is_none()).map(|s| s.0).collect();
    if !unknown.is_empty() {
        let detail = "Some of the seats are not in this schedule; GET its seats for those there are.";
        return Some(Problem::new(Slug::SeatNotFound, detail).with("seat_ids", unknown));
    }
    let (limit, live) = (i64::from(schedule.max_seats_per_buyer), read.live);
    if live + i64::try_from(wanted).unwrap_or(i64::MAX) > limit {
        let detail = format!("One buyer may have {limit} seats of this schedule, and you have {live}.");
        return Some(Problem::new(Slug::ReservationLimitExceeded, detail).with("limit", limit).with("live", live));
    }
    let gone: Vec<i64> = named.iter().filter(|seat| read.gone.contains(seat)).map(|seat| seat.0).collect();
    (!gone.is_empty()).then(|| {
        let detail = "Somebody was first; choose others, nothing is held.";
        Problem::new(Slug::SeatUnavailable, detail).with("seat_ids", gone)
    })
}

fn sold_out(available: usize, wanted: usize) -> Problem {
    let detail = format!("{available} seats are left and {wanted} were asked for; ask for fewer or look elsewhere.");
    Problem::new(Slug::SoldOut, detail).with("available", available)
}

/// Takes the seats and writes all there is to write; None if not all of them are free.
async fn take(
    app: &App,
    connection: &mut PgConnection,
    hold: &Hold,
    seats: &[SeatId],
    read: &Read,
) -> Result<Option<Answer>, Failure> {
    let (schedule, now) = (&hold.schedule, read.token.now());
    let reservation = Reservation {
        reservation_id: ReservationId::from(hold.asked.request_id),
        user_id: hold.asked.user_id,
        concert_id: schedule.concert_id,
        schedule_id: schedule.schedule_id,
        seat_ids: seats.to_vec(),
        total: schedule.layout.total_price(seats),
        status: ReservationStatus::Held,
        held_at: now,
        hold_expires_at: now + schedule.hold_time(),
        payment_id: None,
    };
    let body = serde_json::to_string(&reservation.body(schedule, &app.currency)).unwrap_or_default();
    let taken: bool = sqlx::query_scalar(TAKE)
        .bind(reservation.reservation_id)
        .bind(reservation.user_id)
        .bind(reservation.concert_id)
        .bind(reservation.schedule_id)
        .bind(seats)
        .bind(reservation.total)
        .bind(reservation.hold_expires_at)
        .bind(&body)
        .fetch_one(connection)
        .await?;
    Ok(taken.then(|| Answer::new(201, body)))
}
