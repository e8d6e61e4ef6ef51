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
use common::topics;
use sqlx::{PgConnection, PgPool};

use self::decide::State;
use self::seat_map::SeatMap;
use crate::runtime::word::{Applied, Cause, Clock, Emissions, Logged, OutMessage, Outcome, Told, Word};
use crate::users::Users;

const SOURCE: &str = "/boxoffice/reservation-worker";
const LOOK_FOR_OVERDUE: Duration = Duration::from_millis(200);
/// Maps of free seats that are kept; 200,000 seats take 25 KB.
const MAPS_MAX: usize = 500;

/// Holds seats.
pub struct Reservations {
    currency: String,
    schedules: Schedules,
    users: Users,
    /// Free seats of the schedules in which somebody wanted the best, and the number of releases that they know of.
    maps: HashMap<ScheduleId, (SeatMap, i64)>,
    search: overdue::Search,
}

impl Reservations {
    /// `currency` is the deployment's.
    pub fn new(currency: String) -> Self {
        let (schedules, users, maps) = (Schedules::default(), Users::default(), HashMap::new());
        Self { currency, schedules, users, maps, search: overdue::Search::default() }
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
        let repeated = repeated(transaction, &holds).await?;
        let mut state = self.state(transaction, batch).await?;
        let decisions = decide_all(&mut state, batch, &repeated, now);
        // If a seat is not free after all, `forget` is called.
        self.remember(state.maps);
        let made: Vec<Reservation> = decisions.iter().filter_map(|(_, made)| made.as_ref().ok().cloned()).collect();
        if !made.is_empty() {
            store::insert_holds(transaction, &made).await?;
        }
        Ok(self.applied(batch, decisions))
    }

    async fn tick(&mut self, pool: &PgPool, owns: &(dyn Fn(&str) -> bool + Sync)) -> Result<Emissions, sqlx::Error> {
        let mut connection = pool.acquire().await?;
        let messages = self.search.look(&mut connection, owns, SOURCE).await?;
        Ok(Emissions { messages, ..Emissions::default() })
    }

    fn forget(&mut self) {
        self.maps.clear();
        self.schedules.forget();
        self.users.forget();
    }
}

impl Reservations {
    /// Loads what the batch touches.
    async fn state(
        &mut self,
        transaction: &mut PgConnection,
        batch: &[&Logged<ReservationCommand>],
    ) -> Result<State, sqlx::Error> {
        let holds: Vec<&Hold> = batch.iter().map(|logged| hold(logged)).collect();
        let told = batch.iter().filter_map(|logged| again::told(logged.told.as_deref()?));
        let told = told.flat_map(|told| told.seats).map(|seat| seat.seat_id.0);
        let seats = sorted(holds.iter().flat_map(|hold| self.named_seats(hold)).map(|seat| seat.0).chain(told));
        let buyers = sorted(holds.iter().map(|hold| (hold.schedule_id, hold.user_id)));
        let best = sorted(holds.iter().filter(|hold| hold.best_available.is_some()).map(|hold| hold.schedule_id.0));
        if !best.is_empty() {
            self.refresh_maps(transaction, &best).await?;
        }
        // After the maps: a seat that is given back in between is free, and its release is news for them the next time.
        let store::Touched { free, live } = store::look(transaction, &seats, &buyers).await?;
        let maps = self.maps(&holds, &free);
        let schedules = holds.iter().filter_map(|hold| self.schedules.get(hold.schedule_id));
        Ok(State {
            users: holds.iter().map(|hold| hold.user_id).filter(|user| self.users.exists(*user)).collect(),
            schedules: schedules.map(|schedule| (schedule.schedule_id, schedule.clone())).collect(),
            free,
            maps: maps.into_iter().collect(),
            live,
        })
    }

    fn named_seats(&self, hold: &Hold) -> Vec<SeatId> {
        let Some(schedule) = self.schedules.get(hold.schedule_id) else { return Vec::new() };
        let by_label = hold.seats.iter().flatten().filter_map(|label| schedule.layout.find(label));
        let by_id = hold.seat_ids.iter().flatten().copied().filter(|seat| schedule.layout.place_of(*seat).is_some());
        by_id.chain(by_label).collect()
    }

    /// The maps of the batch's schedules that are kept, with what was seen since. They are copied, and [`Self::remember`]ed after the
    /// decisions.
    fn maps(&mut self, holds: &[&Hold], looked_at: &HashMap<SeatId, bool>) -> Vec<(ScheduleId, SeatMap)> {
        let mut maps = Vec::new();
        for schedule in sorted(holds.iter().map(|hold| hold.schedule_id)) {
            let Some(facts) = self.schedules.get(schedule) else { continue };
            let Some((map, _)) = self.maps.get_mut(&schedule) else { continue };
            for (seat, free) in looked_at.iter().filter(|(seat, _)| common::seating::schedule_of(**seat) == schedule) {
                map.set(&facts.layout, *seat, *free);
            }
            maps.push((schedule, map.clone()));
        }
        maps
    }

    /// Reads the free seats of those schedules in which seats were freed since, or that were not read yet.
    async fn refresh_maps(&mut self, transaction: &mut PgConnection, wanted: &[i64]) -> Result<(), sqlx::Error> {
        let releases: HashMap<ScheduleId, i64> = store::releases(transaction, wanted).await?.into_iter().collect();
        let freed = |schedule: ScheduleId| releases.get(&schedule).copied().unwrap_or_default();
        let stale: Vec<_> = wanted
            .iter()
            .map(|id| ScheduleId(*id))
            .filter(|id| self.maps.get(id).is_none_or(|(_, known)| *known != freed(*id)))
            .filter_map(|id| self.schedules.get(id).cloned())
            .collect();
        if stale.is_empty() {
            return Ok(());
        }
        if self.maps.len() + stale.len() > MAPS_MAX {
            self.maps.clear();
            return Box::pin(self.refresh_maps(transaction, wanted)).await;
        }
        let ranges: Vec<_> = stale.iter().map(|schedule| schedule.layout.seat_range()).collect();
        let mut free: HashMap<ScheduleId, Vec<SeatId>> = HashMap::new();
        for seat in store::free_seats(transaction, &ranges).await? {
            free.entry(common::seating::schedule_of(seat)).or_default().push(seat);
        }
        for schedule in stale {
            let id = schedule.schedule_id;
            let map = SeatMap::new(&schedule.layout, free.remove(&id).unwrap_or_default());
            self.maps.insert(id, (map, freed(id)));
        }
        Ok(())
    }

    fn remember(&mut self, maps: HashMap<ScheduleId, SeatMap>) {
        for (schedule, map) in maps {
            if let Some((kept, _)) = self.maps.get_mut(&schedule) {
                *kept = map;
            }
        }
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

/// Holds with `pay: true` that were decided before: made, and their payment is asked for again, or refused, and that is told again.
async fn repeated(transaction: &mut PgConnection, holds: &[&Hold]) -> Result<HashSet<ReservationId>, sqlx::Error> {
    let ids: Vec<_> = holds.iter().filter(|hold| hold.pay).map(|hold| hold.request_id.0).collect();
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    Ok(store::decided(transaction, &ids).await?.into_iter().collect())
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
