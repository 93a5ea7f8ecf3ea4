//! `record`: a plain directory while a command runs in it. And recordings where other commands expect a state.

use std::{
    ffi::OsString,
    io::ErrorKind,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use keeper::{
    recording::{self, Mark, Recording},
    service::{Service, listen},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use runtime_spec::config::Config;
use store::format::Reason;
use tokio::signal::unix::{SignalKind, signal};

use super::Command;

/// What `record --help` ends with.
pub const HELP: &str = "The exit status is the command's (128 and the signal's number if one ended it, 127 if it is not \
    there, 126 if it cannot be run), or 125 if the recording cannot begin.\n\nAfterwards, with the recording's path \
    where a state is expected:\n  diffkeeper timeline DIR.diffkeeper\n  diffkeeper diff DIR.diffkeeper@+2s \
    DIR.diffkeeper@+3s --patch\n  diffkeeper export DIR.diffkeeper --at 2m14s TO\nEarlier runs are DIR.diffkeeper/1, /2, ...";

/// The shortest interval: below it the disk does nothing else.
const SHORTEST: Duration = Duration::from_millis(10);
/// The status that says that the recording could not begin.
const NOT_BEGUN: u8 = 125;

/// What is recorded.
#[derive(Args, Clone)]
pub struct Record {
    /// The directory
    #[arg(long)]
    dir: PathBuf,
    /// How often, while something changes
    #[arg(long, default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Where the recording is kept; DIR.diffkeeper where it is not given
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// What is not recorded: a path below the directory; may be given more than once
    #[arg(long, value_name = "PATH")]
    exclude: Vec<PathBuf>,
    /// Say nothing
    #[arg(long, short)]
    quiet: bool,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = runtime_spec::duration::parse(text).ok_or("expected a duration such as 1s or 200ms")?;
    if interval < SHORTEST {
        return Err(format!("the shortest is {SHORTEST:?}"));
    }
    Ok(interval)
}

/// Runs a command, and records a directory meanwhile.
pub fn run(how: &Record) -> Result<ExitCode> {
    let begun = Instant::now();
    let recording = match begin(how) {
        Ok(begun) => begun,
        Err(error) => {
            eprintln!("diffkeeper: {error:#}");
            return Ok(NOT_BEGUN.into());
        }
    };
    let (path, recording) = recording;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let ended = runtime.block_on(async {
        // Looking at it while it goes on is a comfort, and no reason not to record.
        let _server = match listen(&recording::config(&path).keeper) {
            Ok(listener) => Service::new(recording.keeper().clone(), None)
                .serve(listener)
                .await
                .ok(),
            Err(_) => None,
        };
        beside(how, &recording).await
    });
    runtime.shutdown_background();
    // The next who looks opens the store.
    let _ = std::fs::remove_file(recording::config(&path).keeper);
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => {
            let status = match error.kind() {
                ErrorKind::NotFound => 127,
                _ => 126,
            };
            eprintln!("diffkeeper: cannot run {}: {error}", shown(&how.command));
            return Ok(status.into());
        }
    };
    let message = format!("after {}: {}", shown(&how.command), told(ended));
    match recording.commit(Reason::Exit, Some(&message), true) {
        Ok(Some(last)) if !how.quiet => eprintln!(
            "diffkeeper: {} commits in {:.1} s: diffkeeper timeline {}",
            last.commit.sequence,
            begun.elapsed().as_secs_f64(),
            path.display()
        ),
        Ok(_) => {}
        Err(error) => eprintln!("diffkeeper: the end is not recorded: {error}"),
    }
    let status = ended.code().or_else(|| Some(128 + ended.signal()?)).unwrap_or(1);
    Ok(u8::try_from(status).unwrap_or(1).into())
}

fn told(ended: ExitStatus) -> String {
    match (ended.code(), ended.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "ended".into(),
    }
}

fn shown(command: &[OsString]) -> String {
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

fn begin(how: &Record) -> Result<(PathBuf, Arc<Recording>)> {
    let dir = std::fs::canonicalize(&how.dir).with_context(|| format!("find {}", how.dir.display()))?;
    let path = match &how.store {
        Some(path) => path.clone(),
        None => {
            let mut name = dir
                .file_name()
                .context("the whole machine is recorded into a directory that --store names")?
                .to_owned();
            name.push(".diffkeeper");
            dir.with_file_name(name)
        }
    };
    let recording = Recording::begin(&path, &dir, &how.exclude)?;
    let message = format!("before {}", shown(&how.command));
    recording.commit(Reason::Manual, Some(&message), true)?;
    Ok((path, Arc::new(recording)))
}

/// Runs the command to its end, and records beside it.
async fn beside(how: &Record, recording: &Arc<Recording>) -> std::io::Result<ExitStatus> {
    // Before the command is there: a signal must never end this and leave it.
    let mut signals = Vec::new();
    for passed in [
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        signals.push((passed, signal(SignalKind::from_raw(passed as i32))?));
    }
    let (program, arguments) = how.command.split_first().ok_or(ErrorKind::NotFound)?;
    let mut child = tokio::process::Command::new(program).args(arguments).spawn()?;
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .map(Pid::from_raw);
    let (stop, stopped) = mpsc::channel();
    let looking = {
        let (recording, interval) = (recording.clone(), how.interval);
        std::thread::spawn(move || look(&recording, interval, &stopped))
    };
    let passing = async {
        loop {
            let any = std::future::poll_fn(|context| {
                let ready = signals
                    .iter_mut()
                    .find_map(|(passed, signal)| signal.poll_recv(context).is_ready().then_some(*passed));
                ready.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
            });
            let passed = any.await;
            if let Some(pid) = pid
                && !had_it_already(passed)
            {
                // It may have ended this very moment.
                let _ = kill(pid, passed);
            }
        }
    };
    let ended = tokio::select! {
        ended = child.wait() => ended,
        never = passing => never,
    };
    drop(stop);
    // A panic there is a bug that was told already; what was recorded is there.
    let _ = looking.join();
    ended
}

/// Whether a terminal sent a signal to the whole foreground, the command included.
fn had_it_already(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGQUIT)
        && std::fs::File::open("/dev/tty")
            .is_ok_and(|tty| nix::unistd::tcgetpgrp(&tty) == Ok(nix::unistd::getpgrp()))
}

fn look(recording: &Recording, interval: Duration, stopped: &mpsc::Receiver<()>) {
    let mut said = String::new();
    let mut wait = interval;
    while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        let begun = Instant::now();
        if let Err(error) = recording.commit(Reason::Interval, None, false) {
            let error = error.to_string();
            // Once, not every second.
            if error != said {
                eprintln!("diffkeeper: not recorded: {error}");
                said = error;
            }
        }
        // A look that takes long must not take the machine from the command.
        wait = interval.max(begun.elapsed());
    }
}

