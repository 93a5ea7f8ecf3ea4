//! Pods, through containerd's CRI as a kubelet drives it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use integration::{
    Daemon,
    cri::{Cri, NAMESPACE},
    daemon::kill,
    wait::until,
};

use k8s_cri::v1::{
    ContainerStatsRequest, IdMapping, KeyValue, LinuxContainerResources, Mount, NamespaceMode,
    NamespaceOption, ReopenContainerLogRequest, SecurityProfile, UpdateContainerResourcesRequest,
    UserNamespace, security_profile::ProfileType,
};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    (
        "pods::one_shim_and_a_state_for_each_container",
        one_shim_and_a_state_for_each_container,
    ),
    ("pods::image_volumes_are_kept", image_volumes_are_kept),
    (
        "pods::a_stock_postgresql_image_keeps_its_data",
        a_stock_postgresql_image_keeps_its_data,
    ),
    ("pods::links_lead_nowhere", links_lead_nowhere),
    ("pods::device_nodes_are_only_nodes", device_nodes_are_only_nodes),
    ("pods::chosen_paths", chosen_paths),
    ("pods::neighbours_are_out_of_reach", neighbours_are_out_of_reach),
    (
        "pods::a_successor_waits_for_the_lease",
        a_successor_waits_for_the_lease,
    ),
    ("pods::states_within_one_pod", states_within_one_pod),
    ("pods::what_a_kubelet_asks", what_a_kubelet_asks),
    ("pods::pods_of_all_kinds", pods_of_all_kinds),
    ("pods::many_pods_leave_nothing", many_pods_leave_nothing),
];

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

/// A pod's mount of a directory of the node.
fn host_mount(at: &str, from: &Path) -> Mount {
    Mount {
        container_path: at.into(),
        host_path: from.to_string_lossy().into_owned(),
        ..Mount::default()
    }
}

/// Runs one container of a pod of its own to the end of `script`, and answers with what it printed.
fn life(
    cri: &Cri<'_>,
    name: &str,
    uid: &str,
    image: &str,
    annotations: &[(&str, &str)],
    mounts: &[Mount],
    script: &str,
) -> Result<String> {
    let mut config = cri.pod_config("default", name, uid);
    for (key, value) in annotations {
        config
            .annotations
            .insert(format!("diffkeeper.io/{key}"), (*value).into());
    }
    let pod = cri.run_pod(HANDLER, config)?;
    let result = (|| {
        let mut config = pod.container_config("app", 0, image, "sleep 1000");
        config.mounts = mounts.to_vec();
        let id = pod.create(config)?;
        cri.start(&id)?;
        let out = cri.sh(&id, script);
        cri.stop(&id, 0)?;
        out
    })();
    pod.delete()?;
    result
}

fn same(found: &str, expected: &str) -> Result<()> {
    ensure!(found == expected, "{found:?} instead of {expected:?}");
    Ok(())
}

const LIST: &str = "cd /var/lib/data; find . | sort; stat -c '%n %u:%g %a %h %F' . sub; stat -c '%n %u:%g %a %h %F %Y' sub/file hard link; readlink link; cat sub/file";

