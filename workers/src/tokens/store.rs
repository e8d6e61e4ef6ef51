//! The SQL of the token worker: a handful of statements, however large the batch is. Rows are locked queues first, then tokens
//! by (concert, place).
//!
//! Subqueries with LIMIT or FOR UPDATE stay where they are written, which pins each statement to one index probe a key:
//! no plan that was cached while a table was small can turn into a scan of a large one. For the same reason a live token is found by its
//! buyer alone: with `concert_id + 0` no plan reads all tokens of a concert.

mod write;

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use common::bodies::TokenStatus;
use common::ids::{ConcertId, TokenId, UserId};
use common::messages::tokens::QueueState;
use sqlx::{PgConnection, PgPool};

use super::bucket::{ADMISSION, Bucket};
use super::demand::{self, Demand, Demands};
use super::inside::Inside;
use super::joined::Joined;
use super::line::{Change, Counts, Line, Loaded, Queue, Token};
use crate::runtime::word::Fate;

pub(crate) use self::write::write;

/// The lines that a batch touches, by concert.
pub(crate) type Lines = BTreeMap<ConcertId, Line>;

/// A queue that a tick may have to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The concert.
    pub(crate) concert_id: ConcertId,
    /// The place of its next join.
    pub(crate) next_seq: i64,
    /// All that were ever admitted.
    pub(crate) admitted_total: i64,
    /// Buyers inside at the same time, at most.
    pub(crate) max_active: i32,
    /// Somebody's time is over.
    pub(crate) overdue: bool,
    /// When it was found.
    pub(crate) at: DateTime<Utc>,
}

/// Locks the queues of `concerts`, and with `wait` waits for those that another transaction has; else it leaves them out.
///
/// It reads nothing of the tokens: what one statement reads may be older than the lock that the same statement waited for.
///
/// # Errors
/// What the database says.
pub(crate) async fn lock_queues(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    concerts: &[i64],
    wait: bool,
) -> Result<Lines, sqlx::Error> {
    macro_rules! lock {
        ($locking:literal) => {
            sqlx::query_as!(
                QueueRow,
                r#"SELECT q.concert_id, q.state AS "state: QueueState", q.rate_per_minute, q.burst, q.max_active,
                          q.active_seconds, q.credit, q.refilled_at, q.next_seq, q.admitted_seq, q.admitted_total
                   FROM queues q WHERE q.concert_id = ANY($1) ORDER BY q.concert_id "#
                    + $locking,
                concerts
            )
            .fetch_all(connection)
            .await?
        };
    }
    let rows = if wait { lock!("FOR UPDATE") } else { lock!("FOR UPDATE SKIP LOCKED") };
    Ok(rows.into_iter().map(|row| (ConcertId(row.concert_id), Line::new(row.into(), now))).collect())
}

struct QueueRow {
    concert_id: i64,
    state: QueueState,
    rate_per_minute: i32,
    burst: i32,
    max_active: i32,
    active_seconds: i32,
    credit: i64,
    refilled_at: DateTime<Utc>,
    next_seq: i64,
    admitted_seq: i64,
    admitted_total: i64,
}

impl From<QueueRow> for Queue {
    fn from(row: QueueRow) -> Self {
        Self {
            concert_id: ConcertId(row.concert_id),
            state: row.state,
            rate_per_minute: row.rate_per_minute.into(),
            burst: row.burst.into(),
            max_active: row.max_active.into(),
            active_seconds: row.active_seconds.into(),
            bucket: Bucket { credit: row.credit, refilled_at: row.refilled_at },
            next_seq: row.next_seq,
            admitted_seq: row.admitted_seq,
            admitted_total: row.admitted_total,
        }
    }
}

/// Loads, for queues that are locked, all that `demands` may touch, and locks it. A queue without a demand is a tick's.
///
/// # Errors
/// What the database says.
pub(crate) async fn load_tokens(
    connection: &mut PgConnection,
    lines: &mut Lines,
    demands: &Demands,
    inside: &Inside,
    joined: &Joined,
) -> Result<(), sqlx::Error> {
    let nothing = Demand::default();
    let bounds = lines.values().map(|line| {
        let (concert, demand) = (line.queue.concert_id, demands.get(&line.queue.concert_id).unwrap_or(&nothing));
        let at_most = inside.at_most(concert, line.queue.admitted_total);
        (at_most, line.needs_count(demand, at_most, inside.count_is_due(concert, line.at)))
    });
    let (bounds, counted): (Vec<_>, Vec<_>) = bounds.unzip();
    let mut counts = count_tokens(connection, lines, demands, &counted).await?;
    for (counts, bound) in counts.iter_mut().zip(bounds) {
        counts.active = counts.active.or(bound);
    }
    let rows_max = demand::rows_max(lines.len());
    let wanted = Wanted::new(lines, demands, &counts, rows_max, joined);
    let mut found = lock_tokens(connection, &wanted).await?;
    let rest = counts.into_iter().zip(counted).zip(&wanted.front_max);
    for (line, ((counts, counted), front_max)) in lines.values_mut().zip(rest) {
        let (mut loaded, front_rows) = found.remove(&line.queue.concert_id).unwrap_or_default();
        loaded.front_complete = front_rows < *front_max;
        loaded.counts = counts;
        loaded.counted = counted;
        loaded.admissions_max = rows_max;
        line.begin(loaded);
    }
    count_gone_before(connection, lines, demands).await
}

