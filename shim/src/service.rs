//! The Task service: containerd's calls, and the order of events.

use std::{
    collections::HashMap,
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
        CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
        PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
        ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
        StatsResponse, Status as TaskStatus, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    events::task::{
        TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM,
        TaskPaused, TaskResumed, TaskStart,
    },
    shim::oci,
    shim_async::Task,
};
use keeper_api::keeper::keeper::note_request::What;
use keeper_api::shim::{
    shim::{FreezeRequest, FreezeResponse, HookRequest, HookResponse, ThawRequest, ThawResponse},
    shim_ttrpc::Freezer,
};
use protobuf::{Message, MessageField, well_known_types::timestamp::Timestamp};
use tokio::sync::{Notify, oneshot};
use ttrpc::r#async::TtrpcContext;

use crate::{
    cgroup::{Cgroup, OomWatch},
    container::Container,
    error::{Error, Result},
    events::Publisher,
    options::pack,
    process::{Process, Status},
    reaper::{Exit, Reaper},
};

/// The service behind the socket.
#[derive(Clone)]
pub struct Service(Arc<Shared>);

struct Shared {
    client: Client,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    reaper: Reaper,
    events: Publisher,
    shutdown: Shutdown,
}

/// Which containerd this shim serves.
#[derive(Debug, Clone)]
pub struct Client {
    /// The namespace of its containers.
    pub namespace: String,
    /// containerd's socket.
    pub address: String,
    /// This shim's socket.
    pub socket: Option<PathBuf>,
}

/// How the service ends its process.
pub struct Shutdown {
    /// The socket's path.
    pub socket: Option<PathBuf>,
    /// Wakes the main loop.
    pub notify: Arc<Notify>,
}

impl Service {
    /// A service without containers.
    #[must_use]
    pub fn new(client: Client, reaper: Reaper, events: Publisher, shutdown: Shutdown) -> Service {
        Service(Arc::new(Shared {
            client,
            containers: Mutex::default(),
            reaper,
            events,
            shutdown,
        }))
    }

    /// Writes every container and process, and how it is, to the log.
    pub fn say_what_there_is(&self) {
        let containers: Vec<_> = self.containers().values().cloned().collect();
        tracing::info!(count = containers.len(), "SIGUSR1: the containers of this shim");
        for container in containers {
            for process in container.processes() {
                tracing::info!(
                    container = container.id,
                    process = process.id,
                    pid = process.pid(),
                    status = process.status().word(),
                    exit = ?process.exit().map(|exit| exit.status),
                    "SIGUSR1: a process"
                );
            }
        }
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.0.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.containers()
            .get(id)
            .cloned()
            .ok_or_else(|| Error::NotFound("container not created: not found".into()))
    }

