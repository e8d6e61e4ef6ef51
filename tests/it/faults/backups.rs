//! The database is replaced by an old backup: the log catches it up, and what was told stays.

use std::collections::BTreeMap;

use boxoffice_tests::log::{self, PAYMENTS, RESERVATIONS, Reader, Record, TOKENS, Writer, dead_letters};
use boxoffice_tests::processes::Processes;
use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, Buyer, PRICE, Show, Way, at, audit, database, eventually, met, shapes};
use rdkafka::message::{Header, OwnedHeaders};
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
    is_seen_again_but_for(pool, buyers, before, "").await;
}

async fn is_seen_again_but_for(pool: &PgPool, buyers: &[&Buyer], before: &BTreeMap<&str, Rows>, other: &str) {
    eventually("all that was told is there again", s(30), async || {
        let now = seen(pool, buyers).await;
        let wanted = before.iter().filter(|(table, _)| **table != other);
        let rows = wanted.flat_map(|(table, rows)| rows.iter().map(move |(key, row)| (*table, key, row)));
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

    /// Goes back to the copy; the buyers whom it does not know, as JSON.
    async fn restore(self, pool: &PgPool) -> Vec<Value> {
        let mut transaction = pool.begin().await.expect("Postgres answers");
        let lost = "SELECT to_jsonb(u) FROM users u WHERE user_id NOT IN (SELECT user_id FROM backup.users)";
        let lost = sqlx::query_scalar(lost).fetch_all(&mut *transaction).await.expect("buyers");
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
        lost
    }
}

/// What an operator does who finds the lost buyers elsewhere: brings them back, and redrives the dead letters.
async fn bring_back(pool: &PgPool, lost: &[Value], letters: &[Record]) {
    let sql = "INSERT INTO users SELECT * FROM jsonb_populate_recordset(NULL::users, $1)";
    sqlx::query(sql).bind(Value::from(lost)).execute(pool).await.expect("they are not there");
    let writer = Writer::new();
    for letter in letters {
        let number = |name| letter.header(name).and_then(|bytes| Some(i64::from_be_bytes(bytes.try_into().ok()?)));
        let first = number("kafka_dlt-original-timestamp").expect("a time").to_string();
        let headers = OwnedHeaders::new().insert(Header { key: "boxoffice-first-append-ms", value: Some(&first) });
        let topic = letter.header_text("kafka_dlt-original-topic").expect("a topic");
        writer.append_record(topic, letter.key.as_deref(), letter.value.as_deref(), headers).await;
    }
    for letter in letters {
        let id: uuid::Uuid = shapes::uuid(&letter.json()["request_id"]).parse().expect("a UUID");
        eventually("a dead letter that was redriven succeeds", s(20), async || {
            let sql = "SELECT status::text FROM requests WHERE request_id = $1";
            let status: Option<String> = sqlx::query_scalar(sql).bind(id).fetch_optional(pool).await.expect("Postgres");
            met(status.as_deref() == Some("SUCCEEDED"), (letter.json(), status))
        })
        .await;
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

/// Buyers in queues, of which most was told after the backup.
struct Queues {
    /// One may be inside: first the fickle one, then the patient one, who joined before the backup.
    narrow: Show,
    /// Paused right after the backup, with the right to admit more by now.
    paused: Show,
    /// Those who joined the paused one.
    crowd: Vec<Buyer>,
}

impl Queues {
    async fn new(api: &Api, cast: &Cast) -> Self {
        let narrow = Show::with(api, json!({"queue": {"max_active": 1}})).await;
        cast.fickle.enter(narrow.concert_id).await;
        cast.patient.join(narrow.concert_id, Way::Wait).await.ok(201);
        let paused = Show::with(api, json!({"queue": {"rate_per_minute": 60, "burst": 2}})).await;
        let mut crowd = Vec::new();
        for _ in 0..12 {
            let buyer = api.sign_up().await;
            buyer.join(paused.concert_id, Way::Wait).await.ok(201);
            crowd.push(buyer);
        }
        Self { narrow, paused, crowd }
    }

    async fn move_on(&self, api: &Api, cast: &Cast) {
        api.configure(self.paused.concert_id, json!({"state": "PAUSED"})).await;
        cast.fickle.leave(&self.narrow, Way::Wait).await.ok(200);
        cast.patient.admitted(self.narrow.concert_id).await;
        cast.slow.join(self.narrow.concert_id, Way::Wait).await.ok(201);
    }
}

/// A buyer whom the backup does not know gives back seats; so does, behind him in the same log, one whom it knows, and another one
/// takes those. So nobody may wait for more than for his own cause. What the newcomer was told cannot be made true again: the ids of
/// his requests.
async fn a_newcomer_comes_and_goes(api: &Api, pool: &PgPool, show: &Show, cast: &Cast) -> Vec<String> {
    let [.., eight, nine] = show.pick::<9>().await;
    let partition = async |buyer: &Buyer| -> (i32, Value) {
        let charged = buyer.charge(1, Way::Wait).await.ok(201);
        let id: uuid::Uuid = shapes::uuid(&charged["entry_id"]).parse().expect("a UUID");
        let sql = "SELECT partition FROM requests WHERE request_id = $1";
        (sqlx::query_scalar(sql).bind(id).fetch_one(pool).await.expect("a row"), charged)
    };
    let (wanted, _) = partition(&cast.unsure).await;
    let (newcomer, charged) = loop {
        let buyer = api.sign_up().await;
        let (found, charged) = partition(&buyer).await;
        if found == wanted {
            break (buyer, charged);
        }
    };
    newcomer.enter(show.concert_id).await;
    let held = newcomer.hold(show, &[eight], Way::Wait).await.ok(201);
    newcomer.cancel(&held, Way::Wait).await.ok(200);
    // Told to have failed, and the hold before it cannot be made again: neither may wait for the other.
    newcomer.buy(show, &[eight], Way::Wait).await.fails(402, "insufficient-balance");
    cast.unsure.enter(show.concert_id).await;
    let given_up = cast.unsure.hold(show, &[nine], Way::Wait).await.ok(201);
    cast.unsure.cancel(&given_up, Way::Wait).await.ok(200);
    cast.early.enter(show.concert_id).await;
    cast.early.hold(show, &[nine], Way::Wait).await.ok(201);
    [&charged["entry_id"], &held["reservation_id"]].map(|id| shapes::uuid(id)).into()
}

#[tokio::test]
async fn b_10_an_old_backup_is_caught_up_and_what_was_told_stays() {
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new(), database::pool().await);
    let show = Show::new(&api).await;
    let brief = Show::with(&api, json!({"hold_seconds": 5})).await;
    let cast = Cast::new(&show).await;
    let afterwards = Show::new(&api).await;
    let (tardy, hasty) = (afterwards.buyer(PRICE).await, afterwards.buyer(PRICE).await);
    cast.slow.enter(brief.concert_id).await;
    let [one] = show.pick().await;
    let early = cast.early.hold(&show, &[one], Way::Wait).await.ok(201);
    let queues = Queues::new(&api, &cast).await;

    let backup = Backup::take(&pool).await;
    let applied_then = database::applied(&pool).await;
    queues.move_on(&api, &cast).await;
    seats_change_hands(&show, &brief, &cast, &early).await;
    let newcomers = a_newcomer_comes_and_goes(&api, &pool, &show, &cast).await;
    cast.early.charge(7, Way::Poll).await.ok(201);
    log::caught_up(s(30)).await;
    audit::audit_at_rest(&pool).await;
    let buyers: Vec<&Buyer> = cast.all().into_iter().chain(&queues.crowd).collect();
    let before = seen(&pool, &buyers).await;
    assert!(before["requests"].len() > 40, "{}", before["requests"].len());
    let mut dead =
        Reader::at_the_end_of(&[TOKENS, RESERVATIONS, PAYMENTS].map(dead_letters).each_ref().map(String::as_str));

    // Accepted, and told to nobody: payments of holds that were told.
    let [one, two] = afterwards.pick().await;
    let held = tardy.hold(&afterwards, &[one], Way::Wait).await.ok(201);
    processes.end("payment-worker", "KILL").await;
    let paying = tardy.paying(&afterwards, &held).send().await.accepted();
    let buying = json!({"schedule_id": afterwards.schedule_id, "seat_ids": [two], "pay": true});
    let buying = hasty.inside(&afterwards, "POST", "/v1/reservations").json(&buying).send().await.accepted();

    for name in ["token-worker", "reservation-worker", "api"] {
        processes.end(name, "TERM").await;
    }
    let lost = backup.restore(&pool).await;
    assert_eq!(database::applied(&pool).await, applied_then, "the old state is back");
    processes.up(1).await;
    workers_are_ready(&api).await;

    is_seen_again(&pool, &buyers, &before).await;
    log::caught_up(s(60)).await;
    is_seen_again(&pool, &buyers, &before).await;
    for (buyer, request) in [(&tardy, paying), (&hasty, buying)] {
        let done = buyer.call("GET", "/").finish_within(&format!("/v1/requests/{request}"), s(20)).await;
        assert_eq!(done["status"], "SUCCEEDED", "{done}");
    }
    let letters = dead.rest().await;
    for id in newcomers {
        let letter = letters.iter().find(|letter| letter.json()["request_id"] == id);
        let letter = letter.unwrap_or_else(|| panic!("{id} is not among {} dead letters", letters.len()));
        assert_eq!(letter.header_text("kafka_dlt-exception-fqcn"), Some("boxoffice.Unrepeatable"));
    }
    audit::audit_at_rest(&pool).await;
    // Whoever was told something still can act on it.
    let mine = cast.heir.call("GET", "/v1/reservations").send().await.is(200);
    assert_eq!(shapes::list(&mine["reservations"]).len(), 2, "{mine}");
    shapes::token(&cast.patient.poll(queues.narrow.concert_id).await.is(200), "ACTIVE");
    bring_back(&pool, &lost, &letters).await;
    audit::audit_at_rest(&pool).await;
    the_log_moves(&api).await;
}

async fn the_holds_are_replayed(processes: &Processes, api: &Api) {
    processes.end("reservation-worker", "TERM").await;
    let group = "boxoffice-reservations";
    let reset = ["--reset-offsets", "--to-earliest", "--execute", "--group", group, "--topic", RESERVATIONS];
    processes.kafka("kafka-consumer-groups", &reset).await;
    processes.up(1).await;
    workers_are_ready(api).await;
    log::caught_up(s(60)).await;
}

/// The workers only see that their connections break, and go on with what is there then.
#[tokio::test]
async fn b_10_the_database_may_be_restored_while_the_workers_run() {
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new(), database::pool().await);
    let show = Show::new(&api).await;
    let brief = Show::with(&api, json!({"hold_seconds": 5})).await;
    let elsewhere = Show::new(&api).await;
    let cast = Cast::new(&show).await;
    cast.slow.enter(brief.concert_id).await;
    // Whoever looks at the seats is there before the backup.
    let ([one], [_], [any]) = (show.pick().await, brief.pick().await, elsewhere.pick().await);
    let early = cast.early.hold(&show, &[one], Way::Wait).await.ok(201);
    let backup = Backup::take(&pool).await;
    seats_change_hands(&show, &brief, &cast, &early).await;
    // The worker has seen this one, and must not believe that it still knows him.
    let newcomer = elsewhere.buyer(PRICE).await;
    let held = newcomer.hold(&elsewhere, &[any], Way::Wait).await.ok(201);
    log::caught_up(s(30)).await;
    let mut dead =
        Reader::at_the_end_of(&[TOKENS, RESERVATIONS, PAYMENTS].map(dead_letters).each_ref().map(String::as_str));
    let before = seen(&pool, &cast.all()).await;
    let lost = backup.restore(&pool).await;
    assert_eq!(lost.len(), 1, "it knows all buyers but the newcomer");
    assert_ne!(seen(&pool, &cast.all()).await, before, "the old state is back");
    // Whoever comes first makes them look.
    cast.early.charge(7, Way::Poll).await.ok(201);
    let now = cast.early.balance().await;
    is_seen_again_but_for(&pool, &cast.all(), &before, "accounts").await;
    log::caught_up(s(30)).await;
    let letters = dead.rest().await;
    let is_the_hold = |letter: &&Record| letter.json()["request_id"] == held["reservation_id"];
    let letter = letters.iter().find(is_the_hold).expect("the newcomer's hold is a dead letter");
    assert_eq!(letter.header_text("kafka_dlt-exception-fqcn"), Some("boxoffice.Unrepeatable"));
    the_holds_are_replayed(&processes, &api).await;
    assert!(dead.rest().await.iter().any(|letter| is_the_hold(&letter)), "and is one again");
    let id: uuid::Uuid = shapes::uuid(&held["reservation_id"]).parse().expect("a UUID");
    let sql = "SELECT status::text FROM requests WHERE request_id = $1";
    let failed: Option<String> = sqlx::query_scalar(sql).bind(id).fetch_optional(&pool).await.expect("Postgres");
    assert_eq!(failed, None, "what was told to have succeeded has not failed since");
    let entries: i64 = cast.early.entries().await.iter().map(|entry| shapes::int(&entry["amount"])).sum();
    assert_eq!(now, entries, "the charge came on top of all that was told");
    audit::audit_at_rest(&pool).await;
    bring_back(&pool, &lost, &letters).await;
    audit::audit_at_rest(&pool).await;
}

/// The search for overdue holds goes on from where it was, and this one comes behind it.
#[tokio::test]
async fn b_10_a_hold_that_is_made_again_after_its_end_is_ended() {
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new(), database::pool().await);
    let show = Show::with(&api, json!({"hold_seconds": 5})).await;
    let (tardy, next) = (show.buyer(0).await, show.buyer(PRICE).await);
    let [one] = show.pick().await;
    let backup = Backup::take(&pool).await;
    let held = tardy.hold(&show, &[one], Way::Wait).await.ok(201);
    processes.end("reservation-worker", "KILL").await;
    at(shapes::time(&held["hold_expires_at"])).await;
    backup.restore(&pool).await;
    sqlx::query("UPDATE overdue_search SET all_ended_before = now()").execute(&pool).await.expect("Postgres answers");
    processes.up(1).await;
    workers_are_ready(&api).await;
    log::caught_up(s(60)).await;
    tardy.becomes(&held, "EXPIRED", s(20)).await;
    next.buy(&show, &[one], Way::Wait).await.ok(201);
    log::caught_up(s(30)).await;
    audit::audit_at_rest(&pool).await;
}