fn image_volumes_are_kept(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "volumes")?;
    let declared = d.folder().join("declared");
    fs::create_dir_all(&declared)?;
    let mounts = [host_mount("/plain", &declared)];
    // Beside the same under the stock handler: what the image held is there as it was.
    let stock = {
        let pod = cri.run_pod("runc", cri.pod_config("default", "vol", "v-stock"))?;
        let id = pod.run("app", 0, &image, "sleep 1000")?;
        let out = cri.sh(&id, LIST);
        pod.delete()?;
        out?
    };
    let ours = life(&cri, "vol", "v-1", &image, &[], &mounts, LIST)?;
    ensure!(ours == stock, "{ours}\nbeside the stock handler's\n{stock}");
    let write = "echo more > /var/lib/data/more; rm /var/lib/data/link; echo x > /new/one/x; echo y > /plain/y; \
                 echo root > /root-file";
    life(&cri, "vol", "v-2", &image, &[], &mounts, write)?;
    let read = "cat /var/lib/data/more /new/one/x /root-file; test ! -L /var/lib/data/link; ls /plain";
    ensure!(life(&cri, "vol", "v-3", &image, &[], &mounts, read)? == "more\nx\nroot\ny\n");
    // The person's own directory took what was written there, and none of it is in the live tree.
    ensure!(fs::read_to_string(declared.join("y"))? == "y\n");
    let roots = d.live().join("k8s/default/vol/app/roots");
    ensure!(!roots.join("volume@plain").exists());
    ensure!(roots.join("volume@var@lib@data/tree/more").is_file());
    // Unless it is asked for.
    let include = [("include-mounts", "/plain")];
    ensure!(
        life(
            &cri,
            "vol",
            "v-4",
            &image,
            &include,
            &mounts,
            "cat /plain/y; echo w > /plain/w"
        )? == "y\n"
    );
    ensure!(!declared.join("w").exists() && roots.join("volume@plain/tree/w").is_file());
    // An in-place restart has a new id, and so new volumes of CRI's.
    let pod = cri.run_pod(HANDLER, cri.pod_config("default", "vol", "v-5"))?;
    for attempt in 0..3 {
        let script = "cat /new/one/count 2>/dev/null | wc -c; printf x >> /new/one/count";
        let id = pod.run("again", attempt, &image, script)?;
        ensure!(cri.wait(&id)? == 0);
        cri.remove(&id)?;
        let log = pod.log("again", attempt)?;
        ensure!(log.trim_end().ends_with(&format!(" {attempt}")), "{log}");
    }
    pod.delete()?;
    ensure!(
        life(
            &cri,
            "vol",
            "v-6",
            &image,
            &[("include-mounts", "/nowhere")],
            &mounts,
            "true"
        )
        .is_err_and(|e| format!("{e:#}").contains("nothing is mounted there"))
    );
    Ok(())
}

/// A `VOLUME`, and a chosen path, that lead out of the root lead nowhere.
fn links_lead_nowhere(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "hostile")?;
    life(&cri, "hostile", "h-1", &image, &[], &[], "echo z > /hostile/z")?;
    same(
        &life(&cri, "hostile", "h-2", &image, &[], &[], "cat /hostile/z /etc/z")?,
        "z\nz\n",
    )?;
    let paths = [("paths", "/hostile")];
    life(
        &cri,
        "hostile",
        "h-3",
        &image,
        &paths,
        &[],
        "cat /hostile/z && echo y > /hostile/y",
    )?;
    ensure!(!Path::new("/etc/z").exists() && !Path::new("/etc/y").exists());
    Ok(())
}

/// Device nodes in an image's `VOLUME` are kept as nodes: nobody reads them, and the container may not either.
fn device_nodes_are_only_nodes(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "hostile")?;
    let list = "cd /odd; for f in disk memory; do stat -c '%n %F %t:%T %a' $f; head -c 1 $f 2>&1; done; echo kept >> mark; cat mark";
    let node = |name: &str, what: &str| format!("{name} {what} 666\nhead: {name}: Operation not permitted\n");
    let nodes = node("disk", "block special file 8:0") + &node("memory", "character special file 1:1");
    same(
        &life(&cri, "odd", "o-1", &image, &[], &[], list)?,
        &format!("{nodes}kept\n"),
    )?;
    same(
        &life(&cri, "odd", "o-2", &image, &[], &[], list)?,
        &format!("{nodes}kept\nkept\n"),
    )
}

