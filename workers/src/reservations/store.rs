//! The SQL of holding seats: set-based, keys sorted. The number of statements does not depend on the batch's size.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use common::bodies::Reservation;
use common::ids::{ReservationId, ScheduleId, SeatId, UserId};
use futures::stream::BoxStream;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

/// So long after a hold was written its transaction has ended: that statement and the next one, its last, each end after half of it.
const COMMITTED_WITHIN: TimeDelta = TimeDelta::minutes(1);

/// What a batch touches.
#[derive(Default)]
pub(crate) struct Touched {
    /// Whether a seat is free; ids that do not exist are missing.
    pub(crate) free: HashMap<SeatId, bool>,
    /// Live seats (HELD or PAID) of each buyer in each schedule; pairs without any are missing.
    pub(crate) live: HashMap<(ScheduleId, UserId), i64>,
}

/// Looks which seats are free, and how many seats buyers have. No seat is locked: under the schedule's lock nobody else takes one that is
/// free, and [`insert_holds`] makes sure. One statement: a lone request waits for each.
pub(crate) async fn look(
    transaction: &mut PgConnection,
    seats: &[i64],
    buyers: &[(ScheduleId, UserId)],
) -> Result<Touched, sqlx::Error> {
    let schedules: Vec<i64> = buyers.iter().map(|(schedule, _)| schedule.0).collect();
    let users: Vec<Uuid> = buyers.iter().map(|(_, user)| user.0).collect();
    let rows = sqlx::query!(
        r#"SELECT seat_id AS "seat_id: SeatId", status = 'AVAILABLE' AS free, NULL::bigint AS "schedule_id: ScheduleId",
                  NULL::uuid AS "user_id: UserId", NULL::bigint AS live
           FROM seats WHERE seat_id = ANY($1)
           UNION ALL
           SELECT NULL, NULL, b.schedule_id, b.user_id, SUM(cardinality(r.seat_ids))::bigint
           FROM UNNEST($2::bigint[], $3::uuid[]) AS b (schedule_id, user_id)
           JOIN reservations r ON r.user_id = b.user_id AND r.schedule_id = b.schedule_id
           WHERE r.status IN ('HELD', 'PAID')
           GROUP BY b.schedule_id, b.user_id"#,
        seats,
        &schedules,
        &users
    )
    .fetch_all(transaction)
    .await?;
    let mut touched = Touched::default();
    for row in rows {
        touched.free.extend(row.seat_id.zip(row.free));
        touched.live.extend(row.schedule_id.zip(row.user_id).zip(row.live));
    }
    Ok(touched)
}

/// Which of these holds were made, or refused: another worker may have done so while the batch waited for the schedule's lock.
pub(crate) async fn decided(transaction: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<ReservationId>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT reservation_id AS "id!: ReservationId" FROM reservations WHERE reservation_id = ANY($1)
           UNION SELECT request_id FROM requests WHERE request_id = ANY($1)"#,
        ids
    )
    .fetch_all(transaction)
    .await
}

/// How often seats of these schedules were freed; those that never had any freed are missing.
pub(crate) async fn releases(
    transaction: &mut PgConnection,
    schedules: &[i64],
) -> Result<Vec<(ScheduleId, i64)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT schedule_id AS "schedule_id: ScheduleId", releases FROM seat_releases WHERE schedule_id = ANY($1)"#,
        schedules
    )
    .fetch_all(transaction)
    .await?;
    Ok(rows.into_iter().map(|row| (row.schedule_id, row.releases)).collect())
}

/// The free seats between each first and last id, both included, range by range.
pub(crate) fn free_seats<'a>(
    transaction: &'a mut PgConnection,
    ranges: &'a [(SeatId, SeatId)],
) -> BoxStream<'a, Result<Vec<SeatId>, sqlx::Error>> {
    let first: Vec<i64> = ranges.iter().map(|(first, _)| first.0).collect();
    let last: Vec<i64> = ranges.iter().map(|(_, last)| last.0).collect();
    sqlx::query_scalar!(
        r#"SELECT ARRAY(SELECT seat_id FROM seats WHERE seat_id BETWEEN r.first AND r.last AND status = 'AVAILABLE')
                  AS "free!: Vec<SeatId>"
           FROM UNNEST($1::bigint[], $2::bigint[]) WITH ORDINALITY AS r (first, last, place) ORDER BY r.place"#,
        &first,
        &last
    )
    .fetch(transaction)
}

