//! The SQL of payments. Each statement is one for the whole batch, keys sorted. Accounts and reservations are read without a lock, and
//! written only as they were read: a lock would cost every payment a write, so only a batch that met another worker's takes it, on its next
//! try. Rows are written, and so locked, in the order of the whole system: accounts, reservations, seats, queue tokens.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use common::bodies::{EntryKind, Reservation, ReservationStatus};
use common::ids::{ConcertId, EntryId, PaymentId, ReservationId, ScheduleId, SeatId, TokenId, UserId};
use common::messages::results::TokenEvent;
use sqlx::PgConnection;

use super::state::{Account, Booking, Changes, Entry, LoadedAccount, Paid, Refunded};

/// Locks what there is of accounts and reservations, until the transaction's end.
pub(super) async fn lock(
    connection: &mut PgConnection,
    users: &[UserId],
    reservations: &[ReservationId],
    payments: &[PaymentId],
) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT FROM accounts WHERE user_id = ANY($1) ORDER BY user_id FOR UPDATE", users as &[UserId])
        .execute(&mut *connection)
        .await?;
    sqlx::query!(
        "SELECT FROM reservations
         WHERE reservation_id = ANY(ARRAY(
             SELECT UNNEST($1::uuid[]) UNION SELECT reservation_id FROM payments WHERE payment_id = ANY($2)))
         ORDER BY reservation_id FOR UPDATE",
        reservations as &[ReservationId],
        payments as &[PaymentId]
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The accounts that there are.
pub(super) async fn accounts(
    connection: &mut PgConnection,
    users: &[UserId],
) -> Result<Vec<(UserId, Account)>, sqlx::Error> {
    if users.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query!(
        r#"SELECT user_id AS "user_id: UserId", balance, entries FROM accounts WHERE user_id = ANY($1)"#,
        users as &[UserId]
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.user_id, Account { balance: row.balance, entries: row.entries })).collect())
}

/// Opens accounts for those of `users` who exist, and locks them. If another worker has opened one meanwhile, that one is locked
/// and told as it is: no charge is lost between two first ones.
pub(super) async fn open_accounts(
    connection: &mut PgConnection,
    users: &[UserId],
) -> Result<Vec<(UserId, Account)>, sqlx::Error> {
    if users.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query!(
        r#"INSERT INTO accounts AS a (user_id, balance, entries)
           SELECT user_id, 0, 0 FROM users WHERE user_id = ANY($1) ORDER BY user_id
           ON CONFLICT (user_id) DO UPDATE SET entries = a.entries
           RETURNING user_id AS "user_id: UserId", balance, entries"#,
        users as &[UserId]
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.user_id, Account { balance: row.balance, entries: row.entries })).collect())
}

/// The reservations that are named by their own id or by their payment's. Whoever changes a payment changes its reservation's status
/// first, so `payments` itself needs no check.
pub(super) async fn reservations(
    connection: &mut PgConnection,
    reservations: &[ReservationId],
    payments: &[PaymentId],
) -> Result<Vec<Reservation>, sqlx::Error> {
    if reservations.is_empty() && payments.is_empty() {
        return Ok(Vec::new());
    }
    // The ids are gathered into an array first, so that the rows are found by the primary key whatever the planner thinks.
    sqlx::query_as!(
        Reservation,
        r#"SELECT reservation_id AS "reservation_id: ReservationId", user_id AS "user_id: UserId",
                  concert_id AS "concert_id: ConcertId", schedule_id AS "schedule_id: ScheduleId",
                  seat_ids AS "seat_ids: Vec<SeatId>", total, status AS "status: ReservationStatus", held_at, hold_expires_at,
                  payment_id AS "payment_id: PaymentId"
           FROM reservations
           WHERE reservation_id = ANY(ARRAY(
               SELECT UNNEST($1::uuid[]) UNION SELECT reservation_id FROM payments WHERE payment_id = ANY($2)))"#,
        reservations as &[ReservationId],
        payments as &[PaymentId]
    )
    .fetch_all(connection)
    .await
}

