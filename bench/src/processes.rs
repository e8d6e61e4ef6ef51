//! What each process costs: CPU seconds, from `/proc`, and memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The load generator.
const LOAD: &str = "load";
/// The comparator that runs: the load generator has started it.
const PEER: &str = "peer";
const POSTGRES: &str = "postgres";

/// Looks at all processes, at most, until two in a row show the same ones.
const LOOKS_MAX: usize = 20;

/// CPU seconds by process.
pub(crate) type Cpu = BTreeMap<String, f64>;

/// The system's processes, by their pid files.
pub(crate) struct Processes {
    run: PathBuf,
}

impl Processes {
    pub(crate) fn new(dev: &Path) -> Self {
        Self { run: dev.join("run") }
    }

    /// The pid of a process.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn pid(&self, name: &str) -> Result<u32> {
        let file = self.run.join(format!("{name}.pid"));
        let text = fs::read_to_string(&file).with_context(|| format!("{name} does not run"))?;
        text.trim().parse().with_context(|| format!("{} holds no pid", file.display()))
    }

    /// How many processes of this kind run: `name`, `name-2`, …
    pub(crate) fn count_of(&self, name: &str) -> usize {
        self.all().iter().filter(|(other, _)| other.starts_with(name)).count()
    }

    fn all(&self) -> Vec<(String, u32)> {
        let files = fs::read_dir(&self.run).into_iter().flatten().flatten();
        let names = files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".pid")?.to_owned()));
        let pids = names.filter_map(|name| self.pid(&name).ok().map(|pid| (name, pid)));
        pids.chain([(LOAD.to_owned(), std::process::id())]).collect()
    }

    /// CPU seconds that each process has used so far, its children included. A comparator that runs is counted apart, as `peer`.
    pub(crate) fn cpu(&self) -> Cpu {
        let all = stats();
        let mut cpu: Cpu = self.all().into_iter().map(|(name, pid)| (name, cpu_seconds(&all, pid))).collect();
        let peer = children_seconds(&all, std::process::id());
        cpu.entry(LOAD.to_owned()).and_modify(|load| *load -= peer);
        if peer > 0.0 {
            cpu.insert(PEER.to_owned(), peer);
        }
        cpu
    }

    /// The largest resident memory that each process has had, in MB. Of Postgres, whose children share theirs, what all of them have now.
    pub(crate) fn memory_mb(&self) -> BTreeMap<String, f64> {
        let mb = |(name, pid): (String, u32)| {
            let mb = if name == POSTGRES { shared_mb(&stats(), pid) } else { peak_mb(pid)? };
            Some((name, mb))
        };
        self.all().into_iter().filter_map(mb).collect()
    }
}

/// What a request takes in all. While a comparator runs, ours is only there.
pub(crate) fn in_all(cpu: &BTreeMap<String, f64>) -> f64 {
    let works = |name: &str| !cpu.contains_key(PEER) || [LOAD, PEER, POSTGRES].contains(&name);
    cpu.iter().filter(|(name, _)| works(name)).map(|(_, used)| used).sum()
}

/// What was used between two readings.
pub(crate) fn used(before: &Cpu, after: &Cpu) -> Cpu {
    let then = |name| before.get(name).copied().unwrap_or_default();
    after.iter().map(|(name, now)| (name.clone(), now - then(name))).collect()
}

struct Stat {
    parent: u32,
    /// Its own, and that of children that have ended.
    ticks: u64,
}

fn stats() -> BTreeMap<u32, Stat> {
    steady(look)
}

/// What two looks in a row agree on: a process that ends during a look may be missed by it, and its parent have been read before it
/// had that child's time.
fn steady(mut look: impl FnMut() -> BTreeMap<u32, Stat>) -> BTreeMap<u32, Stat> {
    let mut seen = look();
    for _ in 0..LOOKS_MAX {
        let again = look();
        if again.keys().eq(seen.keys()) {
            return again;
        }
        seen = again;
    }
    seen
}

fn look() -> BTreeMap<u32, Stat> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// One line of `/proc/<pid>/stat`. The name, in brackets, may hold anything.
fn stat(line: &str) -> Option<Stat> {
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some(Stat { parent: u32::try_from(number(1)?).ok()?, ticks })
}

fn cpu_seconds(all: &BTreeMap<u32, Stat>, pid: u32) -> f64 {
    let own = all.get(&pid).map_or(0, |stat| stat.ticks);
    #[expect(clippy::cast_precision_loss, reason = "ticks of some hours")]
    let own = own as f64 / rustix::param::clock_ticks_per_second() as f64;
    own + children_seconds(all, pid)
}

fn children_seconds(all: &BTreeMap<u32, Stat>, pid: u32) -> f64 {
    all.iter().filter(|(_, stat)| stat.parent == pid).map(|(child, _)| cpu_seconds(all, *child)).sum()
}

fn peak_mb(pid: u32) -> Option<f64> {
    mb_of(pid, "status", "VmHWM:")
}

/// A process and its children; of memory that several have, each its share.
fn shared_mb(all: &BTreeMap<u32, Stat>, pid: u32) -> f64 {
    let children = all.iter().filter(|(_, stat)| stat.parent == pid).map(|(child, _)| shared_mb(all, *child));
    mb_of(pid, "smaps_rollup", "Pss:").unwrap_or_default() + children.sum::<f64>()
}

fn mb_of(pid: u32, file: &str, field: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1_024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_read_whatever_the_name() {
        let line = "42 (a ) b (c) S 7 42 42 0 -1 0 1 2 3 4 100 20 3 1 20 0 1 0 5";
        let stat = stat(line).unwrap();
        assert_eq!((stat.parent, stat.ticks), (7, 124));
    }

    #[test]
    fn the_time_of_a_child_that_ends_meanwhile_is_not_lost() {
        // 1 is the parent of 2. The second look reads 1 before it has the time of 2, and 2 when it is gone.
        let process = |parent, ticks| Stat { parent, ticks };
        let mut looks = [
            BTreeMap::from([(1, process(0, 5)), (2, process(1, 70))]),
            BTreeMap::from([(1, process(0, 5))]),
            BTreeMap::from([(1, process(0, 75))]),
        ]
        .into_iter();
        assert_eq!(steady(|| looks.next().expect("three looks are enough"))[&1].ticks, 75);
    }

    #[test]
    fn what_ours_takes_while_a_comparator_runs_is_not_its() {
        let cpu = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 1.0)).collect();
        assert!((in_all(&cpu(&["api", "load", "postgres"])) - 3.0).abs() < 1e-6);
        assert!((in_all(&cpu(&["api", "load", "peer", "postgres"])) - 3.0).abs() < 1e-6);
    }

    #[test]
    fn what_was_used_is_a_difference() {
        let cpu = |seconds| Cpu::from([("api".to_owned(), seconds)]);
        assert!((used(&cpu(1.0), &cpu(1.5))["api"] - 0.5).abs() < 1e-6);
    }
}
