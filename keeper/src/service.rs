//! The API, on a socket that only root may open.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use keeper_api::keeper::{
    keeper::{self as api, note_request::What},
    keeper_ttrpc::{Keeper as Api, create_keeper},
};
use protobuf::MessageField;
use runtime_spec::name::StateName;
use store::{
    Known, Recorded,
    content::Stretch,
    format::{Entry, Kind, Reason},
};
use ttrpc::r#async::{Server, TtrpcContext, transport::Listener};

use crate::{
    archive::{Form, Importing},
    error::{Context, Error, Result},
    keeper::{Keeper, Restore, words},
    parts::{file, parts},
    progress::Progress,
    reclaim::Schedule,
    watch::Watch,
};

/// The most entries or changes of one answer: a message has at most 4 MiB, an entry's path 4 KiB.
const PAGE: usize = 500;
/// The most bytes of content of one answer.
const BYTES: u32 = 1 << 20;

/// What answers.
#[derive(Clone)]
pub struct Service {
    keeper: Arc<Keeper>,
    watch: Option<Arc<Watch>>,
    reclaim: Option<Arc<Schedule>>,
    tasks: Arc<Tasks>,
}

/// The long calls that go on, by the names that their callers gave them.
#[derive(Default)]
struct Tasks(Mutex<HashMap<String, Arc<Progress>>>);

impl Tasks {
    fn get(&self, name: &str) -> Option<Arc<Progress>> {
        self.lock().get(name).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Progress>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        use ttrpc::Code;
        let code = match error.cause() {
            Error::NotFound(_) | Error::Store(store::Error::NotFound(_)) => Code::NOT_FOUND,
            Error::Refused(_) | Error::Store(store::Error::Refused(_) | store::Error::Unclear(_)) => {
                Code::FAILED_PRECONDITION
            }
            Error::Live(live::Error::InUse { .. } | live::Error::StillInUse { .. }) => {
                Code::FAILED_PRECONDITION
            }
            Error::Store(store::Error::Stopped) => Code::CANCELLED,
            Error::Store(store::Error::Signature(_)) => Code::UNAUTHENTICATED,
            Error::Store(error) if error.is_damage() => Code::DATA_LOSS,
            _ => Code::UNKNOWN,
        };
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.to_string()))
    }
}

/// Listens on a socket; what was there of a keeper that died is replaced.
///
/// # Errors
/// A directory that cannot be made, a path too long for a socket.
pub fn listen(socket: &Path) -> Result<std::os::unix::net::UnixListener> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(dir) = socket.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .on("make", dir)?;
    }
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).on("remove", socket),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(socket).on("listen on", socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).on("set the mode of", socket)?;
    listener.set_nonblocking(true).on("listen on", socket)?;
    Ok(listener)
}

impl Service {
    /// Of a keeper, and of the watch that notes go to.
    #[must_use]
    pub fn new(keeper: Arc<Keeper>, watch: Option<Arc<Watch>>) -> Service {
        Service {
            keeper,
            watch,
            reclaim: None,
            tasks: Arc::default(),
        }
    }

    /// Tells this schedule when a container comes or goes.
    #[must_use]
    pub fn reclaiming(self, schedule: Arc<Schedule>) -> Service {
        Service {
            reclaim: Some(schedule),
            ..self
        }
    }

    /// Serves, until the server that this answers with is dropped.
    ///
    /// # Errors
    /// A listener that cannot be used.
    pub async fn serve(self, listener: std::os::unix::net::UnixListener) -> Result<Server> {
        let listener =
            tokio::net::UnixListener::from_std(listener).on("listen on", Path::new("the socket"))?;
        let mut server = Server::new()
            .register_service(create_keeper(Arc::new(self)))
            .add_listener(Listener::from(listener));
        server
            .start()
            .await
            .map_err(|e| Error::Refused(format!("the API does not start: {e}")))?;
        Ok(server)
    }

