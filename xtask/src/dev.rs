//! The directory in which a system lives (`.dev`), and the small files in it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{console, interrupt};

/// Names of the variables in `.dev/env`, and of those that point `up` to a foreign Kafka or Postgres.
pub(crate) const DATABASE_URL: &str = "DATABASE_URL";
pub(crate) const KAFKA_BOOTSTRAP_SERVERS: &str = "KAFKA_BOOTSTRAP_SERVERS";
pub(crate) const BOXOFFICE_URL: &str = "BOXOFFICE_URL";
pub(crate) const BOXOFFICE_ADMIN_KEY: &str = "BOXOFFICE_ADMIN_KEY";

/// Systems for one purpose, inside the main one's directory; and the locks that a run of the tests and one of the benchmark hold.
pub(crate) const TEST_DIR: &str = "test";
/// The folder of the system that is measured, under the main one.
pub(crate) const BENCH_DIR: &str = "bench";
pub(crate) const SQLX_DIR: &str = "sqlx";
pub(crate) const TEST_LOCK: &str = "test.lock";
pub(crate) const BENCH_LOCK: &str = "bench.lock";
const LOCK: &str = "lock";
/// How often a lock is looked at that somebody else has.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Lines of `KEY=VALUE`.
pub(crate) type Settings = BTreeMap<String, String>;

/// One system's directory. Systems in different directories do not know each other.
pub(crate) struct Dev {
    /// The workspace.
    pub(crate) root: PathBuf,
    /// Absolute.
    pub(crate) dir: PathBuf,
}

impl Dev {
    /// The system in `dir`, or in the workspace's `.dev`. Creates the directory.
    pub(crate) fn open(dir: Option<&Path>) -> Result<Self> {
        let root = workspace()?;
        let dir = dir.map_or_else(|| root.join(".dev"), Path::to_path_buf);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("cannot resolve {}", dir.display()))?;
        Ok(Self { root, dir })
    }

    /// Whether this is the system that people use by hand, not one for tests.
    pub(crate) fn is_main(&self) -> bool {
        self.dir == self.root.join(".dev")
    }

    /// The pid files and what is needed to trust them.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The log of one process; appended to.
    pub(crate) fn log(&self, process: &str) -> PathBuf {
        self.dir.join("log").join(format!("{process}.log"))
    }

    /// What others need to know to use the system.
    pub(crate) fn env_file(&self) -> PathBuf {
        self.dir.join("env")
    }

    /// Kafka's jars, shared by all systems of the workspace.
    pub(crate) fn kafka_libs(&self) -> PathBuf {
        self.root.join(".dev/kafka/libs")
    }

    /// A path as short as a user would write it.
    pub(crate) fn show(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// Waits until no other `up` or `down` works on this directory. Held until dropped.
    pub(crate) fn lock(&self) -> Result<File> {
        lock(&self.dir.join(LOCK), "another cargo xtask works on this directory; waiting for it")
    }

    /// The same without waiting: none if another one works.
    pub(crate) fn try_lock(&self) -> Result<Option<File>> {
        try_lock(&self.dir.join(LOCK))
    }
}

/// The workspace's folder.
pub(crate) fn workspace() -> Result<PathBuf> {
    // Cargo names a member's folder to what it runs. What was compiled in comes second: with a shared target folder, the
    // program may have been compiled in another clone.
    let named = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let compiled_in = Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    let roots = [named, compiled_in].into_iter().flatten().filter_map(|member| Some(member.parent()?.to_path_buf()));
    roots.into_iter().find(|root| root.join("xtask/Cargo.toml").exists()).context("cannot find the workspace")
}

/// Takes an exclusive lock on the file, saying `waiting` if that takes time. Released when dropped.
pub(crate) fn lock(path: &Path, waiting: &str) -> Result<File> {
    lock_after(path, || console::note(waiting))
}

fn lock_after(path: &Path, begin_to_wait: impl FnOnce()) -> Result<File> {
    if let Some(file) = try_lock(path)? {
        return Ok(file);
    }
    begin_to_wait();
    loop {
        // No signal ends the kernel's own wait, and others may measure for half an hour.
        interrupt::check()?;
        std::thread::sleep(LOOK_EVERY);
        if let Some(file) = try_lock(path)? {
            return Ok(file);
        }
    }
}

/// Takes an exclusive lock on the file if nobody else has it.
pub(crate) fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Reads lines of `KEY=VALUE`; a file that is not there has none.
pub(crate) fn read_settings(path: &Path) -> Result<Settings> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(parse_settings(&text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Settings::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn parse_settings(text: &str) -> Settings {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Writes lines of `KEY=VALUE`, readable by the owner only: they hold keys and passwords.
pub(crate) fn write_settings<'a>(path: &Path, settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<()> {
    let lines: Vec<String> = settings.into_iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    write_private(path, &lines.concat())
}

/// Replaces a file as a whole, readable by the owner only.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let new = path.with_added_extension("new");
    let write = || {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// 32 bytes of the system's randomness as 64 hexadecimal digits.
pub(crate) fn random_hex() -> Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("cannot read /dev/urandom")?;
    Ok(bytes.map(|byte| format!("{byte:02x}")).concat())
}

/// A hash (FNV-1a) that is the same for ever, to derive names and ports from a path.
pub(crate) fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The last lines of a file from `offset` on; empty if it cannot be read.
pub(crate) fn tail(path: &Path, offset: u64, lines_max: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let text = String::from_utf8_lossy(bytes.get(begin..).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let last: Vec<String> = lines.iter().rev().take(lines_max).rev().map(|line| format!("    {line}\n")).collect();
    last.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_lines_of_key_and_value() {
        let settings = parse_settings("# a comment\nA=1\n\nB=postgres://u:p@h/db?host=/x\nnonsense\n");
        assert_eq!(settings.len(), 2);
        assert_eq!(settings["A"], "1");
        assert_eq!(settings["B"], "postgres://u:p@h/db?host=/x", "only the first = separates");
    }

    #[test]
    fn a_lock_is_had_by_one_and_then_by_the_next() {
        let path = std::env::temp_dir().join(format!("boxoffice-lock-{}", std::process::id()));
        let mut first = Some(lock(&path, "").unwrap());
        assert!(try_lock(&path).unwrap().is_none());
        let next = lock_after(&path, || drop(first.take())).unwrap();
        assert!(first.is_none(), "it has waited for the first");
        assert!(try_lock(&path).unwrap().is_none());
        drop(next);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn hash_of_a_path_never_changes() {
        assert_eq!(stable_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stable_hash("a"), 0xaf63_dc4c_8601_ec8c, "published test vector of FNV-1a");
    }

    #[test]
    fn random_keys_are_long_and_differ() {
        let (a, b) = (random_hex().unwrap(), random_hex().unwrap());
        assert_eq!(a.len(), 64);
        assert_ne!(a, b);
    }
}