fn a_stock_postgresql_image_keeps_its_data(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "postgresql-volume")?;
    let psql = |id: &str, sql: &str| {
        cri.sh(
            id,
            &format!("psql -h /run/postgresql -U postgres -qAtc \"{sql}\""),
        )
    };
    let ready = |id: &str| {
        until("PostgreSQL", Duration::from_secs(60), || {
            psql(id, "select 1").is_ok()
        })
    };
    let pod = cri.run_pod(HANDLER, cri.pod_config("default", "pg-0", "pg-1"))?;
    let db = pod.run("postgres", 0, &image, "")?;
    ready(&db)?;
    cri.sh(
        &db,
        "pgbench -h /run/postgresql -U postgres -i -q -s 1 postgres 2>&1",
    )?;
    psql(&db, "create table acknowledged(n int)")?;
    let rounds = if crate::soak() { 20 } else { 2 };
    let mut acknowledged = 0;
    let (mut pod, mut db) = (pod, db);
    for round in 0..rounds {
        std::thread::scope(|scope| -> Result<()> {
            // It ends with its container.
            scope.spawn(|| cri.sh(&db, "pgbench -h /run/postgresql -U postgres -c 2 -T 25 postgres"));
            for n in 0..30 {
                psql(&db, &format!("insert into acknowledged values ({n})"))?;
                acknowledged += 1;
            }
            let shims = d.shims(None);
            ensure!(shims.len() == 1);
            // Everything at once: with the shim goes all that it held.
            kill(shims[0])
        })?;
        pod.delete()?;
        pod = cri.run_pod(
            HANDLER,
            cri.pod_config("default", "pg-0", &format!("pg-again-{round}")),
        )?;
        db = pod.run("postgres", 0, &image, "")?;
        ready(&db)?;
        ensure!(psql(&db, "select count(*) from acknowledged")?.trim() == acknowledged.to_string());
        psql(&db, "create extension if not exists amcheck")?;
        let check = "select count(bt_index_check(c.oid, true)) > 0 from pg_index i join pg_class c on c.oid = i.indexrelid \
                     join pg_am a on a.oid = c.relam where a.amname = 'btree' and i.indisvalid";
        ensure!(psql(&db, check)?.trim() == "t");
        let sums = psql(
            &db,
            "select sum(abalance) - (select sum(bbalance) from pgbench_branches) from pgbench_accounts",
        )?;
        ensure!(sums.trim() == "0", "{sums}");
    }
    pod.delete()
}

fn chosen_paths(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "volumes")?;
    let paths = [("paths", "/etc,/srv/app,/var/lib/data")];
    let run = |uid: &str, annotations: &[(&str, &str)], script: &str| {
        life(&cri, "paths", uid, &image, annotations, &[], script)
    };
    let write = "echo changed >> /etc/passwd; rm /etc/group; echo x > /srv/app/x; echo y > /var/lib/data/y; echo z > /root/z; ls -d /etc/hosts";
    run("p-1", &paths, write)?;
    let read = "tail -1 /etc/passwd; ls /etc/group 2>/dev/null; cat /srv/app/x /var/lib/data/y; ls /root; stat -c %a /etc /srv/app";
    same(&run("p-2", &paths, read)?, "changed\nx\ny\n755\n755\n")?;
    let state = d.live().join("k8s/default/paths/app");
    ensure!(state.join("roots/path@etc/upper/passwd").is_file() && !state.join("roots/rootfs").exists());
    // Under other wishes nothing is lost.
    let apart = "test ! -e /var/lib/data/y && grep -c changed /etc/passwd; cat /srv/app/x";
    same(&run("p-3", &[("paths", "/srv/app")], apart)?, "0\nx\n")?;
    ensure!(
        run(
            "p-4",
            &[],
            "cat /srv/app/x 2>/dev/null || echo none; echo whole > /whole"
        )? == "none\n"
    );
    same(&run("p-5", &paths, read)?, "changed\nx\ny\n755\n755\n")?;
    let listed = d.diffkeeper(&["states", "--json"])?.ok()?;
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    let ours = listed
        .as_array()
        .into_iter()
        .flatten()
        .find(|s| s["name"] == "k8s/default/paths/app");
    let ours = ours.context("it is not listed")?;
    let rootfs = ours["roots"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|r| r["path"] == "/");
    ensure!(rootfs.is_some_and(|r| r["mounted"] == false), "{ours}");
    // Nothing is left mounted, and nothing of ours in the tree.
    ensure!(
        !d.mounts()?.iter().any(|m| m.contains("/diffkeeper/live/")),
        "{:?}",
        d.mounts()?
    );
    ensure!(
        !state.join("roots/path@etc/upper/hosts").exists(),
        "a placeholder is left"
    );
    for (paths, words) in [
        ("/etc,/etc/ssl", "overlaps"),
        ("etc", "not an absolute path"),
        ("/a/../b", "not a plain path"),
        ("/bin/busybox", "is a file in the image"),
        ("/dev/shm/x", "/dev"),
    ] {
        let told = run("p-bad", &[("paths", paths)], "true")
            .err()
            .map(|e| format!("{e:#}"))
            .unwrap_or_default();
        ensure!(told.contains(words), "{paths}: {told:?}");
    }
    Ok(())
}

