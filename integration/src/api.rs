//! containerd's own API, for what `ctr` cannot ask and for measuring without the start of a `ctr`.

use std::{collections::HashMap, future::Future};

use anyhow::{Context, Result};
use containerd_client::{
    Client,
    services::v1::{
        Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
        GetContainerRequest, KillRequest, StartRequest, WaitRequest,
        container::Runtime,
        snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest},
    },
    types::Mount,
};
use prost_types::Any;
use serde_json::Value;

use crate::Daemon;

/// The snapshotter of the tests.
const SNAPSHOTTER: &str = "overlayfs";

/// A connection to a daemon. Its calls block.
pub struct Api {
    runtime: tokio::runtime::Runtime,
    client: Client,
    namespace: String,
}

/// What a container is made from: taken from one that `ctr` made, because it knows how to make a spec.
#[derive(Clone)]
pub struct Model {
    container: Container,
    parent: String,
}

/// The streams of a task; empty for none.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    /// A fifo.
    pub stdin: String,
    /// A fifo or a log URI.
    pub stdout: String,
    /// A fifo or a log URI.
    pub stderr: String,
    /// A terminal is between.
    pub terminal: bool,
}

impl Api {
    /// Connects.
    ///
    /// # Errors
    /// When nothing listens.
    pub fn connect(daemon: &Daemon) -> Result<Api> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let client = runtime
            .block_on(Client::from_path(daemon.socket()))
            .context("connect to containerd")?;
        Ok(Api {
            runtime,
            client,
            namespace: daemon.namespace().to_owned(),
        })
    }

    /// The clients of containerd's services, for calls that have no method here.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Makes a call, in the daemon's namespace.
    ///
    /// # Errors
    /// containerd's own.
    pub fn call<T, R, F>(&self, message: T, call: impl FnOnce(tonic::Request<T>) -> F) -> Result<R>
    where
        F: Future<Output = Result<tonic::Response<R>, tonic::Status>>,
    {
        let mut request = tonic::Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.parse()?);
        let response = self.runtime.block_on(call(request));
        Ok(response
            .map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))?
            .into_inner())
    }

    /// A model from a container made with `ctr container create` (or run).
    ///
    /// # Errors
    /// When there is no such container.
    pub fn model(&self, id: &str) -> Result<Model> {
        let (mut containers, mut snapshots) = (self.client.containers(), self.client.snapshots());
        let container = self
            .call(GetContainerRequest { id: id.into() }, |r| containers.get(r))?
            .container
            .context("containerd answered without the container")?;
        let stat = StatSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: container.snapshot_key.clone(),
        };
        let info = self.call(stat, |r| snapshots.stat(r))?.info;
        let parent = info.context("containerd answered without the snapshot")?.parent;
        Ok(Model { container, parent })
    }

    /// Makes a container with a fresh snapshot, its spec changed by `edit`, and answers with the mounts of its root.
    ///
    /// # Errors
    /// containerd's own.
    pub fn create(
        &self,
        id: &str,
        runtime: &str,
        model: &Model,
        edit: impl FnOnce(&mut Value),
    ) -> Result<Vec<Mount>> {
        let (mut containers, mut snapshots) = (self.client.containers(), self.client.snapshots());
        let prepare = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: id.into(),
            parent: model.parent.clone(),
            // Nothing refers to it yet, and the garbage collector may pass by.
            labels: HashMap::from([("containerd.io/gc.root".into(), "true".into())]),
        };
        let mounts = self.call(prepare, |r| snapshots.prepare(r))?.mounts;
        let spec = model.container.spec.as_ref().context("the model has no spec")?;
        let mut json: Value = serde_json::from_slice(&spec.value)?;
        json["linux"]["cgroupsPath"] = format!("/{}/{id}", self.namespace).into();
        edit(&mut json);
        let container = Container {
            id: id.into(),
            snapshot_key: id.into(),
            runtime: Some(Runtime {
                name: runtime.into(),
                options: None,
            }),
            labels: HashMap::new(),
            spec: Some(Any {
                type_url: spec.type_url.clone(),
                value: serde_json::to_vec(&json)?,
            }),
            ..model.container.clone()
        };
        let create = CreateContainerRequest {
            container: Some(container),
        };
        self.call(create, |r| containers.create(r))?;
        Ok(mounts)
    }

    /// Makes the task of a container.
    ///
    /// # Errors
    /// containerd's own, the shim's among them.
    pub fn create_task(&self, id: &str, rootfs: Vec<Mount>, streams: &Streams) -> Result<u32> {
        self.create_task_with(CreateTaskRequest {
            container_id: id.into(),
            rootfs,
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            terminal: streams.terminal,
            ..CreateTaskRequest::default()
        })
    }

    /// Makes the task of a container, with all that can be asked for.
    ///
    /// # Errors
    /// containerd's own, the shim's among them.
    pub fn create_task_with(&self, request: CreateTaskRequest) -> Result<u32> {
        let mut tasks = self.client.tasks();
        Ok(self.call(request, |r| tasks.create(r))?.pid)
    }

    /// Starts a task, or with an exec id an exec.
    ///
    /// # Errors
    /// The shim's own.
    pub fn start(&self, id: &str, exec_id: &str) -> Result<u32> {
        let mut tasks = self.client.tasks();
        let start = StartRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
        };
        Ok(self.call(start, |r| tasks.start(r))?.pid)
    }

    /// Waits for a task's exit status.
    ///
    /// # Errors
    /// The shim's own.
    pub fn wait(&self, id: &str, exec_id: &str) -> Result<u32> {
        let mut tasks = self.client.tasks();
        let wait = WaitRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
        };
        Ok(self.call(wait, |r| tasks.wait(r))?.exit_status)
    }

    /// Signals a task.
    ///
    /// # Errors
    /// The shim's own.
    pub fn kill(&self, id: &str, signal: u32) -> Result<()> {
        let mut tasks = self.client.tasks();
        let kill = KillRequest {
            container_id: id.into(),
            signal,
            ..KillRequest::default()
        };
        self.call(kill, |r| tasks.kill(r))
    }

    /// Deletes a task that has ended.
    ///
    /// # Errors
    /// The shim's own.
    pub fn delete_task(&self, id: &str) -> Result<u32> {
        let mut tasks = self.client.tasks();
        let delete = DeleteTaskRequest {
            container_id: id.into(),
        };
        Ok(self.call(delete, |r| tasks.delete(r))?.exit_status)
    }

    /// Deletes a container with its snapshot.
    ///
    /// # Errors
    /// containerd's own.
    pub fn delete(&self, id: &str) -> Result<()> {
        let (mut containers, mut snapshots) = (self.client.containers(), self.client.snapshots());
        let remove = RemoveSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: id.into(),
        };
        self.call(remove, |r| snapshots.remove(r))?;
        self.call(DeleteContainerRequest { id: id.into() }, |r| containers.delete(r))
    }

    /// A whole life, as containerd-stress does it: made, run without streams to its end, deleted.
    ///
    /// # Errors
    /// Any of its steps.
    pub fn life(&self, id: &str, runtime: &str, model: &Model) -> Result<()> {
        let mounts = self.create(id, runtime, model, |_| {})?;
        self.create_task(id, mounts, &Streams::default())?;
        self.start(id, "")?;
        self.wait(id, "")?;
        self.delete_task(id)?;
        self.delete(id)
    }
}