    /// Runs what may block away from the event loop.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Keeper) -> Result<T> + Send + 'static,
    ) -> ttrpc::Result<T> {
        let keeper = self.keeper.clone();
        match tokio::task::spawn_blocking(move || work(&keeper)).await {
            Ok(done) => done.map_err(Into::into),
            Err(error) => Err(Error::Refused(format!("the call failed in the keeper: {error}")).into()),
        }
    }

    /// The same, for what may take long: whoever gave the call a name can ask how far it is.
    async fn run_long<T: Send + 'static>(
        &self,
        context: &TtrpcContext,
        work: impl FnOnce(&Keeper, &Progress) -> Result<T> + Send + 'static,
    ) -> ttrpc::Result<T> {
        let progress = Arc::new(Progress::default());
        let task = context
            .metadata
            .get(keeper_api::TASK)
            .and_then(|names| names.first());
        if let Some(task) = task {
            self.tasks.lock().insert(task.clone(), progress.clone());
        }
        let done = self.run(move |keeper| work(keeper, &progress)).await;
        if let Some(task) = task {
            self.tasks.lock().remove(task);
        }
        done
    }
}

fn commit(keeper: &Keeper, recorded: &Recorded) -> Result<api::Commit> {
    let (mut tags, mut given_up) = (Vec::new(), String::new());
    if let Some(known) = keeper.store().state(&recorded.commit.state)? {
        let all = keeper.store().tags(&known)?.into_iter();
        tags = all
            .filter(|(_, id)| *id == recorded.id)
            .map(|(tag, _)| tag)
            .collect();
        let gone = keeper.store().tombstones(&known)?.into_iter();
        given_up = gone
            .filter(|gone| gone.sequence == recorded.commit.sequence)
            .map(|gone| said_of(&gone))
            .next()
            .unwrap_or_default();
    }
    Ok(message(keeper, recorded, tags, given_up))
}

/// What of a commit is gone, and why.
fn said_of(gone: &store::Tombstone) -> String {
    match gone.gave_all_up() {
        true => gone.rule.clone(),
        false => format!("{}: {}", gone.rule, gone.what),
    }
}

fn message(keeper: &Keeper, recorded: &Recorded, tags: Vec<String>, given_up: String) -> api::Commit {
    let of = &recorded.commit;
    let (consistency, reason) = words(of);
    let origin = store::Id::from_slice(&of.origin);
    let origin = origin.and_then(|id| keeper.store().commit(id).ok());
    let hex = |bytes: &[u8]| {
        store::Id::from_slice(bytes)
            .map(|id| id.to_string())
            .unwrap_or_default()
    };
    api::Commit {
        id: recorded.id.to_string(),
        state: of.state.clone(),
        sequence: of.sequence,
        previous: hex(&of.previous),
        origin: hex(&of.origin),
        origin_state: origin.map(|origin| origin.commit.state).unwrap_or_default(),
        tree: hex(&of.tree),
        time: of.time,
        node: of.node.clone(),
        image: of.image.clone(),
        consistency,
        reason,
        message: of.message.clone(),
        entries: of.entries,
        changed: of.changed,
        read: of.read,
        written: of.written,
        pause_ns: of.pause,
        watcher: store::format::Watcher::try_from(of.watcher)
            .map(|watcher| watcher.to_string())
            .unwrap_or_default(),
        tags,
        given_up,
        doubt: of.doubt.clone(),
        ..api::Commit::default()
    }
}

fn entry(of: &Entry) -> api::Entry {
    let (root, path) = of.place();
    let kind = match of.what() {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Character => "character",
        Kind::Block => "block",
        Kind::Whiteout => "whiteout",
    };
    // People think of paths in the container, not of the roots that hold them.
    let root = live::Root::of_dir_name(&String::from_utf8_lossy(root));
    let at = root.as_ref().map_or(Path::new("/"), live::Root::destination);
    let path = if path.is_empty() {
        at.to_owned()
    } else {
        at.join(std::ffi::OsStr::from_bytes(&path))
    };
    api::Entry {
        root: root.as_ref().map(live::Root::kind).unwrap_or_default().into(),
        path: path.as_os_str().as_bytes().to_vec(),
        kind: if of.link.is_empty() { kind } else { "link" }.into(),
        mode: of.mode,
        uid: of.uid,
        gid: of.gid,
        mtime: of.mtime,
        mtime_nanos: of.mtime_nanos,
        size: of.size,
        target: if of.what() == Kind::Symlink {
            of.inline.clone()
        } else {
            store::format::place(&of.link).1
        },
        opaque: of.opaque,
        key: of.key.clone(),
        ..api::Entry::default()
    }
}

