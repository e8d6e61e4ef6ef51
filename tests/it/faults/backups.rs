//! The database is replaced by an old backup: the log catches it up, and what was told stays.

use std::collections::BTreeMap;

use boxoffice_tests::log::{self, PAYMENTS, Reader, dead_letters};
use boxoffice_tests::processes::Processes;
use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, Buyer, PRICE, Show, Way, audit, database, eventually, met, shapes};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use super::{the_log_moves, workers_are_ready};

/// What has to come back as it was, of all that is told or seen: rows by key. Times that nobody was told may be new ones.
const SEEN: &[(&str, &str)] = &[
    ("requests", "SELECT request_id::text, r::text FROM requests r WHERE user_id = ANY($1)"),
    // Until when a hold ran that its failed payment released, was never told.
    (
        "reservations",
        "SELECT reservation_id::text, CASE WHEN q.status = 'FAILED' THEN (to_jsonb(r) - 'held_at' - 'hold_expires_at')::text
                                      ELSE r::text END
         FROM reservations r LEFT JOIN requests q ON q.request_id = r.reservation_id WHERE r.user_id = ANY($1)",
    ),
    ("accounts", "SELECT user_id::text, a::text FROM accounts a WHERE user_id = ANY($1)"),
    (
        "ledger_entries",
        "SELECT entry_id::text, (to_jsonb(l) - 'at')::text FROM ledger_entries l WHERE user_id = ANY($1)",
    ),
    (
        "payments",
        "SELECT payment_id::text, (to_jsonb(p) - 'paid_at' - 'refunded_at')::text FROM payments p WHERE user_id = ANY($1)",
    ),
    (
        "queue_tokens",
        "SELECT token_id::text, concat_ws(' ', concert_id, seq, user_id, kid, status, issued_at, expires_at)
         FROM queue_tokens WHERE user_id = ANY($1)",
    ),
    (
        "seats",
        "SELECT seat_id::text, s::text FROM seats s
         WHERE schedule_id IN (SELECT schedule_id FROM reservations WHERE user_id = ANY($1))",
    ),
];

type Rows = BTreeMap<String, String>;

async fn seen(pool: &PgPool, buyers: &[&Buyer]) -> BTreeMap<&'static str, Rows> {
    let users: Vec<uuid::Uuid> = buyers.iter().map(|buyer| buyer.user_id.parse().expect("a UUID")).collect();
    let mut seen = BTreeMap::new();
    for (table, sql) in SEEN {
        let rows: Vec<(String, String)> = sqlx::query_as(*sql).bind(&users).fetch_all(pool).await.expect("rows");
        seen.insert(*table, rows.into_iter().collect());
    }
    seen
}

/// Waits until what is seen is what was seen; rows that came later do not matter.
async fn is_seen_again(pool: &PgPool, buyers: &[&Buyer], before: &BTreeMap<&str, Rows>) {
    eventually("all that was told is there again", s(30), async || {
        let now = seen(pool, buyers).await;
        let rows = before.iter().flat_map(|(table, rows)| rows.iter().map(move |(key, row)| (*table, key, row)));
        let differences: Vec<String> = rows
            .filter(|(table, key, row)| now[table].get(*key) != Some(row))
            .map(|(table, key, row)| format!("{table}\n  {row}\n  {:?}", now[table].get(key)))
            .collect();
        met(differences.is_empty(), differences.join("\n"))
    })
    .await;
}

/// A copy of all tables, in one snapshot.
struct Backup {
    tables: Vec<(String, String)>,
}

impl Backup {
    async fn take(pool: &PgPool) -> Self {
        let mut snapshot = pool.begin().await.expect("Postgres answers");
        for sql in [
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "DROP SCHEMA IF EXISTS backup CASCADE",
            "CREATE SCHEMA backup",
        ] {
            sqlx::query(sql).execute(&mut *snapshot).await.expect(sql);
        }
        // Generated columns are generated again; concerts and schedules stay, as everything but `users` that operators make.
        let tables: Vec<(String, String)> = sqlx::query_as(
            "SELECT table_name::text, string_agg(format('%I', column_name), ', ' ORDER BY ordinal_position)
             FROM information_schema.columns
             WHERE table_schema = 'public' AND is_generated = 'NEVER'
                   AND table_name NOT IN ('_sqlx_migrations', 'concerts', 'schedules')
             GROUP BY 1",
        )
        .fetch_all(&mut *snapshot)
        .await
        .expect("tables");
        for (table, columns) in &tables {
            let sql = format!("CREATE TABLE backup.{table} AS SELECT {columns} FROM public.{table}");
            sqlx::query(AssertSqlSafe(sql)).execute(&mut *snapshot).await.expect("a copy");
        }
        snapshot.commit().await.expect("a copy");
        Self { tables }
    }

    async fn restore(self, pool: &PgPool) {
        let mut transaction = pool.begin().await.expect("Postgres answers");
        for (table, columns) in &self.tables {
            for sql in [
                format!("TRUNCATE public.{table} CASCADE"),
                format!("INSERT INTO public.{table} ({columns}) SELECT {columns} FROM backup.{table}"),
            ] {
                sqlx::query(AssertSqlSafe(sql)).execute(&mut *transaction).await.expect("the backup fits");
            }
        }
        sqlx::query("DROP SCHEMA backup CASCADE").execute(&mut *transaction).await.expect("it is there");
        transaction.commit().await.expect("the backup fits");
    }
}

/// The buyers of the story, all signed up before the backup, each with the money for two seats.
struct Cast {
    /// Holds before the backup and pays after it.
    early: Buyer,
    /// Pays at once, then gives it back.
    fickle: Buyer,
    /// Cannot pay.
    poor: Buyer,
    /// Takes what others gave up.
    heir: Buyer,
    /// Cancels.
    unsure: Buyer,
    /// Lets holds run out.
    slow: Buyer,
    /// Waits in a narrow queue, and gets in.
    patient: Buyer,
}

