//! The word *reservations*: buyers hold seats. Reads `boxoffice.reservations.v1`, inserts `reservations`, takes `seats`, and asks
//! for the end of overdue holds.

mod again;
mod decide;
mod overdue;
mod seat_map;
mod store;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::bodies::Reservation;
use common::catalogue::Schedules;
use common::ids::{ReservationId, ScheduleId, SeatId};
use common::messages::payments::Pay;
use common::messages::reservations::{Hold, ReservationCommand};
use common::messages::results::Source;
use common::messages::{Message as _, Origin};
use common::{seating, topics};
use futures::TryStreamExt as _;
use sqlx::{Connection as _, PgConnection, PgPool};

use self::decide::State;
use self::seat_map::SeatMap;
use crate::runtime::word::{Applied, Cause, Clock, Emissions, Logged, OutMessage, Outcome, Told, Word};
use crate::users::Users;

const SOURCE: &str = "/boxoffice/reservation-worker";
const LOOK_FOR_OVERDUE: Duration = Duration::from_millis(200);
/// Maps of free seats that are kept; 200,000 seats take 25 KB.
const MAPS_MAX: usize = 500;
/// So many holds of one schedule in a batch are a crowd, for which all its free seats are read once instead of each that is named.
const CROWD_HOLDS: usize = 64;
/// And so many seats of the schedule, at most, for each of them: to read them takes no longer than some batches.
const SEATS_PER_CROWD_HOLD: i64 = 250;

/// Holds seats.
pub struct Reservations {
    currency: String,
    schedules: Schedules,
    users: Users,
    /// Free seats of the schedules in which somebody wanted the best, or a crowd any. Nobody else takes one of them; they may lack
    /// some that were given back since the number of releases that they know of.
    maps: HashMap<ScheduleId, SeatMap>,
    releases: HashMap<ScheduleId, i64>,
    search: overdue::Search,
    /// The last try came to nothing: perhaps a hold has the id of one that went on to its payment.
    look_for_all: bool,
}

impl Reservations {
    /// `currency` is the deployment's.
    pub fn new(currency: String) -> Self {
        Self {
            currency,
            schedules: Schedules::default(),
            users: Users::default(),
            maps: HashMap::new(),
            releases: HashMap::new(),
            search: overdue::Search::default(),
            look_for_all: false,
        }
    }
}

type Decision<'a> = (&'a Logged<ReservationCommand>, Result<Reservation, Outcome>);

impl Word for Reservations {
    type Command = ReservationCommand;
    const TOPIC: &'static str = topics::RESERVATIONS;
    const GROUP: &'static str = "boxoffice-reservations";
    const WORKER: &'static str = "reservation-worker";
    const TICK: Option<Duration> = Some(LOOK_FOR_OVERDUE);
    const CAUSES: Option<&'static str> = Some(topics::PAYMENTS);

    /// What was told to be held had been free: whoever has it now ends in the payments topic. Which record that is, nobody knows.
    fn cause<'a>(_: &'a ReservationCommand, told: Option<&Told>) -> Cause<'a> {
        if told.is_some() { Cause::Any } else { Cause::None }
    }

    /// A schedule: the limit of live seats is read and written under its lock.
    fn one_writer_of(command: &ReservationCommand) -> Option<i64> {
        let ReservationCommand::Hold(hold) = command;
        Some(hold.schedule_id.0)
    }

    fn may_go_on(command: &ReservationCommand) -> bool {
        let ReservationCommand::Hold(hold) = command;
        hold.pay
    }

    async fn apply(
        &mut self,
        transaction: &mut PgConnection,
        now: DateTime<Utc>,
        batch: &[&Logged<ReservationCommand>],
    ) -> Result<Applied, sqlx::Error> {
        let holds: Vec<&Hold> = batch.iter().map(|logged| hold(logged)).collect();
        self.schedules.load(transaction, &sorted(holds.iter().map(|hold| hold.schedule_id))).await?;
        self.users.load(transaction, holds.iter().map(|hold| hold.user_id)).await?;
        let repeated = self.repeated(transaction, &holds).await?;
        let mut state = self.state(transaction, batch).await?;
        let decisions = decide_all(&mut state, batch, &repeated, now);
        // If a seat is not free after all, `forget` is called.
        self.maps.extend(state.maps);
        let made: Vec<Reservation> = decisions.iter().filter_map(|(_, made)| made.as_ref().ok().cloned()).collect();
        if !made.is_empty() {
            store::insert_holds(transaction, &made).await?;
        }
        self.look_for_all = false;
        Ok(self.applied(batch, decisions))
    }

    async fn tick(&mut self, pool: &PgPool, owns: &(dyn Fn(&str) -> bool + Sync)) -> Result<Emissions, sqlx::Error> {
        let mut connection = pool.acquire().await?;
        let messages = self.search.look(&mut connection, owns, SOURCE).await?;
        Ok(Emissions { messages, ..Emissions::default() })
    }

    fn forget(&mut self) {
        self.maps.clear();
        self.releases.clear();
        self.schedules.forget();
        self.users.forget();
        self.look_for_all = true;
    }
}

