//! Programs that the system needs besides Rust: found, or installed where that is possible without asking, or named.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::console;

const JAVA_MIN: u32 = 17;
const POSTGRES_MIN: u32 = 15;
/// Java packages of Debian and Ubuntu, first choice first.
const JAVA_PACKAGES: [&str; 3] = ["openjdk-17-jdk-headless", "openjdk-21-jdk-headless", "openjdk-25-jdk-headless"];

/// What was found.
pub(crate) struct Tools {
    /// The `java` program, 17 or later.
    pub(crate) java: PathBuf,
    /// The folder with `postgres`, `initdb`, `psql`, `pg_isready`; none if Postgres is not wanted.
    pub(crate) postgres: Option<PathBuf>,
}

/// What is needed on this occasion.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    /// To run Postgres.
    pub(crate) postgres: bool,
    /// To fetch Kafka.
    pub(crate) maven: bool,
}

/// One thing that is not there: what it is, and Debian's package of it.
struct Missing {
    what: &'static str,
    package: &'static str,
}

/// Finds everything, installing by apt what is not there. The error says exactly what to install.
pub(crate) fn ensure(wanted: Wanted) -> Result<Tools> {
    let mut found = Found::look(wanted);
    let missing = found.missing(wanted);
    if !missing.is_empty() {
        let by_hand = install(&missing)?;
        found = Found::look(wanted);
        if !found.missing(wanted).is_empty() {
            bail!("the packages of this distribution do not suffice. {by_hand}");
        }
    }
    Ok(Tools { java: found.java.context("no Java")?, postgres: found.postgres })
}

/// What was found of what takes time to find.
struct Found {
    java: Option<PathBuf>,
    postgres: Option<PathBuf>,
}

impl Found {
    fn look(wanted: Wanted) -> Self {
        Self { java: find_java(), postgres: wanted.postgres.then(find_postgres).flatten() }
    }

    fn missing(&self, wanted: Wanted) -> Vec<Missing> {
        let mut missing = Vec::new();
        let mut need = |there: bool, what, package| {
            if !there {
                missing.push(Missing { what, package });
            }
        };
        need(self.java.is_some(), "Java (JDK) 17 or later", JAVA_PACKAGES[0]);
        need(!wanted.maven || on_path("mvn").is_some(), "Maven", "maven");
        need(!wanted.postgres || self.postgres.is_some(), "Postgres 15 or later", "postgresql");
        // For librdkafka, which is compiled from source.
        let compilers = ["cc", "c++", "make"].iter().all(|program| on_path(program).is_some());
        need(compilers, "a C and C++ compiler and make", "build-essential");
        let pkg_config = on_path("pkg-config").is_some();
        need(pkg_config, "pkg-config", "pkg-config");
        need(pkg_config && library("openssl"), "OpenSSL's headers", "libssl-dev");
        need(pkg_config && library("zlib"), "zlib's headers", "zlib1g-dev");
        missing
    }
}

/// Java alone, for Kafka's tools.
pub(crate) fn java() -> Result<PathBuf> {
    find_java().with_context(|| format!("no Java {JAVA_MIN} or later: run `cargo xtask up` first, it installs it"))
}

/// Installs by apt, as root or through sudo if that asks for no password; what to do by hand if that does not suffice.
fn install(missing: &[Missing]) -> Result<String> {
    let names: Vec<&str> = missing.iter().map(|missing| missing.what).collect();
    let packages: Vec<&str> = missing.iter().map(|missing| missing.package).collect();
    let by_hand = format!(
        "missing: {}. Install them and try again; on Debian or Ubuntu: sudo apt-get install {}",
        names.join(", "),
        packages.join(" ")
    );
    if on_path("apt-get").is_none() {
        bail!(by_hand);
    }
    let prefix: &[&str] = if is_root() {
        &[]
    } else if quiet(Command::new("sudo").args(["-n", "true"])) {
        &["sudo", "-n"]
    } else {
        bail!(by_hand);
    };
    console::note(&format!("installing {} by apt", names.join(", ")));
    let root = |args: &[&str]| -> Result<()> {
        let words: Vec<&str> =
            prefix.iter().chain(["env", "DEBIAN_FRONTEND=noninteractive"].iter()).chain(args).copied().collect();
        let child = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let status = cargo::wait(child.with_context(|| format!("cannot run {}", words[0]))?)?;
        if !status.success() {
            bail!("`{}` failed. {by_hand}", args.join(" "));
        }
        Ok(())
    };
    root(&["apt-get", "update", "-qq"])?;
    let packages: Vec<&str> =
        packages.iter().map(|package| if *package == JAVA_PACKAGES[0] { java_package() } else { package }).collect();
    if packages.contains(&"postgresql") {
        // Debian's package would start a server of its own for the whole machine, which nobody asked for.
        root(&["mkdir", "-p", "/etc/postgresql-common/createcluster.d"])?;
        root(&[
            "sh",
            "-c",
            "echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/boxoffice.conf",
        ])?;
    }
    let mut install = vec!["apt-get", "install", "-y", "-qq", "--no-install-recommends"];
    install.extend(packages);
    root(&install)?;
    Ok(by_hand)
}

