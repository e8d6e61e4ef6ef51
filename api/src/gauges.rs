//! Sizes that change too often to be counted where they change: looked at once a second.

use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;

use crate::state::App;

const EVERY: Duration = Duration::from_secs(1);

/// Keeps the gauges until the process is told to stop.
pub(crate) async fn keep(app: Arc<App>) {
    let mut every = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => look(&app),
            () = app.stop.cancelled() => return,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float, and these are small")]
fn look(app: &App) {
    let in_flight = app.bounds.in_flight_max as usize - app.in_flight.available_permits();
    let (finished, pending) = app.outcomes.len();
    let sizes = [
        ("outcomes", finished as u64),
        ("pending", pending as u64),
        ("token_states", app.tokens.len() as u64),
        ("reservations", app.reservations.len() as u64),
        ("queues", app.queues.len() as u64),
        ("catalogue", app.catalogue.len()),
        ("seat_maps", app.reads.seat_maps.len()),
    ];
    gauge!("api_requests_in_flight").set(in_flight as f64);
    gauge!("api_seat_map_bytes").set(app.reads.seat_maps.bytes() as f64);
    gauge!("api_streams").set(app.reads.streams_open() as f64);
    gauge!("api_waiters").set(app.outcomes.waiting() as f64);
    gauge!("api_producer_in_flight").set(f64::from(app.producer.in_flight()));
    gauge!("api_database_connections").set(f64::from(app.pool.size()));
    gauge!("api_kafka_up").set(f64::from(u8::from(app.kafka.is_up())));
    gauge!("api_database_up").set(f64::from(u8::from(app.database_up())));
    for (cache, size) in sizes {
        gauge!("api_cache_entries", "cache" => cache).set(size as f64);
    }
}
