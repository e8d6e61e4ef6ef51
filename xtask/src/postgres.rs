//! A private Postgres: on 127.0.0.1 and on a unix socket, with a password, and durable as a real one.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::dev::{self, Dev};
use crate::interrupt;
use crate::packages;
use crate::process;

/// Its name among the processes.
pub(crate) const NAME: &str = "postgres";
/// The one role and the one database.
const ROLE: &str = "boxoffice";
/// Who runs the server when we are root, which Postgres refuses to be.
const SYSTEM_USER: &str = "postgres";
/// Where data goes that must not lie in the clone, since [`SYSTEM_USER`] cannot get there.
const SYSTEM_FOLDER: &str = "/var/lib/boxoffice-dev";
/// A socket's path must fit into 108 bytes; `/.s.PGSQL.54321` comes behind its folder's.
const SOCKET_FOLDER_BYTES_MAX: usize = 84;
/// How long the children of a server that was killed may take to notice it.
const CHILDREN_WAIT: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Durability (fsync, `synchronous_commit`) stays as Postgres has it. Its own 128 MB and 1 GB are for small machines: a crowd writes 1 GB of log
/// in half a minute, and after each checkpoint every page goes into the log whole when it is changed first.
const SETTINGS: [&str; 5] = [
    "shared_buffers=1GB",
    "max_connections=200",
    "max_wal_size=6GB",
    "listen_addresses=127.0.0.1",
    "log_line_prefix=%m [%p] ",
];

/// A user of this machine.
#[derive(Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

/// The server of one system.
pub(crate) struct Postgres {
    programs: PathBuf,
    /// Holds `data`; belongs to the server's user.
    home: PathBuf,
    socket_folder: PathBuf,
    owner: Option<Owner>,
    port: u16,
    password: String,
}

impl Postgres {
    /// The server of this system, on `port`; `programs` is the folder of its programs.
    pub(crate) fn new(dev: &Dev, programs: PathBuf, port: u16, password: String) -> Result<Self> {
        let owner = if packages::is_root() { Some(system_user()?) } else { None };
        let home = home(dev, owner)?;
        let socket_folder = socket_folder(dev, &home, owner)?;
        Ok(Self { programs, home, socket_folder, owner, port, password })
    }

    /// Its address. libpq and sqlx take the unix socket of `host`, which is faster; others ignore it and take TCP.
    pub(crate) fn url(&self) -> String {
        let folder = percent_encode(&self.socket_folder.to_string_lossy());
        format!("postgres://{ROLE}:{}@127.0.0.1:{}/{ROLE}?host={folder}", self.password, self.port)
    }