impl Reservations {
    /// Holds that were decided before, though the runtime has found no outcome: made, and their payment is asked for again, or refused, and that
    /// is told again. One without `pay: true` is so only if its id was another's before; then the key of the reservations refuses the first try.
    async fn repeated(
        &self,
        transaction: &mut PgConnection,
        holds: &[&Hold],
    ) -> Result<HashSet<ReservationId>, sqlx::Error> {
        let may_be = |hold: &&&Hold| hold.pay || self.look_for_all;
        let ids: Vec<_> = holds.iter().filter(may_be).map(|hold| hold.request_id.0).collect();
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        Ok(store::decided(transaction, &ids).await?.into_iter().collect())
    }

    /// Loads what the batch touches.
    async fn state(
        &mut self,
        transaction: &mut PgConnection,
        batch: &[&Logged<ReservationCommand>],
    ) -> Result<State, sqlx::Error> {
        let holds: Vec<&Hold> = batch.iter().map(|logged| hold(logged)).collect();
        let told = batch.iter().filter_map(|logged| again::told(logged.told.as_deref()?));
        let told = told.flat_map(|told| told.seats).map(|seat| seat.seat_id);
        let buyers = sorted(holds.iter().map(|hold| (hold.schedule_id, hold.user_id)));
        self.refresh_maps(transaction, &holds).await?;
        let named = holds.iter().flat_map(|hold| self.named_seats(hold)).chain(told);
        let seats = sorted(named.filter(|seat| !self.is_known_free(*seat)).map(|seat| seat.0));
        // After the maps: a seat that is given back in between is free, and its release is news for them the next time.
        let store::Touched { free, live } = store::look(transaction, &seats, &buyers).await?;
        let maps = self.take_maps(&holds, &free);
        let schedules = holds.iter().filter_map(|hold| self.schedules.get(hold.schedule_id));
        Ok(State {
            users: holds.iter().map(|hold| hold.user_id).filter(|user| self.users.exists(*user)).collect(),
            schedules: schedules.map(|schedule| (schedule.schedule_id, schedule.clone())).collect(),
            free,
            maps,
            live,
        })
    }

    fn named_seats(&self, hold: &Hold) -> Vec<SeatId> {
        let Some(schedule) = self.schedules.get(hold.schedule_id) else { return Vec::new() };
        let by_label = hold.seats.iter().flatten().filter_map(|label| schedule.layout.find(label));
        let by_id = hold.seat_ids.iter().flatten().copied().filter(|seat| schedule.layout.place_of(*seat).is_some());
        by_id.chain(by_label).collect()
    }

    fn is_known_free(&self, seat: SeatId) -> bool {
        let schedule = seating::schedule_of(seat);
        let known = self.maps.get(&schedule).zip(self.schedules.get(schedule));
        known.is_some_and(|(map, schedule)| map.is_free(&schedule.layout, seat))
    }

    /// The maps of the batch's schedules, with what was seen since; they are put back after the decisions.
    fn take_maps(&mut self, holds: &[&Hold], looked_at: &HashMap<SeatId, bool>) -> HashMap<ScheduleId, SeatMap> {
        let schedules = holds.iter().map(|hold| hold.schedule_id);
        let mut maps: HashMap<_, _> = schedules.filter_map(|schedule| self.maps.remove_entry(&schedule)).collect();
        for (seat, free) in looked_at {
            let schedule = seating::schedule_of(*seat);
            if let Some((map, schedule)) = maps.get_mut(&schedule).zip(self.schedules.get(schedule)) {
                map.set(&schedule.layout, *seat, *free);
            }
        }
        maps
    }

