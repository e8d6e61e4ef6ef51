//! What all handlers share. Each part has its own file; here they are put together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use common::catalogue::Schedule;
use common::database;
use common::ids::{ConcertId, RequestId, ReservationId, ScheduleId};
use common::kafka::crowd::CrowdProducer;
use common::kafka::producer::Patience;
use common::keys::{AccessTokens, QueueTokens};
use common::messages::results::RequestResult;
use common::request_id::RequestIds;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::auth::access::{Identity, KnownBuyers};
use crate::auth::jwks::Jwks;
use crate::bus::Bus;
use crate::catalogue::Catalogue;
use crate::config::{Bounds, IdentityMode, Settings};
use crate::error::ApiError;
use crate::kafka_health::KafkaHealth;
use crate::limits::Limits;
use crate::lookup::Lookup;
use crate::outcomes::{OutcomeBounds, Outcomes};
use crate::queues::{QueueMark, Queues, TokenStates};
use crate::reads::Reads;
use crate::reservations::Reservations;
use crate::store;
use crate::store::queues::{TokenKey, TokenRow};
use crate::store::reservations::HoldState;

/// What all handlers share.
pub(crate) struct App {
    /// The bounds.
    pub(crate) bounds: Bounds,
    /// The deployment's currency.
    pub(crate) currency: String,
    /// SHA-256 of the operators' key; None: no admin API.
    pub(crate) admin_key_hash: Option<[u8; 32]>,
    /// Who says who a buyer is.
    pub(crate) identity: Identity,
    /// Verifies queue tokens, and writes their strings again.
    pub(crate) queue_tokens: QueueTokens,
    /// Mints and checks request ids.
    pub(crate) request_ids: RequestIds,
    /// Postgres.
    pub(crate) pool: PgPool,
    /// Kafka.
    pub(crate) producer: CrowdProducer,
    /// Whether Kafka answers.
    pub(crate) kafka: KafkaHealth,
    /// Requests that are being answered.
    pub(crate) in_flight: Semaphore,
    /// Rate limits.
    pub(crate) limits: Limits,
    /// Outcomes, and who waits for them.
    pub(crate) outcomes: Arc<Outcomes>,
    /// The marks of all queues.
    pub(crate) queues: Queues,
    /// The states of admitted tokens.
    pub(crate) tokens: TokenStates,
    /// Reservations of which the results topic told.
    pub(crate) reservations: Reservations,
    schedule_rows: Lookup<ScheduleId, Arc<Schedule>>,
    token_rows: Lookup<TokenKey, TokenRow>,
    hold_states: Lookup<ReservationId, HoldState>,
    written_outcomes: Lookup<RequestId, Arc<RequestResult>>,
    /// Concerts and schedules.
    pub(crate) catalogue: Catalogue,
    /// What the reads remember.
    pub(crate) reads: Arc<Reads>,
    /// Whether a caller's address is taken from `X-Forwarded-For`.
    pub(crate) trusts_forwarded_for: bool,
    /// What the results topic tells others.
    pub(crate) bus: Bus,
    /// Cancelled when the process is told to stop.
    pub(crate) stop: CancellationToken,
    database_up: AtomicBool,
}

impl App {
    /// The state of an api with these settings; within a runtime, where it looks things up in the background.
    ///
    /// # Errors
    /// A setting makes no sense, or a key is missing.
    pub(crate) fn new(settings: &Settings, stop: CancellationToken) -> anyhow::Result<Self> {
        let keys = settings.keys()?;
        let bounds = settings.bounds.clone();
        let pool = database::pool(&settings.database, "boxoffice-api", settings.database_connections_max)?;
        let patience = Patience::Caller(Duration::from_millis(bounds.delivery_ms_max));
        let producer = CrowdProducer::new(&settings.kafka, "boxoffice-api", patience, bounds.linger)?;
        let admin_key = settings.secrets.admin_key.as_ref().filter(|key| !key.expose().is_empty());
        let (reads, bus) = (Arc::new(Reads::new(&settings.read_bounds, &settings.currency)), Bus::default());
        let told = reads.clone();
        let [of_requests, of_schedules, of_tokens, of_reservations] = std::array::from_fn(|_| pool.clone());
        bus.on_seats_changed(Box::new(move |schedule| told.seats_changed(schedule)));
        Ok(Self {
            currency: settings.currency.clone(),
            admin_key_hash: admin_key.map(|key| Sha256::digest(key.expose()).into()),
            identity: identity(settings, AccessTokens::new(keys.access))?,
            queue_tokens: QueueTokens::new(keys.queue),
            request_ids: RequestIds::new(keys.request_id.expose()),
            pool,
            producer,
            kafka: KafkaHealth::default(),
            in_flight: Semaphore::new(bounds.in_flight_max as usize),
            limits: Limits::new(&settings.rates),
            outcomes: Arc::new(Outcomes::new(OutcomeBounds {
                outcomes: bounds.outcomes_max,
                bytes: bounds.outcome_bytes_max,
                pending: bounds.pending_max,
            })),
            written_outcomes: Lookup::start(move |ids| {
                let pool = of_requests.clone();
                async move { store::requests::outcomes(&pool, &ids).await }
            }),
            schedule_rows: Lookup::start(move |ids| {
                let pool = of_schedules.clone();
                async move { store::catalogue::schedules(&pool, &ids).await }
            }),
            token_rows: Lookup::start(move |keys| {
                let pool = of_tokens.clone();
                async move { store::queues::tokens(&pool, &keys).await }
            }),
            hold_states: Lookup::start(move |ids| {
                let pool = of_reservations.clone();
                async move { store::reservations::hold_states(&pool, &ids).await }
            }),
            queues: Queues::new(),
            tokens: TokenStates::new(bounds.token_states_max),
            reservations: Reservations::new(bounds.reservations_max),
            catalogue: Catalogue::new(bounds.catalogue_max),
            reads,
            trusts_forwarded_for: settings.rates.trust_forwarded_for,
            bus,
            stop,
            database_up: AtomicBool::new(true),
            bounds,
        })
    }

