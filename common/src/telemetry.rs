//! Logs and metrics of a process.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, TelemetryConfig};

/// Buckets for everything that is measured in seconds.
const SECONDS: [f64; 14] = [0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 5.0, 30.0];
/// Buckets for everything that is counted in records.
const RECORDS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 350.0, 500.0];

const UPKEEP_EVERY: Duration = Duration::from_secs(1);

/// Starts logging and metrics; the handle renders the page of `/metrics`.
///
/// # Errors
/// `RUST_LOG` does not parse, it was started before, or there is no thread.
pub fn start(config: &TelemetryConfig) -> anyhow::Result<PrometheusHandle> {
    let filter = EnvFilter::try_new(&config.log_filter)
        .map_err(|error| anyhow::anyhow!("RUST_LOG is no log filter ({error}); try `info`"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|error| anyhow::anyhow!("logging is started already: {error}"))?;
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_records".to_owned()), &RECORDS)?;
    let handle = recorder.install_recorder()?;
    let kept = handle.clone();
    // Samples pile up until they are sorted into their buckets, be the page asked for or not.
    std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(UPKEEP_EVERY);
            kept.run_upkeep();
        }
    })?;
    Ok(handle)
}
