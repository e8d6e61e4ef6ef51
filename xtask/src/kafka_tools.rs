//! Kafka's own command-line tools, from the same jars as the broker.

use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

use crate::dev::{self, Dev, KAFKA_BOOTSTRAP_SERVERS};
use crate::kafka;
use crate::packages;

/// How a tool is told where the brokers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bootstrap {
    /// `--bootstrap-server`.
    Option,
    /// It works on files.
    None,
}
use Bootstrap::{None as NoBroker, Option as Broker};

/// The names that Kafka's `bin/` gives them, without `.sh`, and their classes.
const TOOLS: [(&str, &str, Bootstrap); 24] = [
    ("kafka-acls", "org.apache.kafka.tools.AclCommand", Broker),
    ("kafka-broker-api-versions", "org.apache.kafka.tools.BrokerApiVersionsCommand", Broker),
    ("kafka-cluster", "org.apache.kafka.tools.ClusterTool", Broker),
    ("kafka-configs", "kafka.admin.ConfigCommand", Broker),
    ("kafka-console-consumer", "org.apache.kafka.tools.consumer.ConsoleConsumer", Broker),
    ("kafka-console-producer", "org.apache.kafka.tools.ConsoleProducer", Broker),
    ("kafka-console-share-consumer", "org.apache.kafka.tools.consumer.ConsoleShareConsumer", Broker),
    ("kafka-consumer-groups", "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", Broker),
    ("kafka-consumer-perf-test", "org.apache.kafka.tools.ConsumerPerformance", Broker),
    ("kafka-delete-records", "org.apache.kafka.tools.DeleteRecordsCommand", Broker),
    ("kafka-dump-log", "org.apache.kafka.tools.DumpLogSegments", NoBroker),
    ("kafka-e2e-latency", "org.apache.kafka.tools.EndToEndLatency", Broker),
    ("kafka-features", "org.apache.kafka.tools.FeatureCommand", Broker),
    ("kafka-get-offsets", "org.apache.kafka.tools.GetOffsetShell", Broker),
    ("kafka-groups", "org.apache.kafka.tools.GroupsCommand", Broker),
    ("kafka-leader-election", "org.apache.kafka.tools.LeaderElectionCommand", Broker),
    ("kafka-log-dirs", "org.apache.kafka.tools.LogDirsCommand", Broker),
    ("kafka-metadata-quorum", "org.apache.kafka.tools.MetadataQuorumCommand", Broker),
    ("kafka-producer-perf-test", "org.apache.kafka.tools.ProducerPerformance", Broker),
    ("kafka-reassign-partitions", "org.apache.kafka.tools.reassign.ReassignPartitionsCommand", Broker),
    ("kafka-storage", "kafka.tools.StorageTool", NoBroker),
    ("kafka-topics", "org.apache.kafka.tools.TopicCommand", Broker),
    ("kafka-transactions", "org.apache.kafka.tools.TransactionsCommand", Broker),
    ("kafka-verifiable-producer", "org.apache.kafka.tools.VerifiableProducer", Broker),
];

/// Becomes the tool: its input, output, signals and exit code are the caller's.
pub(crate) fn run(dev: &Dev, words: &[String]) -> Result<ExitCode> {
    let Some((tool, args)) = words.split_first() else {
        println!("{}", list());
        return Ok(ExitCode::SUCCESS);
    };
    let name = tool.strip_suffix(".sh").unwrap_or(tool);
    let Some((_, class, bootstrap)) = TOOLS.iter().find(|(known, ..)| *known == name) else {
        bail!("no tool `{tool}`. There are:\n{}", list());
    };
    if !kafka::is_fetched(dev) {
        bail!("Kafka's tools are not there yet: run `cargo xtask up` first, it fetches them");
    }
    let mut command = kafka::java(&packages::java()?, &dev.kafka_libs(), "error");
    command.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]).arg(class);
    if names_brokers(args) || *bootstrap == NoBroker {
        command.args(args);
    } else {
        command.args(with_brokers(name, args, &bootstrap_servers(dev)?));
    }
    Err(command.exec()).context("cannot run java")
}

/// Whether the caller names other brokers.
fn names_brokers(args: &[String]) -> bool {
    args.iter().any(|arg| arg.starts_with("--bootstrap-") || arg.starts_with("bootstrap.servers="))
}

/// The arguments, and where the brokers are.
fn with_brokers(tool: &str, args: &[String], brokers: &str) -> Vec<String> {
    let option = ["--bootstrap-server".to_owned(), brokers.to_owned()];
    // This one has a command first and its options behind.
    let place = usize::from(tool == "kafka-cluster" && !args.is_empty());
    let (before, behind) = args.split_at(place);
    [before, &option, behind].concat()
}

fn bootstrap_servers(dev: &Dev) -> Result<String> {
    if let Ok(servers) = std::env::var(KAFKA_BOOTSTRAP_SERVERS) {
        return Ok(servers);
    }
    let env = dev::read_settings(&dev.env_file())?;
    let advice = || format!("nothing was started in {}: run `cargo xtask up` first", dev.show(&dev.dir));
    let servers = env.get(KAFKA_BOOTSTRAP_SERVERS).with_context(advice)?;
    // The tools would try for a minute.
    ensure!(TcpStream::connect(servers).is_ok(), "no Kafka at {servers}: run `cargo xtask up` first");
    Ok(servers.clone())
}

fn list() -> String {
    TOOLS.iter().map(|(name, ..)| format!("  {name}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_ascii_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn tools_are_sorted_and_named_once() {
        assert!(TOOLS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn brokers_are_filled_in() {
        assert_eq!(with_brokers("kafka-topics", &words("--list"), "h:1"), words("--bootstrap-server h:1 --list"));
        assert_eq!(
            with_brokers("kafka-cluster", &words("cluster-id"), "h:1"),
            words("cluster-id --bootstrap-server h:1")
        );
    }

    #[test]
    fn brokers_that_the_caller_names_are_kept() {
        assert!(names_brokers(&words("--list --bootstrap-server other:9092")));
        assert!(names_brokers(&words("--bootstrap-server=other:9092")));
        assert!(!names_brokers(&words("--list")));
    }
}
