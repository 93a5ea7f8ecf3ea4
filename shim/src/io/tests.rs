//! Streams against real fifos, files and loggers.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::stat::Mode;
use tokio::sync::oneshot;

use super::{ChildFds, Console, ConsoleSocket, IoOptions, Pipes, Stdio, target};

const LIMIT: Duration = Duration::from_secs(10);

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        nix::unistd::mkfifo(path.as_str(), Mode::S_IRWXU).unwrap();
        path
    }

    fn script(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        path
    }
}

async fn pipes(stdio: &Stdio) -> (Pipes, ChildFds) {
    let mut pipes = Pipes::new("c1", "default", stdio, &IoOptions::default())
        .await
        .unwrap();
    let child = pipes.child_fds().unwrap();
    pipes.start_copy().await.unwrap();
    (pipes, child)
}

fn stdout(uri: &str) -> Stdio {
    Stdio {
        stdout: uri.to_owned(),
        ..Stdio::default()
    }
}

fn file(fd: Option<OwnedFd>) -> File {
    fd.unwrap().into()
}

/// Does blocking work beside the event loop. Not on one of its own threads, whose end it would wait for after a
/// failure.
fn beside<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    let (done, result) = oneshot::channel();
    std::thread::spawn(move || done.send(what()));
    result
}

/// Reads a fifo to its end. It is open when this returns, so the end cannot come before.
fn read_beside(fifo: &str) -> oneshot::Receiver<String> {
    let reader = File::open(fifo).unwrap();
    beside(move || std::io::read_to_string(reader).unwrap())
}

async fn ended<T>(work: oneshot::Receiver<T>) -> T {
    let result = tokio::time::timeout(LIMIT, work).await;
    result.expect("it never ended").unwrap()
}

/// Lets the event loop work until something is so.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < LIMIT, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn copied(pipes: &mut Pipes) {
    tokio::time::timeout(LIMIT, pipes.wait_copied())
        .await
        .expect("the copies never end");
}

/// Descriptors of this process that lead into a place.
fn open_below(place: &Place) -> Vec<PathBuf> {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|to| to.starts_with(place.0.path()))
        .collect()
}

#[tokio::test]
async fn a_slow_reader_gets_every_byte_in_order() {
    let place = Place::new();
    let (mut pipes, child) = pipes(&stdout(&place.fifo("out"))).await;
    let mut writer = file(child.stdout);
    let path = place.path("out");
    let sent: Vec<u8> = (0..600_000u32).map(|n| (n / 7) as u8).collect();
    let wanted = sent.clone();
    let writing = beside(move || writer.write_all(&sent).unwrap());
    let reading = beside(move || {
        let mut reader = File::open(path).unwrap();
        let (mut all, mut part) = (Vec::new(), [0; 7_001]);
        loop {
            let n = reader.read(&mut part).unwrap();
            if n == 0 {
                return all;
            }
            all.extend_from_slice(&part[..n]);
            std::thread::sleep(Duration::from_micros(500));
        }
    });
    ended(writing).await;
    copied(&mut pipes).await;
    assert!(ended(reading).await == wanted);
    until("both ends are closed", || open_below(&place).is_empty()).await;
}

