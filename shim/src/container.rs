//! One container: its bundle, its init, its execs, and the calls that change them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use containerd_shim_protos::{
    api::{CreateTaskRequest, ExecProcessRequest},
    shim::oci,
};
use live::Ending;
use nix::{errno::Errno, unistd::Pid};
use tokio::sync::{oneshot, watch};

use keeper_api::keeper::keeper::note_request::What;

use crate::{
    cgroup::Cgroup,
    error::{Context, Error, Result},
    freeze::Standstill,
    hooks::{self, Hooks, Waiting},
    io::{IoOptions, Stdio},
    keep::Root,
    keeper::Keeper,
    options::{Options, checkpoint_parent},
    process::{PendingStreams, Process, Status, read_pid},
    reaper::Reaper,
    runc::{CreateOptions, CriuOptions, Runc},
    service::Client,
};

const INIT_PID: &str = "init.pid";
/// A container that lived as long as this had come up.
const COMING_UP: Duration = Duration::from_secs(60);

/// A container of this shim.
pub struct Container {
    /// containerd's id of it.
    pub id: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// Its first process.
    pub init: Arc<Process>,
    /// Whether init's death leaves others behind that must be killed.
    pub kill_all_on_exit: bool,
    /// How many execs are between their start and the announcement of their exit.
    pub running_execs: watch::Sender<usize>,
    /// Set as soon as init has been reaped: no exec may start from then on.
    pub init_reaped: AtomicBool,
    /// Stops the out-of-memory watch and waits for its last look.
    pub oom_stop: Mutex<Option<oneshot::Sender<oneshot::Sender<()>>>>,
    /// Whether it stands still for the keeper.
    pub standstill: Standstill,
    execs: Mutex<HashMap<String, Exec>>,
    cgroup: Mutex<Option<Arc<Cgroup>>>,
    root: tokio::sync::Mutex<Option<Root>>,
    started: Mutex<Option<SystemTime>>,
    told_to_stop: AtomicBool,
    checkpoint: Option<CriuOptions>,
    runc: Runc,
    options: Options,
    namespace: String,
    hooks: Hooks,
    waiting: Waiting,
}

#[derive(Clone)]
struct Exec {
    process: Arc<Process>,
    spec: Arc<[u8]>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As runc asks: whether the machine was booted with systemd.
fn systemd_runs() -> bool {
    std::fs::symlink_metadata("/run/systemd/system").is_ok_and(|found| found.is_dir())
}

impl Container {
    /// Makes the container: root filesystem, streams, and the runtime's `create`.
    ///
    /// On failure everything is as before: nothing mounted, the lease free.
    ///
    /// # Errors
    /// A bad bundle, bad options, a state in use, a mount or the runtime that fails.
    pub async fn create(client: &Client, request: &CreateTaskRequest, reaper: &Reaper) -> Result<Container> {
        let namespace = client.namespace.as_str();
        let mut options = match request.options.as_ref() {
            Some(any) => Options::from_any(any)?,
            None => Options::default(),
        };
        let bundle = PathBuf::from(&request.bundle);
        let config = crate::keep::read_config(&options)?;
        if options.binary_name.is_empty() {
            options.binary_name.clone_from(&config.runtime);
        }
        let spec = crate::keep::read_spec(&bundle)?;
        // Engines tell the stock shim by an option; a handler of another type has none unless somebody wrote it.
        options.systemd_cgroup |= spec.parsed.wants_systemd_cgroup() && systemd_runs();
        options.save(&bundle)?;
        let kill_all_on_exit = spec.parsed.shares_pid_namespace();
        let runc = Runc::new(&options, namespace, &bundle, reaper);
        let keeper = Keeper::of(&config, crate::keep::config_file(&options), reaper);
        let hooks = Hooks::of(&spec);
        let mut root = Root::prepare(client, request, spec, reaper, config, keeper).await?;

        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let restoring = !request.checkpoint.is_empty();
        let status = if restoring {
            Status::CreatedCheckpoint
        } else {
            Status::Created
        };
        let init = Process::new(&request.id, stdio, status);
        let checkpoint = restoring.then(|| CriuOptions {
            image_path: request.checkpoint.clone().into(),
            work_path: criu_work(&options, &bundle),
            parent_path: Some(&request.parent_checkpoint)
                .filter(|p| !p.is_empty())
                .map(PathBuf::from),
            ..CriuOptions::default()
        });

        let container = Container {
            id: request.id.clone(),
            bundle,
            init: Arc::new(init),
            kill_all_on_exit,
            running_execs: watch::Sender::new(0),
            init_reaped: AtomicBool::new(false),
            oom_stop: Mutex::new(None),
            standstill: Standstill::default(),
            execs: Mutex::default(),
            cgroup: Mutex::new(None),
            root: tokio::sync::Mutex::new(None),
            started: Mutex::new(None),
            told_to_stop: AtomicBool::new(false),
            checkpoint,
            runc,
            options,
            namespace: namespace.to_owned(),
            hooks,
            waiting: Waiting::default(),
        };
        if !restoring && let Err(error) = container.create_init().await {
            container.undo_create().await;
            if let Err(second) = root.release(Ending::Failed).await {
                tracing::error!(id = container.id, error = %second, "undo a failed create");
            }
            return Err(error);
        }
        if let Err(error) = root.started(container.init.pid()) {
            tracing::warn!(id = container.id, %error, "record the container's init with its lease");
        }
        *container.root.lock().await = Some(root);
        Ok(container)
    }