/// Those of these tokens that the database has, and takes to be waiting although they were told to be admitted or, `at_last`, to be
/// live although they were told to be over; by concert and place.
///
/// # Errors
/// What the database says.
pub(crate) async fn stale(
    pool: &PgPool,
    fates: &HashMap<TokenId, Fate>,
    at_last: bool,
) -> Result<Vec<(TokenId, Fate)>, sqlx::Error> {
    let (concerts, seqs): (Vec<i64>, Vec<i64>) = fates.values().map(|fate| (fate.concert_id.0, fate.seq)).unzip();
    let rows = sqlx::query!(
        r#"SELECT t.token_id AS "token_id: TokenId", t.status AS "status: TokenStatus"
           FROM unnest($1::bigint[], $2::bigint[]) AS k (concert_id, seq)
           JOIN queue_tokens t ON t.concert_id = k.concert_id AND t.seq = k.seq
           WHERE t.ended_at IS NULL ORDER BY t.concert_id, t.seq"#,
        &concerts,
        &seqs
    )
    .fetch_all(pool)
    .await?;
    let known = rows.into_iter().filter_map(|row| Some((row.token_id, row.status, *fates.get(&row.token_id)?)));
    let is_stale = |status: TokenStatus, fate: &Fate| {
        at_last && fate.ended_at.is_some() || (fate.admitted.is_some() && status == TokenStatus::Waiting)
    };
    Ok(known.filter(|(_, status, fate)| is_stale(*status, fate)).map(|(id, _, fate)| (id, fate)).collect())
}

/// Counts, for each line in order.
async fn count_tokens(
    connection: &mut PgConnection,
    lines: &Lines,
    demands: &Demands,
    counted: &[bool],
) -> Result<Vec<Counts>, sqlx::Error> {
    let concerts: Vec<i64> = lines.keys().map(|concert| concert.0).collect();
    let ats: Vec<_> = lines.values().map(|line| line.at).collect();
    let admitted_seqs: Vec<_> = lines.values().map(|line| line.queue.admitted_seq).collect();
    let demand_of = |line: &Line| demands.get(&line.queue.concert_id);
    // A tick ends those whose time is over; so does a batch, before it admits others.
    let swept: Vec<_> = lines.values().map(|line| demand_of(line).is_none_or(|d| line.may_admit(d))).collect();
    let configured: Vec<_> = lines.values().map(|line| demand_of(line).is_some_and(|d| d.configured)).collect();
    sqlx::query_as!(
        Counts,
        r#"SELECT a.active, o.overdue AS "overdue!", g.gone AS "gone!", m.admitted AS "admitted_last_minute!"
           FROM unnest($1::bigint[], $2::timestamptz[], $3::bigint[], $4::boolean[], $5::boolean[], $6::boolean[])
                WITH ORDINALITY AS q (concert_id, at, admitted_seq, counted, swept, configured, place)
           CROSS JOIN LATERAL (
               SELECT CASE WHEN q.counted THEN (
                   SELECT count(*) FROM queue_tokens t WHERE t.concert_id = q.concert_id AND t.status = 'ACTIVE'
               ) END AS active) a
           CROSS JOIN LATERAL (
               SELECT count(*) AS overdue FROM queue_tokens t
               WHERE t.concert_id = q.concert_id AND t.status = 'ACTIVE' AND t.expires_at <= q.at AND q.swept) o
           CROSS JOIN LATERAL (
               SELECT count(*) AS gone
               FROM queue_tokens t WHERE t.concert_id = q.concert_id AND t.status = 'LEFT' AND t.seq > q.admitted_seq) g
           CROSS JOIN LATERAL (
               -- Admissions go by place, so those of the last minute are the places behind the last older one.
               SELECT CASE WHEN q.configured THEN (
                   SELECT count(t.admitted_at) FROM queue_tokens t
                   WHERE t.concert_id = q.concert_id AND t.seq <= q.admitted_seq AND t.seq > coalesce((
                       SELECT o.seq FROM queue_tokens o
                       WHERE o.concert_id = q.concert_id AND o.seq <= q.admitted_seq
                         AND o.admitted_at <= q.at - interval '60 seconds'
                       ORDER BY o.seq DESC LIMIT 1), 0)
               ) ELSE 0 END AS admitted) m
           ORDER BY q.place"#,
        &concerts,
        &ats,
        &admitted_seqs,
        counted,
        &swept,
        &configured
    )
    .fetch_all(connection)
    .await
}