/// The first Java package that this distribution has.
fn java_package() -> &'static str {
    let exists = |package: &&&str| quiet(Command::new("apt-cache").args(["show", package]));
    JAVA_PACKAGES.iter().find(exists).unwrap_or(&"default-jdk-headless")
}

fn find_java() -> Option<PathBuf> {
    let home = std::env::var_os("JAVA_HOME").map(|home| Path::new(&home).join("bin/java"));
    let installed = subfolders("/usr/lib/jvm").into_iter().map(|folder| folder.join("bin/java"));
    home.into_iter().chain(on_path("java")).chain(installed).find(|java| {
        let output = Command::new(java).arg("-version").output();
        output.is_ok_and(|output| java_version(&String::from_utf8_lossy(&output.stderr)) >= Some(JAVA_MIN))
    })
}

/// The major version that `java -version` tells: `openjdk version "17.0.15"`, `java version "1.8.0_292"`.
fn java_version(text: &str) -> Option<u32> {
    let version = text.split('"').nth(1)?;
    let mut numbers = version.split(['.', '_', '-', '+']).map(str::parse);
    match numbers.next()?.ok()? {
        1 => numbers.next()?.ok(),
        major => Some(major),
    }
}

/// The folder of the newest Postgres, Debian's place or the path.
fn find_postgres() -> Option<PathBuf> {
    let debian = subfolders("/usr/lib/postgresql").into_iter().map(|folder| folder.join("bin"));
    let path = on_path("postgres").and_then(|program| program.canonicalize().ok()?.parent().map(Path::to_path_buf));
    let complete =
        |folder: &PathBuf| ["postgres", "initdb", "psql", "pg_isready"].iter().all(|name| folder.join(name).exists());
    let version = |folder: &PathBuf| {
        let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
        postgres_version(&String::from_utf8_lossy(&output.stdout))
    };
    let found = debian.chain(path).filter(complete).filter_map(|folder| Some((version(&folder)?, folder)));
    found.filter(|(version, _)| *version >= POSTGRES_MIN).max().map(|(_, folder)| folder)
}

/// The major version that `postgres --version` tells: `postgres (PostgreSQL) 15.20 (Debian …)`.
fn postgres_version(text: &str) -> Option<u32> {
    let digits = text.split_ascii_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn subfolders(folder: &str) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    folders.sort();
    folders
}

/// Where a program lies, by the search path.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn library(name: &str) -> bool {
    quiet(Command::new("pkg-config").args(["--exists", name]))
}

/// Whether this process may do anything.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a command succeeds; its output is not shown.
pub(crate) fn quiet(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_java() {
        for (text, version) in [
            ("openjdk version \"17.0.15\" 2025-04-15", Some(17)),
            ("openjdk version \"21\" 2023-09-19", Some(21)),
            ("openjdk version \"25-ea\" 2025-09-16", Some(25)),
            ("java version \"1.8.0_292\"", Some(8)),
            ("command not found", None),
        ] {
            assert_eq!(java_version(text), version, "{text}");
        }
    }

    #[test]
    fn versions_of_postgres() {
        assert_eq!(postgres_version("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)"), Some(15));
        assert_eq!(postgres_version("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(postgres_version("nothing"), None);
    }
}
