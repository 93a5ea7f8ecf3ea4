//! Pods, through containerd's CRI as a kubelet drives it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    Daemon,
    cri::{Cri, NAMESPACE},
    daemon::kill,
    wait::until,
};

use k8s_cri::v1::Mount;

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
    ("pods::chosen_paths", chosen_paths),
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
