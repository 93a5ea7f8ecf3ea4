//! A keeper that outlives whoever starts it.
//!
//! A shim that finds none has one started. It must not depend on the shim, on its containerd or on its pod: so systemd starts
//! it where there is one; elsewhere it gets a session, cgroup and OOM score of its own and inherits nothing. Its mount
//! namespace stays the caller's: in a copy of it, where `/` is private, every container's root would stay mounted.

use std::{
    fs, io,
    os::unix::{fs::DirBuilderExt, fs::OpenOptionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::{signal, stat},
    unistd::{Pid, chdir, getpid, getsid, setsid},
};
use runtime_spec::config::Config;

use crate::error::{Context, Error, Result};

/// How long a keeper may take until it answers: its store is opened first.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one may take to end: it finishes the commit that it is making.
const LAST_WORDS: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// systemd's, as `make install` puts it there.
const UNIT: &str = "diffkeeper-keeper.service";
/// The configuration that it reads.
const UNITS_CONFIG: &str = "/etc/diffkeeper/config.toml";
/// As in the unit: containers go before it does.
const OOM_SCORE: &str = "-500";
/// The cgroup of one that systemd did not start.
const CGROUP: &str = "diffkeeper-keeper";
const CGROUPS: &str = "/sys/fs/cgroup";
/// The log of one that systemd did not start, below the live trees' folder; begun anew when it is longer.
const LOG: &str = "keeper.log";
const LONGEST_LOG: u64 = 16 << 20;

/// What makes a process the keeper's own: `diffkeeper keeper` with this option.
pub const APART: &str = "--apart";

fn answers(config: &Config) -> bool {
    UnixStream::connect(&config.keeper).is_ok()
}

/// Starts a keeper that outlives this process, and waits until it answers; one that answers already will do. `file` is
/// where `config` was read from.
///
/// # Errors
/// One that does not come up, with what it said or where that is.
pub fn start(config: &Config, file: &Path) -> Result<()> {
    if answers(config) {
        return Ok(());
    }
    let program = std::env::current_exe().on("find", Path::new("this program"))?;
    if Path::new("/run/systemd/system").is_dir() {
        ask(systemd(&program, file))?;
        return wait(config, None, "journalctl -t diffkeeper says why");
    }
    let log = config.root.join(LOG);
    let child = apart(&program, config, file, &log)?;
    wait(config, Some(child), &format!("{} says why", log.display()))
}

/// What has systemd start a keeper, the best first: the unit that an administrator may have changed, else one for now.
fn systemd(program: &Path, file: &Path) -> Vec<Command> {
    let mut commands = Vec::new();
    if file == Path::new(UNITS_CONFIG) {
        let mut start = Command::new("systemctl");
        start.args(["start", UNIT]);
        commands.push(start);
    }
    let mut run = Command::new("systemd-run");
    run.args(["--quiet", "--collect", "--description=DiffKeeper's keeper"])
        .args([
            &format!("--property=OOMScoreAdjust={OOM_SCORE}"),
            "--property=Nice=5",
        ])
        .arg(program)
        .arg("--config")
        .arg(file)
        .arg("keeper");
    commands.push(run);
    commands
}

/// Runs commands until one does what it should.
fn ask(commands: Vec<Command>) -> Result<()> {
    let mut said = String::from("there is nothing to ask it with");
    for mut command in commands {
        match command.stdin(Stdio::null()).output() {
            Ok(done) if done.status.success() => return Ok(()),
            Ok(done) => said = String::from_utf8_lossy(&done.stderr).trim().to_owned(),
            Err(error) => said = format!("{}: {error}", command.get_program().display()),
        }
    }
    Err(Error::Refused(format!("systemd does not start a keeper: {said}")))
}

/// Runs a keeper that will [`leave`].
fn apart(program: &Path, config: &Config, file: &Path, log: &Path) -> Result<Child> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.root)
        .on("make", &config.root)?;
    let long = fs::metadata(log).is_ok_and(|log| log.len() > LONGEST_LOG);
    let out = fs::OpenOptions::new()
        .create(true)
        .append(!long)
        .write(true)
        .truncate(long)
        .mode(0o600)
        .open(log)
        .on("open", log)?;
    let error = out.try_clone().on("open", log)?;
    let mut command = Command::new(program);
    command
        .arg("--config")
        .arg(file)
        .args(["keeper", APART])
        .env_clear()
        .envs(
            std::env::vars_os()
                .filter(|(name, _)| name == "PATH" || name == "TZ" || name == "DIFFKEEPER_LOG"),
        )
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(error);
    command.spawn().on("run", program)
}

/// Until a keeper answers; a child that ends may have found another's store open, which then answers.
fn wait(config: &Config, mut child: Option<Child>, why: &str) -> Result<()> {
    let since = Instant::now();
    loop {
        if answers(config) {
            return Ok(());
        }
        let ended = match child.as_mut().map(Child::try_wait) {
            Some(Ok(ended)) => ended,
            _ => None,
        };
        if ended.is_some() || since.elapsed() > PATIENCE {
            return Err(Error::Refused(format!(
                "the keeper does not come up at {}: {why}",
                config.keeper.display()
            )));
        }
        std::thread::sleep(POLL);
    }
}

