//! The long-running process behind the socket.

use std::{path::Path, sync::Arc, time::Duration};

use containerd_shim_protos::shim_async::create_task;
use keeper_api::shim::shim_ttrpc::create_freezer;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use ttrpc::r#async::{Server, transport::Listener};

use crate::{
    args::Args,
    error::{Context, Error, Result},
    events::{ADDRESS_VARIABLE, Publisher},
    log,
    reaper::Reaper,
    service::{Client, Service, Shutdown},
    sys,
};

/// How long the last events may take to reach containerd before the shim goes.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);
/// How long the reply to `Shutdown` may take to leave.
const REPLY_LIMIT: Duration = Duration::from_millis(20);

/// Serves until containerd says `Shutdown`, or a signal does.
///
/// # Errors
/// When it was not started by `start`, or the kernel refuses a basic thing.
pub fn serve(args: &Args) -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context(|| "become the subreaper".into())?;
    let listener = sys::inherited_socket()
        .context(|| "take over the socket that `start` passes as descriptor 3 (this process is not to be started by hand)".into())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Blocking calls are rare and short; a thread that idles holds a stack.
        .max_blocking_threads(8)
        .thread_keep_alive(Duration::from_millis(200))
        .thread_stack_size(256 * 1024)
        .build()
        .context(|| "start the event loop".into())?;
    let served = runtime.block_on(run(args, listener));
    // A blocking call that hangs (a mount on a dead disk) must not keep the shim alive.
    runtime.shutdown_background();
    served
}

async fn run(args: &Args, listener: std::os::unix::net::UnixListener) -> Result<()> {
    log::to_fifo(Path::new("log"), args.debug);
    let reaper = Reaper::start()?;
    let address = std::env::var(ADDRESS_VARIABLE)
        .ok()
        .filter(|address| !address.is_empty())
        .unwrap_or_else(|| format!("{}.ttrpc", args.address));
    let events = Publisher::start(&args.namespace, address);
    let client = Client {
        namespace: args.namespace.clone(),
        address: args.address.clone(),
        socket: args.socket.clone(),
    };
    let shutdown = Arc::new(Notify::new());
    let end = Shutdown {
        socket: args.socket.clone(),
        notify: shutdown.clone(),
    };
    let service = Service::new(client, reaper, events.clone(), end);
    say_on_request(service.clone())?;

    let listener =
        tokio::net::UnixListener::from_std(listener).context(|| "listen on the inherited socket".into())?;
    let mut server = services(service)
        .into_iter()
        .fold(Server::new(), Server::register_service)
        .add_listener(Listener::from(listener));
    server
        .start()
        .await
        .map_err(|e| Error::Other(format!("start the ttrpc server: {e}")))?;

    let mut terminate = signal(SignalKind::terminate()).context(|| "install the SIGTERM handler".into())?;
    let mut interrupt = signal(SignalKind::interrupt()).context(|| "install the SIGINT handler".into())?;
    // Start-up's garbage must not stay for the shim's whole life.
    sys::trim_heap();
    tokio::select! {
        () = shutdown.notified() => tokio::time::sleep(REPLY_LIMIT).await,
        _ = terminate.recv() => remove_socket(args),
        _ = interrupt.recv() => remove_socket(args),
    }
    server.stop_listen().await;
    events.flush(FLUSH_LIMIT).await;
    Ok(())
}

/// SIGUSR1 asks a shim what it is doing; the stock one dumps its stacks.
fn say_on_request(service: Service) -> Result<()> {
    let mut asked = signal(SignalKind::user_defined1()).context(|| "install the SIGUSR1 handler".into())?;
    tokio::spawn(async move {
        while asked.recv().await.is_some() {
            service.say_what_there_is();
        }
    });
    Ok(())
}

fn remove_socket(args: &Args) {
    if let Some(socket) = &args.socket {
        // It may be gone: containerd cleans up too.
        let _ = std::fs::remove_file(socket);
    }
}

type Services = std::collections::HashMap<String, ttrpc::r#async::Service>;

/// Task v3 as generated, and the same methods under v2's name: the two differ in nothing else. The keeper's beside
/// them.
fn services(service: Service) -> Vec<Services> {
    let service = Arc::new(service);
    let freezer = create_freezer(service.clone());
    let v3 = create_task(service.clone());
    let v2 = create_task(service)
        .into_values()
        .map(|methods| ("containerd.task.v2.Task".to_owned(), methods))
        .collect();
    vec![v3, v2, freezer]
}
