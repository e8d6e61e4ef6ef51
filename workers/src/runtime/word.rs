//! What a word (tokens, reservations, payments) gives the runtime, and what it gets.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::ids::{ConcertId, RequestId, TokenId, UserId};
use common::kafka::headers;
use common::messages::results::{RequestResult, RequestStatus, ResultRecord, Source, TokenEvent};
use common::messages::{self, Command, Message};
use common::problems::Problem;
use common::topics;
use rdkafka::message::OwnedHeaders;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sqlx::{PgConnection, PgPool};

/// A command with its place and its time in the log.
#[derive(Debug, Clone)]
pub struct Logged<C> {
    /// What is asked.
    pub command: C,
    /// When it was asked: the append time of its record, or of its first record if it was redriven.
    pub asked_at: DateTime<Utc>,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// The trace that it belongs to.
    pub traceparent: Option<String>,
    /// What was told of it, if the database has forgotten that: it was restored from a backup.
    pub told: Option<Box<Told>>,
    /// Its cause ([`Word::cause`]) is known to be in another topic, and not applied yet.
    pub cause_pending: bool,
    /// It was applied before this worker took its partition over.
    pub applied_before: bool,
    /// Another record has its request's outcome, or is about to: it is applied for the sake of [`Word::has_to_undo`] alone.
    pub is_repeat: bool,
}

/// What a command of another word must have had its effect before this one has its own.
#[derive(Debug, Clone, Copy)]
pub enum Cause<'a> {
    /// Nothing.
    None,
    /// Some command: nobody knows which.
    Any,
    /// The request with this id; its record, if this one names it.
    Request(RequestId, Option<&'a Source>),
}

/// An outcome that was told, and has to stay: the command is to be applied so that it comes out again.
#[derive(Debug, Clone)]
pub struct Told {
    /// The outcome.
    pub result: RequestResult,
    /// If it made a queue token, and something became of that.
    pub fate: Option<Fate>,
}

impl Told {
    /// Whether it succeeded.
    pub fn succeeded(&self) -> bool {
        self.result.status == RequestStatus::Succeeded
    }

    /// The body, or the problem; None: it has another shape.
    pub fn body<T: DeserializeOwned>(&self) -> Option<T> {
        self.result.body().and_then(|body| serde_json::from_str(body.get()).ok())
    }
}

/// What became of a queue token since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// Its concert.
    pub concert_id: ConcertId,
    /// Its buyer.
    pub user_id: UserId,
    /// Its place among the joins.
    pub seq: i64,
    /// When it was admitted, and until when.
    pub admitted: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
}

/// The two clocks of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// The broker's: when it was asked. It decides whether something was in time.
    pub asked_at: DateTime<Utc>,
    /// The database's: when the transaction began. What is told from now on is told from here.
    pub now: DateTime<Utc>,
}

/// How a command ends.
#[derive(Debug)]
pub enum Outcome {
    /// It had its effect.
    Succeeded {
        /// The status that a waiting caller gets.
        http_status: u16,
        /// The body that a waiting caller gets.
        body: Box<RawValue>,
        /// The concert whose queue token of this buyer changed with it.
        concert_id: Option<ConcertId>,
    },
    /// It had none.
    Failed(Problem),
    /// The request goes on in another topic, which decides; nothing is told yet.
    Continued,
    /// Of a command with a [`Told`]: its effect is there again, and what was told is its outcome.
    AsTold,
    /// Of a command with a pending cause: it is to be tried again. Nothing has changed.
    Waits,
    /// Of a command with a [`Told`], or that was applied before: what it needs is not in the database and does not come. The record is a
    /// dead letter.
    Lacks(String),
}

impl Outcome {
    /// It succeeded, with this status and body.
    pub fn succeeded(http_status: u16, body: &impl Serialize) -> Self {
        let body = serde_json::value::to_raw_value(body).expect("bodies have text keys and no maps of other kinds");
        Self::Succeeded { http_status, body, concert_id: None }
    }

    /// Says that the buyer's queue token of `concert` changed with it.
    #[must_use]
    pub fn with_token_of(mut self, concert: ConcertId) -> Self {
        if let Self::Succeeded { concert_id, .. } = &mut self {
            *concert_id = Some(concert);
        }
        self
    }
}

/// What a word wants written to Kafka after its transaction.
#[derive(Debug, Default)]
pub struct Emissions {
    /// What happened to queue tokens.
    pub events: Vec<Event>,
    /// Commands for other words.
    pub messages: Vec<OutMessage>,
}

/// A token event.
#[derive(Debug)]
pub enum Event {
    /// The buyer may enter.
    Admitted(TokenEvent),
    /// The token has ended.
    Expired(TokenEvent),
}

impl Event {
    /// The partition of its concert.
    pub(crate) fn partition(&self, partitions: i32) -> i32 {
        let (Self::Admitted(event) | Self::Expired(event)) = self;
        topics::partition_of(event.concert_id.to_string().as_bytes(), partitions)
    }
}