#[tokio::test]
async fn a_reader_that_goes_away_and_comes_back_misses_nothing_written_meanwhile() {
    let place = Place::new();
    let path = place.fifo("out");
    // Nobody has opened it yet: neither does that stop anything.
    let (mut pipes, child) = pipes(&stdout(&path)).await;
    let mut writer = file(child.stdout);
    writer.write_all(b"early\n").unwrap();
    let open = move || OpenOptions::new().read(true).open(&path).unwrap();
    let first = {
        let open = open.clone();
        ended(beside(move || {
            let (mut reader, mut line) = (open(), [0; 6]);
            reader.read_exact(&mut line).unwrap();
            line
        }))
        .await
    };
    assert_eq!(&first, b"early\n");
    // The reader is gone; far more than a pipe holds is written.
    let sent = vec![b'x'; 1 << 20];
    let mut writing = beside(move || {
        writer.write_all(&sent).unwrap();
        writer.write_all(b"late\n").unwrap();
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(writing.try_recv().is_err(), "it waits, as for a slow reader");
    let reading = beside(move || {
        let mut all = Vec::new();
        open().read_to_end(&mut all).unwrap();
        all
    });
    ended(writing).await;
    copied(&mut pipes).await;
    let all = ended(reading).await;
    assert_eq!(all.len(), (1 << 20) + 5);
    assert!(all.ends_with(b"xlate\n"));
}

#[tokio::test]
async fn one_fifo_for_both_streams_ends_with_the_last() {
    let place = Place::new();
    let path = place.fifo("out");
    let both = Stdio {
        stdout: path.clone(),
        stderr: path.clone(),
        ..Stdio::default()
    };
    let (mut pipes, child) = pipes(&both).await;
    let mut reading = read_beside(&path);
    file(child.stdout).write_all(b"out\n").unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(reading.try_recv().is_err());
    file(child.stderr).write_all(b"err\n").unwrap();
    copied(&mut pipes).await;
    assert_eq!(ended(reading).await, "out\nerr\n");
}

#[tokio::test]
async fn input_survives_a_client_that_comes_back_and_ends_when_closed() {
    let place = Place::new();
    let path = place.fifo("in");
    let (mut pipes, child) = pipes(&Stdio {
        stdin: path.clone(),
        ..Stdio::default()
    })
    .await;
    let mut reader = file(child.stdin);
    let send = |text: &'static [u8]| {
        let path = path.clone();
        beside(move || {
            let mut client = OpenOptions::new().write(true).open(path).unwrap();
            client.write_all(text).unwrap();
        })
    };
    ended(send(b"one\n")).await;
    ended(send(b"two\n")).await;
    let (mut reader, line) = ended(beside(move || {
        let mut line = [0; 8];
        reader.read_exact(&mut line).unwrap();
        (reader, line)
    }))
    .await;
    assert_eq!(&line, b"one\ntwo\n");
    pipes.close_stdin();
    let rest = ended(beside(move || {
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        rest
    }))
    .await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn a_process_that_reads_no_input_disturbs_no_output() {
    let place = Place::new();
    let (input, output) = (place.fifo("in"), place.fifo("out"));
    let (mut pipes, child) = pipes(&Stdio {
        stdin: input.clone(),
        stdout: output.clone(),
        ..Stdio::default()
    })
    .await;
    drop(child.stdin);
    ended(beside(move || {
        let mut client = OpenOptions::new().write(true).open(input).unwrap();
        // The second may find nobody: that is the client's to know.
        let _ = client.write_all(b"unread");
    }))
    .await;
    let reading = read_beside(&output);
    file(child.stdout).write_all(b"out").unwrap();
    copied(&mut pipes).await;
    assert_eq!(ended(reading).await, "out");
}

#[tokio::test]
async fn a_log_file_is_made_with_its_directories_and_appended_to() {
    let place = Place::new();
    let log = place.path("a/b c/log+1");
    let uri = format!("file://{}", log.replace(' ', "%20"));
    for life in ["one", "two"] {
        let (mut pipes, child) = pipes(&Stdio {
            stderr: uri.clone(),
            ..stdout(&uri)
        })
        .await;
        let (mut out, mut err) = (file(child.stdout), file(child.stderr));
        out.write_all(format!("{life} out\n").as_bytes()).unwrap();
        until("it is there", || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.ends_with(&format!("{life} out\n")))
        })
        .await;
        err.write_all(format!("{life} err\n").as_bytes()).unwrap();
        drop((out, err));
        copied(&mut pipes).await;
        pipes.close().await;
    }
    assert_eq!(
        std::fs::read_to_string(&log).unwrap(),
        "one out\none err\ntwo out\ntwo err\n"
    );
    assert_eq!(
        std::fs::metadata(&log).unwrap().permissions().mode() & 0o777,
        0o644
    );
}

#[tokio::test]
async fn a_path_that_is_a_file_already_is_appended_to() {
    let place = Place::new();
    let path = place.path("out");
    std::fs::write(&path, "before\n").unwrap();
    let (mut pipes, child) = pipes(&stdout(&path)).await;
    file(child.stdout).write_all(b"after\n").unwrap();
    copied(&mut pipes).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nafter\n");
}

#[tokio::test]
async fn what_is_wrong_with_a_stream_is_told() {
    let place = Place::new();
    let told = async |stdio: Stdio| {
        let made = Pipes::new("c1", "default", &stdio, &IoOptions::default()).await;
        let error = match made {
            Ok(mut pipes) => pipes.start_copy().await.unwrap_err(),
            Err(error) => error,
        };
        error.to_string()
    };
    let file_in_the_way = place.path("file");
    std::fs::write(&file_in_the_way, "").unwrap();
    let missing = place.path("missing");
    for (uri, words) in [
        ("http://x".to_owned(), vec!["unknown STDIO scheme http"]),
        ("://x".into(), vec!["unknown STDIO scheme"]),
        ("file:///a%zz".into(), vec!["bad escape", "%zz"]),
        (
            format!("file://{file_in_the_way}/log"),
            vec!["log's directory", "file"],
        ),
        (missing.clone(), vec!["containerd-shim: opening", "missing"]),
        (
            format!("fifo://{missing}"),
            vec!["containerd-shim: opening", "missing"],
        ),
        (
            format!("binary://{missing}"),
            vec!["failed to start binary process", "missing"],
        ),
        (
            format!("binary://{file_in_the_way}"),
            vec!["failed to start binary process", "denied"],
        ),
    ] {
        let error = told(stdout(&uri)).await;
        assert!(words.iter().all(|word| error.contains(word)), "{uri}: {error}");
    }
    let error = told(Stdio {
        stdin: missing,
        ..Stdio::default()
    })
    .await;
    assert!(error.contains("containerd-shim: opening"), "{error}");
    assert!(!Path::new(&place.path("log")).exists());
}