/// Where a command is about a recording, named by its path: what to open, and the command with the state that it means.
/// `PATH` is the newest run, `PATH/3` the third; `@VERSION` follows as with any state.
pub fn recording(command: &Command) -> Result<Option<(Config, Command)>> {
    let mut command = command.clone();
    if matches!(command, Command::Record(_)) {
        // The node's configuration is not for a person's recordings, who may not even read it.
        return Ok(Some((Config::default(), command)));
    }
    let mut found: Option<PathBuf> = None;
    let mut others = false;
    for version in command.versions() {
        match find(version)? {
            Some((path, state)) => {
                ensure!(
                    found.as_ref().is_none_or(|found| *found == path),
                    "two recordings have nothing in common: export both, and compare the files"
                );
                *version = state;
                found = Some(path);
            }
            None => others = true,
        }
    }
    let Some(path) = found else {
        return Ok(None);
    };
    ensure!(
        !others,
        "a recording and a state have nothing in common: export both, and compare the files"
    );
    ensure!(
        !command.needs_live_tree(),
        "a recording is only looked at: diffkeeper export {} --at TIME DIR takes files out",
        path.display()
    );
    Ok(Some((recording::config(&path), command)))
}

fn find(said: &str) -> Result<Option<(PathBuf, String)>> {
    let mut candidates = vec![(said, "")];
    candidates.extend(said.rsplit_once('@'));
    for (text, version) in candidates {
        let path = Path::new(text);
        let at = |path: &Path| Some((std::fs::canonicalize(path).ok()?, Mark::read(path)?));
        let run = || path.file_name()?.to_str()?.parse::<u64>().ok();
        let (found, run) = match (at(path), path.parent()) {
            (Some(found), _) => (Some(found), None),
            (None, Some(above)) => match run() {
                Some(run) => (at(above), Some(run)),
                None => (None, None),
            },
            _ => (None, None),
        };
        let Some((path, mark)) = found else { continue };
        let run = run.unwrap_or(mark.runs);
        ensure!(
            (1..=mark.runs).contains(&run),
            "{} has {} runs, and no run {run}",
            path.display(),
            mark.runs
        );
        let state = recording::state_of(run);
        let version = if version.is_empty() {
            state
        } else {
            format!("{state}@{version}")
        };
        return Ok(Some((path, version)));
    }
    Ok(None)
}
