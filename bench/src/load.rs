//! How load is put on: all callers at once (each asks again as soon as it is answered), or open-loop at a fixed rate, where latency
//! counts from the moment at which a request was meant to be sent, whether or not somebody was free to send it. Who can wait no longer
//! drops what is left, and counts it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::future::join_all;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use tokio::sync::mpsc;

use crate::http::Connection;

/// Latencies are kept in microseconds, up to a minute, to three digits.
const LATENCY_US_MAX: u64 = 60_000_000;
/// A request that is sent this long after it was meant to be counts as late.
const LATE: Duration = Duration::from_millis(5);
/// The pacer sleeps no shorter than this: what is due meanwhile is sent together, as late as that, and its latency counts from when it was due.
const PACER_SLEEP_MIN: Duration = Duration::from_micros(500);

/// What was measured.
pub(crate) struct Measured {
    /// Requests that were answered.
    pub(crate) count: u64,
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// In microseconds.
    pub(crate) latency: Histogram<u64>,
    /// How many came out how.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Sent later than meant, because nobody was free.
    pub(crate) late: u64,
    /// Never sent, because nobody was free for too long.
    pub(crate) dropped: u64,
    /// From the moment at which the last request was due to the last answer: how long the backlog took that was left at the end.
    pub(crate) drained_after: Duration,
}

/// When the requests of an open loop are due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Arrivals a second.
    pub(crate) rate: f64,
    /// Arrivals in all.
    pub(crate) count: usize,
    /// What is not sent this long after the last one was due is dropped; None: everything is sent, however late.
    pub(crate) patience: Option<Duration>,
}

impl Pace {
    /// When the `i`-th arrival is due, from the beginning.
    fn due_after(self, i: usize) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "a moment")]
        Duration::from_secs_f64(i as f64 / self.rate)
    }

    /// When the last one is due, from the beginning.
    fn lasts(self) -> Duration {
        self.due_after(self.count.saturating_sub(1))
    }
}

impl Measured {
    fn new() -> Self {
        let latency = Histogram::new_with_max(LATENCY_US_MAX, 3).expect("three digits");
        let statuses = BTreeMap::new();
        let (elapsed, drained_after) = (Duration::ZERO, Duration::ZERO);
        Self { count: 0, elapsed, latency, statuses, late: 0, dropped: 0, drained_after }
    }