#[tokio::test]
async fn a_logger_gets_its_arguments_and_streams_and_is_waited_for() {
    let place = Place::new();
    let log = place.path("log");
    // Ready only after a while: until then the container must not start. And it is asked to end only by its input.
    let script = place.script(
        "logger",
        &format!(
            "trap '' TERM\nprintf '%s|' \"$@\" > {log}\nenv | grep -v '^PWD=\\|^_=\\|^SHLVL=\\|^OLDPWD=' | sort >> {log}\nsleep 0.2\necho ready >> {log}\nexec 5>&-\ncat <&3 >> {log}\ncat <&4 >> {log}\necho end >> {log}"
        ),
    );
    let uri = format!("binary://{script}?b=two+words&a=%26&empty=&b=second");
    let (mut pipes, child) = pipes(&stdout(&uri)).await;
    let ready = std::fs::read_to_string(&log).unwrap();
    assert_eq!(
        ready,
        "a|&|b|two words|empty||CONTAINER_ID=c1\nCONTAINER_NAMESPACE=default\nready\n"
    );
    let (mut out, mut err) = (file(child.stdout), file(child.stderr));
    out.write_all(b"out\n").unwrap();
    err.write_all(b"err\n").unwrap();
    drop((out, err));
    tokio::time::timeout(LIMIT, pipes.close()).await.unwrap();
    let all = std::fs::read_to_string(&log).unwrap();
    assert_eq!(all.strip_prefix(&ready), Some("out\nerr\nend\n"));
}

#[tokio::test]
async fn a_byte_says_ready_too_and_an_early_end_is_no_error() {
    let place = Place::new();
    for (name, text) in [("byte", "printf x >&5\ncat <&3 >/dev/null"), ("dead", "exit 3")] {
        let uri = format!("binary://{}", place.script(name, text));
        let since = Instant::now();
        let (mut pipes, child) = pipes(&stdout(&uri)).await;
        assert!(since.elapsed() < Duration::from_secs(5), "{name}");
        drop(child);
        tokio::time::timeout(LIMIT, pipes.close()).await.unwrap();
    }
}

#[tokio::test]
async fn a_logger_that_does_not_end_is_killed() {
    let place = Place::new();
    let script = place.script(
        "logger",
        "trap '' TERM\nexec 5>&-\nwhile :; do read x || sleep 0.01; done",
    );
    let (logger, out, err) = target::start_logger(script.as_ref(), &[], "c1", "default")
        .await
        .unwrap();
    drop((out, err));
    let pid = logger.child.id();
    let alive = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "));
    assert!(alive());
    logger.end(Duration::from_millis(100)).await;
    until("it is killed", || !alive()).await;
}

#[tokio::test]
async fn a_logger_that_is_never_ready_is_refused_and_killed() {
    let place = Place::new();
    let pid = place.path("pid");
    let script = place.script(
        "logger",
        &format!(
            "trap '' TERM\necho $$ > {pid}.new\nmv {pid}.new {pid}\nwhile :; do read x || sleep 0.01; done"
        ),
    );
    let limit = Duration::from_millis(300);
    let started = target::start_logger_within(limit, script.as_ref(), &[], "c1", "default").await;
    let error = started.err().unwrap().to_string();
    assert!(
        error.contains("timeout waiting for logging driver") && error.contains(&script),
        "{error}"
    );
    let pid = std::fs::read_to_string(pid).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    until("it is killed", || {
        !std::fs::read_to_string(&stat).is_ok_and(|s| !s.contains(") Z "))
    })
    .await;
}