impl From<Event> for ResultRecord {
    fn from(event: Event) -> Self {
        match event {
            Event::Admitted(event) => Self::TokenAdmitted(event),
            Event::Expired(event) => Self::TokenExpired(event),
        }
    }
}

/// A command for another word.
#[derive(Debug)]
pub struct OutMessage {
    /// Its topic.
    pub topic: &'static str,
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// Its headers.
    pub headers: OwnedHeaders,
}

impl OutMessage {
    /// The record of `message`, written by `source` (`/boxoffice/reservation-worker`, …).
    pub fn new<M: Message>(message: &M, request: RequestId, source: &str, traceparent: Option<&str>) -> Self {
        Self {
            topic: M::TOPIC,
            key: message.key(),
            value: messages::write(message),
            headers: headers::cloud_event(M::TYPE, request.0, source, traceparent),
        }
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Applied {
    /// One for each command, in order.
    pub outcomes: Vec<Outcome>,
    /// What is to be told besides.
    pub emissions: Emissions,
}

/// One word: its commands, and how they are applied.
pub trait Word: Send + 'static {
    /// What it reads.
    type Command: Command + Send + Sync;
    /// Its topic.
    const TOPIC: &'static str;
    /// Its consumer group.
    const GROUP: &'static str;
    /// The worker's name, in logs and in CloudEvents sources.
    const WORKER: &'static str;
    /// How often [`Word::tick`] is called; None: never.
    const TICK: Option<Duration>;
    /// The topic of another word in which causes of its commands may be.
    const CAUSES: Option<&'static str>;
    /// Whether [`Word::tokens_told`] wants to know what became of queue tokens.
    const READS_TOKEN_EVENTS: bool = false;

    /// What has to be applied before this command.
    fn cause<'a>(command: &'a Self::Command, told: Option<&Told>) -> Cause<'a> {
        let _ = (command, told);
        Cause::None
    }

    /// What has one writer at a time, even while two workers believe that they own its partition: its lock is held, in the order of
    /// these numbers and before all row locks, when [`Word::apply`] begins. Numbers of one word only.
    fn one_writer_of(command: &Self::Command) -> Option<i64> {
        let _ = command;
        None
    }

    /// Whether this command may have gone on in another topic: applied, and without an outcome until that one is decided.
    fn may_go_on(command: &Self::Command) -> bool {
        let _ = command;
        false
    }

    /// Whether a repeat has to undo what its request had begun, which `outcome` does not tell of: that of another record with its id; None:
    /// of one in the same batch. Then it is applied, and ends as [`Outcome::Continued`].
    fn has_to_undo(command: &Self::Command, outcome: Option<&RequestResult>) -> bool {
        let _ = (command, outcome);
        false
    }

    /// What was told to have become of queue tokens, after the database may have been restored: before anything else, and `at_last`,
    /// when all records that were told of are applied.
    ///
    /// # Errors
    /// Whatever the database says; it is called again.
    fn tokens_told(
        &mut self,
        pool: &PgPool,
        fates: &HashMap<TokenId, Fate>,
        at_last: bool,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send {
        let _ = (pool, fates, at_last);
        async { Ok(()) }
    }

    /// Whether an outcome that was told has effects. One that has none is stored as told, without asking the word.
    fn had_effect(told: &RequestResult) -> bool {
        told.status == RequestStatus::Succeeded || told.source.topic != Self::TOPIC
    }

    /// Applies a batch inside the runtime's transaction: loads what it touches, decides in log order, writes back; what it has not locked
    /// it checks when it writes. The runtime has dropped repeats (but see [`Word::has_to_undo`]), writes the outcomes and commits. The
    /// statements must not grow with the batch.
    ///
    /// # Errors
    /// Whatever the database says; the transaction is rolled back and [`Word::forget`] called before the next try.
    fn apply(
        &mut self,
        transaction: &mut PgConnection,
        now: DateTime<Utc>,
        batch: &[&Logged<Self::Command>],
    ) -> impl Future<Output = Result<Applied, sqlx::Error>> + Send;

    /// What is to be done from time to time, between batches, but not while the database is behind what was told. `owns` tells whether this worker reads the partition of a key.
    ///
    /// # Errors
    /// Whatever the database says; the next tick tries again.
    fn tick(
        &mut self,
        pool: &PgPool,
        owns: &(dyn Fn(&str) -> bool + Sync),
    ) -> impl Future<Output = Result<Emissions, sqlx::Error>> + Send {
        let _ = (pool, owns);
        async { Ok(Emissions::default()) }
    }

    /// Drops all that is remembered of the database, rows that never change too: a transaction was rolled back, partitions moved, or
    /// the database was restored from a backup that lacks them.
    fn forget(&mut self) {}
}
