//! A system while it is brought up: who is started, who runs already, and how they are stopped again.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo::{self, Programs};
use crate::console;
use crate::dev::{self, DATABASE_URL, Dev, KAFKA_BOOTSTRAP_SERVERS};
use crate::interrupt;
use crate::kafka::{self, Kafka};
use crate::packages::Tools;
use crate::ports::Ports;
use crate::postgres::{self, Postgres};
use crate::process::{self, Running};
use crate::services::{self, Backing, Keys};

/// How long a process may take until it is ready.
const READY_WAIT: Duration = Duration::from_secs(90);
/// How often it is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(50);
const LOG_LINES_SHOWN: usize = 20;

/// Where in its log the lines of a process begin, in bytes; none if it ran before.
type LogOffset = Option<u64>;

/// One system, and what this command has started of it.
pub(crate) struct System<'a> {
    pub(crate) dev: &'a Dev,
    pub(crate) ports: Ports,
    /// In the order of their start.
    pub(crate) started: Vec<String>,
    children: Vec<Child>,
}

/// A Kafka and a Postgres that the environment names, to be used instead of private ones.
#[derive(Default)]
pub(crate) struct Foreign {
    pub(crate) database_url: Option<String>,
    pub(crate) kafka_bootstrap_servers: Option<String>,
}

impl Foreign {
    /// What the environment names. This system's own addresses, exported from its `env`, are not foreign.
    pub(crate) fn from_environment(dev: &Dev) -> Result<Self> {
        let own = dev::read_settings(&dev.env_file())?;
        let named = |name: &str, private: bool| {
            let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
            (!private || own.get(name) != Some(&value)).then_some(value)
        };
        Ok(Self {
            database_url: named(DATABASE_URL, postgres::exists(dev)),
            kafka_bootstrap_servers: named(KAFKA_BOOTSTRAP_SERVERS, dev.dir.join(kafka::NAME).join("data").exists()),
        })
    }
}

impl<'a> System<'a> {
    pub(crate) fn open(dev: &'a Dev) -> Result<Self> {
        Ok(Self { dev, ports: Ports::open(dev)?, started: Vec::new(), children: Vec::new() })
    }

    /// Starts Kafka and Postgres, or takes the foreign ones.
    pub(crate) fn start_backing(&mut self, tools: &Tools, foreign: &Foreign) -> Result<Backing> {
        let keys = Keys::open(self.dev)?;
        // Both are started before either is waited for.
        let kafka = match &foreign.kafka_bootstrap_servers {
            Some(_) => None,
            None => Some(self.start_kafka(tools)?),
        };
        let database_url = match &foreign.database_url {
            Some(url) => {
                console::note("using the Postgres that DATABASE_URL names");
                url.clone()
            }
            None => self.start_postgres(tools, &keys)?,
        };
        let kafka_bootstrap_servers = match (&foreign.kafka_bootstrap_servers, kafka) {
            (_, Some((kafka, offset))) => {
                self.await_ready("Kafka", kafka::NAME, offset, || kafka.is_ready())?;
                kafka.bootstrap_servers()
            }
            (servers, None) => {
                console::note("using the Kafka that KAFKA_BOOTSTRAP_SERVERS names");
                servers.clone().unwrap_or_default()
            }
        };
        Ok(Backing { database_url, kafka_bootstrap_servers, keys })
    }

    fn start_kafka(&mut self, tools: &Tools) -> Result<(Kafka, LogOffset)> {
        kafka::fetch(self.dev, &tools.java)?;
        let running = process::find(self.dev, kafka::NAME).is_some();
        let port = self.port(kafka::NAME, running, None)?;
        let controller_port = self.port("kafka-controller", running, None)?;
        let kafka = Kafka::new(self.dev, tools.java.clone(), port, controller_port);
        if running {
            return Ok((kafka, None));
        }
        kafka.format()?;
        let offset = self.start(kafka::NAME, &mut kafka.command(), "")?;
        Ok((kafka, Some(offset)))
    }

    /// Starts the private Postgres and waits until it is ready; its address.
    pub(crate) fn start_postgres(&mut self, tools: &Tools, keys: &Keys) -> Result<String> {
        let postgres = self.postgres(tools, keys)?;
        let offset = if process::find(self.dev, postgres::NAME).is_some() {
            None
        } else {
            postgres.format()?;
            postgres.clear_up_after_kill()?;
            Some(self.start(postgres::NAME, &mut postgres.command(), "")?)
        };
        self.await_ready("Postgres", postgres::NAME, offset, || postgres.is_ready())?;
        Ok(postgres.url())
    }

    /// The private Postgres, whether it runs or not.
    pub(crate) fn postgres(&mut self, tools: &Tools, keys: &Keys) -> Result<Postgres> {
        let running = process::find(self.dev, postgres::NAME).is_some();
        let port = self.port(postgres::NAME, running, None)?;
        let programs = tools.postgres.clone().context("no Postgres was looked for")?;
        Postgres::new(self.dev, programs, port, keys.get("POSTGRES_PASSWORD").to_owned())
    }

