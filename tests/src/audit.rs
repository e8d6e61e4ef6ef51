//! What must be true of the tables at any time, whatever happened: each rule is a query for what breaks it.

use sqlx::{PgConnection, PgPool, Row};

use crate::log::Offsets;

/// A rule, and the query for what breaks it: one line of text a row.
const RULES: &[(&str, &str)] = &[
    (
        "a seat that is HELD or SOLD belongs to a live reservation that has it, and no other has one",
        "SELECT format('seat %s %s of %s (%s)', s.seat_id, s.status, s.reservation_id, r.status)
         FROM seats s LEFT JOIN reservations r USING (reservation_id)
         WHERE CASE s.status WHEN 'AVAILABLE' THEN s.reservation_id IS NOT NULL
                             WHEN 'HELD' THEN r.status IS DISTINCT FROM 'HELD' OR NOT s.seat_id = ANY (r.seat_ids)
                             WHEN 'SOLD' THEN r.status IS DISTINCT FROM 'PAID' OR NOT s.seat_id = ANY (r.seat_ids) END",
    ),
    (
        "all seats of a live reservation are its own",
        "SELECT format('reservation %s (%s) has not seat %s', r.reservation_id, r.status, seat_id)
         FROM reservations r CROSS JOIN unnest(r.seat_ids) AS seat_id LEFT JOIN seats s USING (seat_id)
         WHERE r.status IN ('HELD', 'PAID') AND s.reservation_id IS DISTINCT FROM r.reservation_id",
    ),
    (
        "no seat is in two live reservations",
        "SELECT format('seat %s is in %s', seat_id, array_agg(reservation_id))
         FROM reservations CROSS JOIN unnest(seat_ids) AS seat_id
         WHERE status IN ('HELD', 'PAID') GROUP BY seat_id HAVING count(*) > 1",
    ),
    (
        "nobody has more live seats in a schedule than the concert allows",
        "SELECT format('user %s has %s seats in schedule %s', user_id, sum(cardinality(seat_ids)), schedule_id)
         FROM reservations JOIN concerts c USING (concert_id) WHERE status IN ('HELD', 'PAID')
         GROUP BY user_id, schedule_id, c.max_seats_per_buyer HAVING sum(cardinality(seat_ids)) > c.max_seats_per_buyer",
    ),
    (
        "no hold stands that ended before the search for overdue ones begins",
        "SELECT format('reservation %s', reservation_id) FROM reservations CROSS JOIN overdue_search
         WHERE status = 'HELD' AND hold_expires_at < all_ended_before",
    ),
    (
        "a balance is the sum of its entries, which are counted",
        "SELECT format('user %s has %s, entries make %s', user_id, a.balance, e.total)
         FROM accounts a FULL JOIN (SELECT user_id, sum(amount) AS total, count(*) AS entries FROM ledger_entries GROUP BY 1) e
              USING (user_id)
         WHERE (a.balance, a.entries) IS DISTINCT FROM (e.total::bigint, e.entries)",
    ),
    (
        "entries are numbered densely, each balance follows from the one before, none is negative",
        "SELECT format('entry %s of user %s', entry_no, user_id)
         FROM (SELECT *, row_number() OVER w AS place, sum(amount) OVER w AS total FROM ledger_entries
               WINDOW w AS (PARTITION BY user_id ORDER BY entry_no)) e
         WHERE entry_no <> place OR balance_after <> total OR balance_after < 0",
    ),
    (
        "no request moved money twice",
        "SELECT format('entry %s: %s times', entry_id, count(*)) FROM ledger_entries GROUP BY entry_id HAVING count(*) > 1",
    ),
    (
        "a paid reservation has one payment of its total, a refunded one a refunded payment, any other none",
        "SELECT format('reservation %s (%s) has payment %s (%s)', r.reservation_id, r.status, p.payment_id, p.status)
         FROM reservations r FULL JOIN payments p USING (reservation_id)
         WHERE CASE r.status WHEN 'PAID' THEN p.status IS DISTINCT FROM 'SUCCEEDED'
                             WHEN 'REFUNDED' THEN p.status IS DISTINCT FROM 'REFUNDED'
                             ELSE p.payment_id IS NOT NULL END
            OR r.payment_id IS DISTINCT FROM p.payment_id
            OR p.payment_id IS NOT NULL AND (p.amount, p.user_id) IS DISTINCT FROM (r.total, r.user_id)
         UNION ALL
         SELECT format('reservation %s has %s payments', reservation_id, count(*)) FROM payments
         GROUP BY reservation_id HAVING count(*) > 1",
    ),
    (
        "each payment was debited once, each refund credited once, and nothing else was",
        "SELECT format('reservation %s: %s, entries %s', reservation_id, p.status, e.amounts)
         FROM (SELECT * FROM payments WHERE amount > 0) p
         FULL JOIN (SELECT reservation_id, array_agg(amount ORDER BY entry_no) AS amounts FROM ledger_entries
                    WHERE kind <> 'CHARGE' GROUP BY 1) e USING (reservation_id)
         WHERE e.amounts IS DISTINCT FROM CASE p.status WHEN 'SUCCEEDED' THEN ARRAY[-p.amount]
                                                        WHEN 'REFUNDED' THEN ARRAY[-p.amount, p.amount] END",
    ),
    (
        "each charge, payment and refund of the ledger is a request that succeeded",
        "SELECT format('entry %s (%s) has no such request', e.entry_id, e.kind)
         FROM ledger_entries e LEFT JOIN requests q ON q.request_id = e.entry_id AND q.status = 'SUCCEEDED' AND q.user_id = e.user_id
         WHERE q.request_id IS NULL",
    ),
    (
        "each charge that succeeded is in the ledger",
        "SELECT format('charge %s is not in the ledger', q.request_id)
         FROM requests q LEFT JOIN ledger_entries e ON e.entry_id = q.request_id
         WHERE q.kind = 'balance.charge' AND q.status = 'SUCCEEDED' AND e.entry_id IS NULL",
    ),
    (
        "places in a queue are dense, and all who joined are there",
        "SELECT format('concert %s: next %s, tokens %s, last %s', concert_id, q.next_seq, count(t.seq), max(t.seq))
         FROM queues q LEFT JOIN queue_tokens t USING (concert_id) GROUP BY concert_id, q.next_seq
         HAVING q.next_seq - 1 <> count(t.seq) OR q.next_seq - 1 <> coalesce(max(t.seq), 0)",
    ),
    (
        "who was admitted is behind the mark, who waits is in front of it, and the admitted are counted",
        "SELECT format('concert %s, seq %s (%s), admitted up to %s', t.concert_id, t.seq, t.status, q.admitted_seq)
         FROM queue_tokens t JOIN queues q USING (concert_id)
         WHERE t.status = 'WAITING' AND t.seq <= q.admitted_seq OR t.admitted_at IS NOT NULL AND t.seq > q.admitted_seq
         UNION ALL
         SELECT format('concert %s: admitted %s, counted %s', concert_id, count(t.admitted_at), q.admitted_total)
         FROM queues q LEFT JOIN queue_tokens t USING (concert_id) GROUP BY concert_id, q.admitted_total
         HAVING count(t.admitted_at) <> q.admitted_total",
    ),
    (
        "a token has ended exactly if its status says so",
        "SELECT format('token %s (%s) ended at %s', token_id, status, ended_at) FROM queue_tokens
         WHERE (status IN ('WAITING', 'ACTIVE')) <> (ended_at IS NULL)
            OR (status = 'ACTIVE') > (admitted_at IS NOT NULL AND expires_at IS NOT NULL)",
    ),
];

