//! The long-running keeper: `diffkeeper keeper`.

use std::{io::Write, os::unix::net::UnixStream, path::Path, sync::Arc, time::Duration};

use runtime_spec::config::Config;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};

use crate::{
    error::{Context, Result},
    keeper::Keeper,
    reclaim::Schedule,
    recompact::Idle,
    service::{Service, listen},
    watch::Watch,
};

/// How long a commit may go on after a SIGTERM; then it is abandoned, which the store does not mind.
const LAST_COMMIT: Duration = Duration::from_secs(4);

/// How long a command may have the store open before a keeper gives up starting.
const COMMANDS: Duration = Duration::from_secs(3);

/// How much a signal asks the log to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// SIGHUP and SIGUSR2: what is configured by now.
    Configured,
    /// SIGUSR1: everything.
    Debug,
}

/// Serves until SIGTERM or SIGINT. `levels` is told what other signals ask of the log.
///
/// # Errors
/// A store in use, damaged or of a newer version; a socket that cannot be made.
pub fn serve(config: &Config, levels: &dyn Fn(Level)) -> Result<()> {
    // The store's lock says that no other keeper is there, before that one's socket is touched.
    let keeper = Arc::new(open(config)?);
    // Before anybody can ask: a restore that was put in place is not undone before it is recorded.
    keeper.catch_up_all()?;
    let watch = Arc::new(Watch::new(keeper.clone())?);
    let reclaim = Arc::new(Schedule::default());
    let idle = Arc::new(Idle::default());
    let listener = listen(&config.keeper)?;
    {
        let (reclaim, keeper) = (reclaim.clone(), keeper.clone());
        std::thread::Builder::new()
            .name("reclaim".into())
            .spawn(move || reclaim.run(&keeper))
            .on("start a thread for", Path::new("what has expired"))?;
    }
    {
        let (idle, keeper) = (idle.clone(), keeper.clone());
        std::thread::Builder::new()
            .name("recompact".into())
            .spawn(move || idle.run(&keeper))
            .on("start a thread for", Path::new("recompaction"))?;
    }
    let looking = {
        let watch = watch.clone();
        std::thread::Builder::new()
            .name("blueshift".into())
            .spawn(move || watch.run())
            .on("start a thread for", Path::new("BlueShift"))?
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .on("start", Path::new("the event loop"))?;
    let served = runtime.block_on(async {
        let mut server = Service::new(keeper.clone(), Some(watch.clone()))
            .reclaiming(reclaim.clone())
            .serve(listener).await?;
        if let Some(address) = config.history.metrics {
            match TcpListener::bind(address).await {
                Ok(listener) => drop(tokio::spawn(metrics(listener, keeper.clone()))),
                // Not worth going without history for.
                Err(error) => tracing::error!(%address, %error, "metrics are not served: set `metrics` under [history]"),
            }
        }
        let on = |kind| signal(kind).on("wait for", Path::new("signals"));
        let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
        let mut hangup = on(SignalKind::hangup())?;
        let (mut more, mut less) = (on(SignalKind::user_defined1())?, on(SignalKind::user_defined2())?);
        tracing::info!(socket = %config.keeper.display(), store = %keeper.store().dir().display(), "the keeper is ready");
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => levels(Level::Configured),
                _ = less.recv() => levels(Level::Configured),
                _ = more.recv() => levels(Level::Debug),
            }
        }
        server.stop_listen().await;
        Ok(())
    });
    // The next keeper makes its own, and who begins now waits for the end of this one.
    let _ = std::fs::remove_file(&config.keeper);
    watch.stop();
    reclaim.stop();
    idle.stop();
    let since = std::time::Instant::now();
    while !looking.is_finished() && since.elapsed() < LAST_COMMIT {
        std::thread::sleep(Duration::from_millis(10));
    }
    runtime.shutdown_background();
    served
}

/// Opens the store; a command that has it open for a moment is waited for.
fn open(config: &Config) -> Result<Keeper> {
    let since = std::time::Instant::now();
    loop {
        match Keeper::open(config) {
            // A keeper is not waited for: who waited would take over from one that is told to stop.
            Err(crate::Error::Store(store::Error::Locked(_)))
                if since.elapsed() < COMMANDS && UnixStream::connect(&config.keeper).is_err() =>
            {
                std::thread::sleep(Duration::from_millis(50));
            }
            opened => return opened,
        }
    }
}

/// `GET /metrics` and `GET /healthz`, to whoever may connect: an address of this machine, unless configured otherwise.
async fn metrics(listener: TcpListener, keeper: Arc<Keeper>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let keeper = keeper.clone();
        tokio::spawn(async move {
            // Whoever hangs up is gone.
            let _ = tokio::time::timeout(Duration::from_secs(5), answer(stream, keeper)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, keeper: Arc<Keeper>) -> std::io::Result<()> {
    let (mut request, mut part) = (Vec::new(), [0; 1024]);
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < 16 * 1024 {
        match stream.read(&mut part).await? {
            0 => break,
            n => request.extend_from_slice(part.get(..n).unwrap_or_default()),
        }
    }
    let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
    let path = line.split(|b| *b == b' ').nth(1).unwrap_or_default();
    let (status, body) = match path {
        b"/healthz" => ("200 OK", "ok\n".to_owned()),
        b"/metrics" => match tokio::task::spawn_blocking(move || keeper.metrics()).await {
            Ok(Ok(text)) => ("200 OK", text),
            Ok(Err(error)) => ("500 Internal Server Error", format!("{error}\n")),
            Err(error) => ("500 Internal Server Error", format!("{error}\n")),
        },
        _ => ("404 Not Found", "there are /metrics and /healthz\n".to_owned()),
    };
    let mut reply = Vec::new();
    write!(
        reply,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.write_all(&reply).await?;
    stream.shutdown().await
}