    /// Creates the topics and runs the migrations.
    pub(crate) fn setup(&self, programs: &Programs, backing: &Backing) -> Result<()> {
        let step = console::step("creating topics, migrating");
        let (output, offset) = process::open_log(self.dev, "setup")?;
        let errors = output.try_clone().context("cannot share a log")?;
        let child = backing.setup(programs).stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
        if !cargo::wait(child.context("cannot run setup")?)?.success() {
            bail!("setup failed. {}", self.log_lines("setup", offset));
        }
        step.done("done");
        Ok(())
    }

    /// Starts those of the services that do not run, stops workers beyond `workers`, and waits until all are ready.
    pub(crate) fn start_services(&mut self, programs: &Programs, backing: &Backing, workers: u16) -> Result<()> {
        let surplus = process::names(self.dev).into_iter();
        let surplus = surplus.filter(|name| services::worker_of(name).is_some_and(|(_, number)| number > workers));
        self.stop_named(surplus.collect());
        let settings = backing.fingerprint();
        let mut offsets = Vec::new();
        for name in services::names(workers) {
            let running = process::find(self.dev, &name);
            let offset = match running {
                Some(running) if running.settings == settings => {
                    if running.is_outdated() {
                        console::note(&format!(
                            "{name} still runs an older build: `cargo xtask down` first to replace it"
                        ));
                    }
                    None
                }
                running => {
                    if let Some(running) = running {
                        console::note(&format!(
                            "{name} is started again: the address of Kafka or Postgres has changed"
                        ));
                        process::stop(self.dev, &[running]);
                    }
                    let wish = (name == services::API && self.dev.is_main()).then_some(services::API_PORT_WISH);
                    let port = self.port(&name, false, wish)?;
                    Some(self.start(&name, &mut backing.service(programs, &name, port), &settings)?)
                }
            };
            offsets.push((name, offset));
        }
        for (name, offset) in offsets {
            let port = self.ports.known(&name).context("a service has no port")?;
            self.await_ready(&name, &name, offset, || services::is_ready(port))?;
        }
        Ok(())
    }

    /// The port of a process: for good while it runs, else its old one if that is free.
    fn port(&mut self, name: &str, running: bool, wish: Option<u16>) -> Result<u16> {
        if running {
            return self.ports.known(name).with_context(|| {
                format!("{name} runs, but its port is not known: run `cargo xtask down`, then `cargo xtask up`")
            });
        }
        self.ports.free(name, wish)
    }

    /// Starts a process; where its own lines begin in its log.
    fn start(&mut self, name: &str, command: &mut Command, settings: &str) -> Result<u64> {
        interrupt::check()?;
        let started = process::start(self.dev, name, command, settings)?;
        self.started.retain(|known| known != name);
        self.started.push(name.to_owned());
        self.children.push(started.child);
        Ok(started.log_offset)
    }

    /// Waits until a process is ready. The error has the last lines of its log.
    fn await_ready(&self, title: &str, name: &str, offset: LogOffset, ready: impl Fn() -> bool) -> Result<()> {
        let step = console::step(if offset.is_none() { format!("{title} runs") } else { format!("starting {title}") });
        let begun = Instant::now();
        while !ready() {
            interrupt::check()?;
            let lines = || self.log_lines(name, offset.unwrap_or(0));
            if process::find(self.dev, name).is_none() {
                bail!("{title} ended instead of starting. {}", lines());
            }
            if begun.elapsed() > READY_WAIT {
                bail!("{title} is not ready after {} s. {}", READY_WAIT.as_secs(), lines());
            }
            step.say(&format!("{} s", begun.elapsed().as_secs()));
            std::thread::sleep(ASK_EVERY);
        }
        step.done("ready");
        Ok(())
    }

    fn log_lines(&self, name: &str, offset: u64) -> String {
        let log = self.dev.log(name);
        format!(
            "The last lines of {}:\n{}  What to do: mend what it says, then run the same command again; what runs already is kept.\n  \
             `cargo xtask down --wipe` begins from nothing (it deletes the data of this system).",
            self.dev.show(&log),
            dev::tail(&log, offset, LOG_LINES_SHOWN)
        )
    }

    /// Stops what this command has started, the last first.
    pub(crate) fn stop_started(&mut self) {
        let started = std::mem::take(&mut self.started);
        self.stop_named(started);
        self.reap();
    }

    fn stop_named(&self, names: Vec<String>) {
        stop(self.dev, names);
    }

    /// Takes notice of children that have ended, so that they do not stay as zombies.
    pub(crate) fn reap(&mut self) {
        self.children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

/// Stops processes by name, those that others lean on last. Names of processes that have ended are forgotten.
pub(crate) fn stop(dev: &Dev, mut names: Vec<String>) {
    names.sort_by_key(|name| services::stop_turn(name));
    for turn in names.chunk_by(|a, b| services::stop_turn(a) == services::stop_turn(b)) {
        let (running, ended): (Vec<_>, Vec<_>) =
            turn.iter().map(|name| (name, process::find(dev, name))).partition(|(_, running)| running.is_some());
        for (name, _) in ended {
            process::forget(dev, name);
        }
        let running: Vec<Running> = running.into_iter().filter_map(|(_, running)| running).collect();
        if running.is_empty() {
            continue;
        }
        let list: Vec<&str> = running.iter().map(|running| running.name.as_str()).collect();
        let step = console::step(format!("stopping {}", list.join(", ")));
        process::stop(dev, &running);
        step.done("stopped");
    }
}