/// Writes the holds of a batch: their rows, and their seats as HELD. The search for overdue holds begins no later than where one of them ends;
/// if its time is over by now, because it was told once and is made again, or this transaction has waited long, under a lock.
///
/// # Errors
/// One of the seats is not free after all: the batch is to be decided again.
pub(crate) async fn insert_holds(transaction: &mut PgConnection, holds: &[Reservation]) -> Result<(), sqlx::Error> {
    let ids: Vec<Uuid> = holds.iter().map(|hold| hold.reservation_id.0).collect();
    let users: Vec<Uuid> = holds.iter().map(|hold| hold.user_id.0).collect();
    let concerts: Vec<i64> = holds.iter().map(|hold| hold.concert_id.0).collect();
    let schedules: Vec<i64> = holds.iter().map(|hold| hold.schedule_id.0).collect();
    let totals: Vec<i64> = holds.iter().map(|hold| hold.total).collect();
    let held: Vec<DateTime<Utc>> = holds.iter().map(|hold| hold.held_at).collect();
    let expires: Vec<DateTime<Utc>> = holds.iter().map(|hold| hold.hold_expires_at).collect();
    let first_end = expires.iter().min();
    let seats: Vec<i64> = holds.iter().flat_map(|hold| hold.seat_ids.iter().map(|seat| seat.0)).collect();
    let seat_holds: Vec<Uuid> =
        holds.iter().flat_map(|hold| hold.seat_ids.iter().map(|_| hold.reservation_id.0)).collect();
    // Arrays of arrays cannot be unnested by row, so each row takes its slice of all seats.
    let mut after = 0;
    let ends: Vec<i32> = holds
        .iter()
        .map(|hold| {
            after += i32::try_from(hold.seat_ids.len()).unwrap_or_default();
            after
        })
        .collect();
    let begins: Vec<i32> = std::iter::once(1).chain(ends.iter().map(|end| end + 1)).take(holds.len()).collect();
    let taken = sqlx::query!(
        "WITH made AS (
             INSERT INTO reservations (reservation_id, user_id, concert_id, schedule_id, total, held_at, hold_expires_at, seat_ids)
             SELECT id, user_id, concert_id, schedule_id, total, held, expires, ($10::bigint[])[first:last]
             FROM (SELECT UNNEST($1::uuid[]) AS id, UNNEST($2::uuid[]) AS user_id, UNNEST($3::bigint[]) AS concert_id,
                          UNNEST($4::bigint[]) AS schedule_id, UNNEST($5::bigint[]) AS total, UNNEST($6::timestamptz[]) AS held,
                          UNNEST($7::timestamptz[]) AS expires, UNNEST($8::integer[]) AS first, UNNEST($9::integer[]) AS last) t),
         search AS (
             UPDATE overdue_search SET all_ended_before = LEAST(all_ended_before, $12)
             WHERE all_ended_before > $12 OR $12 < clock_timestamp())
         UPDATE seats s SET status = 'HELD', reservation_id = t.reservation_id
         FROM (SELECT UNNEST($10::bigint[]) AS seat_id, UNNEST($11::uuid[]) AS reservation_id) t
         WHERE s.seat_id = t.seat_id AND s.status = 'AVAILABLE'",
        &ids,
        &users,
        &concerts,
        &schedules,
        &totals,
        &held,
        &expires,
        &begins,
        &ends,
        &seats,
        &seat_holds,
        first_end
    )
    .execute(transaction)
    .await?;
    if taken.rows_affected() == seats.len() as u64 {
        return Ok(());
    }
    Err(sqlx::Error::Protocol("a seat is not free that was free a moment ago".to_owned()))
}

/// A hold whose time is over.
pub(crate) struct Overdue {
    pub(crate) reservation_id: ReservationId,
    pub(crate) user_id: UserId,
    pub(crate) schedule_id: ScheduleId,
    pub(crate) hold_expires_at: DateTime<Utc>,
    /// For how long it is over, by the database's clock.
    pub(crate) since_ms: i64,
}

/// Holds that are over since `from` or later, the oldest first, at most `limit`.
pub(crate) async fn overdue(
    connection: &mut PgConnection,
    from: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Overdue>, sqlx::Error> {
    sqlx::query_as!(
        Overdue,
        r#"SELECT reservation_id AS "reservation_id: ReservationId", user_id AS "user_id: UserId",
                  schedule_id AS "schedule_id: ScheduleId", hold_expires_at,
                  (EXTRACT(EPOCH FROM now() - hold_expires_at) * 1000)::bigint AS "since_ms!"
           FROM reservations
           WHERE status = 'HELD' AND hold_expires_at >= $1 AND hold_expires_at < now()
           ORDER BY hold_expires_at LIMIT $2"#,
        from,
        limit
    )
    .fetch_all(connection)
    .await
}

/// Moves the beginning of the search on, to the first hold that still stands, or to the last that has ended. Where it is then (all holds
/// whose time was over before have ended), and the time of the database.
pub(crate) async fn advance_search(
    connection: &mut PgConnection,
) -> Result<(DateTime<Utc>, DateTime<Utc>), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    // Who writes a hold that is over already moves the beginning back, and waits for this lock or is waited for: the next statement, which
    // begins under it, sees all such holds. (Of others, what is not committed yet ends later than what is looked at.)
    let search = sqlx::query!(
        r#"SELECT now() AS "now!", (SELECT all_ended_before FROM overdue_search FOR UPDATE) AS all_ended_before"#
    )
    .fetch_one(&mut *transaction)
    .await?;
    // Without the row, which somebody has deleted by hand, all are looked through.
    let from = search.all_ended_before.unwrap_or(DateTime::UNIX_EPOCH);
    let reached = sqlx::query_scalar!(
        r#"UPDATE overdue_search SET all_ended_before = r.reached
           FROM (SELECT COALESCE(
               (SELECT hold_expires_at FROM reservations
                WHERE status = 'HELD' AND hold_expires_at >= $1 AND hold_expires_at < $2 ORDER BY hold_expires_at LIMIT 1),
               (SELECT hold_expires_at FROM reservations
                WHERE hold_expires_at >= $1 AND hold_expires_at < $2 ORDER BY hold_expires_at DESC LIMIT 1)) AS reached) r
           WHERE r.reached > all_ended_before
           RETURNING all_ended_before"#,
        from,
        search.now - COMMITTED_WITHIN
    )
    .fetch_optional(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok((reached.unwrap_or(from), search.now))
}