    /// The database.
    ///
    /// # Errors
    /// 503 at once, while it is known to be down: the pool would try again and again until its time is over.
    pub(crate) fn database(&self) -> Result<&PgPool, ApiError> {
        if self.database_up() {
            return Ok(&self.pool);
        }
        Err(ApiError::unavailable("The database does not answer. Try again in a moment."))
    }

    /// The outcome of a request, as it stands in the database; None: there is none yet, or there is no such request.
    ///
    /// # Errors
    /// 503 if the database does not answer.
    pub(crate) async fn written_outcome(&self, request: RequestId) -> Result<Option<Arc<RequestResult>>, ApiError> {
        self.database()?;
        Ok(self.written_outcomes.get(request).await?)
    }

    /// A schedule, as it stands in the database; None: there is no such schedule.
    ///
    /// # Errors
    /// 503 if the database does not answer.
    pub(crate) async fn schedule_row(&self, schedule: ScheduleId) -> Result<Option<Arc<Schedule>>, ApiError> {
        self.database()?;
        Ok(self.schedule_rows.get(schedule).await?)
    }

    /// How a queue token stands in the database; None: there is no such token.
    ///
    /// # Errors
    /// 503 if the database does not answer.
    pub(crate) async fn token_row(&self, token: TokenKey) -> Result<Option<TokenRow>, ApiError> {
        self.database()?;
        Ok(self.token_rows.get(token).await?)
    }

    /// Whose a reservation is, and whether it is held; None: there is none.
    ///
    /// # Errors
    /// 503 if the database does not answer.
    pub(crate) async fn hold_state(&self, reservation: ReservationId) -> Result<Option<HoldState>, ApiError> {
        self.database()?;
        Ok(self.hold_states.get(reservation).await?)
    }

    /// The marks of a queue; None: there is no such concert.
    ///
    /// # Errors
    /// 503 if they are not known and the database does not answer.
    pub(crate) async fn queue(&self, concert: ConcertId) -> Result<Option<Arc<QueueMark>>, ApiError> {
        match self.queues.known(concert) {
            Some(mark) => Ok(Some(mark)),
            None => Ok(Box::pin(self.queues.read(self.database()?, concert)).await?),
        }
    }

    /// Whether the database answered when it was asked last, a moment ago.
    pub(crate) fn database_up(&self) -> bool {
        self.database_up.load(Ordering::Relaxed)
    }

    /// What the last question to the database showed.
    pub(crate) fn set_database_up(&self, up: bool) {
        self.database_up.store(up, Ordering::Relaxed);
    }
}

fn identity(settings: &Settings, tokens: AccessTokens) -> anyhow::Result<Identity> {
    let config = &settings.identity;
    Ok(match config.identity {
        IdentityMode::Own => Identity::Own { tokens, token_seconds: config.access_token_seconds },
        IdentityMode::Gateway => Identity::Gateway(KnownBuyers::new()),
        IdentityMode::Jwks => {
            let url = config.jwks_url.clone().context("API_IDENTITY=jwks needs JWKS_URL")?;
            let issuer = config.jwks_issuer.clone().context("API_IDENTITY=jwks needs JWKS_ISSUER")?;
            Identity::Jwks(Box::new(Jwks::new(url, issuer, config.jwks_audience.clone())), KnownBuyers::new())
        }
    })
}
