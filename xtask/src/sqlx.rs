//! `cargo xtask sqlx`: the offline data of the SQL queries.
//!
//! sqlx's macros write a file for each query that they check against a live database if `SQLX_OFFLINE_DIR` says where
//! to; `cargo sqlx prepare` does no more than compile with it set. So does this, against the migrations alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::dev::{self, DATABASE_URL, Dev, SQLX_DIR};
use crate::packages::{self, Wanted};
use crate::services::Keys;
use crate::system::System;
use crate::{cargo, console, down};

/// File name and content of each query's data.
type Queries = BTreeMap<String, String>;

/// Writes `.sqlx/`, or only checks it.
pub(crate) fn run(check: bool) -> Result<ExitCode> {
    let root = dev::workspace()?;
    let dev = Dev::open(Some(&root.join(".dev").join(SQLX_DIR)))?;
    let _lock = dev.lock()?;
    down::stop_and_wipe(&dev)?;
    let result = fresh(&dev);
    down::stop_and_wipe(&dev)?;
    let fresh = result?;

    let committed_dir = root.join(".sqlx");
    let committed = read(&committed_dir)?;
    let differences = differences(&committed, &fresh);
    if differences.is_empty() {
        console::note(&format!(".sqlx/ is up to date: {} queries", fresh.len()));
        return Ok(ExitCode::SUCCESS);
    }
    for difference in &differences {
        console::note(difference);
    }
    if check {
        bail!(".sqlx/ is not what the code and the migrations say: run `cargo xtask sqlx` and commit the folder");
    }
    write(&committed_dir, &committed, &fresh)?;
    console::note(&format!(".sqlx/ is written: {} queries; commit it", fresh.len()));
    Ok(ExitCode::SUCCESS)
}

/// The data of all queries of the workspace, from a Postgres that has nothing but the migrations.
fn fresh(dev: &Dev) -> Result<Queries> {
    let tools = packages::ensure(Wanted { postgres: true, maven: false })?;
    let keys = Keys::open(dev)?;
    let mut system = System::open(dev)?;
    let url = system.start_postgres(&tools, &keys)?;
    system.postgres(&tools, &keys)?.migrate(&dev.root.join("migrations"))?;

    let folder = dev.dir.join("queries");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("cannot delete old queries")?;
    }
    fs::create_dir(&folder).context("cannot create a folder for the queries")?;
    for file in roots_of_sqlx_users(dev)? {
        // What is compiled already is not compiled again, and so would write nothing.
        File::options().append(true).open(&file)?.set_modified(SystemTime::now())?;
    }
    let mut command = cargo::cargo(dev);
    command.args(["check", "--workspace", "--all-targets"]);
    command.env("SQLX_OFFLINE", "false").env("SQLX_OFFLINE_DIR", &folder).env(DATABASE_URL, url);
    let child = command.stdin(Stdio::null()).spawn().context("cannot run cargo")?;
    if !cargo::wait(child)?.success() {
        bail!("the code does not compile against the migrated database");
    }
    let queries = read(&folder)?;
    fs::remove_dir_all(&folder).context("cannot delete the queries")?;
    Ok(queries)
}

/// The root files of all targets of those members that use sqlx.
fn roots_of_sqlx_users(dev: &Dev) -> Result<Vec<PathBuf>> {
    let output = cargo::cargo(dev).args(["metadata", "--no-deps", "--format-version=1"]).output();
    let output = output.context("cannot run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cannot read cargo metadata")?;
    Ok(sqlx_users(&metadata))
}

fn sqlx_users(metadata: &Value) -> Vec<PathBuf> {
    let list = |value: &Value, name: &str| value.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let uses_sqlx = |package: &Value| {
        list(package, "dependencies")
            .iter()
            .any(|dependency| dependency.get("name").and_then(Value::as_str) == Some("sqlx"))
    };
    let packages = list(metadata, "packages").into_iter().filter(uses_sqlx);
    let targets = packages.flat_map(|package| list(&package, "targets"));
    targets.filter_map(|target| Some(PathBuf::from(target.get("src_path")?.as_str()?))).collect()
}

