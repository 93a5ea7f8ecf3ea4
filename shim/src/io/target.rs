//! Where a stream's URI points: a fifo, a file, or a logger.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Read,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::io::Interest;

use super::{copy, sys};
use crate::error::{Context, Error, Result};

/// How long a logger may take to say that it is ready, as the stock shim has it.
const LOGGER_READY_LIMIT: Duration = Duration::from_secs(10);
/// How long a logger may take to end after its input has ended, as the stock shim has it.
pub const LOGGER_END_LIMIT: Duration = Duration::from_secs(12);

/// What a stdout URI names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A path: containerd's fifo, or a file that exists.
    Fifo(PathBuf),
    /// `file:///path`: appended to, made with its directories where it is missing.
    File(PathBuf),
    /// `binary:///path?key=value`: a program that reads the streams as descriptors 3 and 4.
    Binary {
        /// The program.
        program: PathBuf,
        /// Its arguments: keys and values in the order of the keys.
        args: Vec<String>,
    },
}

impl Target {
    /// Parses a URI; a bare path is a fifo.
    ///
    /// # Errors
    /// An unknown scheme, or a bad percent-escape.
    pub fn parse(uri: &str) -> Result<Target> {
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Ok(Target::Fifo(uri.into()));
        };
        let rest = rest.split_once('#').map_or(rest, |(before, _fragment)| before);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = PathBuf::from(unescape(path, Plus::Itself)?);
        match scheme {
            "fifo" => Ok(Target::Fifo(path)),
            "file" => Ok(Target::File(path)),
            "binary" => {
                // Sorted, as Go's url.Values are when they are walked for the logger.
                let mut pairs: BTreeMap<String, Vec<String>> = BTreeMap::new();
                for pair in query.split('&').filter(|p| !p.is_empty()) {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    let key = unescape(key, Plus::Blank)?;
                    pairs.entry(key).or_default().push(unescape(value, Plus::Blank)?);
                }
                let mut args = Vec::new();
                for (key, values) in pairs {
                    args.push(key);
                    // Only the first value of a key reaches the logger; it does even if it is empty.
                    args.extend(values.into_iter().next());
                }
                Ok(Target::Binary { program: path, args })
            }
            _ => Err(Error::Other(format!(
                "unknown STDIO scheme {}",
                scheme.escape_debug()
            ))),
        }
    }
}

/// What a plus sign means: a blank in a query, itself in a path.
#[derive(Clone, Copy, PartialEq)]
enum Plus {
    Blank,
    Itself,
}

fn unescape(text: &str, plus: Plus) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            let blank = byte == b'+' && plus == Plus::Blank;
            bytes.push(if blank { b' ' } else { byte });
            continue;
        }
        let hex: Vec<u8> = rest.by_ref().take(2).collect();
        let value = std::str::from_utf8(&hex)
            .ok()
            .filter(|h| h.len() == 2)
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        bytes.push(
            value
                .ok_or_else(|| Error::InvalidArgument(format!("bad escape in the stream's URI {text:?}")))?,
        );
    }
    String::from_utf8(bytes)
        .map_err(|_| Error::InvalidArgument(format!("the stream's URI {text:?} is not UTF-8")))
}

/// Opens a fifo's write end, and its read end so that it never breaks while containerd is away. A regular file is
/// appended to.
///
/// # Errors
/// When it cannot be opened.
pub fn open_output(path: &Path) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let fifo = std::fs::metadata(path)
        .map(|m| std::os::unix::fs::FileTypeExt::is_fifo(&m.file_type()))
        .context(|| format!("containerd-shim: opening file {} failed", path.display()))?;
    let open = |options: &mut OpenOptions| {
        options
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map(OwnedFd::from)
            .context(|| format!("containerd-shim: opening {} failed", path.display()))
    };
    if !fifo {
        return Ok((open(OpenOptions::new().append(true))?, None));
    }
    let read = open(OpenOptions::new().read(true))?;
    let write = open(OpenOptions::new().write(true))?;
    Ok((write, Some(read)))
}

/// Opens a log file for appending.
///
/// # Errors
/// When it or its directory cannot be made.
pub fn open_file(path: &Path) -> Result<OwnedFd> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).context(|| format!("make the log's directory {}", dir.display()))?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .open(path)
        .map(OwnedFd::from)
        .context(|| format!("open the log {}", path.display()))
}

