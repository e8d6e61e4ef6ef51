//! What the reads remember, put together: seat maps, counts, pages of concerts, and how many streams are open.

use std::sync::Arc;

use common::ids::ScheduleId;
use tokio::sync::Semaphore;

use crate::availability::Availability;
use crate::concerts::Concerts;
use crate::config::ReadBounds;
use crate::seat_map::SeatMaps;

/// What the reads remember.
pub(crate) struct Reads {
    /// Maps of seats.
    pub(crate) seat_maps: SeatMaps,
    /// Counts of available seats.
    pub(crate) availability: Availability,
    /// Public pages.
    pub(crate) concerts: Concerts,
    /// One permit for each event stream that may be open.
    pub(crate) streams: Arc<Semaphore>,
    streams_max: usize,
}

impl Reads {
    /// Within these bounds, with prices in `currency`.
    pub(crate) fn new(bounds: &ReadBounds, currency: &str) -> Self {
        Self {
            seat_maps: SeatMaps::new(bounds.seat_map_bytes_max),
            availability: Availability::new(),
            concerts: Concerts::new(currency.to_owned()),
            streams: Arc::new(Semaphore::new(bounds.streams_max as usize)),
            streams_max: bounds.streams_max as usize,
        }
    }

    /// Event streams that are open.
    pub(crate) fn streams_open(&self) -> usize {
        self.streams_max - self.streams.available_permits()
    }

    /// The results topic says that seats changed hands; None: of a schedule that is not known.
    pub(crate) fn seats_changed(&self, schedule: Option<ScheduleId>) {
        if let Some(schedule) = schedule {
            self.seat_maps.changed(schedule);
            self.availability.changed(schedule);
        } else {
            self.seat_maps.all_changed();
            self.availability.all_changed();
        }
    }
}