    async fn create_init(&self) -> Result<()> {
        let mut pending = self.pending_streams(&self.init).await?;
        let made = self.run_create(&mut pending).await;
        self.finish_streams(&self.init, pending, made).await?;
        let pid = read_pid(&self.bundle.join(INIT_PID))?;
        self.init.set_pid(pid);
        self.load_cgroup(pid);
        Ok(())
    }

    async fn run_create(&self, pending: &mut PendingStreams) -> Result<()> {
        let create = self.create_options(self.bundle.join(INIT_PID), pending);
        let fds = pending.child_fds()?;
        self.runc.create(&self.id, &self.bundle, &create, fds).await
    }

    async fn pending_streams(&self, process: &Process) -> Result<PendingStreams> {
        let owner = IoOptions {
            uid: self.options.io_uid,
            gid: self.options.io_gid,
        };
        PendingStreams::new(&self.id, &self.namespace, &process.stdio, &owner).await
    }

    async fn finish_streams(
        &self,
        process: &Process,
        pending: PendingStreams,
        made: Result<()>,
    ) -> Result<()> {
        match made {
            Ok(()) => process.attach(pending, &self.id, &self.namespace).await,
            Err(error) => {
                pending.abandon().await;
                Err(error)
            }
        }
    }

    fn create_options(&self, pid_file: PathBuf, pending: &PendingStreams) -> CreateOptions {
        CreateOptions {
            pid_file,
            console_socket: pending.console_socket(),
            no_pivot: self.options.no_pivot_root,
            no_new_keyring: self.options.no_new_keyring,
        }
    }

    /// A runtime that failed half-way may have left its state, a process or a cgroup.
    async fn undo_create(&self) {
        if let Err(error) = self.runc.delete(&self.id, true).await {
            tracing::debug!(id = self.id, %error, "nothing of a failed create was left to delete");
        }
        self.init.drain_and_close().await;
    }

    fn load_cgroup(&self, pid: u32) {
        match Cgroup::of_process(pid) {
            Ok(cgroup) => *locked(&self.cgroup) = Some(Arc::new(cgroup)),
            Err(error) => tracing::error!(id = self.id, %error, "find the container's cgroup"),
        }
    }

    /// The container's cgroup, when it is known.
    #[must_use]
    pub fn cgroup(&self) -> Option<Arc<Cgroup>> {
        locked(&self.cgroup).clone()
    }

    /// The process with this exec id; init for the empty one.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown id.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        self.exec(exec_id).map(|exec| exec.process)
    }

    fn exec(&self, exec_id: &str) -> Result<Exec> {
        let execs = locked(&self.execs);
        execs
            .get(exec_id)
            .cloned()
            .ok_or_else(|| Error::NotFound(format!("process does not exist {exec_id}: not found")))
    }

    /// Init and the execs.
    #[must_use]
    pub fn processes(&self) -> Vec<Arc<Process>> {
        let execs = locked(&self.execs);
        let execs = execs.values().map(|exec| exec.process.clone());
        [self.init.clone()].into_iter().chain(execs).collect()
    }

    /// The exec id of the process with this pid.
    #[must_use]
    pub fn exec_id_of(&self, pid: u32) -> Option<String> {
        locked(&self.execs)
            .values()
            .find(|exec| exec.process.pid() == pid)
            .map(|exec| exec.process.id.clone())
    }

