//! Moving bytes between two descriptors on the event loop.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::sys;

/// What one `splice` or `read` may move.
const CHUNK: usize = 64 * 1024;

/// A descriptor of the event loop.
pub type Stream = Arc<AsyncFd<OwnedFd>>;

/// Puts a descriptor on the event loop.
///
/// # Errors
/// A descriptor that cannot be polled, such as a regular file.
pub fn stream(fd: OwnedFd, interest: Interest) -> io::Result<Stream> {
    set_nonblocking(&fd)?;
    sys::poll_fd(fd, interest).map(Arc::new)
}

fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Where bytes go.
#[derive(Clone)]
pub enum Sink {
    /// A fifo, pipe or terminal.
    Stream(Stream),
    /// A regular file, which never makes a writer wait for a reader.
    File(Arc<OwnedFd>),
}

impl Sink {
    /// A sink of whichever kind the descriptor is.
    ///
    /// # Errors
    /// When the kernel refuses to poll it.
    pub fn new(fd: OwnedFd) -> io::Result<Sink> {
        let kind = nix::sys::stat::fstat(&fd)?.st_mode & libc::S_IFMT;
        if kind == libc::S_IFREG {
            return Ok(Sink::File(Arc::new(fd)));
        }
        stream(fd, Interest::WRITABLE).map(Sink::Stream)
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Sink::File(fd) => nix::unistd::write(fd.as_fd(), bytes).map_err(io::Error::from),
                Sink::Stream(stream) => {
                    let mut ready = stream.writable().await?;
                    match ready.try_io(|fd| nix::unistd::write(fd.get_ref(), bytes).map_err(Into::into)) {
                        Ok(result) => result,
                        Err(_) => continue,
                    }
                }
            };
            match written {
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Copies until the source ends. The end of a terminal whose other side is closed (EIO) is an end like any other.
///
/// # Errors
/// When the sink cannot be written.
pub async fn copy(source: &Stream, sink: &Sink) -> io::Result<()> {
    if let Sink::Stream(sink) = sink
        && splice_all(source, sink).await?
    {
        return Ok(());
    }
    let mut buffer = Vec::new();
    loop {
        // The buffer is made when there is something to put in it: an idle stream costs no memory.
        let mut ready = source.readable().await?;
        buffer.resize(CHUNK, 0);
        let read = ready.try_io(|fd| nix::unistd::read(fd.get_ref(), &mut buffer).map_err(Into::into));
        match read {
            Ok(Ok(0)) => return Ok(()),
            Ok(Ok(n)) => sink.write_all(buffer.get(..n).unwrap_or_default()).await?,
            Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => buffer = Vec::new(),
        }
    }
}

/// Copies inside the kernel. Answers false when it cannot be done with these two, before anything was moved.
async fn splice_all(source: &Stream, sink: &Stream) -> io::Result<bool> {
    loop {
        source.readable().await?.retain_ready();
        let moved = splice(
            source.get_ref(),
            None,
            sink.get_ref(),
            None,
            CHUNK,
            SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE,
        );
        match moved {
            Ok(0) => return Ok(true),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait_either(source, sink).await?,
            Err(Errno::EINVAL | Errno::EIO) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// EAGAIN does not say which side was not ready: ask.
async fn wait_either(source: &Stream, sink: &Stream) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [
        PollFd::new(source.get_ref().as_fd(), PollFlags::POLLIN),
        PollFd::new(sink.get_ref().as_fd(), PollFlags::POLLOUT),
    ];
    poll(&mut fds, PollTimeout::ZERO)?;
    let [readable, writable] = fds.map(|fd| fd.any().unwrap_or_default());
    if !readable {
        source.readable().await?.clear_ready();
    }
    if !writable {
        sink.writable().await?.clear_ready();
    }
    // Cleared readiness makes the next wait a real one.
    if !readable {
        source.readable().await?.retain_ready();
    }
    if !writable {
        sink.writable().await?.retain_ready();
    }
    Ok(())
}