    fn note(&mut self, status: u16, took: Duration) {
        self.count += 1;
        *self.statuses.entry(status).or_default() += 1;
        self.latency.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    /// Takes other latencies, of other pieces of work: all with this status.
    pub(crate) fn retell(&mut self, status: u16, latencies: &[Duration]) {
        let failed = std::mem::take(&mut self.statuses).into_iter().filter(|(other, _)| *other != status);
        *self = Self {
            elapsed: self.elapsed,
            late: self.late,
            dropped: self.dropped,
            statuses: failed.collect(),
            ..Self::new()
        };
        for took in latencies {
            self.note(status, *took);
        }
    }

    /// How many came out with this status.
    pub(crate) fn with_status(&self, status: u16) -> u64 {
        self.statuses.get(&status).copied().unwrap_or_default()
    }

    /// Asks that all came out in one of these ways.
    ///
    /// # Errors
    /// Others did.
    pub(crate) fn expect(self, wanted: &[u16]) -> anyhow::Result<Self> {
        let others: u64 = self.statuses.iter().filter(|(status, _)| !wanted.contains(status)).map(|(_, n)| n).sum();
        if others > 0 {
            bail!("{others} of {} came out otherwise than {wanted:?}: {:?}", self.count, self.statuses);
        }
        Ok(self)
    }
}

/// What one caller does with its connection: the `i`-th piece of work, which comes out with a status.
pub(crate) trait Work: AsyncFn(&mut Connection, usize) -> io::Result<u16> {}
impl<F: AsyncFn(&mut Connection, usize) -> io::Result<u16>> Work for F {}

/// `callers` at once do these pieces of work, each the next one as soon as its last is done.
///
/// # Errors
/// A connection fails.
pub(crate) async fn at_once(
    address: SocketAddr,
    callers: usize,
    pieces: Range<usize>,
    progress: &ProgressBar,
    work: impl Work,
) -> anyhow::Result<Measured> {
    progress.set_length(pieces.len() as u64);
    let mut connections = connect(address, callers.min(pieces.len())).await?;
    let (next, measured) = (Cell::new(pieces.start), RefCell::new(Measured::new()));
    let begun = Instant::now();
    let callers = connections.iter_mut().map(async |connection| -> io::Result<()> {
        loop {
            let i = next.get();
            if i == pieces.end {
                return Ok(());
            }
            next.set(i + 1);
            let sent = Instant::now();
            let status = work(connection, i).await?;
            measured.borrow_mut().note(status, sent.elapsed());
            progress.inc(1);
        }
    });
    for caller in join_all(callers).await {
        caller.context("a connection broke")?;
    }
    let mut measured = measured.into_inner();
    measured.elapsed = begun.elapsed();
    Ok(measured)
}

/// Pieces of work as `pace` says, by at most `callers` at once.
///
/// # Errors
/// A connection fails.
pub(crate) async fn open_loop(
    address: SocketAddr,
    callers: usize,
    pace: Pace,
    progress: &ProgressBar,
    work: impl Work,
) -> anyhow::Result<Measured> {
    progress.set_length(pace.count as u64);
    let mut connections = connect(address, callers).await?;
    let measured = RefCell::new(Measured::new());
    // As long as all arrivals at most.
    let (due, arrivals) = mpsc::unbounded_channel();
    let arrivals = tokio::sync::Mutex::new(arrivals);
    let begun = Instant::now();
    let give_up_at = pace.patience.map(|patience| begun + pace.lasts() + patience);
    // A thread of its own sleeps more exactly than tokio's timer, which knows milliseconds only.
    let pacer = std::thread::spawn(move || {
        for i in 0..pace.count {
            let at = begun + pace.due_after(i);
            let early = at.saturating_duration_since(Instant::now());
            if !early.is_zero() {
                std::thread::sleep(early.max(PACER_SLEEP_MIN));
            }
            if due.send((i, at)).is_err() {
                return;
            }
        }
    });
    let callers = connections.iter_mut().map(async |connection| -> io::Result<()> {
        loop {
            let Some((i, at)) = arrivals.lock().await.recv().await else { return Ok(()) };
            if give_up_at.is_some_and(|give_up_at| Instant::now() > give_up_at) {
                measured.borrow_mut().dropped += 1;
                continue;
            }
            if at.elapsed() > LATE {
                measured.borrow_mut().late += 1;
            }
            let status = work(connection, i).await?;
            measured.borrow_mut().note(status, at.elapsed());
            progress.inc(1);
        }
    });
    for caller in join_all(callers).await {
        caller.context("a connection broke")?;
    }
    pacer.join().map_err(|_| anyhow::anyhow!("the pacer panicked"))?;
    let mut measured = measured.into_inner();
    measured.elapsed = begun.elapsed();
    measured.drained_after = measured.elapsed.saturating_sub(pace.lasts());
    Ok(measured)
}

async fn connect(address: SocketAddr, count: usize) -> anyhow::Result<Vec<Connection>> {
    let opened = join_all((0..count).map(|_| Connection::open(address))).await;
    opened.into_iter().collect::<io::Result<_>>().with_context(|| format!("nobody answers at {address}"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;
    use crate::http::Request;

    /// Serves one connection, and takes this long for each answer.
    fn slow_server(answer_after: Duration) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // A request is one small packet, and the next one comes after the answer.
            while stream.read(&mut [0; 1_024]).unwrap() > 0 {
                std::thread::sleep(answer_after);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            }
        });
        address
    }

    async fn ten_at_once(patience: Option<Duration>) -> Measured {
        let address = slow_server(Duration::from_millis(20));
        let pace = Pace { rate: 10_000.0, count: 10, patience };
        let work = async |connection: &mut Connection, _: usize| {
            let request = Request { method: "GET", path: "/", headers: &[], body: "" };
            Ok(connection.call(&request).await?.status)
        };
        open_loop(address, 1, pace, &ProgressBar::hidden(), work).await.unwrap()
    }

    #[tokio::test]
    async fn who_is_patient_sends_all_and_counts_what_was_late() {
        let measured = ten_at_once(None).await;
        assert_eq!((measured.count, measured.dropped), (10, 0));
        assert!(measured.late >= 9, "{} late", measured.late);
        assert!(measured.drained_after >= Duration::from_millis(180), "{:?}", measured.drained_after);
    }

    #[tokio::test]
    async fn who_is_not_drops_the_rest() {
        let measured = ten_at_once(Some(Duration::from_millis(50))).await;
        assert_eq!(measured.count + measured.dropped, 10);
        assert!(measured.dropped >= 6 && measured.late < 4, "{} dropped, {} late", measured.dropped, measured.late);
    }
}