/// A reservation whose schedule is gone cannot be told of. The error is of the class `Data`: the record that brought it is set
/// aside, and the others go on.
pub(super) fn schedule_is_missing(row: &Reservation) -> sqlx::Error {
    broken(format!(
        "reservation {} is of schedule {}, which is not in the database",
        row.reservation_id, row.schedule_id
    ))
}

fn broken(what: String) -> sqlx::Error {
    sqlx::Error::Encode(what.into())
}

/// Writes back what the batch has changed.
pub(super) async fn save(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    changes: &Changes<'_>,
) -> Result<(), sqlx::Error> {
    update_accounts(connection, &changes.accounts).await?;
    insert_entries(connection, now, changes.entries).await?;
    update_reservations(connection, &changes.reservations).await?;
    insert_payments(connection, now, changes.paid).await?;
    refund_payments(connection, now, changes.refunded).await?;
    update_seats(connection, &changes.reservations).await?;
    note_releases(connection, &changes.released).await
}

async fn update_accounts(connection: &mut PgConnection, accounts: &[LoadedAccount]) -> Result<(), sqlx::Error> {
    if accounts.is_empty() {
        return Ok(());
    }
    // Money without an account: a refund of a payment whose account somebody has deleted by hand.
    if let Some(account) = accounts.iter().find(|account| account.before.is_none()) {
        return Err(broken(format!("the account of {} has a new entry and does not exist", account.user_id)));
    }
    let users: Vec<UserId> = accounts.iter().map(|account| account.user_id).collect();
    let balances: Vec<i64> = accounts.iter().map(|account| account.after.balance).collect();
    let entries: Vec<i64> = accounts.iter().map(|account| account.after.entries).collect();
    let before: Vec<Account> = accounts.iter().filter_map(|account| account.before).collect();
    let entries_before: Vec<i64> = before.iter().map(|account| account.entries).collect();
    let balances_before: Vec<i64> = before.iter().map(|account| account.balance).collect();
    // Each change of an account is an entry, so their number tells whether it has changed; the balance, whether somebody has by hand. The row
    // is found by its key first: the plan of an UPDATE that joins by the key can be one of a moment when the table was small, and reads all of it.
    let written = sqlx::query!(
        "UPDATE accounts a SET balance = n.balance, entries = n.entries
         FROM (SELECT UNNEST($1::uuid[]) AS user_id, UNNEST($2::bigint[]) AS balance, UNNEST($3::bigint[]) AS entries,
                      UNNEST($4::bigint[]) AS entries_before, UNNEST($5::bigint[]) AS balance_before) n
         CROSS JOIN LATERAL (SELECT ctid AS place FROM accounts WHERE user_id = n.user_id LIMIT 1) found
         WHERE a.ctid = found.place AND a.entries = n.entries_before AND a.balance = n.balance_before",
        &users as &[UserId],
        &balances,
        &entries,
        &entries_before,
        &balances_before
    )
    .execute(connection)
    .await?
    .rows_affected();
    as_read("accounts", accounts.len(), written)
}

/// All rows that were to be written are as they were read. If not, the batch is decided again: the error is of the class `Transient`.
fn as_read(table: &str, rows: usize, written: u64) -> Result<(), sqlx::Error> {
    if written == rows as u64 {
        return Ok(());
    }
    Err(sqlx::Error::Protocol(format!("of {rows} rows of {table} only {written} are as they were read")))
}

