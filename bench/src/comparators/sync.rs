//! The synchronous service: axum and sqlx, one transaction for each request, row locks, no log. Same tables, tokens, checks and
//! durability as Boxoffice, and the same answers in the cases that a benchmark meets.
//!
//! It is written as its own advocate would write it:
//! - Every call is one transaction of few round trips: a hold is `BEGIN` with the buyer's lock, one statement that reads all that the
//!   rules ask for, one that writes all there is to write, `COMMIT`; a poll and a charge are one statement. All are prepared, planned
//!   once for each connection, and never scan a table.
//! - Who names a seat that others were refused is told so without a transaction and its lock, if it is still gone: two round trips.
//!   Rows are locked in the order of their ids, as late as possible.
//! - What never changes (layouts, prices) is kept in memory, and so are a list of free seats, from which best available is chosen, and
//!   a bound of how many are inside a queue; rows decide whether they were right. What the contract allows to be a second old is kept
//!   so long. Whether a queue token is ACTIVE is read from its row every time.
//! - What the rows' locks roll back (deadlocks, lost races) is tried again.
//!
//! It leaves out what a benchmark does not ask for: rate limits, `pay: true`, seats by label, refunds, cancelling, streams, operators'
//! calls, `request_hash`.

mod best;
mod brief;
mod call;
mod clockwork;
mod guard;
mod holds;
mod money;
mod outcomes;
mod queue;
mod reads;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use common::catalogue::{Schedule, read_schedules};
use common::config::{DatabaseConfig, Secret};
use common::ids::{ConcertId, ScheduleId};
use common::keys::{AccessTokens, KeyRing, QueueTokens};
use common::problems::{Problem, Slug};
use common::request_id::RequestIds;
use common::{database, lifecycle, listener};
use futures::future::try_join_all;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, PgPool, Postgres, SqlSafeStr as _, Transaction};

/// The statements of a hold, which [`super::pgbench`] measures alone.
pub(super) use self::holds::{READ as HOLD_READ, TAKE as HOLD_TAKE};

use self::best::BestSeats;
use self::brief::Brief;
use self::call::Failure;
use self::holds::Gone;
use self::queue::Inside;

/// What `pg_stat_activity` calls its sessions.
pub(crate) const SESSIONS: &str = "bench-sync";

/// What buyers ask for the most.
const STATEMENTS: [&str; 9] = [
    holds::READ,
    holds::TAKE,
    outcomes::INSERT,
    money::LOCK,
    money::PAY,
    money::CHARGE,
    queue::LOCK,
    queue::JOIN,
    guard::STANDING,
];
/// Schedules that are remembered before it starts afresh.
const SCHEDULES_MAX: usize = 10_000;

/// Settings of the synchronous service.
#[derive(Debug, Clone, clap::Args)]
pub struct SyncSettings {
    /// Where it is served.
    #[arg(long, env = "SYNC_LISTEN", default_value = "127.0.0.1:8081")]
    pub sync_listen: SocketAddr,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseConfig,
    /// Connections to Postgres, which is how many requests are worked on at the same time.
    #[arg(long, env = "SYNC_POOL_CONNECTIONS", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub sync_pool_connections: u32,
    /// Keys of access tokens, `kid:secret[,kid:secret…]`.
    #[arg(long, env = "ACCESS_TOKEN_KEYS", hide_env_values = true)]
    pub access_token_keys: KeyRing,
    /// Keys of queue tokens, `kid:secret[,kid:secret…]`.
    #[arg(long, env = "QUEUE_TOKEN_KEYS", hide_env_values = true)]
    pub queue_token_keys: KeyRing,
    /// Key of request ids.
    #[arg(
        long,
        env = "REQUEST_ID_KEY",
        default_value = "the comparator has no secret to keep",
        hide_env_values = true
    )]
    pub request_id_key: Secret,
    /// The one currency.
    #[arg(long, env = "CURRENCY", default_value = "KRW")]
    pub currency: String,
    /// How old the seats and the schedules that are shown may be, in milliseconds; 0: they are read for each caller.
    #[arg(long, env = "SYNC_READ_AGE_MS", default_value_t = 900)]
    pub sync_read_age_ms: u64,
}

/// What all calls share.
pub(in crate::comparators) struct App {
    pool: PgPool,
    access_tokens: AccessTokens,
    queue_tokens: QueueTokens,
    request_ids: RequestIds,
    currency: String,
    schedules: RwLock<HashMap<ScheduleId, Arc<Schedule>>>,
    best: BestSeats,
    gone: Gone,
    inside: Inside,
    seat_lists: Brief<reads::View>,
    schedule_lists: Brief<ConcertId>,
}