/// Whatever a pod says, its states are those of its own namespace.
fn neighbours_are_out_of_reach(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    let pod = cri.run_pod(HANDLER, cri.pod_config("victim", "db-0", "n-0"))?;
    let db = pod.run("app", 0, &image, "echo secret > /secret; sleep 1000")?;
    until("the secret", Duration::from_secs(10), || {
        cri.sh(&db, "cat /secret").is_ok()
    })?;
    pod.delete()?;
    // As another namespace's, with annotations of every kind on pod and container, and an environment of its own.
    let attack =
        |uid: &str, pod: &[(&str, &str)], container: &[(&str, &str)], name: &str| -> Result<String> {
            let mut config = cri.pod_config("attacker", name, uid);
            let owned = |all: &[(&str, &str)]| {
                all.iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect::<Vec<_>>()
            };
            config.annotations.extend(owned(pod));
            let pod = cri.run_pod(HANDLER, config)?;
            let seen = (|| {
                let mut config = pod.container_config("app", 0, &image, "sleep 1000");
                config.annotations.extend(owned(container));
                let env = [
                    ("DIFFKEEPER_STATE", "k8s/victim/db-0/app"),
                    ("DIFFKEEPER_STATE", "db-0"),
                ];
                config.envs = env
                    .map(|(key, value)| KeyValue {
                        key: key.into(),
                        value: value.into(),
                    })
                    .into();
                let id = pod.create(config)?;
                cri.start(&id)?;
                cri.sh(&id, "cat /secret 2>/dev/null || echo none")
            })();
            pod.delete()?;
            seen
        };
    let forged = [
        ("io.kubernetes.cri.sandbox-namespace", "victim"),
        ("io.kubernetes.cri.sandbox-name", "db-0"),
        ("io.kubernetes.cri.container-name", "app"),
    ];
    let state = "diffkeeper.io/state";
    // Names that are names give a state of one's own.
    for (n, (pod, container, name)) in [
        (&[(state, "db-0")][..], &[][..], "web"),
        (&[("diffkeeper.io/state.app", "db-0")], &[], "web"),
        (&forged, &forged, "db-0"),
        (&[], &[(state, "db-0")], "db-0"),
        (&[], &[], "victim"),
    ]
    .into_iter()
    .enumerate()
    {
        same(&attack(&format!("n-{n}"), pod, container, name)?, "none\n")?;
    }
    // All else is refused.
    for (n, (key, value)) in [
        (state, "../victim/db-0"),
        (state, "victim/db-0"),
        (state, "/k8s/victim/db-0"),
        (state, ".."),
        (state, "."),
        (state, ""),
        (state, "..%2fvictim"),
        ("diffkeeper.io/state.app", "../../victim/db-0"),
        ("diffkeeper.io/from", "k8s/victim/db-0/app"),
        ("diffkeeper.io/restore", "k8s/victim/db-0/app@head"),
        ("diffkeeper.io/include-mounts", "/../../victim"),
        ("diffkeeper.io/paths", "/../victim"),
    ]
    .into_iter()
    .enumerate()
    {
        let told = attack(&format!("n-r{n}"), &[(key, value)], &[], "web");
        ensure!(told.is_err(), "{key}={value}: {told:?}");
    }
    let seen = fs::read_to_string(upper(d, "victim", "db-0", "app").join("secret"))?;
    same(&seen, "secret\n")
}

