//! Partitions come, go, and are taken over anew when the database turns out to have been restored from a backup.

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::topics;
use rdkafka::consumer::Consumer as _;

use super::batch::{Applier, Partitions};
use super::consume::Ended;
use super::offsets::Positions;
use super::recall::{self, Applied, Reader, TooMuch};
use super::word::Word;
use super::worker::Worker;
use super::{offsets, store};

/// How long to wait before asking again, while the database or the broker is away.
const ASSIGN_RETRY: Duration = Duration::from_millis(200);

impl<W: Word> Worker<W> {
    /// Reads on in `partitions` where the database stands, whatever has been read of them so far.
    pub(super) async fn take_over(&mut self, partitions: Vec<i32>) -> anyhow::Result<()> {
        self.aside.leave(&partitions);
        self.applied_here.retain(|partition, _| !partitions.contains(partition));
        loop {
            let taken = self.try_take_over(&partitions).await;
            let Err(error) = taken else { break };
            if error.is::<TooMuch>() || error.is::<Ended>() {
                return Err(error);
            }
            tracing::warn!(%error, "the partitions are not taken over yet");
            tokio::select! {
                () = tokio::time::sleep(ASSIGN_RETRY) => {}
                () = self.applier.stop.cancelled() => return Ok(()),
            }
        }
        self.owned.extend(&partitions);
        self.assigned.store(true, Ordering::Relaxed);
        tracing::info!(?partitions, "partitions taken over");
        Ok(())
    }

    async fn try_take_over(&mut self, partitions: &[i32]) -> anyhow::Result<()> {
        self.applier.word.forget();
        let applied = self.applied().await?;
        let (consumer, asked) = (self.consumer.clone(), partitions.to_vec());
        let (kafka, stop) = (self.kafka.clone(), self.applier.stop.clone());
        let known = applied.own.keys().copied().collect();
        let mut applied_before = applied.own.clone();
        let (watermarks, results, starts, gone, mut memory) =
            tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
                let reader = Reader::open::<W>(&kafka, &stop)?;
                let watermarks = reader.watermarks(W::TOPIC)?;
                let beginnings: Positions = watermarks.iter().map(|(id, (beginning, _))| (*id, *beginning)).collect();
                let starts = offsets::starts(&consumer, W::TOPIC, &asked, &applied.own, &beginnings)?;
                let gone = offsets::gone(&asked, &applied.own, &beginnings);
                let results = reader.partitions(topics::RESULTS)?.len();
                Ok((watermarks, results, starts, gone, recall::recall::<W>(&reader, applied)?))
            })
            .await??;
        tracing::debug!(?starts, "starting offsets");
        // Others went on meanwhile: what they told since is applied by now.
        memory.check(self.applied().await?);
        self.applier.word.tokens_told(&self.applier.pool, memory.fates(), false).await?;
        self.applier.known = known;
        self.applier.memory = memory;
        self.partitions = Some(Partitions { own: i32::try_from(watermarks.len())?, results: i32::try_from(results)? });
        // A log that ends before that is a new one, and its records are, too.
        applied_before.retain(|id, next| watermarks.get(id).is_some_and(|(_, end)| *next <= *end));
        self.applier.applied_before = applied_before;
        self.read_from(starts, gone).await
    }

    async fn read_from(&mut self, starts: Positions, gone: Positions) -> anyhow::Result<()> {
        let (consumer, from) = (self.consumer.clone(), starts.clone());
        let old = tokio::task::spawn_blocking(move || offsets::take_over(&consumer, W::TOPIC, &from)).await??;
        self.reading.begin(&starts);
        if !gone.is_empty() {
            tracing::error!(applied = ?gone, "records behind these are gone from the log and were never applied; it goes on behind them");
            // The next record stands for what is gone, or it would be on top of a gap for ever.
            self.reading.begin(&gone);
        }
        if !old.is_empty() {
            self.seeker.seek(old.clone()).await?;
            self.reading.sought(old.into_keys());
        }
        let consumer = self.consumer.clone();
        Ok(tokio::task::spawn_blocking(move || offsets::commit_starts(&consumer, W::TOPIC, &starts)).await??)
    }

    /// How far the database is.
    pub(super) async fn applied(&self) -> Result<Applied, sqlx::Error> {
        let pool = &self.applier.pool;
        let causes = match W::CAUSES {
            Some(topic) => store::applied(pool, topic).await?,
            None => Positions::new(),
        };
        Ok(Applied { own: store::applied(pool, W::TOPIC).await?, causes, log_time: store::last_log_time(pool).await? })
    }

    /// Takes notice of how far the database has come with what was told.
    pub(super) async fn catch_up(&mut self) {
        if self.applier.memory.is_empty() {
            return;
        }
        let caught_up = async {
            let applied = self.applied().await?;
            self.applier.memory.note(applied);
            if !self.applier.memory.is_active() {
                let Applier { word, pool, memory, .. } = &mut self.applier;
                word.tokens_told(pool, memory.fates(), true).await?;
                memory.forget();
            }
            Ok::<(), sqlx::Error>(())
        };
        if let Err(error) = caught_up.await {
            tracing::warn!(%error, "how far the database is, is looked at again");
        }
    }

    /// The database knows less than this worker has told it: all that it owns is read again from there.
    pub(super) async fn take_over_again(&mut self) -> anyhow::Result<()> {
        tracing::warn!("the database has gone back; it is caught up by the log");
        let owned = self.owned.iter().copied().collect();
        self.take_over(owned).await
    }

    /// All records of these partitions that came were applied: commit, then hand back.
    pub(super) async fn hand_back(&mut self, partitions: Vec<i32>) -> anyhow::Result<()> {
        if self.consumer.assignment_lost() {
            tracing::warn!(?partitions, "partitions lost; what was not committed is read again by their new owner");
        } else {
            self.publisher.settle().await?;
        }
        // Nor may what could not be committed just now be committed later: their new owner may be further by then.
        self.publisher.forget(partitions.clone()).await?;
        for partition in &partitions {
            self.owned.remove(partition);
            self.applied_here.remove(partition);
        }
        self.aside.leave(&partitions);
        self.reading.leave(&partitions);
        offsets::hand_back(&self.consumer, W::TOPIC, &partitions)?;
        self.applier.word.forget();
        tracing::info!(?partitions, "partitions handed back");
        Ok(())
    }

    /// Reads on where records were let go for want of room.
    pub(super) async fn read_again(&mut self) -> anyhow::Result<()> {
        let starts = self.aside.take_let_go();
        if starts.is_empty() {
            return Ok(());
        }
        self.reading.begin(&starts);
        self.reading.sought(starts.keys().copied());
        loop {
            let Err(error) = self.seeker.seek(starts.clone()).await else { return Ok(()) };
            if error.is::<Ended>() {
                return Err(error);
            }
            if self.consumer.assignment_lost() {
                return Ok(());
            }
            tracing::warn!(%error, ?starts, "reading on is tried again");
            tokio::select! {
                () = tokio::time::sleep(ASSIGN_RETRY) => {}
                () = self.applier.stop.cancelled() => return Ok(()),
            }
        }
    }
}