impl Cast {
    async fn new(show: &Show) -> Self {
        let buyer = async || show.buyer(2 * PRICE).await;
        Self {
            early: buyer().await,
            fickle: buyer().await,
            poor: show.buyer(PRICE - 1).await,
            heir: buyer().await,
            unsure: buyer().await,
            slow: buyer().await,
            patient: buyer().await,
        }
    }

    fn all(&self) -> [&Buyer; 7] {
        [&self.early, &self.fickle, &self.poor, &self.heir, &self.unsure, &self.slow, &self.patient]
    }
}

/// Seats change hands over both topics, so that no word can apply its log without the other.
async fn seats_change_hands(show: &Show, brief: &Show, cast: &Cast, early: &Value) {
    let [one, two, three, four, ..] = show.pick::<5>().await;
    cast.early.pay(show, early, Way::Wait).await.ok(201);
    // Sold and given back, then held by one who cannot pay, then bought by the heir.
    let payment = cast.fickle.buy(show, &[two], Way::Wait).await.ok(201);
    cast.fickle.refund(&payment, Way::Wait).await.ok(201);
    cast.poor.buy(show, &[two], Way::Wait).await.fails(402, "insufficient-balance");
    cast.heir.buy(show, &[two], Way::Wait).await.ok(201);
    cast.unsure.hold(show, &[one], Way::Wait).await.fails(409, "seat-unavailable");
    // Given back, and held again by the same and by another one.
    for buyer in [&cast.unsure, &cast.poor, &cast.unsure] {
        let held = buyer.hold(show, &[three, four], Way::Wait).await.ok(201);
        buyer.cancel(&held, Way::Wait).await.ok(200);
    }
    let held = cast.unsure.hold(show, &[three], Way::Wait).await.ok(201);
    cast.slow.hold(show, &[three, four], Way::Wait).await.fails(409, "seat-unavailable");
    cast.unsure.pay(show, &held, Way::Wait).await.ok(201);
    // The best seats depend on all that went before.
    let best = json!({"schedule_id": show.schedule_id, "best_available": {"count": 2}});
    cast.slow.reserve(show, best, Way::Wait).await.ok(201);
    // Ran out, and paid too late; the heir has the seats now.
    let [five, six] = brief.pick().await;
    let late = cast.slow.hold(brief, &[five, six], Way::Wait).await.ok(201);
    cast.slow.becomes(&late, "EXPIRED", s(10)).await;
    cast.slow.pay(brief, &late, Way::Wait).await.fails(409, "reservation-expired");
    cast.heir.enter(brief.concert_id).await;
    cast.heir.buy(brief, &[six], Way::Wait).await.ok(201);
}

#[tokio::test]
async fn b_10_an_old_backup_is_caught_up_and_what_was_told_stays() {
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new(), database::pool().await);
    let show = Show::new(&api).await;
    let brief = Show::with(&api, json!({"hold_seconds": 5})).await;
    let narrow = Show::with(&api, json!({"queue": {"max_active": 1}})).await;
    let cast = Cast::new(&show).await;
    cast.slow.enter(brief.concert_id).await;
    cast.fickle.enter(narrow.concert_id).await;
    let [one] = show.pick().await;
    let early = cast.early.hold(&show, &[one], Way::Wait).await.ok(201);

    let backup = Backup::take(&pool).await;
    let applied_then = database::applied(&pool).await;
    seats_change_hands(&show, &brief, &cast, &early).await;
    cast.patient.join(narrow.concert_id, Way::Wait).await.ok(201);
    cast.fickle.leave(&narrow, Way::Wait).await.ok(200);
    cast.patient.admitted(narrow.concert_id).await;
    let newcomer = show.buyer(0).await;
    let lost = newcomer.charge(1, Way::Wait).await.ok(201);
    cast.unsure.enter(show.concert_id).await;
    cast.early.charge(7, Way::Poll).await.ok(201);
    log::caught_up(s(30)).await;
    audit::audit_at_rest(&pool).await;
    let before = seen(&pool, &cast.all()).await;
    assert!(before["requests"].len() > 30, "{}", before["requests"].len());
    let mut dead = Reader::at_the_end_of(&[&dead_letters(PAYMENTS)]);

    for name in ["token-worker", "reservation-worker", "payment-worker", "api"] {
        processes.end(name, "TERM").await;
    }
    backup.restore(&pool).await;
    assert_eq!(database::applied(&pool).await, applied_then, "the old state is back");
    processes.up(1).await;
    workers_are_ready(&api).await;

    is_seen_again(&pool, &cast.all(), &before).await;
    log::caught_up(s(60)).await;
    is_seen_again(&pool, &cast.all(), &before).await;
    // The backup does not know the newcomer, so what he was told cannot be made true again.
    let letter =
        dead.find("the newcomer's charge", s(10), |record| record.json()["request_id"] == lost["entry_id"]).await;
    assert_eq!(letter.header_text("kafka_dlt-exception-fqcn"), Some("boxoffice.Unrepeatable"));
    audit::audit_at_rest(&pool).await;
    // Whoever was told something still can act on it.
    let mine = cast.heir.call("GET", "/v1/reservations").send().await.is(200);
    assert_eq!(shapes::list(&mine["reservations"]).len(), 2, "{mine}");
    shapes::token(&cast.patient.poll(narrow.concert_id).await.is(200), "ACTIVE");
    cast.fickle.join(narrow.concert_id, Way::Wait).await.ok(201);
    the_log_moves(&api).await;
}