fn a_successor_waits_for_the_lease(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    let config = |uid: &str, wait: &str| {
        let mut config = cri.pod_config("default", "rolling-0", uid);
        config
            .annotations
            .insert("diffkeeper.io/lease-wait".into(), wait.into());
        config
    };
    let old = cri.run_pod(HANDLER, config("w-1", "1s"))?;
    // In its grace period: it takes its time to go.
    let going = old.run(
        "app",
        0,
        &image,
        "trap 'sleep 2; exit 0' TERM; echo old > /who; while :; do sleep 0.1; done",
    )?;
    until("the old one", Duration::from_secs(10), || {
        cri.sh(&going, "cat /who").is_ok()
    })?;
    let new = cri.run_pod(HANDLER, config("w-2", "1s"))?;
    let since = Instant::now();
    let told = new
        .run("app", 0, &image, "sleep 1000")
        .err()
        .map(|e| format!("{e:#}"))
        .unwrap_or_default();
    ensure!(since.elapsed() > Duration::from_secs(1), "{:?}", since.elapsed());
    ensure!(
        told.contains("k8s/default/rolling-0/app") && told.contains(&going),
        "{told}"
    );
    // Waiting while the old one goes.
    let patient = cri.run_pod(HANDLER, config("w-3", "20s"))?;
    let id = std::thread::scope(|scope| -> Result<String> {
        let waiting = scope.spawn(|| patient.run("app", 0, &image, "cat /who; sleep 1000"));
        std::thread::sleep(Duration::from_millis(500));
        cri.stop(&going, 10)?;
        old.delete()?;
        waiting
            .join()
            .unwrap_or_else(|_| anyhow::bail!("the start panicked"))
    })?;
    until("the log", Duration::from_secs(10), || {
        patient.log("app", 0).is_ok_and(|log| log.contains("F old"))
    })?;
    cri.stop(&id, 0)?;
    patient.delete()?;
    // The kubelet tries again, and now nobody is there.
    let id = new.run("app", 1, &image, "sleep 1000")?;
    same(&cri.sh(&id, "cat /who")?, "old\n")?;
    new.delete()?;
    // On a node that has no such state, one can ask not to begin anew.
    let mut refuse = cri.pod_config("default", "elsewhere-0", "w-4");
    refuse
        .annotations
        .insert("diffkeeper.io/when-missing".into(), "refuse".into());
    let pod = cri.run_pod(HANDLER, refuse)?;
    let told = pod
        .run("app", 0, &image, "true")
        .err()
        .map(|e| format!("{e:#}"))
        .unwrap_or_default();
    ensure!(
        told.contains("when-missing") && !d.live().join("k8s/default/elsewhere-0").exists(),
        "{told}"
    );
    pod.delete()
}

fn states_within_one_pod(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    let mut config = cri.pod_config("default", "shop-6b5d7c9f4-x2x7k", "s-1");
    for (key, value) in [
        ("state", "shop"),
        ("state.logger", "none"),
        ("state.cache", "warm"),
    ] {
        config
            .annotations
            .insert(format!("diffkeeper.io/{key}"), value.into());
    }
    let pod = cri.run_pod(HANDLER, config)?;
    let init = pod.run("init", 0, &image, "echo init > /mine")?;
    ensure!(cri.wait(&init)? == 0);
    for name in ["app", "sidecar", "logger", "cache", "debugger"] {
        // A debugger comes later, as an ephemeral container does.
        let id = pod.run(
            name,
            0,
            &image,
            &format!("test ! -e /mine && echo {name} > /mine; sleep 1000"),
        )?;
        until("its file", Duration::from_secs(10), || {
            cri.sh(&id, "cat /mine").is_ok_and(|out| out.trim() == name)
        })?;
    }
    ensure!(d.shims(None).len() == 1, "one shim for all of the pod");
    pod.delete()?;
    for (name, state) in [
        ("init", "shop"),
        ("app", "shop"),
        ("sidecar", "shop"),
        ("debugger", "shop"),
        ("cache", "warm"),
    ] {
        same(
            fs::read_to_string(upper(d, "default", state, name).join("mine"))?.trim(),
            name,
        )?;
    }
    ensure!(!d.live().join("k8s/default/shop/logger").exists());
    // A Deployment's pod has a name that nobody chose: it expires.
    let pod = cri.run_pod(HANDLER, cri.pod_config("default", "shop-6b5d7c9f4-zzzzz", "s-2"))?;
    let id = pod.run("app", 0, &image, "true")?;
    cri.wait(&id)?;
    pod.delete()?;
    let listed: serde_json::Value = serde_json::from_str(&d.diffkeeper(&["states", "--json"])?.ok()?)?;
    let find = |name: &str| {
        listed
            .as_array()
            .into_iter()
            .flatten()
            .find(|s| s["name"] == name)
            .cloned()
            .context("not listed")
    };
    let (generated, chosen) = (
        find("k8s/default/shop-6b5d7c9f4-zzzzz/app")?,
        find("k8s/default/shop/app")?,
    );
    ensure!(
        generated["expires"].is_number() && generated["name_chosen"] == false,
        "{generated}"
    );
    ensure!(
        chosen["expires"].is_null() && chosen["name_chosen"] == true,
        "{chosen}"
    );
    Ok(())
}