/// All query files of a folder; a folder that is not there has none.
fn read(folder: &Path) -> Result<Queries> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names = names.filter(|name| name.starts_with("query-"));
    let file = |name: String| {
        let text = fs::read_to_string(folder.join(&name)).with_context(|| format!("cannot read {name}"))?;
        Ok((name, text))
    };
    names.map(file).collect()
}

/// What is missing, orphaned or changed in `committed`, in words.
fn differences(committed: &Queries, fresh: &Queries) -> Vec<String> {
    let describe = |name: &String, what: &str, text: &str| {
        let query: Value = serde_json::from_str(text).unwrap_or_default();
        let words: Vec<&str> =
            query.get("query").and_then(Value::as_str).unwrap_or_default().split_whitespace().collect();
        let start: String = words.join(" ").chars().take(70).collect();
        format!("{what}: {name} ({start}…)")
    };
    let missing = fresh.iter().filter(|(name, _)| !committed.contains_key(*name));
    let orphans = committed.iter().filter(|(name, _)| !fresh.contains_key(*name));
    let changed = fresh.iter().filter(|(name, text)| committed.get(*name).is_some_and(|old| old != *text));
    let missing = missing.map(|(name, text)| describe(name, "missing", text));
    let orphans = orphans.map(|(name, text)| describe(name, "not used any more", text));
    let changed = changed.map(|(name, text)| describe(name, "changed", text));
    missing.chain(orphans).chain(changed).collect()
}

/// Makes the folder what it should be.
fn write(folder: &Path, committed: &Queries, fresh: &Queries) -> Result<()> {
    fs::create_dir_all(folder).context("cannot create .sqlx")?;
    for name in committed.keys().filter(|name| !fresh.contains_key(*name)) {
        fs::remove_file(folder.join(name)).with_context(|| format!("cannot delete {name}"))?;
    }
    for (name, text) in fresh.iter().filter(|(name, text)| committed.get(*name) != Some(text)) {
        fs::write(folder.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn queries(entries: &[(&str, &str)]) -> Queries {
        entries.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn differences_are_missing_orphaned_and_changed() {
        let committed = queries(&[("a", "1"), ("b", "2"), ("c", r#"{"query": "SELECT  1"}"#)]);
        let fresh = queries(&[("a", "1"), ("b", "3"), ("d", "4")]);
        let found = differences(&committed, &fresh);
        assert_eq!(found, ["missing: d (…)", "not used any more: c (SELECT 1…)", "changed: b (…)"]);
        assert!(differences(&fresh, &fresh).is_empty());
    }

    #[test]
    fn writing_leaves_exactly_the_fresh_ones() {
        let folder = std::env::temp_dir().join(format!("boxoffice-sqlx-{}", std::process::id()));
        let old = queries(&[("query-a.json", "1"), ("query-b.json", "2")]);
        let new = queries(&[("query-b.json", "3"), ("query-c.json", "4")]);
        write(&folder, &Queries::new(), &old).unwrap();
        assert_eq!(read(&folder).unwrap(), old);
        write(&folder, &old, &new).unwrap();
        assert_eq!(read(&folder).unwrap(), new);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn only_users_of_sqlx_are_compiled_again() {
        let metadata = json!({"packages": [
            {"dependencies": [{"name": "sqlx"}], "targets": [{"src_path": "/a/lib.rs"}, {"src_path": "/a/main.rs"}]},
            {"dependencies": [{"name": "clap"}], "targets": [{"src_path": "/b/lib.rs"}]},
        ]});
        assert_eq!(sqlx_users(&metadata), [PathBuf::from("/a/lib.rs"), PathBuf::from("/a/main.rs")]);
    }
}