pub(crate) fn said(version: &MessageField<api::Version>) -> (String, String) {
    (version.state.clone(), version.version.clone())
}

fn limit(asked: u32) -> usize {
    match usize::try_from(asked).unwrap_or(PAGE) {
        0 => PAGE,
        n => n.min(PAGE),
    }
}

/// Which kind of continuation a listing has after a page: the key that ended it.
fn log(keeper: &Keeper, known: &Known, from: u64, limit: usize) -> Result<api::LogResponse> {
    let tags = keeper.store().tags(known)?;
    let gone = keeper.store().tombstones(known)?;
    let mut response = api::LogResponse::default();
    keeper.store().log(known, from, |recorded| {
        if response.commits.len() >= limit {
            response.more = true;
            return Ok(ControlFlow::Break(()));
        }
        let named = tags.iter().filter(|(_, id)| *id == recorded.id);
        let rule = gone.iter().find(|gone| gone.sequence == recorded.commit.sequence);
        response.commits.push(message(
            keeper,
            &recorded,
            named.map(|(tag, _)| tag.clone()).collect(),
            rule.map(said_of).unwrap_or_default(),
        ));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(response)
}

fn diff(keeper: &Keeper, request: &api::DiffRequest) -> Result<api::DiffResponse> {
    let (before_state, before) = said(&request.before);
    let (after_state, after) = said(&request.after);
    let (a, before) = keeper.version(&before_state, &before)?;
    let (b, after) = keeper.version(&after_state, &after)?;
    if a.domain != b.domain {
        return Err(Error::Refused(format!(
            "{} and {} are of different namespaces, and share nothing that could be compared",
            a.name, b.name
        )));
    }
    let (before, after) = (
        keeper.store().with_content(before.id)?,
        keeper.store().with_content(after.id)?,
    );
    let most = limit(request.limit);
    let mut response = api::DiffResponse::default();
    let (from, to) = (before.commit.tree_id()?, after.commit.tree_id()?);
    keeper
        .store()
        .differences(a.domain, Some(from), to, &request.after_key, |difference| {
            if response.changes.len() >= most {
                response.more = true;
                return Ok(ControlFlow::Break(()));
            }
            response.changes.push(api::Change {
                before: difference.before.as_ref().map(entry).into(),
                after: difference.after.as_ref().map(entry).into(),
                ..api::Change::default()
            });
            Ok(ControlFlow::Continue(()))
        })?;
    Ok(response)
}

fn list(keeper: &Keeper, request: &api::ListRequest) -> Result<api::ListResponse> {
    let (state, version) = said(&request.version);
    let (known, recorded) = keeper.version(&state, &version)?;
    let recorded = keeper.store().with_content(recorded.id)?;
    let tree = recorded.commit.tree_id()?;
    let top = match request.path.as_slice() {
        b"" => Vec::new(),
        path => keeper.key_of(known.domain, &recorded, path)?,
    };
    let most = limit(request.limit);
    let mut response = api::ListResponse::default();
    let mut from = top.clone();
    if !request.after_key.is_empty() {
        from.clone_from(&request.after_key);
        // Right behind it, or behind all that is in it.
        from.push(u8::from(!request.recursive && from != top));
    }
    loop {
        let mut skip = None;
        let mut ended = true;
        keeper.store().entries(known.domain, tree, &from, |found| {
            let Some(rest) = found.key.strip_prefix(top.as_slice()) else {
                return Ok(ControlFlow::Break(()));
            };
            if !top.is_empty() && !rest.is_empty() && !rest.starts_with(&[0]) {
                return Ok(ControlFlow::Break(()));
            }
            if response.entries.len() >= most {
                response.more = true;
                return Ok(ControlFlow::Break(()));
            }
            let depth = rest.iter().filter(|b| **b == 0).count();
            let shallow = !request.recursive && !top.is_empty() && depth == 1;
            response.entries.push(entry(&found));
            if shallow && found.what() == Kind::Directory {
                // What is in it is not asked for.
                let mut behind = found.key.clone();
                behind.push(1);
                skip = Some(behind);
                ended = false;
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        match skip {
            Some(behind) => from = behind,
            None => break,
        }
        if ended {
            break;
        }
    }
    Ok(response)
}

fn read(keeper: &Keeper, request: &api::ReadRequest) -> Result<api::ReadResponse> {
    let (domain, found) = file(keeper, &request.version, &request.path)?;
    let wanted = u64::from(if request.length == 0 {
        BYTES
    } else {
        request.length.min(BYTES)
    });
    let (begin, end) = (
        request.offset,
        request.offset.saturating_add(wanted).min(found.size),
    );
    let mut data = vec![0; usize::try_from(end.saturating_sub(begin)).unwrap_or(0)];
    keeper
        .store()
        .read_range(domain, &found, begin, end, |at, stretch| {
            if let Stretch::Bytes(bytes) = stretch {
                let from = usize::try_from(begin.saturating_sub(at)).unwrap_or(usize::MAX);
                let to = usize::try_from(at.saturating_sub(begin)).unwrap_or(usize::MAX);
                let source = bytes.get(from.min(bytes.len())..).unwrap_or_default();
                let target = data.get_mut(to..).unwrap_or_default();
                target.iter_mut().zip(source).for_each(|(to, from)| *to = *from);
            }
            Ok(())
        })?;
    Ok(api::ReadResponse {
        data,
        size: found.size,
        ..api::ReadResponse::default()
    })
}

#[async_trait]
impl Api for Service {
    async fn ping(&self, _: &TtrpcContext, _: api::PingRequest) -> ttrpc::Result<api::PingResponse> {
        Ok(api::PingResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            store: self.keeper.store().dir().display().to_string(),
            ..api::PingResponse::default()
        })
    }

    async fn note(&self, _: &TtrpcContext, request: api::NoteRequest) -> ttrpc::Result<api::NoteResponse> {
        let name = request.state.parse::<StateName>();
        let name = name.map_err(|e| Error::Refused(e.to_string()))?;
        if let Some(reclaim) = &self.reclaim {
            reclaim.wake();
        }
        if let Some(watch) = self.watch.clone() {
            let what = request.what.enum_value_or(What::STARTED);
            // Noting reads a record from the disk.
            let _ = tokio::task::spawn_blocking(move || match what {
                What::ATTACHED | What::STARTED => watch.in_use(name),
                What::EXITED | What::DETACHED => watch.ended(name),
            })
            .await;
        }
        Ok(api::NoteResponse::default())
    }

    async fn progress(
        &self,
        _: &TtrpcContext,
        request: api::ProgressRequest,
    ) -> ttrpc::Result<api::ProgressResponse> {
        let Some(progress) = self.tasks.get(&request.task) else {
            return Ok(api::ProgressResponse::default());
        };
        if request.stop {
            progress.stop();
        }
        let now = progress.read();
        Ok(api::ProgressResponse {
            step: now.step.into(),
            entries: now.entries,
            of_entries: now.of_entries,
            bytes: now.bytes,
            of_bytes: now.of_bytes,
            ..api::ProgressResponse::default()
        })
    }

    async fn states(&self, _: &TtrpcContext, _: api::StatesRequest) -> ttrpc::Result<api::StatesResponse> {
        self.run(|keeper| {
            let mut response = api::StatesResponse::default();
            for name in keeper.names()? {
                let known = keeper.store().state(&name)?;
                let head = match known.as_ref().and_then(|known| known.head) {
                    Some((id, _)) => Some(commit(keeper, &keeper.store().commit(id)?)?),
                    None => None,
                };
                let state = name.parse().ok().map(|name| keeper.node().state(&name));
                response.states.push(api::State {
                    commits: known.as_ref().and_then(|k| k.head).map_or(0, |(_, n)| n),
                    head: head.into(),
                    live: state.as_ref().is_some_and(live::State::exists),
                    in_use_by: state
                        .and_then(|state| state.in_use_by())
                        .map(|holder| holder.container_id)
                        .unwrap_or_default(),
                    wanted: known
                        .and_then(|known| known.wanted)
                        .map(|id| id.to_string())
                        .unwrap_or_default(),
                    name,
                    ..api::State::default()
                });
            }
            Ok(response)
        })
        .await
    }

    async fn log(&self, _: &TtrpcContext, request: api::LogRequest) -> ttrpc::Result<api::LogResponse> {
        self.run(move |keeper| {
            let (state, version) = said(&request.from);
            let (known, from) = keeper.version(&state, &version)?;
            log(keeper, &known, from.commit.sequence, limit(request.limit))
        })
        .await
    }

    async fn diff(&self, _: &TtrpcContext, request: api::DiffRequest) -> ttrpc::Result<api::DiffResponse> {
        self.run(move |keeper| diff(keeper, &request)).await
    }

    async fn list(&self, _: &TtrpcContext, request: api::ListRequest) -> ttrpc::Result<api::ListResponse> {
        self.run(move |keeper| list(keeper, &request)).await
    }

    async fn read(&self, _: &TtrpcContext, request: api::ReadRequest) -> ttrpc::Result<api::ReadResponse> {
        self.run(move |keeper| read(keeper, &request)).await
    }

    async fn parts(&self, _: &TtrpcContext, request: api::PartsRequest) -> ttrpc::Result<api::PartsResponse> {
        self.run(move |keeper| parts(keeper, &request)).await
    }

    async fn commit(
        &self,
        context: &TtrpcContext,
        request: api::CommitRequest,
    ) -> ttrpc::Result<api::CommitResponse> {
        self.run_long(context, move |keeper, progress| {
            let name = keeper.named(&request.state)?;
            let made = keeper.commit_watched(&name, Reason::Manual, Some(&request.message), progress)?;
            let made = made.ok_or_else(|| Error::Refused(format!("{name} was not recorded")))?;
            Ok(api::CommitResponse {
                commit: MessageField::some(commit(keeper, &made)?),
                ..api::CommitResponse::default()
            })
        })
        .await
    }

    async fn tag(&self, _: &TtrpcContext, request: api::TagRequest) -> ttrpc::Result<api::TagResponse> {
        self.run(move |keeper| {
            let (state, version) = said(&request.version);
            let (known, recorded) = keeper.version(&state, &version)?;
            let target = (!request.remove).then_some(recorded.id);
            if target.is_some() {
                keeper.store().with_content(recorded.id)?;
            }
            keeper.store().tag(&known, &request.name, target)?;
            Ok(api::TagResponse {
                commit: MessageField::some(commit(keeper, &recorded)?),
                ..api::TagResponse::default()
            })
        })
        .await
    }

    async fn restore(
        &self,
        context: &TtrpcContext,
        request: api::RestoreRequest,
    ) -> ttrpc::Result<api::RestoreResponse> {
        if request.now && self.watch.is_none() {
            // The shim of the next start must reach a keeper, and would not reach this one.
            return Err(Error::Refused(
                "--now needs a keeper that runs: diffkeeper keeper, or its systemd unit".into(),
            )
            .into());
        }
        self.run_long(context, move |keeper, progress| {
            let (state, version) = said(&request.version);
            if request.cancel {
                keeper.cancel(&state)?;
                return Ok(api::RestoreResponse::default());
            }
            let how = Restore {
                asked: Some(request.asked.as_str()).filter(|asked| !asked.is_empty()),
                leased: request.leased,
                path: Some(request.path.as_slice()).filter(|path| !path.is_empty()),
                now: request
                    .now
                    .then(|| Duration::from_millis(request.grace_ms.into())),
            };
            let done = keeper.restore_watched(&state, &version, how, progress)?;
            let after = match &done.after {
                Some(after) => Some(commit(keeper, after)?),
                None => None,
            };
            Ok(api::RestoreResponse {
                before: MessageField::some(commit(keeper, &done.before)?),
                waits: after.is_none(),
                restarted: done.restarted,
                after: after.into(),
                ..api::RestoreResponse::default()
            })
        })
        .await
    }

    async fn fork(&self, _: &TtrpcContext, request: api::ForkRequest) -> ttrpc::Result<api::ForkResponse> {
        self.run(move |keeper| {
            let (state, version) = said(&request.version);
            let made = keeper.fork(&state, &version, &request.name, request.leased)?;
            Ok(api::ForkResponse {
                commit: MessageField::some(commit(keeper, &made)?),
                ..api::ForkResponse::default()
            })
        })
        .await
    }

    async fn export(
        &self,
        context: &TtrpcContext,
        request: api::ExportRequest,
    ) -> ttrpc::Result<api::ExportResponse> {
        self.run_long(context, move |keeper, progress| {
            let (state, version) = said(&request.version);
            keeper.export(
                &state,
                &version,
                &request.path,
                &PathBuf::from(&request.to),
                progress,
            )?;
            Ok(api::ExportResponse {
                entries: progress.entries.load(Ordering::Relaxed),
                bytes: progress.bytes.load(Ordering::Relaxed),
                ..api::ExportResponse::default()
            })
        })
        .await
    }

    async fn import(
        &self,
        context: &TtrpcContext,
        request: api::ImportRequest,
    ) -> ttrpc::Result<api::ImportResponse> {
        self.run_long(context, move |keeper, progress| {
            let volumes: Vec<PathBuf> = request.volumes.iter().map(PathBuf::from).collect();
            let how = Importing {
                from: Path::new(&request.from),
                volumes: &volumes,
                replace: request.replace,
            };
            let made = keeper.import(&request.state, &how, progress)?;
            Ok(api::ImportResponse {
                commit: MessageField::some(commit(keeper, &made)?),
                ..api::ImportResponse::default()
            })
        })
        .await
    }

    async fn archive(
        &self,
        _: &TtrpcContext,
        request: api::ArchiveRequest,
    ) -> ttrpc::Result<api::ArchiveResponse> {
        self.run(move |keeper| {
            let (state, version) = said(&request.version);
            let form = if request.layer { Form::Layer } else { Form::Plain };
            let to = Path::new(&request.to);
            let out = std::os::unix::net::UnixStream::connect(to).on("send the archive to", to)?;
            let out = std::io::BufWriter::with_capacity(BYTES as usize, out);
            let (recorded, packed) = keeper.archive(&state, &version, &request.path, form, out)?;
            Ok(api::ArchiveResponse {
                commit: MessageField::some(commit(keeper, &recorded)?),
                entries: packed.entries,
                bytes: packed.bytes,
                ..api::ArchiveResponse::default()
            })
        })
        .await
    }

    async fn forget(
        &self,
        context: &TtrpcContext,
        request: api::ForgetRequest,
    ) -> ttrpc::Result<api::ForgetResponse> {
        self.run_long(context, move |keeper, progress| {
            let done = keeper.forget(&request.state, request.erase, progress)?;
            Ok(api::ForgetResponse {
                freed: done.freed,
                left: done.left,
                ..api::ForgetResponse::default()
            })
        })
        .await
    }

    async fn reclaim(
        &self,
        context: &TtrpcContext,
        request: api::ReclaimRequest,
    ) -> ttrpc::Result<api::ReclaimResponse> {
        self.run_long(context, move |keeper, progress| {
            let done = keeper.reclaim(
                std::time::SystemTime::now(),
                Duration::ZERO,
                request.dry_run,
                progress,
            )?;
            let told = |done: crate::Reclaimed| api::Reclaimed {
                state: done.name,
                tree: done.tree.is_some(),
                bytes: done.tree.unwrap_or(0),
                commits: done.commits.unwrap_or(0),
                problem: done.problem.unwrap_or_default(),
                ..api::Reclaimed::default()
            };
            Ok(api::ReclaimResponse {
                states: done.into_iter().map(told).collect(),
                ..api::ReclaimResponse::default()
            })
        })
        .await
    }

    async fn gc(&self, context: &TtrpcContext, request: api::GcRequest) -> ttrpc::Result<api::GcResponse> {
        self.run_long(context, move |keeper, progress| {
            let recompacted = match request.recompact && !request.dry_run {
                true => keeper.recompact(&request.state, progress)?,
                false => store::Recompacted::default(),
            };
            let erase = request.erase && !request.dry_run;
            let tidied = keeper.tidy(request.dry_run, progress);
            let (expired, mut done) = match tidied {
                // What is damaged keeps nothing else from being erased.
                Err(crate::Error::Store(error)) if erase && error.is_damage() => {
                    keeper.erase(progress)?;
                    return Err(error.into());
                }
                tidied => tidied?,
            };
            if erase {
                done += keeper.erase(progress)?;
            }
            Ok(api::GcResponse {
                recompacted: recompacted.written,
                bytes_before: recompacted.before,
                bytes_after: recompacted.after,
                expired,
                objects: done.objects,
                freed: done.freed,
                copied: done.copied,
                packs: done.packs,
                left: done.left,
                ..api::GcResponse::default()
            })
        })
        .await
    }

    async fn verify(
        &self,
        context: &TtrpcContext,
        request: api::VerifyRequest,
    ) -> ttrpc::Result<api::VerifyResponse> {
        self.run_long(context, move |keeper, progress| {
            let percent = u8::try_from(request.percent.min(100)).unwrap_or(100);
            let done = keeper.verify(percent, progress)?;
            Ok(api::VerifyResponse {
                commits: done.commits,
                objects: done.objects,
                read: done.read,
                problems: done
                    .problems
                    .into_iter()
                    .map(|problem| api::Problem {
                        what: problem.what,
                        needed_by: problem.needed_by,
                        ..api::Problem::default()
                    })
                    .collect(),
                ..api::VerifyResponse::default()
            })
        })
        .await
    }

    async fn repair(
        &self,
        context: &TtrpcContext,
        request: api::RepairRequest,
    ) -> ttrpc::Result<api::RepairResponse> {
        self.run_long(context, move |keeper, progress| keeper.repair(&request, progress))
            .await
    }

    async fn audit(
        &self,
        context: &TtrpcContext,
        request: api::AuditRequest,
    ) -> ttrpc::Result<api::AuditResponse> {
        self.run_long(context, move |keeper, progress| {
            let known = keeper.known(&request.state)?;
            let keys: store::Result<Vec<_>> = request
                .public_keys
                .iter()
                .map(|key| store::PublicKey::parse(key))
                .collect();
            progress.begin("auditing");
            let audited = keeper.store().audit_watched(&known, &keys?, |done, of| {
                progress.at(done, of, 0);
                progress.flow()
            })?;
            Ok(api::AuditResponse {
                commits: audited.commits,
                lost: audited.lost,
                signed: audited.signed,
                unsigned_count: audited.unsigned.len() as u64,
                unsigned: audited
                    .unsigned
                    .iter()
                    .take(limit(0))
                    .map(ToString::to_string)
                    .collect(),
                head: known.newest()?.to_string(),
                given_up: keeper.store().tombstones(&known)?.len() as u64,
                ..api::AuditResponse::default()
            })
        })
        .await
    }

    async fn prove(&self, _: &TtrpcContext, request: api::ProveRequest) -> ttrpc::Result<api::ProveResponse> {
        self.run(move |keeper| {
            let (state, version) = said(&request.version);
            let (known, recorded) = keeper.version(&state, &version)?;
            let recorded = keeper.store().with_content(recorded.id)?;
            let key = keeper.key_of(known.domain, &recorded, &request.path)?;
            let proof = keeper.store().prove(known.domain, &recorded.commit, &key)?;
            Ok(api::ProveResponse {
                proof: proof.bytes(),
                commit: recorded.id.to_string(),
                ..api::ProveResponse::default()
            })
        })
        .await
    }

    async fn tune(
        &self,
        context: &TtrpcContext,
        request: api::TuneRequest,
    ) -> ttrpc::Result<api::TuneResponse> {
        self.run_long(context, move |keeper, progress| {
            keeper.tune(&request.state, progress)
        })
        .await
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        self.run(move |keeper| keeper.stats(&request.state)).await
    }
}
