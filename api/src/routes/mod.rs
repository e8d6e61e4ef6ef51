//! The calls, one file a word. A handler parses, guards and publishes (or reads); no rule of the business stands here.

pub(crate) mod balance;
pub(crate) mod concerts;
pub(crate) mod events;
pub(crate) mod operators;
pub(crate) mod payments;
pub(crate) mod queues;
pub(crate) mod reads;
pub(crate) mod requests;
pub(crate) mod reservations;
pub(crate) mod schedules;
pub(crate) mod tokens;
pub(crate) mod users;

use utoipa::{IntoParams, ToSchema};

/// Headers of every call that goes through the log.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it describes headers for the OpenAPI document; the handlers read them themselves")]
pub(crate) struct LogHeaders {
    /// `wait=N`, 1 to 30 seconds: the final answer in the response.
    #[param(rename = "Prefer", example = "wait=10")]
    prefer: Option<String>,
    /// 1 to 255 visible ASCII characters: a repeat gets the first one's answer, and has no second effect.
    #[param(rename = "Idempotency-Key")]
    idempotency_key: Option<String>,
    /// The W3C trace context, which the record carries on.
    traceparent: Option<String>,
}

/// `Prefer` alone.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it describes a header for the OpenAPI document; the handlers read it themselves")]
pub(crate) struct WaitHeader {
    /// `wait=N`, 1 to 30 seconds: wait for the end.
    #[param(rename = "Prefer", example = "wait=10")]
    prefer: Option<String>,
}

/// Parameters of every list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes parameters for the OpenAPI document; the handlers read them themselves")]
pub(crate) struct PageParams {
    /// Where the page begins: the `next_cursor` of the page before; left out: at the beginning.
    cursor: Option<String>,
    /// Entries of the page.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<i64>,
}

/// The answer 202: the broker has the request, nobody has answered it yet.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes a body for the OpenAPI document; `wait::accepted` writes it")]
pub(crate) struct Accepted {
    request_id: uuid::Uuid,
    #[schema(example = "PENDING")]
    status: String,
}

#[cfg(test)]
mod tests {
    use crate::call::Call;

    fn size<F>(_: impl FnOnce(Call) -> F) -> usize {
        size_of::<F>()
    }

    /// Thousands wait at once, and each call is moved to the heap as a whole: questions to the database, which few ask, are boxed.
    #[test]
    fn a_call_that_waits_is_small() {
        for (call, size) in [
            ("hold", size(super::reservations::hold)),
            ("pay", size(super::payments::pay)),
            ("join", size(super::tokens::join)),
            ("poll", size(super::tokens::poll)),
            ("seats", size(super::schedules::seats)),
        ] {
            assert!(size <= 2_048, "{call} takes {size} bytes");
        }
    }
}
