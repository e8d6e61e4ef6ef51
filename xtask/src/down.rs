//! `cargo xtask down`: stops the system, and deletes its data on demand.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::console;
use crate::dev::{self, Dev, SQLX_DIR, TEST_DIR, TEST_LOCK};
use crate::postgres;
use crate::process;
use crate::system;

/// What `wipe` deletes in a system's directory. What stays: Kafka's jars, which are downloaded and hold no data, and lock files.
const DATA: [&str; 8] = ["run", "log", "env", "keys", "ports", "demo.json", "kafka/data", "kafka/server.properties"];

/// Stops every process of the system; with `wipe`, deletes its data.
pub(crate) fn down(dev: &Dev, wipe: bool) -> Result<ExitCode> {
    let _lock = dev.lock()?;
    if process::names(dev).is_empty() {
        console::note("nothing runs");
    }
    if wipe {
        stop_and_wipe(dev)?;
        if dev.is_main() {
            wipe_nested(dev)?;
        }
        console::note(&format!("deleted data, keys and logs in {}", dev.show(&dev.dir)));
    } else {
        stop(dev)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Also deletes what `test` and `sqlx` have left behind, unless they are at work.
fn wipe_nested(dev: &Dev) -> Result<()> {
    let Some(_no_test_runs) = dev::try_lock(&dev.dir.join(TEST_LOCK))? else { return Ok(()) };
    for name in [TEST_DIR, SQLX_DIR] {
        if dev.dir.join(name).exists() {
            let nested = Dev::open(Some(&dev.dir.join(name)))?;
            let Some(_lock) = nested.try_lock()? else { continue };
            stop_and_wipe(&nested)?;
        }
    }
    Ok(())
}

/// Stops every process of the system.
pub(crate) fn stop(dev: &Dev) -> Result<()> {
    system::stop(dev, process::names(dev));
    let left = process::names(dev);
    ensure!(left.is_empty(), "could not be stopped: {}", left.join(", "));
    Ok(())
}

/// Stops every process of the system and deletes its data.
pub(crate) fn stop_and_wipe(dev: &Dev) -> Result<()> {
    stop(dev)?;
    postgres::wipe(dev)?;
    for name in DATA {
        let path = dev.dir.join(name);
        let deleted = match (path.is_dir(), path.exists()) {
            (true, _) => fs::remove_dir_all(&path),
            (false, true) => fs::remove_file(&path),
            (false, false) => Ok(()),
        };
        deleted.with_context(|| format!("cannot delete {}", path.display()))?;
    }
    Ok(())
}