    /// Runs a call to its end even if the caller hangs up: half a create must not be forgotten.
    async fn whole<T, F>(&self, call: F) -> ttrpc::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        match tokio::spawn(call).await {
            Ok(result) => result.map_err(Into::into),
            Err(error) => Err(Error::Other(format!("the call failed in the shim: {error}")).into()),
        }
    }

    async fn create_container(self, request: CreateTaskRequest) -> Result<u32> {
        if self.containers().contains_key(&request.id) {
            return Err(Error::AlreadyExists(format!(
                "container {}: already exists",
                request.id
            )));
        }
        let window = self.0.reaper.window();
        let container = Arc::new(Container::create(&self.0.client, &request, &self.0.reaper).await?);
        let pid = container.init.pid();
        self.containers().insert(request.id.clone(), container.clone());
        self.0.events.send(&TaskCreate {
            container_id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: MessageField::some(TaskIO {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
                ..TaskIO::default()
            }),
            checkpoint: request.checkpoint,
            pid,
            ..TaskCreate::default()
        });
        if pid != 0 {
            self.watch_oom(&container);
            self.watch_init(&container);
        }
        drop(window);
        Ok(pid)
    }

    async fn start_process(self, id: String, exec_id: String) -> Result<u32> {
        let container = self.container(&id)?;
        let process = container.process(&exec_id)?;
        // Held until the start has been announced: the exit waits for it.
        let _announced_first = process.lock.lock().await;
        let window = self.0.reaper.window();
        if exec_id.is_empty() {
            let restored = process.status() == Status::CreatedCheckpoint;
            container.start_init().await?;
            let pid = process.pid();
            self.0.events.send(&TaskStart {
                container_id: id,
                pid,
                ..TaskStart::default()
            });
            if restored {
                self.watch_oom(&container);
                self.watch_init(&container);
            }
        } else {
            if container.init_reaped() {
                return Err(Error::FailedPrecondition(format!(
                    "container {id} init process is not running: failed precondition"
                )));
            }
            container.running_execs.send_modify(|n| *n += 1);
            if let Err(error) = container.start_exec(&exec_id).await {
                container.running_execs.send_modify(|n| *n -= 1);
                return Err(error);
            }
            let pid = process.pid();
            self.0.events.send(&TaskExecStarted {
                container_id: id,
                exec_id,
                pid,
                ..TaskExecStarted::default()
            });
            self.watch_exec(&container, &process);
        }
        drop(window);
        Ok(process.pid())
    }

    fn watch_init(&self, container: &Arc<Container>) {
        let exit = self.0.reaper.claim(container.init.pid().cast_signed());
        let (service, container) = (self.clone(), container.clone());
        tokio::spawn(async move {
            if let Ok(exit) = exit.await {
                service.init_exited(&container, exit).await;
            }
        });
    }

    fn watch_exec(&self, container: &Arc<Container>, process: &Arc<Process>) {
        let exit = self.0.reaper.claim(process.pid().cast_signed());
        let (service, container, process) = (self.clone(), container.clone(), process.clone());
        tokio::spawn(async move {
            if let Ok(exit) = exit.await {
                let _announced = process.lock.lock().await;
                service.announce_exit(&container, &process, exit);
                container.running_execs.send_modify(|n| *n -= 1);
            }
        });
    }

    /// Init's exit is the last event of its container: whatever it left is killed first, and the exits of execs
    /// are announced before its own.
    async fn init_exited(&self, container: &Arc<Container>, exit: Exit) {
        container.init_reaped.store(true, Ordering::Release);
        if container.kill_all_on_exit {
            container.kill_all().await;
        }
        // The sender lives in the container, so this ends only when the count is 0.
        let _ = container.running_execs.subscribe().wait_for(|n| *n == 0).await;
        let _announced = container.init.lock.lock().await;
        if container.init.status() == Status::Paused {
            container.resume_dead().await;
        }
        let stop = container
            .oom_stop
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(stop) = stop {
            let (looked, last_look) = oneshot::channel();
            if stop.send(looked).is_ok() {
                let _ = last_look.await;
            }
        }
        self.announce_exit(container, &container.init, exit);
        container.note(What::EXITED).await;
    }

    fn announce_exit(&self, container: &Container, process: &Process, exit: Exit) {
        process.set_exited(exit);
        let at = process.exit().map_or(exit.at, |exit| exit.at);
        self.0.events.send(&TaskExit {
            container_id: container.id.clone(),
            id: process.id.clone(),
            pid: exit.pid.cast_unsigned(),
            exit_status: exit.status,
            exited_at: MessageField::some(at.into()),
            ..TaskExit::default()
        });
    }

    /// Reports every out-of-memory kill, the last one before init's exit even if the kernel's notice of it has
    /// not been read yet.
    fn watch_oom(&self, container: &Arc<Container>) {
        let Some(cgroup) = container.cgroup() else { return };
        enable_controllers(&cgroup, &container.id);
        let mut watch = match OomWatch::new(&cgroup) {
            Ok(watch) => watch,
            Err(error) => {
                tracing::error!(id = container.id, %error, "watch for out-of-memory events");
                return;
            }
        };
        let (stop, mut stopped) = oneshot::channel::<oneshot::Sender<()>>();
        *container.oom_stop.lock().unwrap_or_else(PoisonError::into_inner) = Some(stop);
        let (events, container_id) = (self.0.events.clone(), container.id.clone());
        tokio::spawn(async move {
            let report = || {
                events.send(&TaskOOM {
                    container_id: container_id.clone(),
                    ..TaskOOM::default()
                })
            };
            let looked = loop {
                tokio::select! {
                    biased;
                    looked = &mut stopped => break looked,
                    event = watch.next() => match event {
                        Some(()) => report(),
                        None => break stopped.await,
                    },
                }
            };
            if watch.pending() {
                report();
            }
            if let Ok(looked) = looked {
                let _ = looked.send(());
            }
        });
    }

    async fn delete_process(self, id: String, exec_id: String) -> Result<DeleteResponse> {
        let container = self.container(&id)?;
        let process = if exec_id.is_empty() {
            container.delete().await?;
            self.containers().remove(&id);
            container.init.clone()
        } else {
            container.delete_exec(&exec_id).await?
        };
        let (status, at) = exit_of(&process);
        if exec_id.is_empty() {
            self.0.events.send(&TaskDelete {
                container_id: id,
                pid: process.pid(),
                exit_status: status,
                exited_at: at.clone(),
                ..TaskDelete::default()
            });
            // Memory that create and start needed goes back before the shim idles on, in a pod.
            crate::sys::trim_heap();
        }
        Ok(DeleteResponse {
            pid: process.pid(),
            exit_status: status,
            exited_at: at,
            ..DeleteResponse::default()
        })
    }
}