/// Once nothing is under way: each reservation and each token was made by a request that has its outcome.
const RULES_AT_REST: &[(&str, &str)] = &[
    (
        // Of one that was undone because another request had its id, that one's.
        "each reservation has the outcome of its request",
        "SELECT format('reservation %s (%s) has no outcome', r.reservation_id, r.status)
         FROM reservations r LEFT JOIN requests q
              ON q.request_id = r.reservation_id AND (q.kind = 'reservation.hold' OR r.status = 'CANCELLED')
         WHERE q.request_id IS NULL",
    ),
    (
        "each hold that succeeded has its reservation, each payment that succeeded its payment",
        "SELECT format('%s %s', q.kind, q.request_id) FROM requests q
         LEFT JOIN reservations r ON r.reservation_id = q.request_id LEFT JOIN payments p ON p.payment_id = q.request_id
         WHERE q.status = 'SUCCEEDED' AND (q.kind = 'reservation.hold' AND r.reservation_id IS NULL
                                           OR q.kind = 'payment.pay' AND p.payment_id IS NULL)",
    ),
    (
        // Of a buyer whom a restored backup does not know only the place is left.
        "each token was issued by a request",
        "SELECT format('token %s', t.token_id) FROM queue_tokens t JOIN users u ON u.user_id = t.user_id
         LEFT JOIN requests q ON q.request_id = t.token_id AND q.kind = 'token.issue' AND q.status = 'SUCCEEDED'
         WHERE q.request_id IS NULL",
    ),
];