#[tokio::test]
async fn closing_leaves_nothing_open() {
    let place = Place::new();
    let logger = place.script("logger", "exec 5>&-\nexec cat <&3 >/dev/null");
    let (input, output, error) = (place.fifo("in"), place.fifo("out"), place.fifo("err"));
    let fifos = Stdio {
        stdin: input.clone(),
        stdout: output,
        stderr: error,
        terminal: false,
    };
    let log = stdout(&format!("file://{}", place.path("log")));
    for stdio in [fifos, log, stdout(&format!("binary://{logger}"))] {
        let (mut made, child) = pipes(&stdio).await;
        if !stdio.stdout.starts_with("binary") {
            assert!(!open_below(&place).is_empty());
        }
        // Pipes have no path: their other ends tell.
        let (out, input) = (child.stdout.map(File::from), child.stdin.map(File::from));
        drop(child.stderr);
        tokio::time::timeout(LIMIT, made.close()).await.unwrap();
        // Before the value goes: a container that was deleted may be kept for its exit status.
        until("everything is closed", || open_below(&place).is_empty()).await;
        let out = out.unwrap();
        until("the other end of stdout is closed", || broken(&out)).await;
        if let Some(mut input) = input {
            let rest = ended(beside(move || input.read(&mut [0; 8]).unwrap())).await;
            assert_eq!(rest, 0, "the other end of stdin is closed");
        }
        drop(made);
    }
}

/// Whether nobody has the read end of a pipe any more.
fn broken(pipe: &File) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).unwrap();
    fds[0].revents().unwrap().contains(PollFlags::POLLERR)
}

#[tokio::test]
async fn a_failed_start_leaves_nothing_open() {
    let place = Place::new();
    let stdio = Stdio {
        stdin: place.fifo("in"),
        stdout: place.fifo("out"),
        stderr: place.path("missing"),
        terminal: false,
    };
    let mut pipes = Pipes::new("c1", "default", &stdio, &IoOptions::default())
        .await
        .unwrap();
    assert!(pipes.start_copy().await.is_err());
    pipes.close().await;
    until("everything is closed", || open_below(&place).is_empty()).await;
}

/// A terminal's two sides, as the runtime makes them.
fn terminal() -> (OwnedFd, File) {
    let master = nix::pty::posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY).unwrap();
    nix::pty::grantpt(&master).unwrap();
    nix::pty::unlockpt(&master).unwrap();
    let name = nix::pty::ptsname_r(&master).unwrap();
    let slave = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(name)
        .unwrap();
    // The master's type owns its descriptor and does not give it away.
    (master.as_fd().try_clone_to_owned().unwrap(), slave)
}

#[tokio::test]
async fn a_terminals_output_is_whole_and_its_end_is_seen() {
    let place = Place::new();
    let (input, output) = (place.fifo("in"), place.fifo("out"));
    let (master, mut slave) = terminal();
    let stdio = Stdio {
        stdin: input.clone(),
        stdout: output.clone(),
        stderr: String::new(),
        terminal: true,
    };
    let mut console = Console::new(master, "c1", "default", &stdio).await.unwrap();
    console.resize(100, 40).unwrap();
    let reading = read_beside(&output);
    ended(beside(move || {
        for n in 0..3_000 {
            writeln!(slave, "line {n}").unwrap();
        }
    }))
    .await;
    tokio::time::timeout(LIMIT, console.wait_copied()).await.unwrap();
    let all = ended(reading).await;
    assert!(all.starts_with("line 0\r\n") && all.ends_with("line 2999\r\n"));
    assert_eq!(all.lines().count(), 3_000);
    tokio::time::timeout(LIMIT, console.close()).await.unwrap();
    until("everything is closed", || open_below(&place).is_empty()).await;
}

#[tokio::test]
async fn the_console_socket_takes_one_descriptor_and_goes() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd;
    let socket = ConsoleSocket::new().unwrap();
    let path = socket.path().to_owned();
    let send = path.clone();
    let sending = beside(move || {
        let stream = std::os::unix::net::UnixStream::connect(send).unwrap();
        let (read, _) = nix::unistd::pipe().unwrap();
        let fds = [read.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&fds)];
        let name = [std::io::IoSlice::new(b"/dev/pts/0")];
        sendmsg::<()>(stream.as_raw_fd(), &name, &message, MsgFlags::empty(), None).unwrap();
    });
    let received = tokio::time::timeout(LIMIT, socket.receive())
        .await
        .unwrap()
        .unwrap();
    ended(sending).await;
    let flags = nix::fcntl::fcntl(&received, nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    assert!(!path.exists() && !path.parent().unwrap().exists());

    // A runtime that dies instead.
    let socket = ConsoleSocket::new().unwrap();
    drop(std::os::unix::net::UnixStream::connect(socket.path()).unwrap());
    let error = tokio::time::timeout(LIMIT, socket.receive())
        .await
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().contains("terminal"), "{error}");
}