async fn insert_entries(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    entries: &[Entry],
) -> Result<(), sqlx::Error> {
    if entries.is_empty() {
        return Ok(());
    }
    let users: Vec<UserId> = entries.iter().map(|entry| entry.user_id).collect();
    let numbers: Vec<i64> = entries.iter().map(|entry| entry.number).collect();
    let ids: Vec<EntryId> = entries.iter().map(|entry| entry.id).collect();
    let kinds: Vec<EntryKind> = entries.iter().map(|entry| entry.kind).collect();
    let amounts: Vec<i64> = entries.iter().map(|entry| entry.amount).collect();
    let balances: Vec<i64> = entries.iter().map(|entry| entry.balance_after).collect();
    let reservations: Vec<Option<ReservationId>> = entries.iter().map(|entry| entry.reservation_id).collect();
    sqlx::query!(
        "INSERT INTO ledger_entries (user_id, entry_no, entry_id, kind, amount, balance_after, reservation_id, at)
         SELECT UNNEST($1::uuid[]), UNNEST($2::bigint[]), UNNEST($3::uuid[]), UNNEST($4::entry_kind[]), UNNEST($5::bigint[]),
                UNNEST($6::bigint[]), UNNEST($7::uuid[]), $8::timestamptz",
        &users as &[UserId],
        &numbers,
        &ids as &[EntryId],
        &kinds as &[EntryKind],
        &amounts,
        &balances,
        &reservations as &[Option<ReservationId>],
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn update_reservations(connection: &mut PgConnection, bookings: &[&Booking]) -> Result<(), sqlx::Error> {
    if bookings.is_empty() {
        return Ok(());
    }
    let ids: Vec<ReservationId> = bookings.iter().map(|booking| booking.row.reservation_id).collect();
    let statuses: Vec<ReservationStatus> = bookings.iter().map(|booking| booking.row.status).collect();
    let before: Vec<ReservationStatus> = bookings.iter().map(|booking| booking.status_before).collect();
    let payments: Vec<Option<PaymentId>> = bookings.iter().map(|booking| booking.row.payment_id).collect();
    let written = sqlx::query!(
        "UPDATE reservations r SET status = n.status, payment_id = n.payment_id
         FROM (SELECT UNNEST($1::uuid[]) AS reservation_id, UNNEST($2::reservation_status[]) AS status,
                      UNNEST($3::reservation_status[]) AS status_before, UNNEST($4::uuid[]) AS payment_id) n
         WHERE r.reservation_id = n.reservation_id AND r.status = n.status_before",
        &ids as &[ReservationId],
        &statuses as &[ReservationStatus],
        &before as &[ReservationStatus],
        &payments as &[Option<PaymentId>]
    )
    .execute(connection)
    .await?
    .rows_affected();
    as_read("reservations", bookings.len(), written)
}

async fn insert_payments(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    payments: &[Paid],
) -> Result<(), sqlx::Error> {
    if payments.is_empty() {
        return Ok(());
    }
    let ids: Vec<PaymentId> = payments.iter().map(|paid| paid.payment_id).collect();
    let reservations: Vec<ReservationId> = payments.iter().map(|paid| paid.reservation_id).collect();
    let users: Vec<UserId> = payments.iter().map(|paid| paid.user_id).collect();
    let amounts: Vec<i64> = payments.iter().map(|paid| paid.amount).collect();
    let balances: Vec<i64> = payments.iter().map(|paid| paid.balance).collect();
    sqlx::query!(
        "INSERT INTO payments (payment_id, reservation_id, user_id, amount, balance, paid_at)
         SELECT UNNEST($1::uuid[]), UNNEST($2::uuid[]), UNNEST($3::uuid[]), UNNEST($4::bigint[]), UNNEST($5::bigint[]),
                $6::timestamptz",
        &ids as &[PaymentId],
        &reservations as &[ReservationId],
        &users as &[UserId],
        &amounts,
        &balances,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// `balance` is overwritten: from now on it is the one right after the refund, which the payment's body shows for ever. The one
/// right after the payment stays in its ledger entry.
async fn refund_payments(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    refunded: &[Refunded],
) -> Result<(), sqlx::Error> {
    if refunded.is_empty() {
        return Ok(());
    }
    let ids: Vec<PaymentId> = refunded.iter().map(|refunded| refunded.payment_id).collect();
    let balances: Vec<i64> = refunded.iter().map(|refunded| refunded.balance).collect();
    sqlx::query!(
        "UPDATE payments p SET status = 'REFUNDED', balance = n.balance, refunded_at = $3
         FROM (SELECT UNNEST($1::uuid[]) AS payment_id, UNNEST($2::bigint[]) AS balance) n
         WHERE p.payment_id = n.payment_id",
        &ids as &[PaymentId],
        &balances,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Sells the seats of what is paid and frees those of what has ended, in the order of ids. A seat is touched only while it is this
/// reservation's, and the reservation is written, and so locked: nobody else wants such a seat meanwhile.
async fn update_seats(connection: &mut PgConnection, bookings: &[&Booking]) -> Result<(), sqlx::Error> {
    let mut seats: Vec<(SeatId, ReservationId, bool)> = bookings
        .iter()
        .flat_map(|Booking { row, .. }| {
            let sold = row.status == ReservationStatus::Paid;
            row.seat_ids.iter().map(move |seat| (*seat, row.reservation_id, sold))
        })
        .collect();
    if seats.is_empty() {
        return Ok(());
    }
    seats.sort_unstable();
    let ids: Vec<SeatId> = seats.iter().map(|(seat, _, _)| *seat).collect();
    let reservations: Vec<ReservationId> = seats.iter().map(|(_, reservation, _)| *reservation).collect();
    let sold: Vec<bool> = seats.iter().map(|(_, _, sold)| *sold).collect();
    sqlx::query!(
        "UPDATE seats s SET status = CASE WHEN n.sold THEN 'SOLD'::seat_status ELSE 'AVAILABLE' END,
                            reservation_id = CASE WHEN n.sold THEN s.reservation_id END
         FROM (SELECT UNNEST($1::bigint[]) AS seat_id, UNNEST($2::uuid[]) AS reservation_id, UNNEST($3::boolean[]) AS sold) n
         WHERE s.seat_id = n.seat_id AND s.reservation_id = n.reservation_id",
        &ids as &[SeatId],
        &reservations as &[ReservationId],
        &sold
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Tells the reservation worker that its map of free seats is out of date.
async fn note_releases(connection: &mut PgConnection, schedules: &[ScheduleId]) -> Result<(), sqlx::Error> {
    if schedules.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO seat_releases AS r (schedule_id, releases)
         SELECT schedule_id, 1 FROM UNNEST($1::bigint[]) AS n (schedule_id) ORDER BY schedule_id
         ON CONFLICT (schedule_id) DO UPDATE SET releases = r.releases + 1",
        schedules as &[ScheduleId]
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Somebody who paid for seats of a concert.
pub(super) struct WhoPaid {
    pub(super) concert_id: ConcertId,
    pub(super) user_id: UserId,
    /// When the payment was asked for.
    pub(super) asked_at: DateTime<Utc>,
    /// The place of the queue token that was shown with it, or found since.
    pub(super) token_seq: Option<i64>,
}

/// Ends the live queue tokens of those who paid, and tells which they were; not one that was made after the payment was asked for.
/// The one that was shown is mostly the live one, and lies beside those of others who pay now; others are searched for by their buyers.
pub(super) async fn end_tokens(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    who_paid: Vec<WhoPaid>,
) -> Result<Vec<TokenEvent>, sqlx::Error> {
    let (mut who_paid, shown): (Vec<WhoPaid>, Vec<WhoPaid>) =
        who_paid.into_iter().partition(|who| who.token_seq.is_none());
    find_places(connection, &mut who_paid).await?;
    who_paid.extend(shown);
    let mut ended = end_places(connection, now, &who_paid).await?;
    // Whoever showed one that is not the live one any more.
    let has_ended: HashSet<(ConcertId, UserId)> = ended.iter().map(|token| (token.concert_id, token.user_id)).collect();
    who_paid.retain(|who| who.token_seq.is_some() && !has_ended.contains(&(who.concert_id, who.user_id)));
    find_places(connection, &mut who_paid).await?;
    ended.extend(end_places(connection, now, &who_paid).await?);
    Ok(ended)
}

/// Notes for each where the live token is; None: there is none.
async fn find_places(connection: &mut PgConnection, who_paid: &mut [WhoPaid]) -> Result<(), sqlx::Error> {
    if who_paid.is_empty() {
        return Ok(());
    }
    let concerts: Vec<ConcertId> = who_paid.iter().map(|who| who.concert_id).collect();
    let users: Vec<UserId> = who_paid.iter().map(|who| who.user_id).collect();
    // Found by the buyer alone: no plan reads all tokens of a concert.
    let rows = sqlx::query!(
        r#"SELECT own.user_id AS "user_id: UserId", own.concert_id AS "concert_id: ConcertId", own.seq
           FROM (SELECT UNNEST($1::bigint[]) AS concert_id, UNNEST($2::uuid[]) AS user_id) n
           CROSS JOIN LATERAL (
               SELECT t.user_id, t.concert_id, t.seq FROM queue_tokens t
               WHERE t.user_id = n.user_id AND t.concert_id + 0 = n.concert_id AND t.ended_at IS NULL
               LIMIT 1) own"#,
        &concerts as &[ConcertId],
        &users as &[UserId]
    )
    .fetch_all(connection)
    .await?;
    let places: HashMap<_, _> = rows.into_iter().map(|row| ((row.concert_id, row.user_id), row.seq)).collect();
    for who in who_paid {
        who.token_seq = places.get(&(who.concert_id, who.user_id)).copied();
    }
    Ok(())
}

/// Ends the tokens at these places, in their order, if they are theirs and live. An admitted one is COMPLETED. Whoever paid an earlier hold
/// while waiting again has LEFT the line: positions are counted by the places of those who left.
async fn end_places(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    who_paid: &[WhoPaid],
) -> Result<Vec<TokenEvent>, sqlx::Error> {
    let mut places: Vec<_> =
        who_paid.iter().filter_map(|who| Some((who.concert_id, who.token_seq?, who.user_id, who.asked_at))).collect();
    if places.is_empty() {
        return Ok(Vec::new());
    }
    places.sort_unstable();
    let concerts: Vec<ConcertId> = places.iter().map(|(concert, ..)| *concert).collect();
    let seqs: Vec<i64> = places.iter().map(|(_, seq, ..)| *seq).collect();
    let users: Vec<UserId> = places.iter().map(|(_, _, user, _)| *user).collect();
    let asked: Vec<DateTime<Utc>> = places.iter().map(|(.., asked)| *asked).collect();
    // It says by the status, not by `ended_at`, that a token is live, so that the plan takes the primary key and not the index of live tokens.
    let rows = sqlx::query!(
        r#"UPDATE queue_tokens q
           SET status = CASE q.status WHEN 'ACTIVE' THEN 'COMPLETED'::token_status ELSE 'LEFT' END, ended_at = $5
           FROM (SELECT UNNEST($1::bigint[]) AS concert_id, UNNEST($2::bigint[]) AS seq, UNNEST($3::uuid[]) AS user_id,
                        UNNEST($4::timestamptz[]) AS asked_at) n
           WHERE q.concert_id = n.concert_id AND q.seq = n.seq AND q.user_id = n.user_id
                 AND q.status IN ('WAITING', 'ACTIVE') AND q.issued_at <= n.asked_at
           RETURNING q.token_id AS "token_id: TokenId", q.user_id AS "user_id: UserId", q.concert_id AS "concert_id: ConcertId",
                     q.seq"#,
        &concerts as &[ConcertId],
        &seqs,
        &users as &[UserId],
        &asked,
        now
    )
    .fetch_all(connection)
    .await?;
    let ended = rows.into_iter().map(|row| TokenEvent {
        token_id: row.token_id,
        user_id: row.user_id,
        concert_id: row.concert_id,
        at: now,
        expires_at: None,
        seq: Some(row.seq),
    });
    Ok(ended.collect())
}
