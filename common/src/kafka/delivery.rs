//! What becomes of a record that was handed to the producer. Who waits for something that can only come later (the outcome of a request,
//! say) need not be woken by the acknowledgement: [`Delivery::failed`] wakes its caller for a failure alone.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{DeliveryResult, ProducerContext};

use super::context::QuietContext;
use super::producer::{Appended, ProduceError};

/// A record on its way. It has one who waits: a later question replaces an earlier one that is still open.
pub struct Delivery(Arc<Receipt>);

impl Delivery {
    /// The delivery, and what the producer's context fills in.
    pub(super) fn new() -> (Self, Arc<Receipt>) {
        let receipt = Arc::new(Receipt(Mutex::new(State::Waits { waker: None, for_failure: false })));
        (Self(receipt.clone()), receipt)
    }

    /// Waits for the broker's acknowledgement.
    ///
    /// # Errors
    /// [`ProduceError::Unknown`], [`ProduceError::Refused`]
    pub async fn acknowledged(&self) -> Result<Appended, ProduceError> {
        poll_fn(|context| self.0.poll(context, false)).await
    }

    /// Waits for as long as the record is not known to have failed.
    pub async fn failed(&self) -> ProduceError {
        poll_fn(|context| match self.0.poll(context, true) {
            Poll::Ready(Err(error)) => Poll::Ready(error),
            Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
        })
        .await
    }
}

/// What is known of one record.
pub(super) struct Receipt(Mutex<State>);

enum State {
    Waits { waker: Option<Waker>, for_failure: bool },
    Known(Result<Appended, KafkaError>),
}

impl Receipt {
    fn poll(&self, context: &Context<'_>, for_failure: bool) -> Poll<Result<Appended, ProduceError>> {
        match &mut *self.state() {
            State::Known(Ok(appended)) => Poll::Ready(Ok(*appended)),
            State::Known(Err(error)) => Poll::Ready(Err(told(error.clone()))),
            waits => {
                *waits = State::Waits { waker: Some(context.waker().clone()), for_failure };
                Poll::Pending
            }
        }
    }

    fn is(&self, known: Result<Appended, KafkaError>) {
        let failed = known.is_err();
        let before = std::mem::replace(&mut *self.state(), State::Known(known));
        if let State::Waits { waker: Some(waker), for_failure } = before
            && (failed || !for_failure)
        {
            waker.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn told(error: KafkaError) -> ProduceError {
    match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::InvalidRecord,
        ) => ProduceError::Refused(error),
        _ => ProduceError::Unknown(error),
    }
}

/// Fills in the receipts.
#[derive(Debug, Default)]
pub(super) struct Receipts(QuietContext);

impl ClientContext for Receipts {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ProducerContext for Receipts {
    type DeliveryOpaque = Arc<Receipt>;

    fn delivery(&self, result: &DeliveryResult<'_>, receipt: Arc<Receipt>) {
        receipt.is(match result {
            Ok(message) => Ok(Appended { partition: message.partition(), offset: message.offset() }),
            Err((error, _)) => Err(error.clone()),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often a waiting caller is woken by this, and what it then finds.
    fn wakes(for_failure: bool, known: Result<Appended, KafkaError>) -> (usize, Poll<Result<Appended, ProduceError>>) {
        let (woken, (delivery, receipt)) = (Arc::new(Woken::default()), Delivery::new());
        let waker = Waker::from(woken.clone());
        let context = Context::from_waker(&waker);
        assert!(delivery.0.poll(&context, for_failure).is_pending());
        receipt.is(known);
        (woken.0.load(Ordering::Relaxed), delivery.0.poll(&context, for_failure))
    }

    #[test]
    fn an_acknowledgement_wakes_only_who_waits_for_it_and_a_failure_everybody() {
        let appended = Appended { partition: 3, offset: 7 };
        let refused = || Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge));
        for (for_failure, known, expected) in
            [(false, Ok(appended), 1), (true, Ok(appended), 0), (false, refused(), 1), (true, refused(), 1)]
        {
            let is_ok = known.is_ok();
            let (woken, found) = wakes(for_failure, known);
            assert_eq!(woken, expected);
            match found {
                Poll::Ready(Ok(found)) => assert!(is_ok && found == appended),
                Poll::Ready(Err(error)) => assert!(!is_ok && matches!(error, ProduceError::Refused(_))),
                Poll::Pending => panic!("it is known"),
            }
        }
    }

    #[tokio::test]
    async fn who_waits_for_a_failure_waits_on_after_an_acknowledgement() {
        let (delivery, receipt) = Delivery::new();
        receipt.is(Ok(Appended { partition: 0, offset: 0 }));
        tokio::select! {
            biased;
            _ = delivery.failed() => panic!("it did not fail"),
            appended = delivery.acknowledged() => assert!(appended.is_ok()),
        }
    }
}