    /// Makes the data folder and the database, once. What was interrupted half-way is made anew.
    pub(crate) fn format(&self) -> Result<()> {
        if self.data().join("PG_VERSION").exists() {
            return Ok(());
        }
        let unfinished = self.home.join("data.new");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).context("cannot delete an unfinished data folder")?;
        }
        let password_file = self.home.join("password");
        dev::write_private(&password_file, &self.password)?;
        if let Some(owner) = self.owner {
            chown(&password_file, Some(owner.uid), Some(owner.gid))
                .context("cannot give a file to the server's user")?;
        }
        let mut initdb = self.program("initdb");
        initdb.arg("--pgdata").arg(&unfinished).arg("--pwfile").arg(&password_file);
        initdb.args(["--username", ROLE, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"]);
        let result = run(initdb, "");
        fs::remove_file(&password_file).context("cannot delete the password file")?;
        result?;
        let mut single = self.program("postgres");
        single.arg("--single").arg("-D").arg(&unfinished).arg("postgres");
        run(single, &format!("CREATE DATABASE {ROLE};\n"))?;
        fs::rename(&unfinished, self.data()).context("cannot name the data folder")
    }

    /// Makes it possible to start after a kill -9: waits until the children of the dead server have gone too, and removes its
    /// lock files if the dead one is still a zombie, which Postgres takes for a living server (some containers' init collects
    /// zombies late or never).
    pub(crate) fn clear_up_after_kill(&self) -> Result<()> {
        let socket_lock = format!(".s.PGSQL.{}.lock", self.port);
        let locks = [self.data().join("postmaster.pid"), self.socket_folder.join(socket_lock)];
        if !locks.iter().any(|lock| lock.exists()) {
            return Ok(());
        }
        let deadline = Instant::now() + CHILDREN_WAIT;
        while process::anyone_in(&self.data()) {
            interrupt::check()?;
            if Instant::now() > deadline {
                // Somebody is in there; Postgres itself will say who.
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        for lock in locks {
            let Ok(text) = fs::read_to_string(&lock) else { continue };
            let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
            if pid.is_some_and(process::is_zombie) {
                fs::remove_file(&lock).context("cannot remove a lock file of a dead Postgres")?;
            }
        }
        Ok(())
    }

    /// The command that runs the server.
    pub(crate) fn command(&self) -> Command {
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        command.arg("-k").arg(&self.socket_folder);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command
    }

    /// Whether it takes connections.
    pub(crate) fn is_ready(&self) -> bool {
        let mut command = Command::new(self.programs.join("pg_isready"));
        packages::quiet(command.arg("-h").arg(&self.socket_folder).args(["-p", &self.port.to_string()]))
    }

    /// Runs the migrations by themselves, in order, each in a transaction.
    pub(crate) fn migrate(&self, folder: &Path) -> Result<()> {
        let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
        files.sort();
        ensure!(!files.is_empty(), "no migrations in {}", folder.display());
        for file in files {
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let mut psql = Command::new(self.programs.join("psql"));
            psql.args(["--no-psqlrc", "--quiet", "--single-transaction", "-v", "ON_ERROR_STOP=1"]).arg(self.url());
            run(psql, &text).with_context(|| format!("migration {} failed", file.display()))?;
        }
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// One of its programs, as the server's user.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.current_dir(&self.home);
        if let Some(owner) = self.owner {
            command.uid(owner.uid).gid(owner.gid);
        }
        command
    }
}

/// Whether a private Postgres was ever made for this system.
pub(crate) fn exists(dev: &Dev) -> bool {
    [dev.dir.join(NAME), system_home(dev)].iter().any(|home| home.join("data").exists())
}

/// Deletes the data, wherever it lies.
pub(crate) fn wipe(dev: &Dev) -> Result<()> {
    for folder in [dev.dir.join(NAME), system_home(dev), short_socket_folder(dev)] {
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot delete {}", folder.display()))?;
        }
    }
    Ok(())
}

/// The folder of the data: in the system's own directory if the server's user can get there.
fn home(dev: &Dev, owner: Option<Owner>) -> Result<PathBuf> {
    let own = dev.dir.join(NAME);
    private_folder(&own, owner)?;
    let Some(owner) = owner else { return Ok(own) };
    let mut probe = Command::new("test");
    if packages::quiet(probe.arg("-w").arg(&own).uid(owner.uid).gid(owner.gid).current_dir("/")) {
        return Ok(own);
    }
    fs::remove_dir(&own).context("cannot remove an empty folder")?;
    let outside = system_home(dev);
    fs::create_dir_all(SYSTEM_FOLDER).with_context(|| format!("cannot create {SYSTEM_FOLDER}"))?;
    private_folder(&outside, Some(owner))?;
    Ok(outside)
}

fn system_home(dev: &Dev) -> PathBuf {
    Path::new(SYSTEM_FOLDER).join(key(dev))
}

/// A folder for the socket whose path is short enough.
fn socket_folder(dev: &Dev, home: &Path, owner: Option<Owner>) -> Result<PathBuf> {
    if home.as_os_str().len() <= SOCKET_FOLDER_BYTES_MAX {
        return Ok(home.to_path_buf());
    }
    let short = short_socket_folder(dev);
    private_folder(&short, owner)?;
    Ok(short)
}

fn short_socket_folder(dev: &Dev) -> PathBuf {
    Path::new("/tmp").join(format!("boxoffice-{}", key(dev)))
}

/// The same for the same directory, another for another.
fn key(dev: &Dev) -> String {
    format!("{:016x}", dev::stable_hash(&dev.dir.to_string_lossy()))
}

/// Makes a folder that only the server's user may enter. One that somebody else put there is refused.
fn private_folder(folder: &Path, owner: Option<Owner>) -> Result<()> {
    let show = folder.display();
    let uid = owner.map_or_else(|| rustix::process::geteuid().as_raw(), |owner| owner.uid);
    if !folder.exists() {
        fs::DirBuilder::new().mode(0o700).create(folder).with_context(|| format!("cannot create {show}"))?;
        if let Some(owner) = owner {
            chown(folder, Some(owner.uid), Some(owner.gid)).with_context(|| format!("cannot give {show} away"))?;
        }
    }
    let found = fs::symlink_metadata(folder).with_context(|| format!("cannot look at {show}"))?;
    ensure!(found.is_dir() && found.uid() == uid, "{show} belongs to somebody else: delete it, or use another --dir");
    Ok(())
}

fn system_user() -> Result<Owner> {
    let id = |what: &str| -> Result<u32> {
        let output =
            Command::new("id").args([what, SYSTEM_USER]).stderr(Stdio::null()).output().context("cannot run id")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let advice =
            "Postgres refuses to run as root, and there is no user `postgres`: create one (useradd --system postgres)";
        text.trim().parse().context(advice)
    };
    Ok(Owner { uid: id("-u")?, gid: id("-g")? })
}

/// Runs a command with this input; what it says is the error if it fails.
fn run(mut command: Command, input: &str) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything says why by itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// What may stand in the value of a query parameter, as it is; everything else as `%XX`.
fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_folders_are_safe_in_an_address() {
        assert_eq!(percent_encode("/srv/a-b_c.d/.dev/postgres"), "/srv/a-b_c.d/.dev/postgres");
        assert_eq!(percent_encode("/my work/&é"), "/my%20work/%26%C3%A9");
    }

    #[test]
    fn a_path_that_is_too_long_for_a_socket_gets_a_short_one() {
        let at = |dir: PathBuf| Dev { root: dir.clone(), dir };
        let near = at(PathBuf::from("/srv/boxoffice/.dev"));
        let home = near.dir.join(NAME);
        assert_eq!(socket_folder(&near, &home, None).unwrap(), home);

        let far = at(Path::new("/").join("deep/".repeat(20)));
        let short = socket_folder(&far, &far.dir.join(NAME), None).unwrap();
        assert!(short.as_os_str().len() <= SOCKET_FOLDER_BYTES_MAX);
        assert_ne!(short, short_socket_folder(&near), "each directory has its own");
        fs::remove_dir(short).unwrap();
    }
}
