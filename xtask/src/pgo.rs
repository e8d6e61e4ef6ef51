//! Profile-guided optimisation of what is shipped. `cargo xtask pgo` builds programs that count what they execute, puts the quick benchmark's
//! load on them, and writes what they counted to a file that stays with the sources. The builds of the profile `dist` that are made from here
//! and by `Dockerfile` use it.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::{self, Profile};
use crate::dev::{self, Dev};
use crate::{bench, console, packages};

/// What was counted, in the repository. `Dockerfile` names it, too.
const PROFDATA: &str = "xtask/dist.profdata";
/// What the names of functions depend on, as it was when they were counted: with another one, the counts find no function.
const COUNTED_WITH: &str = "xtask/dist.counted-with";
const STALE: &str = "what runs was counted with another rustc or other dependencies, so it may be built some percent slower; \
                     `cargo xtask pgo` counts anew";
/// Programs that count, and what each of them wrote.
const TARGET: &str = "target/pgo";
const COUNTS: &str = "target/pgo/counts";
/// Flags that may have spaces in them, and what splits them. Cargo then looks for others neither in `RUSTFLAGS` nor in its own settings.
const CARGO_ENCODED_RUSTFLAGS: &str = "CARGO_ENCODED_RUSTFLAGS";
const SPLIT: &str = "\x1f";

/// Tells Cargo to build by the counts, or programs that count, as the profile asks.
pub(crate) fn guide(command: &mut Command, dev: &Dev, profile: Profile) -> Result<()> {
    let mut flags: Vec<String> = match (std::env::var(CARGO_ENCODED_RUSTFLAGS), std::env::var("RUSTFLAGS")) {
        (Ok(encoded), _) => encoded.split(SPLIT).map(str::to_owned).collect(),
        (_, plain) => plain.unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
    };
    flags.retain(|flag| !flag.is_empty());
    match profile {
        Profile::Dev | Profile::Release => return Ok(()),
        Profile::Dist => {
            if fs::read_to_string(dev.root.join(COUNTED_WITH)).ok() != Some(counting_with(dev)?) {
                console::note(STALE);
            }
            flags.extend(by_counts(&dev.root.join(PROFDATA))?);
        }
        Profile::Instrumented => {
            command.arg("--target-dir").arg(dev.root.join(TARGET));
            flags.push(format!("-Cprofile-generate={}", dev.root.join(COUNTS).display()));
        }
    }
    command.env(CARGO_ENCODED_RUSTFLAGS, flags.join(SPLIT));
    Ok(())
}

fn by_counts(profdata: &Path) -> Result<[String; 3]> {
    let mut hasher = DefaultHasher::new();
    fs::read(profdata).with_context(|| profdata.display().to_string())?.hash(&mut hasher);
    Ok([
        format!("-Cprofile-use={}", profdata.display()),
        // A function that was changed since is built as if nobody had counted; that is nothing to warn of.
        "-Cllvm-args=-no-pgo-warn-mismatch".to_owned(),
        // Cargo looks at flags, not at the files that they name.
        format!("--cfg=counts=\"{:x}\"", hasher.finish()),
    ])
}

/// Counts anew.
pub(crate) fn pgo() -> Result<ExitCode> {
    // What another one's programs count would be among the counts.
    let _session = bench::session()?;
    let dev = Dev::open(None)?;
    let llvm_profdata = llvm_profdata(&dev)?;
    cargo::build_programs(&dev, Profile::Instrumented)?;
    // Build scripts count, too.
    let counts = dev.root.join(COUNTS);
    if counts.exists() {
        fs::remove_dir_all(&counts).with_context(|| counts.display().to_string())?;
    }
    bench::run(Profile::Instrumented, &["--quick".to_owned()])?;
    let written = fs::read_dir(&counts).with_context(|| counts.display().to_string())?;
    let written = written.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let profdata = dev.root.join(PROFDATA);
    let mut merge = Command::new(llvm_profdata);
    merge.args(["merge", "--sparse", "-o"]).arg(&profdata).args(written);
    ensure!(cargo::wait(merge.spawn().context("cannot run llvm-profdata")?)?.success(), "llvm-profdata failed");
    fs::write(dev.root.join(COUNTED_WITH), counting_with(&dev)?).context(COUNTED_WITH)?;
    console::note(&format!("wrote {} and {COUNTED_WITH}; commit both", dev.show(&profdata)));
    Ok(ExitCode::SUCCESS)
}

/// Cargo puts the compiler, all dependencies and the profile's settings into the names of functions.
fn counting_with(dev: &Dev) -> Result<String> {
    let mut text = rustc(dev, &["-vV"])?;
    for file in ["Cargo.toml", "Cargo.lock"] {
        let content = fs::read_to_string(dev.root.join(file)).with_context(|| file.to_owned())?;
        text = format!("{text}{file} {:x}\n", dev::stable_hash(&content));
    }
    Ok(text)
}

fn rustc(dev: &Dev, args: &[&str]) -> Result<String> {
    let output = Command::new("rustc").args(args).current_dir(&dev.root).output().context("cannot run rustc")?;
    ensure!(output.status.success(), "rustc {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The tool that merges counts: that of the toolchain, or of the same LLVM.
fn llvm_profdata(dev: &Dev) -> Result<PathBuf> {
    let of_toolchain = Path::new(rustc(dev, &["--print", "target-libdir"])?.trim()).with_file_name("bin/llvm-profdata");
    if of_toolchain.is_file() {
        return Ok(of_toolchain);
    }
    let version = rustc(dev, &["-vV"])?;
    let major = llvm_major(&version).context("rustc does not say which LLVM it has")?;
    let Some(program) = packages::on_path(&format!("llvm-profdata-{major}")) else {
        bail!("llvm-profdata is missing: rustup component add llvm-tools, or Debian's package llvm-{major}");
    };
    Ok(program)
}

/// `22` of `LLVM version: 22.1.2`.
fn llvm_major(version: &str) -> Option<&str> {
    version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_llvm_is_found() {
        assert_eq!(llvm_major("rustc 1.95.0\nrelease: 1.95.0\nLLVM version: 22.1.2\n"), Some("22"));
        assert_eq!(llvm_major("rustc 1.95.0\n"), None);
    }
}