fn enable_controllers(cgroup: &Cgroup, id: &str) {
    if let Err(error) = cgroup.enable_controllers() {
        tracing::error!(id, %error, "enable the container's cgroup controllers");
    }
}

/// The exit status and time; the zero time of Go where there is none.
fn exit_of(process: &Process) -> (u32, MessageField<Timestamp>) {
    match process.exit() {
        Some(exit) => (exit.status, MessageField::some(exit.at.into())),
        None => (0, MessageField::some(go_zero_time())),
    }
}

/// Go's zero time, 0001-01-01T00:00:00Z, which is what the stock shim sends for "not yet".
fn go_zero_time() -> Timestamp {
    Timestamp {
        seconds: -62_135_596_800,
        ..Timestamp::default()
    }
}

#[async_trait]
impl Freezer for Service {
    async fn freeze(&self, _: &TtrpcContext, request: FreezeRequest) -> ttrpc::Result<FreezeResponse> {
        let container = self.container(&request.container_id)?;
        let limit = Duration::from_millis(request.limit_ms.into());
        let token = self.whole(async move { container.freeze(limit).await }).await?;
        Ok(FreezeResponse {
            token,
            ..FreezeResponse::default()
        })
    }

    async fn thaw(&self, _: &TtrpcContext, request: ThawRequest) -> ttrpc::Result<ThawResponse> {
        let container = self.container(&request.container_id)?;
        Ok(ThawResponse {
            stood_still: container.standstill.end(request.token).await,
            ..ThawResponse::default()
        })
    }

    async fn hook(&self, _: &TtrpcContext, request: HookRequest) -> ttrpc::Result<HookResponse> {
        let container = self.container(&request.container_id)?;
        let reaper = self.0.reaper.clone();
        let ran = self
            .whole(async move { container.hook(request.after, &reaper).await })
            .await?;
        Ok(HookResponse {
            ran,
            ..HookResponse::default()
        })
    }
}