/// Serves until the process is told to stop.
///
/// # Errors
/// The address is taken, or the database does not answer.
pub async fn serve(settings: SyncSettings) -> anyhow::Result<()> {
    let listen = settings.sync_listen;
    let app = Arc::new(App::new(settings)?);
    app.open_connections().await.context("cannot open the connections to Postgres")?;
    let stop = lifecycle::shutdown_signal()?;
    let clockwork = tokio::spawn(clockwork::run(app.clone()));
    let listener = listener::listen(listen)?;
    tracing::info!(address = %listener.local_addr()?, "the synchronous service listens");
    // An answer is one small packet: it must not wait for the acknowledgement of the one before.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection ended early");
        }
    });
    axum::serve(listener, router(app)).with_graceful_shutdown(stop.cancelled_owned()).await?;
    clockwork.abort();
    Ok(())
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/reservations", post(holds::hold))
        .route("/v1/payments", post(money::pay))
        .route("/v1/balance/charges", post(money::charge))
        .route("/v1/concerts/{id}/queue-tokens", post(queue::join))
        .route("/v1/queue-token", get(queue::poll))
        .route("/v1/concerts/{id}/schedules", get(reads::schedules))
        .route("/v1/schedules/{id}/seats", get(reads::seats))
        .with_state(app)
}

impl App {
    fn new(settings: SyncSettings) -> anyhow::Result<Self> {
        let pool = database::worker_pool(&settings.database, SESSIONS, settings.sync_pool_connections)?;
        // Arrays of one or two seats look cheaper than the planner's guess of ten, so that it would plan again for each request.
        let options = pool.connect_options().as_ref().clone().options([("plan_cache_mode", "force_generic_plan")]);
        pool.set_connect_options(options);
        let age_max = Duration::from_millis(settings.sync_read_age_ms);
        Ok(Self {
            pool,
            access_tokens: AccessTokens::new(settings.access_token_keys),
            queue_tokens: QueueTokens::new(settings.queue_token_keys),
            request_ids: RequestIds::new(settings.request_id_key.expose()),
            currency: settings.currency,
            schedules: RwLock::default(),
            best: BestSeats::default(),
            gone: Gone::default(),
            inside: Inside::default(),
            seat_lists: Brief::new(age_max),
            schedule_lists: Brief::new(age_max),
        })
    }

    /// Opens all connections to Postgres, each with its statements prepared and planned: it is measured as a service that has been running
    /// for a while.
    async fn open_connections(&self) -> Result<(), sqlx::Error> {
        let all = (0..self.pool.options().get_max_connections()).map(|_| self.pool.acquire());
        for mut connection in try_join_all(all).await? {
            for statement in STATEMENTS {
                connection.prepare(statement.into_sql_str()).await?;
            }
            // A plan is made when it is first asked for, and kept; to be told of it runs nothing.
            let prepared: Vec<(String, i32)> =
                sqlx::query_as("SELECT name, cardinality(parameter_types) FROM pg_prepared_statements")
                    .persistent(false)
                    .fetch_all(&mut *connection)
                    .await?;
            for (name, parameters) in prepared.iter().filter(|(_, parameters)| *parameters > 0) {
                let nulls = vec!["NULL"; usize::try_from(*parameters).unwrap_or_default()].join(", ");
                let plan = format!("EXPLAIN EXECUTE \"{name}\" ({nulls})");
                connection.execute(sqlx::raw_sql(AssertSqlSafe(plan))).await?;
            }
        }
        Ok(())
    }

    async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.pool.begin().await
    }

    /// A schedule's fixed facts.
    async fn schedule(&self, id: ScheduleId) -> Result<Arc<Schedule>, Failure> {
        match self.known_schedule(id) {
            Some(schedule) => Ok(schedule),
            None => self.read_schedule(&mut *self.pool.acquire().await?, id).await,
        }
    }

    /// The same on a connection that the caller has already: one who waited for a second one might wait for himself.
    async fn schedule_by(&self, connection: &mut PgConnection, id: ScheduleId) -> Result<Arc<Schedule>, Failure> {
        match self.known_schedule(id) {
            Some(schedule) => Ok(schedule),
            None => self.read_schedule(connection, id).await,
        }
    }

    fn known_schedule(&self, id: ScheduleId) -> Option<Arc<Schedule>> {
        self.schedules.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    async fn read_schedule(&self, connection: &mut PgConnection, id: ScheduleId) -> Result<Arc<Schedule>, Failure> {
        let Some(schedule) = read_schedules(connection, &[id.0]).await?.pop() else {
            let detail = format!("There is no schedule {id}; GET the concert's schedules for those there are.");
            return Err(Problem::new(Slug::ScheduleNotFound, detail).into());
        };
        let schedule = Arc::new(schedule);
        let mut known = self.schedules.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= SCHEDULES_MAX {
            known.clear();
        }
        known.insert(id, schedule.clone());
        Ok(schedule)
    }
}