/// Proves the rules that hold at any moment, in one snapshot.
///
/// # Panics
/// One is broken; the message says which, and by what.
pub async fn audit(pool: &PgPool) {
    prove(pool, false).await;
}

/// Proves all rules, once nothing is under way any more.
///
/// # Panics
/// One is broken; the message says which, and by what.
pub async fn audit_at_rest(pool: &PgPool) {
    prove(pool, true).await;
}

/// Proves that each record of the command topics from `first` to before `next` has an outcome of its own. Once all is applied, and if no
/// record was a repeat, nor a dead letter, nor went on in another topic.
///
/// # Panics
/// One has none; the message says in which partitions.
pub async fn audit_log(pool: &PgPool, first: &Offsets, next: &Offsets) {
    let mut connection = pool.acquire().await.expect("Postgres answers");
    let lost = without_outcome(&mut connection, first, next).await;
    assert!(lost.is_empty(), "{}", lost.join("\n"));
}

/// What a connection sees of partitions that have another number of outcomes than of records: a line each.
pub async fn without_outcome(connection: &mut PgConnection, first: &Offsets, next: &Offsets) -> Vec<String> {
    let topics: Vec<&str> = next.keys().map(|(topic, _)| topic.as_str()).collect();
    let partitions: Vec<i32> = next.keys().map(|(_, partition)| *partition).collect();
    let firsts: Vec<i64> = next.keys().map(|partition| first[partition]).collect();
    let nexts: Vec<i64> = next.values().copied().collect();
    sqlx::query_scalar(
        r#"SELECT format('%s-%s: %s records from %s on have %s outcomes', t.topic, t.partition, t.next - t.first, t.first, count(r.*))
           FROM UNNEST($1::text[], $2::integer[], $3::bigint[], $4::bigint[]) AS t (topic, partition, first, next)
           LEFT JOIN requests r ON r.topic = t.topic AND r.partition = t.partition AND r."offset" >= t.first AND r."offset" < t.next
           GROUP BY t.topic, t.partition, t.first, t.next HAVING count(DISTINCT r."offset") <> t.next - t.first"#,
    )
    .bind(topics)
    .bind(partitions)
    .bind(firsts)
    .bind(nexts)
    .fetch_all(connection)
    .await
    .expect("Postgres answers")
}

async fn prove(pool: &PgPool, at_rest: bool) {
    let mut snapshot = pool.begin().await.expect("Postgres answers");
    let begin = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";
    sqlx::query(begin).execute(&mut *snapshot).await.expect("Postgres answers");
    let broken = broken(&mut snapshot, at_rest).await;
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// What a connection sees of broken rules: a line each, with the rule in words and what breaks it.
pub async fn broken(connection: &mut PgConnection, at_rest: bool) -> Vec<String> {
    let mut broken = Vec::new();
    for (rule, query) in RULES.iter().chain(if at_rest { RULES_AT_REST } else { &[] }) {
        let rows = sqlx::query(*query).fetch_all(&mut *connection).await;
        let rows = rows.unwrap_or_else(|error| panic!("the rule that {rule}: {error}"));
        if !rows.is_empty() {
            let shown: Vec<String> = rows.iter().take(5).map(|row| row.get::<String, _>(0)).collect();
            broken.push(format!("not true that {rule} ({} times): {}", rows.len(), shown.join("; ")));
        }
    }
    broken
}