#[async_trait]
impl Task for Service {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let pid = self.whole(self.clone().create_container(request)).await?;
        Ok(CreateTaskResponse {
            pid,
            ..CreateTaskResponse::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let pid = self
            .whole(self.clone().start_process(request.id, request.exec_id))
            .await?;
        Ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        self.whole(self.clone().delete_process(request.id, request.exec_id))
            .await
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        container.add_exec(&request).await?;
        self.0.events.send(&TaskExecAdded {
            container_id: request.id,
            exec_id: request.exec_id,
            ..TaskExecAdded::default()
        });
        Ok(Empty::new())
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let whole = container.init.status();
        // A frozen container's execs are frozen with it.
        let status = if matches!(whole, Status::Paused | Status::Pausing) {
            whole
        } else {
            process.status()
        };
        let status = match status {
            Status::Created | Status::CreatedCheckpoint => TaskStatus::CREATED,
            Status::Running => TaskStatus::RUNNING,
            Status::Pausing => TaskStatus::PAUSING,
            Status::Paused => TaskStatus::PAUSED,
            Status::Stopped | Status::Deleted => TaskStatus::STOPPED,
        };
        let (exit_status, exited_at) = exit_of(&process);
        Ok(StateResponse {
            id: process.id.clone(),
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid: process.pid(),
            status: status.into(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exit_status,
            exited_at,
            ..StateResponse::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let container = self.container(&request.id)?;
        let pids = container.pids().await?;
        let process = |pid: u32| {
            let info = container.exec_id_of(pid).map(|exec_id| {
                let details = oci::ProcessDetails {
                    exec_id,
                    ..oci::ProcessDetails::default()
                };
                pack("containerd.runc.v1.ProcessDetails", &details)
            });
            ProcessInfo {
                pid,
                info: info.into(),
                ..ProcessInfo::default()
            }
        };
        Ok(PidsResponse {
            processes: pids.into_iter().map(process).collect(),
            ..PidsResponse::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        self.whole(async move { container.pause().await }).await?;
        self.0.events.send(&TaskPaused {
            container_id: request.id,
            ..TaskPaused::default()
        });
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        self.whole(async move { container.resume().await }).await?;
        self.0.events.send(&TaskResumed {
            container_id: request.id,
            ..TaskResumed::default()
        });
        Ok(Empty::new())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        self.whole(async move {
            container
                .kill(&request.exec_id, request.signal, request.all)
                .await
        })
        .await?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        if !request.exec_id.is_empty() && process.status() == Status::Stopped {
            return Err(Error::Other("cannot resize a stopped container".into()).into());
        }
        process.resize(request.width, request.height).await?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            process.close_stdin().await;
        }
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        let options = match request.options.as_ref() {
            Some(any) => oci::CheckpointOptions::parse_from_bytes(&any.value).map_err(|e| {
                Error::InvalidArgument(format!("the checkpoint's options do not decode: {e}"))
            })?,
            None => oci::CheckpointOptions::default(),
        };
        let path = request.path.clone();
        self.whole(async move { container.checkpoint(&path, &options).await })
            .await?;
        self.0.events.send(&TaskCheckpointed {
            container_id: request.id,
            checkpoint: request.path,
            ..TaskCheckpointed::default()
        });
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        let resources = request.resources.into_option().unwrap_or_default().value;
        self.whole(async move { container.update(&resources).await })
            .await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        process.wait().await;
        let (exit_status, exited_at) = exit_of(&process);
        Ok(WaitResponse {
            exit_status,
            exited_at,
            ..WaitResponse::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let cgroup = self
            .container(&request.id)?
            .cgroup()
            .ok_or_else(|| Error::NotFound("cgroup does not exist: not found".into()))?;
        let stats = MessageField::some(cgroup.stats()?);
        Ok(StatsResponse {
            stats,
            ..StatsResponse::default()
        })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let task_pid = self
            .container(&request.id)
            .map_or(0, |container| container.init.pid());
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        if self.containers().is_empty() {
            // Gone before the answer: the next container of this name must not find a shim that is leaving.
            if let Some(socket) = &self.0.shutdown.socket {
                let _ = std::fs::remove_file(socket);
            }
            self.0.shutdown.notify.notify_one();
        }
        Ok(Empty::new())
    }
}
