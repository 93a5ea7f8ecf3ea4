//! Pods, through containerd's CRI as a kubelet drives it.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use integration::{
    Daemon,
    cri::{Cri, NAMESPACE},
    wait::until,
};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[(
    "pods::one_shim_and_a_state_for_each_container",
    one_shim_and_a_state_for_each_container,
)];

const HANDLER: &str = "diffkeeper";

/// The live tree of a pod's container.
fn upper(d: &Daemon, namespace: &str, pod: &str, container: &str) -> PathBuf {
    d.live()
        .join("k8s")
        .join(namespace)
        .join(pod)
        .join(container)
        .join("roots/rootfs/upper")
}

fn one_shim_and_a_state_for_each_container(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    d.import_into(NAMESPACE, "pause")?;
    let pod = cri.run_pod(HANDLER, cri.pod_config("default", "web-0", "uid-1"))?;
    let script = "cat /kept; echo $0 >> /kept; sleep 1000";
    let app = pod.run("app", 0, &image, script)?;
    let side = pod.run("sidecar", 0, &image, script)?;
    ensure!(d.shims(None).len() == 1, "{:?}", d.shims(None));
    cri.sh(&app, "echo app > /mine")?;
    cri.sh(&side, "test ! -e /mine; echo sidecar > /mine")?;
    // The kubelet restarts a container within its pod: a new id, a new attempt.
    cri.stop(&app, 0)?;
    let again = pod.run("app", 1, &image, "cat /mine; sleep 1000")?;
    cri.remove(&app)?;
    until("the log", Duration::from_secs(10), || {
        pod.log("app", 1).is_ok_and(|log| log.contains("stdout F app"))
    })?;
    cri.stop(&again, 0)?;
    pod.delete()?;
    until("the shim's end", Duration::from_secs(10), || {
        d.shims(None).is_empty()
    })?;
    ensure!(!d.live().join("k8s/default/web-0/POD").exists());
    // The same name under another uid.
    let pod = cri.run_pod(HANDLER, cri.pod_config("default", "web-0", "uid-2"))?;
    let app = pod.run("app", 0, &image, "sleep 1000")?;
    ensure!(cri.sh(&app, "cat /mine")? == "app\n");
    ensure!(fs::read_to_string(upper(d, "default", "web-0", "sidecar").join("mine"))? == "sidecar\n");
    pod.delete()?;
    // Another namespace of Kubernetes.
    let pod = cri.run_pod(HANDLER, cri.pod_config("other", "web-0", "uid-3"))?;
    let app = pod.run("app", 0, &image, "sleep 1000")?;
    ensure!(cri.sh(&app, "cat /mine || echo none")? == "none\n");
    pod.delete()
}