/// A running logger.
pub struct Logger {
    /// The process; the shim's reaper may be first to wait for it, so it is looked at by pid.
    pub child: Child,
}

/// Starts a logger and waits until it is ready. Returns the ends that the container writes to.
///
/// # Errors
/// A program that does not start, fails, or is not ready in time.
pub async fn start_logger(
    program: &Path,
    args: &[String],
    container_id: &str,
    namespace: &str,
) -> Result<(Logger, OwnedFd, OwnedFd)> {
    start_logger_within(LOGGER_READY_LIMIT, program, args, container_id, namespace).await
}

pub(super) async fn start_logger_within(
    limit: Duration,
    program: &Path,
    args: &[String],
    container_id: &str,
    namespace: &str,
) -> Result<(Logger, OwnedFd, OwnedFd)> {
    let pipe =
        || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context(|| "make a pipe for a logger".into());
    let ((out_read, out_write), (err_read, err_write), (ready_read, ready_write)) =
        (pipe()?, pipe()?, pipe()?);
    let mut command = Command::new(program);
    // These two and nothing else, as the stock shim has it: ours names sockets that are no logger's business.
    command
        .args(args)
        .env_clear()
        .env("CONTAINER_ID", container_id)
        .env("CONTAINER_NAMESPACE", namespace);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::inherit_from_three(&mut command, [out_read, err_read, ready_write]);
    let child = command
        .spawn()
        .context(|| format!("failed to start binary process {}", program.display()))?;
    // Drops our copies of the logger's ends, or its end would never be seen.
    drop(command);
    let ready =
        copy::stream(ready_read, Interest::READABLE).context(|| "watch a logger's ready pipe".into())?;
    let told = tokio::time::timeout(limit, ready.readable()).await;
    match told {
        Err(_) => {
            // Nobody would ever end it: the container that it is for does not start.
            Logger { child }.end(Duration::ZERO).await;
            Err(Error::Other(format!(
                "timeout waiting for logging driver {} to start",
                program.display()
            )))
        }
        Ok(Err(source)) => Err(Error::Io {
            context: format!("failed to read from {}", program.display()),
            source,
        }),
        // A byte or the pipe's end: either says that it runs.
        Ok(Ok(_)) => Ok((Logger { child }, out_write, err_write)),
    }
}

impl Logger {
    /// Whether it has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        let Ok(mut stat) = File::open(format!("/proc/{}/stat", self.child.id())) else {
            return true;
        };
        let mut text = String::new();
        stat.read_to_string(&mut text).is_err()
            || text
                .rsplit(')')
                .next()
                .is_some_and(|rest| rest.trim_start().starts_with('Z'))
    }

    /// Ends it, gently first: it may still be writing what it read.
    pub async fn end(self, limit: Duration) {
        let deadline = tokio::time::Instant::now() + limit;
        let mut asked = false;
        while !self.ended() {
            if tokio::time::Instant::now() > deadline {
                tracing::warn!(pid = self.child.id(), "a logger did not end and is killed");
                let _ = crate::sys::kill(
                    nix::unistd::Pid::from_raw(self.child.id().cast_signed()),
                    libc::SIGKILL,
                );
                return;
            }
            if !asked {
                asked = true;
                let _ = crate::sys::kill(
                    nix::unistd::Pid::from_raw(self.child.id().cast_signed()),
                    libc::SIGTERM,
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris() {
        assert_eq!(Target::parse("/run/f").unwrap(), Target::Fifo("/run/f".into()));
        assert_eq!(
            Target::parse("fifo:///run/f").unwrap(),
            Target::Fifo("/run/f".into())
        );
        assert_eq!(
            Target::parse("file:///var/log/a%20b+c#fragment").unwrap(),
            Target::File("/var/log/a b+c".into())
        );
        let binary = Target::parse("binary:///bin/logger?z=1+2&a=&a=2").unwrap();
        assert_eq!(
            binary,
            Target::Binary {
                program: "/bin/logger".into(),
                args: ["a", "", "z", "1 2"].map(str::to_owned).to_vec()
            }
        );
        assert!(
            Target::parse("http://x")
                .unwrap_err()
                .to_string()
                .contains("http")
        );
        assert!(Target::parse("file:///%zz").is_err());
        assert!(Target::parse("file:///%").is_err());
    }
}