/// The keys of the tokens to load, as columns.
#[derive(Debug, Default)]
struct Wanted {
    pair_concerts: Vec<i64>,
    pair_users: Vec<uuid::Uuid>,
    concerts: Vec<i64>,
    ats: Vec<DateTime<Utc>>,
    overdue_max: Vec<i64>,
    admitted_seqs: Vec<i64>,
    front_max: Vec<i64>,
}

impl Wanted {
    fn new(lines: &Lines, demands: &Demands, counts: &[Counts], rows_max: i64, joined: &Joined) -> Self {
        let (mut wanted, nothing) = (Self::default(), Demand::default());
        for (line, counts) in lines.values().zip(counts) {
            let concert = line.queue.concert_id;
            let demand = demands.get(&concert).unwrap_or(&nothing);
            let may_have_one = |user: &&UserId| joined.may_include(&line.queue, **user);
            for user in demand.joiners.iter().filter(may_have_one).chain(&demand.leavers) {
                wanted.pair_concerts.push(concert.0);
                wanted.pair_users.push(user.0);
            }
            wanted.concerts.push(concert.0);
            wanted.ats.push(line.at);
            wanted.overdue_max.push(counts.overdue.min(rows_max));
            wanted.admitted_seqs.push(line.queue.admitted_seq);
            wanted.front_max.push(line.front_max(demand, counts, rows_max));
        }
        wanted
    }
}

/// What was found of each queue: its tokens, and how many rows the front had before they were locked. The payment worker may
/// have ended a token since: such a one is left out, but nobody further behind stands in its place.
type Found = BTreeMap<ConcertId, (Loaded, i64)>;

async fn lock_tokens(connection: &mut PgConnection, wanted: &Wanted) -> Result<Found, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT t.concert_id AS "concert_id: ConcertId", t.seq, t.token_id AS "token_id: TokenId",
                  t.user_id AS "user_id: UserId", t.kid, t.status AS "status: TokenStatus", t.issued_at, t.admitted_at,
                  t.expires_at, t.ended_at, k.in_front AS "in_front!"
           FROM (
               SELECT keys.concert_id, keys.seq, bool_or(keys.in_front) AS in_front
               FROM (
                   SELECT p.concert_id, own.seq, false AS in_front
                   FROM unnest($1::bigint[], $2::uuid[]) AS p (concert_id, user_id)
                   CROSS JOIN LATERAL (
                       SELECT t.seq FROM queue_tokens t
                       WHERE t.user_id = p.user_id AND t.concert_id + 0 = p.concert_id AND t.ended_at IS NULL
                       LIMIT 1) own
                   UNION ALL
                   SELECT q.concert_id, overdue.seq, false
                   FROM unnest($3::bigint[], $4::timestamptz[], $5::bigint[]) AS q (concert_id, at, overdue_max)
                   CROSS JOIN LATERAL (
                       SELECT t.seq FROM queue_tokens t
                       WHERE t.concert_id = q.concert_id AND t.status = 'ACTIVE' AND t.expires_at <= q.at
                       ORDER BY t.expires_at LIMIT q.overdue_max) overdue
                   UNION ALL
                   SELECT q.concert_id, front.seq, true
                   FROM unnest($3::bigint[], $6::bigint[], $7::bigint[]) AS q (concert_id, admitted_seq, front_max)
                   CROSS JOIN LATERAL (
                       SELECT t.seq FROM queue_tokens t
                       WHERE t.concert_id = q.concert_id AND t.seq > q.admitted_seq AND t.status = 'WAITING'
                       ORDER BY t.seq LIMIT q.front_max) front
               ) keys
               GROUP BY keys.concert_id, keys.seq
               ORDER BY keys.concert_id, keys.seq
           ) k
           CROSS JOIN LATERAL (
               SELECT * FROM queue_tokens t WHERE t.concert_id = k.concert_id AND t.seq = k.seq FOR UPDATE) t"#,
        &wanted.pair_concerts,
        &wanted.pair_users,
        &wanted.concerts,
        &wanted.ats,
        &wanted.overdue_max,
        &wanted.admitted_seqs,
        &wanted.front_max
    )
    .fetch_all(connection)
    .await?;
    let mut found = Found::new();
    for row in rows {
        let (loaded, front_rows) = found.entry(row.concert_id).or_default();
        *front_rows += i64::from(row.in_front);
        if row.ended_at.is_some() {
            continue;
        }
        if row.in_front {
            loaded.front.push_back(loaded.tokens.len());
        }
        loaded.tokens.push(Token {
            seq: row.seq,
            token_id: row.token_id,
            user_id: row.user_id,
            kid: Some(row.kid),
            status: row.status,
            issued_at: row.issued_at,
            admitted_at: row.admitted_at,
            expires_at: row.expires_at,
            ended_at: None,
            gone_before: 0,
            change: Change::None,
        });
    }
    Ok(found)
}