    /// Adds an exec, not yet started.
    ///
    /// # Errors
    /// A taken id, a process that does not parse, or a container that is paused, stopped or deleted.
    pub async fn add_exec(&self, request: &ExecProcessRequest) -> Result<()> {
        let _serial = self.init.lock.lock().await;
        let id = &request.exec_id;
        if id.is_empty() || id.contains(['/', '\0']) {
            return Err(Error::InvalidArgument(format!("exec id {id:?} is not a name")));
        }
        if locked(&self.execs).contains_key(id) {
            return Err(Error::AlreadyExists(format!("id {id}: already exists")));
        }
        match self.init.status() {
            Status::Created | Status::Running => {}
            status => return Err(Error::Other(format!("cannot exec in a {} state", status.word()))),
        }
        let bytes = request
            .spec
            .as_ref()
            .map(|any| any.value.as_slice())
            .unwrap_or_default();
        let mut spec: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes)
            .map_err(|e| Error::InvalidArgument(format!("the exec's process does not parse: {e}")))?;
        spec.insert("terminal".into(), request.terminal.into());
        let spec =
            serde_json::to_vec(&spec).map_err(|e| Error::Other(format!("encode the exec's process: {e}")))?;
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let process = Arc::new(Process::new(id, stdio, Status::Created));
        locked(&self.execs).insert(
            id.clone(),
            Exec {
                process,
                spec: spec.into(),
            },
        );
        Ok(())
    }

    /// Starts init. The caller holds init's lock, and announces the start before it lets go.
    ///
    /// # Errors
    /// A status other than created, or the runtime's own message.
    pub async fn start_init(&self) -> Result<()> {
        match self.init.status() {
            Status::Created => {
                self.runc.start(&self.id).await?;
            }
            Status::CreatedCheckpoint => self.restore().await?,
            status => return Err(Error::Other(format!("cannot start a {} process", status.word()))),
        }
        *locked(&self.started) = Some(SystemTime::now());
        self.init.set_status_if_alive(Status::Running);
        self.note(What::STARTED).await;
        Ok(())
    }

    async fn restore(&self) -> Result<()> {
        let criu = self.checkpoint.clone().unwrap_or_default();
        let mut pending = self.pending_streams(&self.init).await?;
        let create = self.create_options(self.bundle.join(INIT_PID), &pending);
        let made = match pending.child_fds() {
            Ok(fds) => {
                self.runc
                    .restore(&self.id, &self.bundle, &create, &criu, fds)
                    .await
            }
            Err(error) => Err(error),
        };
        if made.is_err() {
            self.copy_criu_log(&criu.work_path, "restore.log", "criu-restore.log");
        }
        self.finish_streams(&self.init, pending, made).await?;
        let pid = read_pid(&self.bundle.join(INIT_PID))?;
        self.init.set_pid(pid);
        self.load_cgroup(pid);
        if let Some(root) = self.root.lock().await.as_mut() {
            root.started(pid)?;
        }
        Ok(())
    }

    /// Starts an exec. The caller holds the exec's lock, and announces the start before it lets go.
    ///
    /// # Errors
    /// A status other than created, or the runtime's own message.
    pub async fn start_exec(&self, exec_id: &str) -> Result<()> {
        let exec = self.exec(exec_id)?;
        let process = &exec.process;
        if process.status() != Status::Created {
            return Err(Error::Other(format!(
                "cannot start a {} process",
                process.status().word()
            )));
        }
        let moving = self.standstill.moving().await;
        let started = self.run_exec(&exec).await;
        drop(moving);
        if started.is_err() {
            process.give_up();
        }
        process.set_pid(started?);
        process.set_status_if_alive(Status::Running);
        Ok(())
    }

    async fn run_exec(&self, exec: &Exec) -> Result<u32> {
        let process = &exec.process;
        let mut pending = self.pending_streams(process).await?;
        let pid_file = self.bundle.join(format!("{}.pid", process.id));
        let spec_file = self.bundle.join(format!("{}.process.json", process.id));
        let made = async {
            write_private(&spec_file, &exec.spec)?;
            let create = CreateOptions {
                // These are for create and restore: exec has no such flags.
                no_pivot: false,
                no_new_keyring: false,
                ..self.create_options(pid_file.clone(), &pending)
            };
            let fds = pending.child_fds()?;
            self.runc.exec(&self.id, &spec_file, &create, fds).await
        }
        .await;
        // The runtime has read it, or never will.
        let _ = std::fs::remove_file(&spec_file);
        self.finish_streams(process, pending, made).await?;
        read_pid(&pid_file)
    }

    /// Deletes an exec that has ended or never started.
    ///
    /// # Errors
    /// A running exec, or an unknown one.
    pub async fn delete_exec(&self, exec_id: &str) -> Result<Arc<Process>> {
        let process = self.exec(exec_id)?.process;
        let _serial = process.lock.lock().await;
        deletable(&process)?;
        process.drain_and_close().await;
        // It may never have been written.
        let _ = std::fs::remove_file(self.bundle.join(format!("{exec_id}.pid")));
        process.set_status(Status::Deleted);
        locked(&self.execs).remove(exec_id);
        drop(_serial);
        Ok(process)
    }

    /// Deletes the container: the runtime's part of it, the streams, the mounts, the lease.
    ///
    /// # Errors
    /// A running container, the runtime's message, or a mount that does not go.
    pub async fn delete(&self) -> Result<()> {
        let _serial = self.init.lock.lock().await;
        let _moving = self.standstill.moving().await;
        deletable(&self.init)?;
        self.init.drain_and_close().await;
        let deleted = match self.runc.delete(&self.id, false).await {
            // Common after a checkpoint: the runtime has already forgotten it.
            Err(Error::Runtime { message, .. }) if message.contains("does not exist") => Ok(()),
            Err(Error::Runtime { message, .. }) => {
                Err(Error::Other(format!("failed to delete task: {message}")))
            }
            other => other,
        };
        let mut root = self.root.lock().await;
        let released = match root.as_mut() {
            Some(root) => root.release(self.ending()).await,
            None => Ok(()),
        };
        deleted.and(released)?;
        *root = None;
        self.init.set_status(Status::Deleted);
        Ok(())
    }

    /// Whether this life came up.
    fn ending(&self) -> Ending {
        let started = *locked(&self.started);
        match (started, self.init.exit()) {
            (Some(started), Some(exit)) if exit.status != 0 && !self.told_to_stop.load(Ordering::Acquire) => {
                // A clock that was set meanwhile tells nothing.
                let lived = exit.at.duration_since(started).unwrap_or(COMING_UP);
                if lived < COMING_UP {
                    Ending::Failed
                } else {
                    Ending::Fine
                }
            }
            (Some(_), Some(_)) => Ending::Fine,
            _ => Ending::Unknown,
        }
    }

    /// Freezes the container for its owner.
    ///
    /// # Errors
    /// A status other than running, or the runtime's own message.
    pub async fn pause(&self) -> Result<()> {
        let _serial = self.init.lock.lock().await;
        let _moving = self.standstill.moving().await;
        match self.init.status() {
            Status::Running => {}
            Status::Created | Status::CreatedCheckpoint => {
                return Err(Error::Other("cannot pause task in created state".into()));
            }
            status => {
                return Err(Error::Other(format!(
                    "cannot pause a {} container",
                    status.word()
                )));
            }
        }
        self.init.set_status(Status::Pausing);
        let paused = self.runc.pause(&self.id).await;
        self.init.set_status_if_alive(if paused.is_ok() {
            Status::Paused
        } else {
            Status::Running
        });
        paused
    }

    /// Thaws the container for its owner.
    ///
    /// # Errors
    /// A status other than paused, or the runtime's own message.
    pub async fn resume(&self) -> Result<()> {
        let _serial = self.init.lock.lock().await;
        let _moving = self.standstill.moving().await;
        match self.init.status() {
            Status::Paused => {}
            Status::Created | Status::CreatedCheckpoint => {
                return Err(Error::Other("cannot resume task in created state".into()));
            }
            Status::Running => return Err(Error::Other("cannot resume a running process".into())),
            status => {
                return Err(Error::Other(format!(
                    "cannot resume a {} container",
                    status.word()
                )));
            }
        }
        self.runc.resume(&self.id).await?;
        self.init.set_status_if_alive(Status::Running);
        Ok(())
    }

    /// Tells the keeper what has become of the container.
    pub async fn note(&self, what: What) {
        if let Some(root) = &*self.root.lock().await {
            root.note(what);
        }
    }

    /// Thaws a container whose init was killed while frozen, so that the rest of it can go.
    pub async fn resume_dead(&self) {
        if let Err(error) = self.runc.resume(&self.id).await {
            tracing::error!(id = self.id, %error, "resume a container whose init exited while paused");
        }
    }

    /// Makes every process stand still for at most `limit`, without anybody being told; answers with what
    /// [`Standstill::end`] needs.
    ///
    /// # Errors
    /// A container that does not run, or does not stand still.
    pub async fn freeze(&self, limit: Duration) -> Result<u64> {
        match self.init.status() {
            Status::Running | Status::Paused | Status::Pausing => {}
            status => {
                return Err(Error::FailedPrecondition(format!(
                    "a {} container has nothing to freeze",
                    status.word()
                )));
            }
        }
        let cgroup = self
            .cgroup()
            .ok_or_else(|| Error::Unavailable("the container's cgroup is not known".into()))?;
        self.standstill.begin(cgroup, limit).await
    }

    /// Runs what the annotations want to be run in it before or after a commit; says whether there is anything. Where the
    /// end of the commit does not come, it is told of that all the same.
    ///
    /// # Errors
    /// A container that does not run, or a command that fails.
    pub async fn hook(self: &Arc<Self>, after: bool, reaper: &Reaper) -> Result<bool> {
        let _turn = self.waiting.turn().await;
        if after {
            self.waiting.end()?;
            return self.run_hook(after, reaper).await;
        }
        // Before it runs: whoever asks for the end meanwhile waits, and this commit has had its end then.
        let begun = self.waiting.begin();
        let ran = self.run_hook(after, reaper).await;
        if !matches!(ran, Ok(false)) && self.hooks.command(true).is_some() {
            let (container, reaper) = (Arc::downgrade(self), reaper.clone());
            tokio::spawn(async move {
                tokio::time::sleep(hooks::OVERDUE).await;
                let Some(container) = container.upgrade() else {
                    return;
                };
                let _turn = container.waiting.turn().await;
                if !container.waiting.is_overdue(begun) {
                    return;
                }
                match container.run_hook(true, &reaper).await {
                    Ok(_) => tracing::warn!(id = container.id, "a commit did not end: post-commit was run"),
                    Err(error) => {
                        tracing::warn!(id = container.id, %error, "a commit did not end: post-commit")
                    }
                }
            });
        }
        ran
    }

    async fn run_hook(&self, after: bool, reaper: &Reaper) -> Result<bool> {
        let Some(command) = self.hooks.command(after) else {
            return Ok(false);
        };
        if self.init.status() != Status::Running {
            return Err(Error::FailedPrecondition(format!(
                "nothing can be run in a {} container",
                self.init.status().word()
            )));
        }
        let _moving = self.standstill.moving().await;
        let options = CreateOptions {
            pid_file: PathBuf::new(),
            console_socket: None,
            no_pivot: false,
            no_new_keyring: false,
        };
        hooks::run(&self.runc, reaper, &self.id, &self.bundle, options, command)
            .await
            .map(|()| true)
    }

    /// Signals init (or all of the container) or an exec.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is nothing to signal any more.
    pub async fn kill(&self, exec_id: &str, number: u32, all: bool) -> Result<()> {
        let process = self.process(exec_id)?;
        let _serial = process.lock.lock().await;
        let _moving = self.standstill.moving().await;
        if process.status() == Status::Deleted {
            return Err(Error::NotFound("cannot kill a deleted process: not found".into()));
        }
        let init = exec_id.is_empty();
        if init {
            self.told_to_stop.store(true, Ordering::Release);
        }
        if init && (all || !self.may_signal_init()) {
            return self.runc.kill(&self.id, number, all).await;
        }
        if process.pid() == 0 {
            return Err(Error::FailedPrecondition(
                "process not created: failed precondition".into(),
            ));
        }
        if process.exit().is_some() {
            return Err(Error::NotFound("process already finished: not found".into()));
        }
        let number = i32::try_from(number)
            .map_err(|_| Error::InvalidArgument(format!("signal {number} does not exist")))?;
        // Realtime signals are unknown to nix's enum.
        match crate::sys::kill(Pid::from_raw(process.pid().cast_signed()), number) {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) if init => Err(Error::NotFound("process already finished: not found".into())),
            Err(Errno::ESRCH) => Err(Error::NotFound(
                "exec kill error: process already finished: not found".into(),
            )),
            Err(errno) if init => Err(Error::Other(format!("unknown error after kill: {errno}"))),
            Err(errno) => Err(Error::Other(format!(
                "exec kill error: unknown error after kill: {errno}"
            ))),
        }
    }

    /// Whether a signal to init needs no runtime, which saves starting one: init runs, is our own child, and
    /// nothing holds it. In all other cases the runtime knows best.
    fn may_signal_init(&self) -> bool {
        self.runc.is_runc()
            && self.init.status() == Status::Running
            && Reaper::is_running_child(self.init.pid())
            && self.cgroup().is_some_and(|cgroup| !cgroup.holds_signals_back())
    }

    /// Kills everything that init left behind.
    pub async fn kill_all(&self) {
        let _moving = self.standstill.moving().await;
        if let Err(error) = self.runc.kill_all(&self.id).await {
            tracing::error!(id = self.id, %error, "kill what init left behind");
        }
    }

    /// Changes the resource limits; `resources` is OCI JSON.
    ///
    /// # Errors
    /// A stopped container, or the runtime's own message.
    pub async fn update(&self, resources: &[u8]) -> Result<()> {
        let _serial = self.init.lock.lock().await;
        let _moving = self.standstill.moving().await;
        match self.init.status() {
            Status::Created | Status::Running | Status::Paused => self.runc.update(&self.id, resources).await,
            status => Err(Error::Other(format!(
                "cannot update a {} container",
                status.word()
            ))),
        }
    }

    /// The pids in the container.
    ///
    /// # Errors
    /// The runtime's own message.
    pub async fn pids(&self) -> Result<Vec<u32>> {
        self.runc.ps(&self.id).await
    }

    /// Writes a checkpoint.
    ///
    /// # Errors
    /// A container that does not run, or CRIU's message with the place of its log.
    pub async fn checkpoint(&self, path: &str, options: &oci::CheckpointOptions) -> Result<()> {
        let _serial = self.init.lock.lock().await;
        let _moving = self.standstill.moving().await;
        match self.init.status() {
            Status::Running | Status::Paused => {}
            Status::Created | Status::CreatedCheckpoint => {
                return Err(Error::Other("cannot checkpoint a task in created state".into()));
            }
            status => {
                return Err(Error::Other(format!(
                    "cannot checkpoint a {} container",
                    status.word()
                )));
            }
        }
        let (work_path, scratch) = if options.work_path.is_empty() {
            (self.bundle.join("work").join("criu-work"), true)
        } else {
            (PathBuf::from(&options.work_path), false)
        };
        let criu = CriuOptions {
            image_path: path.into(),
            work_path: work_path.clone(),
            parent_path: checkpoint_parent(options).map(PathBuf::from),
            tcp: options.open_tcp,
            ext_unix_sk: options.external_unix_sockets,
            shell_job: options.terminal,
            file_locks: options.file_locks,
            empty_namespaces: options.empty_namespaces.clone(),
            leave_running: !options.exit,
        };
        let result = self.runc.checkpoint(&self.id, &criu).await.map_err(|error| {
            let log = self.copy_criu_log(&work_path, "dump.log", "criu-dump.log");
            Error::Other(format!("{error} path= {}", log.display()))
        });
        if scratch {
            // CRIU makes it only when it gets that far.
            let _ = std::fs::remove_dir_all(&work_path);
        }
        result
    }

    fn copy_criu_log(&self, work: &Path, from: &str, to: &str) -> PathBuf {
        let kept = self.bundle.join(to);
        if let Err(error) = std::fs::copy(work.join(from), &kept) {
            tracing::error!(id = self.id, %error, "keep CRIU's log {from}");
        }
        kept
    }

    /// Whether init has been reaped.
    #[must_use]
    pub fn init_reaped(&self) -> bool {
        self.init_reaped.load(Ordering::Acquire)
    }
}

fn criu_work(options: &Options, bundle: &Path) -> PathBuf {
    if options.criu_work_path.is_empty() {
        bundle.join("work")
    } else {
        options.criu_work_path.clone().into()
    }
}

fn deletable(process: &Process) -> Result<()> {
    match process.status() {
        Status::Created | Status::CreatedCheckpoint | Status::Stopped => Ok(()),
        Status::Deleted => Err(Error::NotFound(
            "cannot delete a deleted process: not found".into(),
        )),
        status => Err(Error::Other(format!("cannot delete a {} process", status.word()))),
    }
}

/// Writes a file that only root reads.
///
/// # Errors
/// A disk that cannot be written.
pub fn write_private(file: &Path, bytes: &[u8]) -> Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut open = std::fs::OpenOptions::new();
    let written = open
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut f| f.write_all(bytes));
    written.context(|| format!("write {}", file.display()))
}
