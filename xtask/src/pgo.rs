//! Profile-guided optimisation of what is shipped. `cargo xtask pgo` builds programs that count what they execute, puts the quick benchmark's
//! load on them, and writes what they counted to a file that stays with the sources; builds of the profile `dist` are laid out by it.

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
/// Programs that count, and what each of them wrote.
const TARGET: &str = "target/pgo";
const COUNTS: &str = "target/pgo/counts";
/// Splits flags that may have spaces in them.
const CARGO_ENCODED_RUSTFLAGS: &str = "CARGO_ENCODED_RUSTFLAGS";

/// Tells Cargo to build by the counts, or programs that count, as the profile asks.
pub(crate) fn guide(command: &mut Command, dev: &Dev, profile: Profile) -> Result<()> {
    let mut flags: Vec<String> =
        std::env::var("RUSTFLAGS").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    match profile {
        Profile::Dev | Profile::Release => return Ok(()),
        Profile::Dist => flags.extend(by_counts(&dev.root.join(PROFDATA))?),
        Profile::Instrumented => {
            command.arg("--target-dir").arg(dev.root.join(TARGET));
            flags.push(format!("-Cprofile-generate={}", dev.root.join(COUNTS).display()));
        }
    }
    command.env(CARGO_ENCODED_RUSTFLAGS, flags.join("\x1f"));
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
    let dev = Dev::open(None)?;
    let llvm_profdata = llvm_profdata()?;
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
    console::note(&format!("wrote {}; commit it", dev.show(&profdata)));
    Ok(ExitCode::SUCCESS)
}

/// The tool that merges counts: that of the toolchain, or of the same LLVM.
fn llvm_profdata() -> Result<PathBuf> {
    let rustc = |args: &[&str]| -> Result<String> {
        let output = Command::new("rustc").args(args).current_dir(dev::workspace()?).output();
        Ok(String::from_utf8(output.context("cannot run rustc")?.stdout)?)
    };
    let of_toolchain = Path::new(rustc(&["--print", "target-libdir"])?.trim()).with_file_name("bin/llvm-profdata");
    if of_toolchain.is_file() {
        return Ok(of_toolchain);
    }
    let version = rustc(&["-vV"])?;
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
