//! containerd's CRI socket, driven as a kubelet drives it.

use std::{
    collections::HashMap,
    fs,
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::{
    AttachRequest, ContainerConfig, ContainerEventResponse, ContainerMetadata, ContainerState,
    ContainerStatus, ContainerStatusRequest, CreateContainerRequest, ExecRequest, ExecSyncRequest,
    ExecSyncResponse, GetEventsRequest, ImageSpec, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
    runtime_service_client::RuntimeServiceClient,
};
use tonic::transport::Channel;

use crate::{Daemon, stream::Stream, wait::until};

/// containerd's namespace of all that CRI makes.
pub const NAMESPACE: &str = "k8s.io";

/// A connection to the CRI service. Its calls block.
pub struct Cri<'a> {
    daemon: &'a Daemon,
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

/// A pod's sandbox.
pub struct Pod<'a, 'd> {
    cri: &'a Cri<'d>,
    /// containerd's id of it.
    pub id: String,
    /// As the kubelet gave it.
    pub config: PodSandboxConfig,
}

impl<'d> Cri<'d> {
    /// Connects, and makes the image of the pause container available.
    ///
    /// # Errors
    /// When nothing listens.
    pub fn connect(daemon: &'d Daemon) -> Result<Cri<'d>> {
        daemon.import_into(NAMESPACE, "pause")?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let channel = runtime
            .block_on(containerd_client::connect(daemon.socket()))
            .context("connect to containerd's CRI")?;
        Ok(Cri {
            daemon,
            runtime,
            channel,
        })
    }

    /// The service's client.
    #[must_use]
    pub fn client(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    /// Makes a call.
    ///
    /// # Errors
    /// The service's own.
    pub fn call<R>(
        &self,
        call: impl Future<Output = Result<tonic::Response<R>, tonic::Status>>,
    ) -> Result<R> {
        let limit = Duration::from_secs(60);
        let response = self
            .runtime
            .block_on(async { tokio::time::timeout(limit, call).await })?;
        Ok(response
            .map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))?
            .into_inner())
    }

    /// What a kubelet says of a pod. Networks and cgroups are the node's and the test's.
    #[must_use]
    pub fn pod_config(&self, namespace: &str, name: &str, uid: &str) -> PodSandboxConfig {
        let namespaces = NamespaceOption {
            network: NamespaceMode::Node.into(),
            pid: NamespaceMode::Container.into(),
            ..NamespaceOption::default()
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                namespace: namespace.into(),
                uid: uid.into(),
                attempt: 0,
            }),
            log_directory: self.logs(uid).to_string_lossy().into_owned(),
            labels: HashMap::from([
                ("io.kubernetes.pod.name".into(), name.into()),
                ("io.kubernetes.pod.namespace".into(), namespace.into()),
                ("io.kubernetes.pod.uid".into(), uid.into()),
            ]),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}/pod{uid}", self.daemon.namespace()),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    /// Where a pod's logs go.
    #[must_use]
    pub fn logs(&self, uid: &str) -> PathBuf {
        self.daemon.folder().join("pods").join(uid)
    }

    /// Makes a pod of the runtime handler `handler`.
    ///
    /// # Errors
    /// The service's own.
    pub fn run_pod<'a>(&'a self, handler: &str, config: PodSandboxConfig) -> Result<Pod<'a, 'd>> {
        fs::create_dir_all(&config.log_directory)?;
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.into(),
        };
        let id = self.call(self.client().run_pod_sandbox(request))?.pod_sandbox_id;
        Ok(Pod {
            cri: self,
            id,
            config,
        })
    }

    /// Starts a container that was made.
    ///
    /// # Errors
    /// The service's own, the shim's among them.
    pub fn start(&self, container: &str) -> Result<()> {
        let request = StartContainerRequest {
            container_id: container.into(),
        };
        self.call(self.client().start_container(request)).map(drop)
    }

    /// How a container is.
    ///
    /// # Errors
    /// The service's own.
    pub fn status(&self, container: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: container.into(),
            verbose: false,
        };
        let response = self.call(self.client().container_status(request))?;
        response.status.context("CRI answered without a status")
    }

    /// Waits for a container's end, and answers with its exit code.
    ///
    /// # Errors
    /// When it does not end within half a minute.
    pub fn wait(&self, container: &str) -> Result<i32> {
        let exited = || {
            self.status(container)
                .is_ok_and(|s| s.state() == ContainerState::ContainerExited)
        };
        until("the container's end", Duration::from_secs(30), exited)?;
        Ok(self.status(container)?.exit_code)
    }

    /// Runs a command in a container.
    ///
    /// # Errors
    /// The service's own; not the command's exit code.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<ExecSyncResponse> {
        let request = ExecSyncRequest {
            container_id: container.into(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout: 30,
        };
        self.call(self.client().exec_sync(request))
    }

    /// Runs a shell script in a container, and answers with what it printed.
    ///
    /// # Errors
    /// A script that fails.
    pub fn sh(&self, container: &str, script: &str) -> Result<String> {
        let ran = self.exec(container, &["sh", "-c", script])?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(
            ran.exit_code == 0,
            "{script}: {}: {}",
            ran.exit_code,
            text(&ran.stderr)
        );
        Ok(text(&ran.stdout))
    }

    /// Runs a command in a container, with streams.
    ///
    /// # Errors
    /// The service's own, and a connection that fails.
    pub fn exec_streams(&self, request: ExecRequest) -> Result<Stream> {
        Stream::open(&self.call(self.client().exec(request))?.url)
    }

    /// Connects to the streams of a container's first process.
    ///
    /// # Errors
    /// The service's own, and a connection that fails.
    pub fn attach(&self, request: AttachRequest) -> Result<Stream> {
        Stream::open(&self.call(self.client().attach(request))?.url)
    }

    /// What becomes of containers from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        let events = Events::default();
        let (all, end) = (Arc::clone(&events.all), Arc::clone(&events.end));
        let mut client = self.client();
        self.runtime.spawn(async move {
            // The service does not even answer before there is an event.
            let ended = async {
                let mut stream = client
                    .get_container_events(GetEventsRequest {})
                    .await?
                    .into_inner();
                while let Some(event) = stream.message().await? {
                    all.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                }
                Err::<(), _>(tonic::Status::cancelled("the service ended the events"))
            };
            *end.lock().unwrap_or_else(PoisonError::into_inner) = ended.await.err();
        });
        events
    }

    /// Stops a container: SIGTERM, and after `grace` seconds SIGKILL.
    ///
    /// # Errors
    /// The service's own.
    pub fn stop(&self, container: &str, grace: i64) -> Result<()> {
        let request = StopContainerRequest {
            container_id: container.into(),
            timeout: grace,
        };
        self.call(self.client().stop_container(request)).map(drop)
    }

    /// Removes a container, as the kubelet does once it has made a newer one.
    ///
    /// # Errors
    /// The service's own.
    pub fn remove(&self, container: &str) -> Result<()> {
        let request = RemoveContainerRequest {
            container_id: container.into(),
        };
        self.call(self.client().remove_container(request)).map(drop)
    }
}

