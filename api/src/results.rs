//! Reads the results topic, all partitions from now on, on a thread of its own. Each record first corrects what the process remembers,
//! then wakes who waits for it: a buyer reads what he wrote.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use common::config::KafkaConfig;
use common::ids::{ConcertId, ReservationId, ScheduleId, TokenId};
use common::kafka::consumer::reader_config;
use common::kafka::context::QuietContext;
use common::messages::results::{RequestResult, RequestStatus, ResultRecord, TokenEvent};
use common::messages::tokens::QueueState;
use common::topics;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::metadata::MetadataPartition;
use rdkafka::{Message, Offset, TopicPartitionList};
use serde::Deserialize;

use crate::bus::TokenChange;
use crate::reservations::KnownReservation;
use crate::state::App;

/// How long one wait for records lasts; the thread looks around in between.
const POLL: Duration = Duration::from_millis(100);
/// How long the broker may take to answer when it is asked whether it is there.
const PROBE_MAX: Duration = Duration::from_secs(1);
/// Between two such questions while it is down.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// How often new partitions are looked for.
const PARTITIONS_EVERY: Duration = Duration::from_secs(30);
/// So many records that have come already are read before what they say is told.
const BATCH_RECORDS_MAX: usize = 64;

/// Starts the reader; it ends when the process is told to stop.
///
/// # Errors
/// The Kafka settings are refused, or there is no thread.
pub(crate) fn start(app: Arc<App>, kafka: &KafkaConfig) -> anyhow::Result<JoinHandle<()>> {
    let consumer: BaseConsumer<QuietContext> =
        reader_config(kafka, "boxoffice-api-results").create_with_context(QuietContext::default())?;
    let reader = Reader { app, consumer, assigned: BTreeSet::new(), looked_at: Instant::now(), probed_at: None };
    Ok(std::thread::Builder::new().name("results".to_owned()).spawn(move || reader.run())?)
}

struct Reader {
    app: Arc<App>,
    consumer: BaseConsumer<QuietContext>,
    assigned: BTreeSet<i32>,
    looked_at: Instant,
    probed_at: Option<Instant>,
}

impl Reader {
    fn run(mut self) {
        while !self.app.stop.is_cancelled() {
            self.look_after_broker();
            let mut batch = Batch::default();
            let mut wait = POLL;
            for _ in 0..BATCH_RECORDS_MAX {
                match self.consumer.poll(wait) {
                    None => break,
                    Some(Ok(message)) => batch.read(&self.app, message.payload()),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "the results topic cannot be read for a moment");
                        self.app.kafka.suspect();
                    }
                }
                wait = Duration::ZERO;
            }
            batch.tell(&self.app);
        }
    }

    /// Finds out whether the broker is there, when that is in doubt, and whether there are new partitions, from time to time.
    fn look_after_broker(&mut self) {
        let health = &self.app.kafka;
        let due = self.assigned.is_empty() || self.looked_at.elapsed() > PARTITIONS_EVERY;
        if !health.take_suspicion() && health.is_up() && !due {
            return;
        }
        if self.probed_at.is_some_and(|at| at.elapsed() < PROBE_EVERY) {
            // In doubt still, but asked a moment ago.
            health.suspect();
            return;
        }
        self.probed_at = Some(Instant::now());
        match self.assign() {
            Ok(()) => {
                self.looked_at = Instant::now();
                self.app.kafka.set_up(true);
                self.app.kafka.set_reading();
            }
            Err(error) => {
                tracing::debug!(%error, "the broker does not answer");
                self.app.kafka.set_up(false);
            }
        }
    }

    /// Assigns the partitions that are new: at the start from their end, later from their beginning. An explicit offset, because a
    /// logical end is resolved later, and what is written in between would be missed.
    fn assign(&mut self) -> Result<(), KafkaError> {
        let metadata = self.consumer.fetch_metadata(Some(topics::RESULTS), PROBE_MAX)?;
        let partitions =
            metadata.topics().iter().flat_map(|topic| topic.partitions().iter().map(MetadataPartition::id));
        let new: Vec<i32> = partitions.filter(|partition| !self.assigned.contains(partition)).collect();
        if new.is_empty() {
            return if self.assigned.is_empty() { Err(KafkaError::NoMessageReceived) } else { Ok(()) };
        }
        let mut list = TopicPartitionList::new();
        for &partition in &new {
            let offset = if self.assigned.is_empty() {
                Offset::Offset(self.consumer.fetch_watermarks(topics::RESULTS, partition, PROBE_MAX)?.1)
            } else {
                Offset::Beginning
            };
            list.add_partition_offset(topics::RESULTS, partition, offset)?;
        }
        self.consumer.incremental_assign(&list)?;
        self.assigned.extend(new);
        tracing::info!(partitions = self.assigned.len(), "the results topic is read");
        Ok(())
    }
}