/// Leaves everything that this process has from whoever started it, standard streams aside. To be called first of all.
///
/// # Errors
/// A process that leads a group already: it was not started for this.
pub fn leave() -> Result<()> {
    sys::close_inherited().on("close", Path::new("inherited files"))?;
    match setsid() {
        // It has one: it begins anew.
        Err(nix::Error::EPERM) if getsid(None).is_ok_and(|session| session == getpid()) => {}
        begun => drop(begun.on("begin", Path::new("a session"))?),
    }
    chdir("/").on("change to", Path::new("/"))?;
    stat::umask(stat::Mode::from_bits_truncate(0o077));
    // Without the rights it runs where it is, as killable as it is.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    for hierarchy in hierarchies() {
        let own = hierarchy.join(CGROUP);
        let moved = fs::create_dir(&own)
            .or_else(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(e),
            })
            .and_then(|()| fs::write(own.join(PROCESSES), b"0"));
        if moved.is_err() {
            // A cpuset without processors takes nobody.
            let _ = fs::remove_dir(&own);
            let _ = fs::write(hierarchy.join(PROCESSES), b"0");
        }
    }
    Ok(())
}

const PROCESSES: &str = "cgroup.procs";

/// The tops of the cgroup hierarchies: one, or with version 1 one for each controller.
fn hierarchies() -> Vec<PathBuf> {
    let top = PathBuf::from(CGROUPS);
    if top.join(PROCESSES).exists() {
        return vec![top];
    }
    let below = fs::read_dir(top).into_iter().flatten().flatten();
    below
        // Links are second names.
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .filter(|path| path.join(PROCESSES).exists())
        .collect()
}

/// Ends the keeper with this pid, and waits until it has.
///
/// # Errors
/// One that may not be ended, or does not end.
pub fn stop(pid: u32) -> Result<()> {
    let name = PathBuf::from(format!("the keeper, pid {pid}"));
    let pid = Pid::from_raw(i32::try_from(pid).unwrap_or(0));
    if pid.as_raw() > 0 {
        signal::kill(pid, signal::Signal::SIGTERM).on("end", &name)?;
    }
    let since = Instant::now();
    while pid.as_raw() > 0 && signal::kill(pid, None).is_ok() && !is_zombie(pid) {
        if since.elapsed() > LAST_WORDS {
            return Err(Error::Refused(format!(
                "{} does not end: kill -9 {pid} harms nothing but the commit that it is making",
                name.display()
            )));
        }
        std::thread::sleep(POLL);
    }
    for hierarchy in hierarchies() {
        // Not there, or another's.
        let _ = fs::remove_dir(hierarchy.join(CGROUP));
    }
    Ok(())
}

/// Whoever started it has not asked yet how it ended.
fn is_zombie(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

mod sys {
    #![allow(unsafe_code)]

    use std::io;

    /// close_range(2) of all but the standard streams.
    pub fn close_inherited() -> io::Result<()> {
        // SAFETY: called first of all; nothing in this process has opened a file yet.
        match unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &Command) -> Vec<&str> {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.filter_map(|word| word.to_str()).collect()
    }

    #[test]
    fn systemd_is_asked_for_the_unit_where_it_reads_this_configuration() {
        let program = Path::new("/usr/bin/diffkeeper");
        let own = systemd(program, Path::new(UNITS_CONFIG));
        let lines: Vec<String> = own.iter().map(|command| words(command).join(" ")).collect();
        assert_eq!(lines[0], "systemctl start diffkeeper-keeper.service");
        assert!(
            lines[1].starts_with("systemd-run ")
                && lines[1].ends_with("/usr/bin/diffkeeper --config /etc/diffkeeper/config.toml keeper"),
            "{lines:?}"
        );
        let other = systemd(program, Path::new("/srv/other.toml"));
        assert_eq!(other.len(), 1);
        assert_eq!(words(&other[0])[0], "systemd-run");
    }

    #[test]
    fn who_starts_a_keeper_is_told_what_went_wrong() {
        let mut fails = Command::new("sh");
        fails.args(["-c", "echo no bus >&2; exit 1"]);
        let told = ask(vec![Command::new("/no/such/program"), fails]).unwrap_err();
        assert!(told.to_string().contains("no bus"), "{told}");
        ask(vec![Command::new("/no/such/program"), Command::new("true")]).unwrap();
    }

    #[test]
    fn a_child_that_ends_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            keeper: dir.path().join("keeper.sock"),
            ..Config::default()
        };
        let child = Command::new("false").spawn().unwrap();
        let told = wait(&config, Some(child), "the log says why")
            .unwrap_err()
            .to_string();
        assert!(
            told.contains("keeper.sock") && told.contains("the log says why"),
            "{told}"
        );
    }
}
