//! What Boxoffice is measured against, on the same tables: [`sync`], the service that one would write without a log; [`bare`], an
//! HTTP server that does no work; [`pgbench`], Postgres alone with the statements of either.

pub mod bare;
pub mod pgbench;
pub mod sync;
