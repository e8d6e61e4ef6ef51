//! A private Apache Kafka: one node that is broker and controller, from plain jars.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::console;
use crate::dev::{self, Dev};
use crate::{cargo, packages};

/// Its name among the processes.
pub(crate) const NAME: &str = "kafka";
/// The version that is fetched.
const VERSION: &str = "4.3.1";
const POM: &str = include_str!("../kafka/pom.xml");
const SERVER_PROPERTIES: &str = include_str!("../kafka/server.properties");
/// Small heap, no parallel collector, and only the quick compiler: cheapest for a broker that lives for minutes.
const JVM_OPTIONS: [&str; 3] = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
/// Further options of the broker's JVM, as its own start script has it.
pub(crate) const KAFKA_OPTS: &str = "KAFKA_OPTS";
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
const LOG_LINES_SHOWN: usize = 20;

/// The broker of one system.
pub(crate) struct Kafka {
    java: PathBuf,
    libs: PathBuf,
    home: PathBuf,
    port: u16,
    controller_port: u16,
}

impl Kafka {
    /// The broker of this system, on these ports.
    pub(crate) fn new(dev: &Dev, java: PathBuf, port: u16, controller_port: u16) -> Self {
        Self { java, libs: dev.kafka_libs(), home: dev.dir.join(NAME), port, controller_port }
    }