/// The events that have come so far.
#[derive(Default)]
pub struct Events {
    all: Arc<Mutex<Vec<ContainerEventResponse>>>,
    end: Arc<Mutex<Option<tonic::Status>>>,
}

impl Events {
    /// Those of one container or sandbox, in their order.
    #[must_use]
    pub fn of(&self, id: &str) -> Vec<ContainerEventResponse> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|e| e.container_id == id).cloned().collect()
    }

    /// Why there will be none any more.
    #[must_use]
    pub fn end(&self) -> Option<tonic::Status> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Pod<'_, '_> {
    /// What a kubelet says of a container that runs a shell script.
    #[must_use]
    pub fn container_config(&self, name: &str, attempt: u32, image: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.into(),
                attempt,
            }),
            image: Some(ImageSpec {
                image: image.into(),
                ..ImageSpec::default()
            }),
            command: if script.is_empty() {
                Vec::new()
            } else {
                ["sh", "-c", script].map(str::to_owned).to_vec()
            },
            labels: HashMap::from([("io.kubernetes.container.name".into(), name.into())]),
            annotations: HashMap::from([(
                "io.kubernetes.container.restartCount".into(),
                attempt.to_string(),
            )]),
            log_path: format!("{name}_{attempt}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: self
                        .config
                        .linux
                        .as_ref()
                        .and_then(|l| l.security_context.as_ref())
                        .and_then(|s| s.namespace_options.clone()),
                    ..LinuxContainerSecurityContext::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        }
    }

    /// Makes a container.
    ///
    /// # Errors
    /// The service's own.
    pub fn create(&self, config: ContainerConfig) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        Ok(self
            .cri
            .call(self.cri.client().create_container(request))?
            .container_id)
    }

    /// Makes and starts a container that runs a shell script; without one, what the image says.
    ///
    /// # Errors
    /// The service's own, the shim's among them.
    pub fn run(&self, name: &str, attempt: u32, image: &str, script: &str) -> Result<String> {
        let id = self.create(self.container_config(name, attempt, image, script))?;
        self.cri.start(&id)?;
        Ok(id)
    }

    /// What a container has logged.
    ///
    /// # Errors
    /// When there is no log.
    pub fn log(&self, name: &str, attempt: u32) -> Result<String> {
        let file = PathBuf::from(&self.config.log_directory).join(format!("{name}_{attempt}.log"));
        fs::read_to_string(&file).with_context(|| file.display().to_string())
    }

    /// Stops and removes it with all its containers, as the kubelet does with a deleted pod: again and again until it
    /// is gone.
    ///
    /// # Errors
    /// The service's last one, after half a minute.
    pub fn delete(self) -> Result<()> {
        let mut last = Ok(());
        let gone = || {
            last = self.try_delete();
            last.is_ok()
        };
        let waited = until("the pod's removal", Duration::from_secs(30), gone);
        last.and(waited)
    }

    fn try_delete(&self) -> Result<()> {
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        self.cri.call(self.cri.client().stop_pod_sandbox(stop))?;
        let remove = RemovePodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        self.cri
            .call(self.cri.client().remove_pod_sandbox(remove))
            .map(drop)?;
        // A pod's own cgroup is the kubelet's to remove, from every hierarchy; what is not empty stays.
        let parent = self.config.linux.as_ref().map(|linux| &linux.cgroup_parent);
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root)?.flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([root.to_owned()]) {
            let _ = parent.map(|parent| fs::remove_dir(hierarchy.join(parent.trim_start_matches('/'))));
        }
        Ok(())
    }
}
