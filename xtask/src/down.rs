//! `cargo xtask down`: stops the system, and deletes its data on demand.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::console;
use crate::dev::Dev;
use crate::postgres;
use crate::process;
use crate::system;

/// Stops every process of the system; with `wipe`, deletes its data.
pub(crate) fn down(dev: &Dev, wipe: bool) -> Result<ExitCode> {
    let _lock = dev.lock()?;
    let names = process::names(dev);
    if names.is_empty() {
        console::note("nothing runs");
    }
    system::stop(dev, names);
    if !process::names(dev).is_empty() {
        anyhow::bail!("some processes could not be stopped");
    }
    if wipe {
        self::wipe(dev)?;
        console::note(&format!("deleted the data, keys and logs in {}", dev.show(&dev.dir)));
    }
    Ok(ExitCode::SUCCESS)
}

/// Deletes everything of a stopped system but Kafka's jars, the lock that is held on it, and other systems inside its directory.
pub(crate) fn wipe(dev: &Dev) -> Result<()> {
    postgres::wipe(dev)?;
    for name in ["run", "log", "env", "keys", "ports", "demo.json", "kafka/data", "kafka/server.properties"] {
        let path = dev.dir.join(name);
        let deleted = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else if path.exists() {
            fs::remove_file(&path)
        } else {
            Ok(())
        };
        deleted.with_context(|| format!("cannot delete {}", path.display()))?;
    }
    Ok(())
}