fn what_a_kubelet_asks(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    let pod = cri.run_pod(HANDLER, cri.pod_config("default", "asked-0", "k-1"))?;
    let id = pod.run(
        "app",
        0,
        &image,
        "echo one; echo two >&2; dd if=/dev/zero of=/f bs=1M count=4 2>/dev/null; sleep 1000",
    )?;
    let ran = cri.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    ensure!(
        (ran.exit_code, ran.stdout.as_slice(), ran.stderr.as_slice()) == (3, &b"out\n"[..], &b"err\n"[..]),
        "{ran:?}"
    );
    until("the log", Duration::from_secs(10), || {
        pod.log("app", 0)
            .is_ok_and(|log| log.contains("stdout F one") && log.contains("stderr F two"))
    })?;
    // Rotated: the log goes on in a new file.
    let log = PathBuf::from(&pod.config.log_directory).join("app_0.log");
    fs::rename(&log, log.with_extension("old"))?;
    let reopen = ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    cri.call(cri.client().reopen_container_log(reopen))?;
    ensure!(log.exists());
    until("stats", Duration::from_secs(20), || {
        let ask = ContainerStatsRequest {
            container_id: id.clone(),
        };
        let stats = cri
            .call(cri.client().container_stats(ask))
            .ok()
            .and_then(|r| r.stats);
        let memory = stats
            .as_ref()
            .and_then(|s| s.memory.as_ref()?.working_set_bytes.as_ref())
            .is_some_and(|v| v.value > 0);
        let cpu = stats
            .as_ref()
            .and_then(|s| s.cpu.as_ref()?.usage_core_nano_seconds.as_ref())
            .is_some_and(|v| v.value > 0);
        memory && cpu
    })?;
    let update = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            ..LinuxContainerResources::default()
        }),
        ..UpdateContainerResourcesRequest::default()
    };
    cri.call(cri.client().update_container_resources(update))?;
    // It exits by itself, and the kubelet sees how.
    cri.exec(&id, &["kill", "-9", "-1"])?;
    cri.stop(&id, 0)?;
    let status = cri.status(&id)?;
    ensure!(status.exit_code == 137, "{status:?}");
    pod.delete()
}

fn pods_of_all_kinds(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    // The node's pids.
    let mut config = cri.pod_config("default", "hostpid-0", "a-1");
    let namespaces = |pid: NamespaceMode| NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: pid.into(),
        ..NamespaceOption::default()
    };
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        security.namespace_options = Some(namespaces(NamespaceMode::Node));
    }
    for _ in 0..2 {
        let pod = cri.run_pod(HANDLER, config.clone())?;
        let id = pod.run("app", 0, &image, "sleep 3333 & echo life >> /lives; sleep 1000")?;
        until("it writes", Duration::from_secs(10), || {
            cri.sh(&id, "cat /lives").is_ok()
        })?;
        ensure!(
            cri.sh(&id, "ls /proc 2>/dev/null; true")?
                .split_whitespace()
                .any(|pid| pid == std::process::id().to_string())
        );
        cri.stop(&id, 0)?;
        // Init's death takes with it what it left behind.
        let left = || cri_processes("sleep 3333");
        until("the rest of it", Duration::from_secs(10), || !left())?;
        pod.delete()?;
    }
    same(
        &fs::read_to_string(upper(d, "default", "hostpid-0", "app").join("lives"))?,
        "life\nlife\n",
    )?;
    // A read-only root with what was kept before; seccomp as a kubelet asks for it.
    for (uid, readonly, script, expected) in [
        ("a-2", false, "echo x > /kept; cat /kept", "x\n"),
        (
            "a-3",
            true,
            "cat /kept; touch /y 2>/dev/null || echo refused",
            "x\nrefused\n",
        ),
    ] {
        let pod = cri.run_pod(HANDLER, cri.pod_config("default", "readonly-0", uid))?;
        let mut config = pod.container_config("app", 0, &image, "sleep 1000");
        if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
            security.readonly_rootfs = readonly;
            security.no_new_privs = true;
            security.seccomp = Some(SecurityProfile {
                profile_type: ProfileType::RuntimeDefault.into(),
                ..SecurityProfile::default()
            });
        }
        let id = pod.create(config)?;
        cri.start(&id)?;
        same(&cri.sh(&id, script)?, expected)?;
        ensure!(
            cri.sh(&id, "grep Seccomp: /proc/self/status")?
                .trim()
                .ends_with('2')
        );
        pod.delete()?;
    }
    // A user namespace of the pod's own, another range in each life.
    if d.version != "2" {
        println!(
            "skipped containerd-{}::pods::pods_of_all_kinds (user namespaces): its CRI has none, or needs more than this machine has",
            d.version
        );
        return Ok(());
    }
    let volumes = d.import_into(NAMESPACE, "volumes")?;
    for (n, host) in [200_000u32, 400_000].into_iter().enumerate() {
        let mut config = cri.pod_config("default", "userns-0", &format!("a-u{n}"));
        let range = || {
            vec![IdMapping {
                host_id: host,
                container_id: 0,
                length: 65536,
            }]
        };
        let mut options = namespaces(NamespaceMode::Container);
        // A user namespace wants a network of its own.
        options.network = NamespaceMode::Pod.into();
        options.userns_options = Some(UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: range(),
            gids: range(),
        });
        if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
            security.namespace_options = Some(options);
        }
        let pod = cri.run_pod(HANDLER, config)?;
        let id = pod.run("app", 0, &volumes, "sleep 1000")?;
        let map = cri.sh(&id, "cat /proc/self/uid_map")?;
        ensure!(
            map.split_whitespace().nth(1) == Some(host.to_string().as_str()),
            "{map}"
        );
        let seen = "stat -c '%n %u:%g' /var/lib/data /var/lib/data/sub/file /bin /mine /var/lib/data/mine 2>/dev/null";
        let write = "touch /mine /var/lib/data/mine; chown 7:8 /mine /var/lib/data/mine";
        let expected = "/var/lib/data 999:999\n/var/lib/data/sub/file 1234:5678\n/bin 0:0\n";
        if n == 0 {
            same(&cri.sh(&id, &format!("{seen}; {write}"))?, expected)?;
        } else {
            same(
                &cri.sh(&id, seen)?,
                &format!("{expected}/mine 7:8\n/var/lib/data/mine 7:8\n"),
            )?;
        }
        pod.delete()?;
    }
    Ok(())
}