    /// Its address.
    pub(crate) fn bootstrap_servers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Writes its settings, and makes the data folder, once.
    pub(crate) fn format(&self) -> Result<()> {
        let data = self.home.join("data");
        fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
        let text = SERVER_PROPERTIES
            .replace("{broker_port}", &self.port.to_string())
            .replace("{controller_port}", &self.controller_port.to_string())
            .replace("{data}", &data.to_string_lossy());
        fs::write(self.properties(), text).context("cannot write server.properties")?;
        if data.join("meta.properties").exists() {
            return Ok(());
        }
        let cluster = cluster_id()?;
        let mut format = self.java();
        format
            .args(["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", &cluster, "-c"])
            .arg(self.properties());
        let output = format.output().context("cannot run java")?;
        if !output.status.success() {
            bail!("formatting Kafka's data failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// The command that runs the broker.
    pub(crate) fn command(&self) -> Command {
        let mut command = self.java();
        let further = std::env::var(KAFKA_OPTS).unwrap_or_default();
        command.args(JVM_OPTIONS).args(further.split_whitespace()).arg("kafka.Kafka").arg(self.properties());
        command
    }

    /// Whether the broker is a member of its cluster and answers: before that, topics cannot be created.
    pub(crate) fn is_ready(&self) -> bool {
        brokers(self.port).is_some_and(|brokers| brokers > 0)
    }

    fn properties(&self) -> PathBuf {
        self.home.join("server.properties")
    }

    fn java(&self) -> Command {
        let mut command = java(&self.java, &self.libs, "info");
        command.current_dir(&self.home);
        command
    }
}

/// Java with Kafka's jars; log lines of `level` and above go to standard error.
pub(crate) fn java(java: &Path, libs: &Path, level: &str) -> Command {
    let mut command = Command::new(java);
    command.arg("-cp").arg(libs.join("*"));
    command.arg(format!("-Dorg.slf4j.simpleLogger.defaultLogLevel={level}"));
    command.args(["-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.showThreadName=false"]);
    command.arg("-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS");
    command
}

/// Whether the jars of this version are there.
pub(crate) fn is_fetched(dev: &Dev) -> bool {
    dev.kafka_libs().join(format!("kafka_2.13-{VERSION}.jar")).exists()
}

/// Fetches the jars by Maven, once; whole or not at all.
pub(crate) fn fetch(dev: &Dev, java: &Path) -> Result<()> {
    let libs = dev.kafka_libs();
    let folder = libs.parent().context("the jars have no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let _lock = dev::lock(&folder.join("lock"), "another cargo xtask fetches Kafka; waiting for it")?;
    if is_fetched(dev) {
        return Ok(());
    }
    let step = console::step(format!("fetching Apache Kafka {VERSION} by Maven"));
    let new = folder.join("libs.new");
    for old in [&new, &libs] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot delete {}", old.display()))?;
        }
    }
    let pom = folder.join("pom.xml");
    fs::write(&pom, POM).context("cannot write pom.xml")?;
    let log = folder.join("maven.log");
    let output = fs::File::create(&log).context("cannot write maven.log")?;
    let errors = output.try_clone().context("cannot share maven.log")?;
    let mut maven = Command::new(packages::on_path("mvn").context("no Maven")?);
    maven.args(["--batch-mode", "--no-transfer-progress", "--file"]).arg(&pom).arg("dependency:copy-dependencies");
    maven
        .arg(format!("-Dkafka.version={VERSION}"))
        .arg("-DincludeScope=runtime")
        .arg(format!("-DoutputDirectory={}", new.display()));
    if let Some(home) = java.canonicalize().ok().as_deref().and_then(Path::parent).and_then(Path::parent) {
        maven.env("JAVA_HOME", home);
    }
    let child = maven.stdin(Stdio::null()).stdout(output).stderr(errors).spawn().context("cannot run mvn")?;
    if !cargo::wait(child)?.success() {
        let said = dev::tail(&log, 0, LOG_LINES_SHOWN);
        bail!("Maven could not fetch Kafka (network? proxy? mirror in ~/.m2/settings.xml?):\n{said}");
    }
    fs::rename(&new, &libs).context("cannot name the folder of the jars")?;
    step.done("fetched");
    Ok(())
}

/// A new cluster's id: 16 random bytes in base64url, as Kafka writes them.
fn cluster_id() -> Result<String> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let random = dev::random_hex()?;
    // 21 free digits of 6 bits each, and one of 2 bits; none begins with `-`, which would look like an option.
    let digit =
        |i: usize| usize::from_str_radix(&random[2 * i..2 * i + 2], 16).map(|byte| char::from(DIGITS[byte % 62]));
    let mut id: String = (0..21).map(digit).collect::<Result<_, _>>().context("not hexadecimal")?;
    id.push('A');
    Ok(id)
}

/// How many brokers the broker on this port knows to be in service, by a Metadata request; none if it does not answer.
fn brokers(port: u16) -> Option<i32> {
    // Length; API 3 (Metadata), version 1, correlation 1, no client id; an empty list of topics.
    const REQUEST: [u8; 18] = [0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0];
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut connection = TcpStream::connect_timeout(&address, PROBE_TIMEOUT).ok()?;
    connection.set_read_timeout(Some(PROBE_TIMEOUT)).ok()?;
    connection.write_all(&REQUEST).ok()?;
    // Length, correlation, number of brokers.
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).ok()?;
    Some(i32::from_be_bytes([answer[8], answer[9], answer[10], answer[11]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_ids_look_like_kafkas() {
        let id = cluster_id().unwrap();
        assert_eq!(id.len(), 22);
        assert!(id.chars().all(|c| c.is_ascii_alphanumeric()));
        assert_ne!(id, cluster_id().unwrap());
    }

    #[test]
    fn a_port_without_a_broker_has_none() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert_eq!(brokers(port), None);
    }

    #[test]
    fn server_properties_have_no_placeholder_left() {
        let dir = std::env::temp_dir().join(format!("boxoffice-kafka-{}", std::process::id()));
        let dev = Dev { root: dir.clone(), dir: dir.clone() };
        let kafka = Kafka::new(&dev, PathBuf::from("/none"), 1, 2);
        fs::create_dir_all(dir.join("kafka/data")).unwrap();
        fs::write(dir.join("kafka/data/meta.properties"), "formatted").unwrap();
        kafka.format().unwrap();
        let text = fs::read_to_string(kafka.properties()).unwrap();
        assert!(text.contains("listeners=PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2\n"), "{text}");
        assert!(!text.contains('{'));
        fs::remove_dir_all(dir).unwrap();
    }
}