/// Records that have come together: each corrects what is remembered as it is read, and all that follows from them is told at the end.
#[derive(Default)]
struct Batch {
    results: Vec<RequestResult>,
    /// Schedules in which seats changed hands; None: one that is not known.
    seats_changed: BTreeSet<Option<ScheduleId>>,
}

impl Batch {
    fn read(&mut self, app: &App, value: Option<&[u8]>) {
        match value.map(ResultRecord::read) {
            Some(Ok(ResultRecord::Request(result))) => {
                self.correct(app, &result);
                self.results.push(result);
            }
            Some(Ok(ResultRecord::TokenAdmitted(event))) => admitted(app, &event),
            Some(Ok(ResultRecord::TokenExpired(event))) => ended(app, &event),
            Some(Err(error)) => {
                metrics::counter!("api_results_unreadable_total").increment(1);
                tracing::warn!(%error, "a record of the results topic cannot be read; it is passed over");
            }
            None => {}
        }
    }

    /// A buyer reads what he wrote: nothing that is out of date is shown once he is woken.
    fn tell(self, app: &App) {
        for schedule in self.seats_changed {
            app.bus.seats_changed(schedule);
        }
        for result in self.results {
            app.outcomes.arrived(result);
        }
    }

    /// Corrects what is remembered by what an outcome says.
    fn correct(&mut self, app: &App, result: &RequestResult) {
        let Some(body) = result.body() else { return };
        let corrected = match (result.kind.as_str(), result.status) {
            ("token.issue", RequestStatus::Succeeded) => token_issued(app, result, body.get()),
            ("token.leave", RequestStatus::Succeeded) => token_left(app, result, body.get()),
            ("queue.configure", RequestStatus::Succeeded) => queue_configured(app, body.get()),
            (kind, status) if kind.starts_with("reservation.") || kind.starts_with("payment.") => {
                match status {
                    RequestStatus::Succeeded => self.reservation_changed(app, result, body.get()),
                    // A hold that could not be paid, too.
                    RequestStatus::Failed if result.source.topic == topics::PAYMENTS => {
                        self.seats_released(app, body.get())
                    }
                    RequestStatus::Failed => Ok(()),
                }
            }
            _ => Ok(()),
        };
        if let Err(error) = corrected {
            tracing::warn!(%error, kind = result.kind, "the body of an outcome is not of the form that it should be");
        }
    }