/// Whether a process with this command line runs on the node.
fn cri_processes(line: &str) -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .any(|found| String::from_utf8_lossy(&found).replace('\0', " ").trim() == line)
}

fn many_pods_leave_nothing(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "volumes")?;
    let mounts = d.mounts()?.len();
    let sockets = || fs::read_dir("/run/containerd/s").map_or(0, Iterator::count);
    let (before, shims) = (sockets(), d.shims(None).len());
    let each = if crate::soak() { 250 } else { 25 };
    let names = ["many-0", "many-1", "many-2", "many-3"];
    let lives = |name: &str| -> Result<()> {
        for n in 0..each {
            let pod = cri.run_pod(HANDLER, cri.pod_config("default", name, &format!("{name}-{n}")))?;
            let id = pod.run("app", 0, &image, "echo x >> /var/lib/data/lives; sleep 1000")?;
            if n % 3 == 0 {
                cri.stop(&id, 0)?;
            }
            ensure!(
                !cgroups(d, &format!("{name}-{n}")).is_empty(),
                "no cgroup to look for"
            );
            pod.delete()?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = names.map(|name| scope.spawn(move || lives(name)));
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread has panicked"))?)
    })?;
    for name in names {
        let tree = format!("k8s/default/{name}/app/roots/volume@var@lib@data/tree/lives");
        let found = fs::read_to_string(d.live().join(&tree)).with_context(|| tree)?;
        ensure!(!found.is_empty(), "{name} has kept nothing");
    }
    until("the last shim's end", Duration::from_secs(60), || {
        d.shims(None).len() <= shims
    })?;
    ensure!(d.mounts()?.len() <= mounts, "{:?}", d.mounts()?);
    // Others may be starting shims on this machine too.
    until("the last socket's end", Duration::from_secs(60), || {
        sockets() <= before
    })?;
    let left = cgroups(d, "many-");
    ensure!(left.is_empty(), "cgroups are left: {left:?}");
    let bundles = d.folder().join("state/io.containerd.runtime.v2.task/k8s.io");
    let left = fs::read_dir(&bundles).map_or(0, Iterator::count);
    ensure!(left <= shims, "{left} bundles are left");
    Ok(())
}

/// The cgroups of pods whose uid begins so.
fn cgroups(d: &Daemon, uid: &str) -> Vec<String> {
    let path = format!("*{}/pod{uid}*", d.namespace());
    let find = std::process::Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-path", &path])
        .output();
    let found = find.map(|found| found.stdout).unwrap_or_default();
    String::from_utf8_lossy(&found).lines().map(Into::into).collect()
}