    /// Reads the free seats of schedules in which somebody wants the best, and seats were freed since, and of those that have a crowd and
    /// no map.
    async fn refresh_maps(&mut self, transaction: &mut PgConnection, holds: &[&Hold]) -> Result<(), sqlx::Error> {
        let best = holds.iter().filter(|hold| hold.best_available.is_some()).map(|hold| hold.schedule_id);
        let crowds = self.crowds(holds).into_iter().filter(|schedule| !self.maps.contains_key(schedule));
        let wanted = sorted(best.chain(crowds).map(|schedule| schedule.0));
        if wanted.is_empty() {
            return Ok(());
        }
        let releases: HashMap<ScheduleId, i64> = store::releases(transaction, &wanted).await?.into_iter().collect();
        let freed = |schedule: ScheduleId| releases.get(&schedule).copied().unwrap_or_default();
        let is_stale = |id: &i64| {
            let id = ScheduleId(*id);
            !self.maps.contains_key(&id) || self.releases.get(&id) != Some(&freed(id))
        };
        let mut stale: Vec<i64> = wanted.iter().copied().filter(is_stale).collect();
        if self.maps.len() + stale.len() > MAPS_MAX {
            self.maps.clear();
            self.releases.clear();
            stale = wanted;
        }
        let stale: Vec<_> = stale.into_iter().filter_map(|id| self.schedules.get(ScheduleId(id)).cloned()).collect();
        if stale.is_empty() {
            return Ok(());
        }
        let ranges: Vec<_> = stale.iter().map(|schedule| schedule.layout.seat_range()).collect();
        let mut free = store::free_seats(transaction, &ranges);
        for schedule in stale {
            let id = schedule.schedule_id;
            self.maps.insert(id, SeatMap::new(&schedule.layout, free.try_next().await?.unwrap_or_default()));
            self.releases.insert(id, freed(id));
        }
        drop(free);
        // All seats of a house came at once.
        transaction.shrink_buffers();
        Ok(())
    }

    /// The schedules of which many holds are, in numbers and beside the seats that would be read.
    fn crowds(&self, holds: &[&Hold]) -> Vec<ScheduleId> {
        let mut counts: HashMap<ScheduleId, usize> = HashMap::new();
        for hold in holds {
            *counts.entry(hold.schedule_id).or_default() += 1;
        }
        let seats = |id: ScheduleId| self.schedules.get(id).map_or(0, |schedule| schedule.layout.total_seats());
        let is_crowd = |id: ScheduleId, count: usize| {
            count >= CROWD_HOLDS && i64::try_from(count).is_ok_and(|count| count * SEATS_PER_CROWD_HOLD >= seats(id))
        };
        counts.into_iter().filter(|(id, count)| is_crowd(*id, *count)).map(|(id, _)| id).collect()
    }

    fn applied(&self, batch: &[&Logged<ReservationCommand>], decisions: Vec<Decision<'_>>) -> Applied {
        let mut applied = Applied::default();
        let mut decisions = decisions.into_iter().peekable();
        for logged in batch {
            // A repeat has no decision: its hold stands, and its payment is asked for again.
            let decided = decisions.next_if(|(decided, _)| std::ptr::eq(*decided, *logged)).map(|(_, decided)| decided);
            let outcome = match decided {
                Some(Err(outcome)) => outcome,
                Some(Ok(made)) if !hold(logged).pay => match self.schedules.get(made.schedule_id) {
                    Some(schedule) => Outcome::succeeded(201, &made.body(schedule, &self.currency)),
                    None => unreachable!("a hold was made in a schedule that is known"),
                },
                _ => {
                    applied.emissions.messages.push(payment(logged));
                    Outcome::Continued
                }
            };
            applied.outcomes.push(outcome);
        }
        applied
    }
}

fn decide_all<'a>(
    state: &mut State,
    batch: &[&'a Logged<ReservationCommand>],
    repeated: &HashSet<ReservationId>,
    now: DateTime<Utc>,
) -> Vec<Decision<'a>> {
    let new = batch.iter().filter(|logged| !repeated.contains(&ReservationId::from(hold(logged).request_id)));
    new.map(|logged| {
        let clock = Clock { asked_at: logged.asked_at, now };
        let decided = match &logged.told {
            Some(told) => again::decide_again(state, hold(logged), told, logged.cause_pending, clock),
            // It went on, or was a dead letter: to make it now would be another hold than the one that was told, or none.
            None if logged.applied_before => Err(Outcome::Lacks("its hold is not there any more".to_owned())),
            None => decide::decide(state, hold(logged), clock).map_err(Outcome::Failed),
        };
        (*logged, decided)
    })
    .collect()
}

/// The second half of a hold with `pay: true`.
fn payment(logged: &Logged<ReservationCommand>) -> OutMessage {
    let hold = hold(logged);
    let source = Source { topic: topics::RESERVATIONS.to_owned(), partition: logged.partition, offset: logged.offset };
    let pay = Pay {
        request_id: hold.request_id,
        request_hash: hold.request_hash.clone(),
        user_id: hold.user_id,
        reservation_id: ReservationId::from(hold.request_id),
        token_seq: None,
        origin: Some(Origin { kind: Hold::TYPE.to_owned(), submitted_at: logged.asked_at, source: Some(source) }),
    };
    OutMessage::new(&pay, hold.request_id, SOURCE, logged.traceparent.as_deref())
}

fn hold(logged: &Logged<ReservationCommand>) -> &Hold {
    let ReservationCommand::Hold(hold) = &logged.command;
    hold
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort_unstable();
    items.dedup();
    items
}