    fn reservation_changed(&mut self, app: &App, result: &RequestResult, body: &str) -> serde_json::Result<()> {
        let told: Told = serde_json::from_str(body)?;
        if let (Some(paid), Some(buyer)) = (&told.reservation, result.user_id) {
            // A payment has ended its token (a refund none: read once for nothing). An event said so already, unless the worker was killed
            // before it told: it tells the outcome again, the event not. The buyer may have another token by now.
            if let Some(token) = paid.concert_id.and_then(|concert| app.tokens.doubted(concert, buyer)) {
                app.bus.token_changed(token, TokenChange::Doubted);
            }
        }
        let told = told.reservation.as_deref().unwrap_or(&told);
        if let (Some(id), Some(user_id), Some(concert_id), Some(schedule_id)) =
            (told.reservation_id, result.user_id, told.concert_id, told.schedule_id)
        {
            let held_until = told.hold_expires_at.filter(|_| told.payment_required == Some(true));
            app.reservations.told(id, KnownReservation { user_id, concert_id, schedule_id, held_until });
        }
        self.seats_changed.insert(told.schedule_id);
        Ok(())
    }

    /// A payment that failed and gave its seats back.
    fn seats_released(&mut self, app: &App, problem: &str) -> serde_json::Result<()> {
        #[derive(Deserialize)]
        struct Released {
            reservation_id: Option<ReservationId>,
            #[serde(default)]
            seats_released: bool,
        }
        let released: Released = serde_json::from_str(problem)?;
        if released.seats_released {
            self.seats_changed.insert(released.reservation_id.and_then(|id| app.reservations.ended(id)));
        }
        Ok(())
    }
}

fn admitted(app: &App, event: &TokenEvent) {
    if let Some(until) = event.expires_at {
        app.tokens.admitted(event.concert_id, event.user_id, event.token_id, until, event.at);
    }
    if let Some(seq) = event.seq {
        app.queues.admitted(event.concert_id, seq);
    }
    app.bus.token_changed(event.token_id, TokenChange::Admitted(event.expires_at));
}

fn ended(app: &App, event: &TokenEvent) {
    app.tokens.ended(event.concert_id, event.user_id, event.token_id);
    if let Some(seq) = event.seq {
        app.queues.left(event.concert_id, seq);
    }
    app.bus.token_changed(event.token_id, TokenChange::Ended);
}

fn token_issued(app: &App, result: &RequestResult, body: &str) -> serde_json::Result<()> {
    #[derive(Deserialize)]
    struct Issued<'a> {
        #[serde(borrow)]
        queue_token: Cow<'a, str>,
        token_id: TokenId,
        concert_id: ConcertId,
        expires_at: Option<DateTime<Utc>>,
    }
    let issued: Issued<'_> = serde_json::from_str(body)?;
    if let (Some(until), Some(buyer)) = (issued.expires_at, result.user_id) {
        app.tokens.admitted(issued.concert_id, buyer, issued.token_id, until, result.finished_at);
        // The place stands in the token.
        if let Ok(claims) = app.queue_tokens.verify(&issued.queue_token) {
            app.queues.admitted(issued.concert_id, claims.seq);
        }
    }
    Ok(())
}

fn token_left(app: &App, result: &RequestResult, body: &str) -> serde_json::Result<()> {
    #[derive(Deserialize)]
    struct Left {
        token_id: TokenId,
    }
    let left: Left = serde_json::from_str(body)?;
    if let (Some(concert), Some(buyer)) = (result.concert_id, result.user_id) {
        app.tokens.ended(concert, buyer, left.token_id);
        app.bus.token_changed(left.token_id, TokenChange::Ended);
    }
    Ok(())
}

fn queue_configured(app: &App, body: &str) -> serde_json::Result<()> {
    #[derive(Deserialize)]
    struct Configured {
        concert_id: ConcertId,
        state: QueueState,
    }
    let configured: Configured = serde_json::from_str(body)?;
    app.queues.configured(configured.concert_id, configured.state);
    Ok(())
}

/// A reservation: by itself, or inside a payment.
#[derive(Deserialize)]
struct Told {
    reservation_id: Option<ReservationId>,
    concert_id: Option<ConcertId>,
    schedule_id: Option<ScheduleId>,
    hold_expires_at: Option<DateTime<Utc>>,
    payment_required: Option<bool>,
    reservation: Option<Box<Told>>,
}