/// Tells those who wait and ask again how many have left before them. Ranges between one such place and the next: each who
/// left is counted once, however many ask.
async fn count_gone_before(
    connection: &mut PgConnection,
    lines: &mut Lines,
    demands: &Demands,
) -> Result<(), sqlx::Error> {
    let (mut concerts, mut froms, mut tos) = (Vec::new(), Vec::new(), Vec::new());
    let mut asking = Vec::new();
    for (concert, demand) in demands {
        let Some(line) = lines.get(concert).filter(|line| line.has_gaps()) else { continue };
        let mut from = line.queue.admitted_seq;
        for index in line.waiting_of(&demand.joiners) {
            let seq = line.tokens[index].seq;
            concerts.push(concert.0);
            froms.push(from);
            tos.push(seq);
            asking.push((*concert, index));
            from = seq;
        }
    }
    if asking.is_empty() {
        return Ok(());
    }
    let gone = sqlx::query_scalar!(
        r#"SELECT g.gone AS "gone!"
           FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS r (concert_id, after, before, place)
           CROSS JOIN LATERAL (
               SELECT count(*) AS gone FROM queue_tokens t
               WHERE t.concert_id = r.concert_id AND t.status = 'LEFT' AND t.seq > r.after AND t.seq < r.before) g
           ORDER BY r.place"#,
        &concerts,
        &froms,
        &tos
    )
    .fetch_all(connection)
    .await?;
    let mut sum = (ConcertId(0), 0);
    for ((concert, index), gone) in asking.into_iter().zip(gone) {
        sum = if sum.0 == concert { (concert, sum.1 + gone) } else { (concert, gone) };
        if let Some(line) = lines.get_mut(&concert) {
            line.tokens[index].gone_before = sum.1;
        }
    }
    Ok(())
}

/// Queues, after `after`, at most `limit`, that a tick may have to look at: somebody's time is over, or somebody may wait
/// and there may be credit. It locks nothing and decides nothing; what it finds is looked at again under the lock.
///
/// # Errors
/// What the database says.
pub(crate) async fn candidates(pool: &PgPool, after: ConcertId, limit: i64) -> Result<Vec<Candidate>, sqlx::Error> {
    #[expect(clippy::cast_precision_loss, reason = "a small constant")]
    let admission = ADMISSION as f64;
    sqlx::query_as!(
        Candidate,
        r#"SELECT q.concert_id AS "concert_id: ConcertId", q.next_seq, q.admitted_total, q.max_active,
                  o.overdue IS NOT NULL AS "overdue!", now() AS "at!"
           FROM queues q
           LEFT JOIN LATERAL (
               SELECT true AS overdue FROM queue_tokens t
               WHERE t.concert_id = q.concert_id AND t.status = 'ACTIVE' AND t.expires_at <= now()
               LIMIT 1) o ON true
           WHERE q.concert_id > $1 AND (
               o.overdue IS NOT NULL
               OR (q.state IN ('OPEN', 'DRAINING') AND q.next_seq > q.admitted_seq + 1 AND q.max_active > 0
                   AND q.credit + q.rate_per_minute * 1e6::float8 * extract(epoch FROM now() - q.refilled_at) >= $2))
           ORDER BY q.concert_id LIMIT $3"#,
        after.0,
        admission,
        limit
    )
    .fetch_all(pool)
    .await
}

/// Notes how many are inside each of `concerts`.
///
/// # Errors
/// What the database says.
pub(crate) async fn count_inside(pool: &PgPool, concerts: &[i64], inside: &mut Inside) -> Result<(), sqlx::Error> {
    // One statement sees one moment: the count belongs to this total.
    let rows = sqlx::query!(
        r#"SELECT q.concert_id AS "concert_id: ConcertId", q.admitted_total, a.active AS "active!", now() AS "at!"
           FROM queues q
           CROSS JOIN LATERAL (
               SELECT count(*) AS active FROM queue_tokens t
               WHERE t.concert_id = q.concert_id AND t.status = 'ACTIVE') a
           WHERE q.concert_id = ANY($1)"#,
        concerts
    )
    .fetch_all(pool)
    .await?;
    for row in rows {
        inside.note(row.concert_id, row.active, row.admitted_total, Some(row.at));
    }
    Ok(())
}

/// The transaction's time.
///
/// # Errors
/// What the database says.
pub(crate) async fn now(connection: &mut PgConnection) -> Result<DateTime<Utc>, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(connection).await
}
