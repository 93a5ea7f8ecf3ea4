//! Calls of the Task service that `ctr` cannot make, or not tell apart: through containerd's own API, beside the stock
//! shim wherever both answer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use containerd_client::{
    services::v1::{
        CheckpointTaskRequest, CloseIoRequest, CreateTaskRequest, Info, MetricsRequest, ResizePtyRequest,
        UpdateRequest, UpdateTaskRequest,
    },
    types::Mount,
};
use containerd_shim_protos::shim::oci;
use integration::{
    Daemon, OURS, STOCK,
    api::{Api, Model, Streams},
    daemon::kill,
    wait::until,
};
use prost_types::Any;
use protobuf::{Message, UnknownValueRef, well_known_types::empty::Empty};
use serde_json::json;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("calls::terminals", terminals),
    ("calls::standard_input_closes", standard_input_closes),
    ("calls::limits_are_updated", limits_are_updated),
    ("calls::options", options),
    ("calls::metrics_field_by_field", metrics_field_by_field),
    ("calls::a_disk_as_root", a_disk_as_root),
    ("calls::checkpoint_and_restore", checkpoint_and_restore),
    (
        "calls::delete_of_half_a_bundle_and_twice",
        delete_of_half_a_bundle_and_twice,
    ),
    ("calls::a_pods_shim_leaks_nothing", a_pods_shim_leaks_nothing),
    ("calls::names_with_nul", names_with_nul),
];

const LIMIT: Duration = Duration::from_secs(15);

/// A container of this script, made but not started.
struct Made<'a> {
    api: &'a Api,
    id: String,
    mounts: Vec<Mount>,
}

fn model(d: &Daemon, api: &Api) -> Result<Model> {
    let image = d.import("busybox")?;
    if d.ctr(&["container", "info", "model"])?.status != 0 {
        d.ctr(&["container", "create", &image, "model", "true"])?.ok()?;
    }
    api.model("model")
}

impl<'a> Made<'a> {
    fn new(d: &Daemon, api: &'a Api, id: &str, runtime: &str, script: &str) -> Result<Made<'a>> {
        Made::edited(d, api, id, runtime, script, |_| {})
    }

    fn edited(
        d: &Daemon,
        api: &'a Api,
        id: &str,
        runtime: &str,
        script: &str,
        edit: impl FnOnce(&mut serde_json::Value),
    ) -> Result<Made<'a>> {
        d.forget(id)?;
        let mounts = api.create(id, runtime, &model(d, api)?, |spec| {
            spec["process"]["args"] = json!(["sh", "-c", script]);
            edit(spec);
        })?;
        Ok(Made {
            api,
            id: id.into(),
            mounts,
        })
    }

    fn run(&self, streams: &Streams) -> Result<u32> {
        let pid = self.api.create_task(&self.id, self.mounts.clone(), streams)?;
        self.api.start(&self.id, "")?;
        Ok(pid)
    }
}

/// A fifo in the daemon's folder.
fn fifo(d: &Daemon, name: &str) -> Result<PathBuf> {
    let path = d.folder().join(name);
    if !path.exists() {
        nix::unistd::mkfifo(
            &path,
            nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR,
        )?;
    }
    Ok(path)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn reader(path: &Path) -> Result<File> {
    let mut open = OpenOptions::new();
    open.read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits());
    Ok(open.open(path)?)
}

/// Reads until `wanted` has come.
fn read_until(from: &mut File, wanted: &str) -> Result<String> {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    let found = until(wanted, LIMIT, || {
        match from.read(&mut buffer) {
            Ok(n) => seen.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        String::from_utf8_lossy(&seen).contains(wanted)
    });
    let seen = String::from_utf8_lossy(&seen).into_owned();
    found.with_context(|| format!("only {seen:?} came"))?;
    Ok(seen)
}

fn terminals(d: &Daemon) -> Result<()> {
    let api = Api::connect(d)?;
    for runtime in [OURS, STOCK] {
        let (stdin, stdout) = (fifo(d, "tty-in")?, fifo(d, "tty-out")?);
        let mut first = reader(&stdout)?;
        let made = Made::edited(d, &api, "tty", runtime, "", |spec| {
            spec["process"]["terminal"] = true.into();
            spec["process"]["args"] = json!(["sh"]);
        })?;
        made.run(&Streams {
            stdin: text(&stdin),
            stdout: text(&stdout),
            terminal: true,
            ..Streams::default()
        })?;
        let mut keys = OpenOptions::new().write(true).open(&stdin)?;
        let mut tasks = api.client().tasks();
        let size = |width, height| ResizePtyRequest {
            container_id: "tty".into(),
            width,
            height,
            ..ResizePtyRequest::default()
        };
        api.call(size(93, 41), |r| tasks.resize_pty(r))?;
        keys.write_all(b"stty size\n")?;
        read_until(&mut first, "41 93")?;
        // Detached: the shell goes on, and whoever attaches again sees what comes from then on.
        drop(first);
        keys.write_all(b"echo unseen > /seen\n")?;
        let mut second = reader(&stdout)?;
        keys.write_all(b"echo at$(cat /seen | wc -l)tached\n")?;
        read_until(&mut second, "at1tached")?;
        api.call(size(20, 10), |r| tasks.resize_pty(r))?;
        keys.write_all(b"stty size; exit 5\n")?;
        read_until(&mut second, "10 20")?;
        ensure!(api.wait("tty", "")? == 5, "{runtime}");
        api.delete_task("tty")?;
        d.forget("tty")?;
    }
    Ok(())
}

fn standard_input_closes(d: &Daemon) -> Result<()> {
    let api = Api::connect(d)?;
    for runtime in [OURS, STOCK] {
        let (stdin, stdout) = (fifo(d, "close-in")?, fifo(d, "close-out")?);
        let mut out = reader(&stdout)?;
        let made = Made::new(d, &api, "closing", runtime, "cat; echo end of input")?;
        made.run(&Streams {
            stdin: text(&stdin),
            stdout: text(&stdout),
            // The stock shim opens all three.
            stderr: text(&stdout),
            ..Streams::default()
        })?;
        let mut input = OpenOptions::new().write(true).open(&stdin)?;
        input.write_all(b"some words\n")?;
        read_until(&mut out, "some words")?;
        // The writer is still there: only the call ends the input.
        let mut tasks = api.client().tasks();
        let close = CloseIoRequest {
            container_id: "closing".into(),
            stdin: true,
            ..CloseIoRequest::default()
        };
        drop(input);
        api.call(close, |r| tasks.close_io(r))?;
        read_until(&mut out, "end of input")?;
        ensure!(api.wait("closing", "")? == 0, "{runtime}");
        api.delete_task("closing")?;
        d.forget("closing")?;
    }
    Ok(())
}

/// The files of a cgroup controller (v1) or of the one cgroup (v2) that a process is in.
fn cgroup_of(pid: u32, controller: &str) -> Result<PathBuf> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = |wanted: &str| {
        table.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (names, path) = rest.split_once(':')?;
            names
                .split(',')
                .any(|name| name == wanted)
                .then(|| path.to_owned())
        })
    };
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Ok(Path::new("/sys/fs/cgroup").join(path("").context("no cgroup")?.trim_start_matches('/')));
    }
    let path = path(controller).with_context(|| format!("no {controller} cgroup in {table}"))?;
    Ok(Path::new("/sys/fs/cgroup")
        .join(controller)
        .join(path.trim_start_matches('/')))
}

/// Where cgroups can be made: v2's one hierarchy, or those of v1 that need no settings before a process may enter.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    ["memory", "pids"].map(|controller| root.join(controller)).into()
}

fn limits_are_updated(d: &Daemon) -> Result<()> {
    let api = Api::connect(d)?;
    let pid = Made::new(d, &api, "limits", OURS, "sleep 100")?.run(&Streams::default())?;
    let resources = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 77}});
    let update = UpdateTaskRequest {
        container_id: "limits".into(),
        resources: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: serde_json::to_vec(&resources)?,
        }),
        ..UpdateTaskRequest::default()
    };
    let mut tasks = api.client().tasks();
    api.call(update, |r| tasks.update(r))?;
    let memory = cgroup_of(pid, "memory")?;
    let limit = ["memory.max", "memory.limit_in_bytes"]
        .iter()
        .find_map(|file| fs::read_to_string(memory.join(file)).ok());
    ensure!(limit.as_deref().map(str::trim) == Some("67108864"), "{limit:?}");
    let pids = fs::read_to_string(cgroup_of(pid, "pids")?.join("pids.max"))?;
    ensure!(pids.trim() == "77", "{pids}");
    let wrong = UpdateTaskRequest {
        container_id: "limits".into(),
        resources: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: b"{\"memory\":{\"limit\":\"much\"}}".to_vec(),
        }),
        ..UpdateTaskRequest::default()
    };
    ensure!(api.call(wrong, |r| tasks.update(r)).is_err());
    d.forget("limits")
}

fn runc_options(options: &oci::Options) -> Result<Any> {
    Ok(Any {
        type_url: "containerd.runc.v1.Options".into(),
        value: options.write_to_bytes()?,
    })
}

/// `IoUid`, `IoGid` and `ShimCgroup`.
fn options(d: &Daemon) -> Result<()> {
    let api = Api::connect(d)?;
    for (runtime, group) in [(OURS, "ours"), (STOCK, "stock")] {
        let made = Made::new(
            d,
            &api,
            "options",
            runtime,
            "stat -L -c %u:%g /proc/self/fd/1; sleep 100",
        )?;
        let stdout = fifo(d, "options-out")?;
        let mut out = reader(&stdout)?;
        let shim_cgroup = format!("/{}-shims-{group}", d.namespace());
        // The shim is put into a cgroup that its owner made.
        for dir in hierarchies() {
            fs::create_dir_all(dir.join(shim_cgroup.trim_start_matches('/')))?;
        }
        let options = oci::Options {
            io_uid: 1234,
            io_gid: 5678,
            shim_cgroup: shim_cgroup.clone(),
            ..oci::Options::default()
        };
        api.create_task_with(CreateTaskRequest {
            container_id: "options".into(),
            rootfs: made.mounts.clone(),
            stdout: text(&stdout),
            stderr: text(&stdout),
            options: Some(runc_options(&options)?),
            ..CreateTaskRequest::default()
        })?;
        api.start("options", "")?;
        // runc gives the streams to the container's user; their group stays as it was.
        read_until(&mut out, "0:5678").with_context(|| runtime.to_owned())?;
        let shim = *d.shims(Some("options")).first().context("no shim")?;
        let membership = fs::read_to_string(format!("/proc/{shim}/cgroup"))?;
        ensure!(membership.contains(&shim_cgroup), "{runtime}: {membership}");
        d.forget("options")?;
        until("the shim's end", LIMIT, || d.shims(Some("options")).is_empty())?;
        for dir in hierarchies() {
            fs::remove_dir(dir.join(shim_cgroup.trim_start_matches('/')))?;
        }
    }
    Ok(())
}

/// The numbers of the fields that a message holds, with those of the messages in it.
fn fields(message: &[u8], above: &str) -> Option<BTreeSet<String>> {
    /// No message of cgroup statistics has more fields: what shows a higher number is a text or a packed list.
    const HIGHEST: u32 = 64;
    let parsed = Empty::parse_from_bytes(message).ok()?;
    let mut all = BTreeSet::new();
    for (number, value) in parsed.special_fields.unknown_fields() {
        if number > HIGHEST {
            return None;
        }
        let name = format!("{above}.{number}");
        if let UnknownValueRef::LengthDelimited(inner) = value {
            all.extend(fields(inner, &name).unwrap_or_default());
        }
        all.insert(name);
    }
    Some(all)
}

fn metrics_field_by_field(d: &Daemon) -> Result<()> {
    let api = Api::connect(d)?;
    let metrics = |id: &str, runtime: &str| -> Result<(String, BTreeSet<String>)> {
        // Pages of all kinds, and time: counters that stay 0 are not sent.
        let work = "dd if=/dev/zero of=/a bs=64k count=16; dd if=/dev/zero of=/b bs=64k count=16; cat /b /b /b >/dev/null; \
                    i=0; while [ $i -lt 20000 ]; do i=$((i+1)); : </dev/null; done; sleep 100";
        let made = Made::edited(d, &api, id, runtime, work, |spec| {
            spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
            spec["linux"]["resources"]["pids"] = json!({"limit": 50});
            // To overwrite a kept file is other work than to make one.
            spec["annotations"]["diffkeeper.io/state"] = "none".into();
            spec["linux"]["resources"]["cpu"] = json!({"quota": 100_000, "period": 100_000});
        })?;
        made.run(&Streams::default())?;
        std::thread::sleep(Duration::from_secs(1));
        let mut tasks = api.client().tasks();
        let ask = MetricsRequest {
            filters: vec![format!("id=={id}")],
        };
        let answer = api.call(ask, |r| tasks.metrics(r))?;
        let data = answer.metrics.first().and_then(|m| m.data.as_ref());
        let data = data.context("no metrics came")?;
        d.forget(id)?;
        let all = fields(&data.value, "").context("the metrics do not parse")?;
        Ok((data.type_url.clone(), all))
    };
    // Some counters hardly ever move, and are not sent then: what one shim sends in every round, the other has to send
    // in one at least.
    const ROUNDS: usize = 4;
    let mut sent = BTreeMap::<String, [usize; 2]>::new();
    for _ in 0..ROUNDS {
        let (ours, stock) = (metrics("mf-ours", OURS)?, metrics("mf-stock", STOCK)?);
        ensure!(ours.0 == stock.0, "{} beside {}", ours.0, stock.0);
        ensure!(ours.1.len() > 20, "only {} fields came", ours.1.len());
        for (whose, fields) in [ours.1, stock.1].into_iter().enumerate() {
            for field in fields {
                sent.entry(field).or_default()[whose] += 1;
            }
        }
    }
    let differ: Vec<_> = sent
        .iter()
        .filter(|(_, rounds)| rounds.contains(&ROUNDS) && rounds.contains(&0))
        .filter(|(field, rounds)| rounds[0] == 0 || d.version == "2" || !is_newer(field))
        .collect();
    ensure!(
        differ.is_empty(),
        "rounds in which ours and the stock shim sent a field: {differ:?}"
    );
    Ok(())
}

/// Fields of cgroup v2 that the stock shim of containerd 2 sends and older ones do not know: pressure (PSI) of processor,
/// memory and disks, and the most memory that was used.
fn is_newer(field: &str) -> bool {
    [".2.7", ".4.36", ".4.38", ".6.2"].iter().any(|newer| {
        field
            .strip_prefix(newer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// A snapshotter such as blockfile gives an ext4 image to be mounted through a loop device.
fn a_disk_as_root(d: &Daemon) -> Result<()> {
    let api = Api::connect(d)?;
    let made = Made::new(d, &api, "disk", OURS, "cat /kept; echo again >> /kept")?;
    // The image's files, from the layer below the snapshot.
    let overlay = made.mounts.first().context("no root")?;
    let options = overlay.options.iter();
    let mut lower = options.filter_map(|o| o.strip_prefix("lowerdir=").or(o.strip_prefix("upperdir=")));
    let lower = lower.next_back().map_or(overlay.source.as_str(), |dirs| {
        dirs.rsplit(':').next().unwrap_or(dirs)
    });
    let image = d.folder().join("root.img");
    let made_image = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-d", lower])
        .stdout(std::process::Stdio::null())
        .arg(&image)
        .arg("32M")
        .status()
        .context("run mkfs.ext4")?;
    ensure!(made_image.success());
    let devices = || -> Result<usize> {
        let used = fs::read_dir("/sys/block")?.flatten();
        Ok(used
            .filter(|e| e.path().join("loop/backing_file").exists())
            .count())
    };
    let before = devices()?;
    let disk = |options: &[&str]| Mount {
        r#type: "ext4".into(),
        source: text(&image),
        options: options.iter().map(ToString::to_string).collect(),
        ..Mount::default()
    };
    let log = d.folder().join("disk.log");
    let life = |id: &str, script: &str, none: bool, options: &[&str]| -> Result<String> {
        let _ = fs::remove_file(&log);
        Made::edited(d, &api, id, OURS, script, |spec| {
            if none {
                spec["annotations"]["diffkeeper.io/state"] = "none".into();
            }
        })?;
        let streams = Streams {
            stdout: format!("file://{}", log.display()),
            ..Streams::default()
        };
        api.create_task(id, vec![disk(options)], &streams)?;
        api.start(id, "")?;
        api.wait(id, "")?;
        api.delete_task(id)?;
        d.forget(id)?;
        Ok(fs::read_to_string(&log)?)
    };
    life("disk", "echo once > /kept", false, &["loop"])?;
    ensure!(life("disk", "cat /kept", false, &["loop"])? == "once\n");
    // The disk itself was never written to: a container that opts out does, and sees nothing of ours.
    ensure!(
        life(
            "plain",
            "cat /kept || echo none; echo x > /on-disk",
            true,
            &["loop"]
        )? == "none\n"
    );
    ensure!(life("plain", "cat /on-disk", true, &["loop", "ro"])? == "x\n");
    until("the loop devices are free", LIMIT, || {
        devices().is_ok_and(|n| n == before)
    })
}

fn checkpoint_and_restore(d: &Daemon) -> Result<()> {
    let criu = d.command("criu", &["check"]).output()?;
    if !criu.status.success() {
        println!(
            "skipped containerd-{}::calls::checkpoint_and_restore: no CRIU works here: {}",
            d.version,
            String::from_utf8_lossy(&criu.stderr)
                .lines()
                .last()
                .unwrap_or("not found")
        );
        return Ok(());
    }
    let api = Api::connect(d)?;
    let script = "i=0; while :; do i=$((i+1)); echo $i >> /count; sleep 0.05; done";
    let last = || -> Option<u64> {
        let text = fs::read_to_string(d.upper("frozen").join("count")).ok()?;
        text.lines().last()?.parse().ok()
    };
    let made = Made::new(d, &api, "frozen", OURS, script)?;
    made.run(&Streams::default())?;
    until("some counts", LIMIT, || last().is_some_and(|n| n > 10))?;
    let options = oci::CheckpointOptions {
        exit: true,
        ..oci::CheckpointOptions::default()
    };
    let ask = CheckpointTaskRequest {
        container_id: "frozen".into(),
        options: Some(Any {
            type_url: "containerd.runc.v1.CheckpointOptions".into(),
            value: options.write_to_bytes()?,
        }),
        ..CheckpointTaskRequest::default()
    };
    let mut tasks = api.client().tasks();
    let images = api.call(ask, |r| tasks.checkpoint(r))?.descriptors;
    let checkpoint = images
        .into_iter()
        .find(|i| i.media_type.contains("checkpoint.criu"));
    let checkpoint = checkpoint.context("containerd answered without the checkpoint")?;
    // Nothing refers to it, and the garbage collector comes with the next deletion.
    let root = UpdateRequest {
        info: Some(Info {
            digest: checkpoint.digest.clone(),
            labels: HashMap::from([("containerd.io/gc.root".into(), "true".into())]),
            ..Info::default()
        }),
        update_mask: None,
    };
    let mut content = api.client().content();
    api.call(root, |r| content.update(r))?;
    api.wait("frozen", "")?;
    api.delete_task("frozen")?;
    d.forget("frozen")?;
    let before = last().context("no count")?;
    // A new container, a fresh snapshot: the memory comes from the checkpoint, the files from the state.
    let made = Made::new(d, &api, "frozen", OURS, script)?;
    api.create_task_with(CreateTaskRequest {
        container_id: "frozen".into(),
        rootfs: made.mounts.clone(),
        checkpoint: Some(checkpoint),
        ..CreateTaskRequest::default()
    })?;
    api.start("frozen", "")?;
    until("it counts on", LIMIT, || last().is_some_and(|n| n > before + 5))?;
    let text = fs::read_to_string(d.upper("frozen").join("count"))?;
    let counted: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    ensure!(
        counted.iter().copied().eq(1..=counted.len() as u64),
        "{counted:?}"
    );
    d.forget("frozen")
}

fn delete_of_half_a_bundle_and_twice(d: &Daemon) -> Result<()> {
    let api = Api::connect(d)?;
    let shim = text(&d.folder().join("bin/containerd-shim-diffkeeper-v1"));
    let delete = |id: &str, bundle: &Path| -> Result<()> {
        let ran = d
            .command(
                &shim,
                &[
                    "-namespace",
                    d.namespace(),
                    "-address",
                    &text(&d.socket()),
                    "-id",
                    id,
                    "-bundle",
                    &text(bundle),
                    "delete",
                ],
            )
            .current_dir(bundle)
            .output()?;
        ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        ensure!(ran.stderr.is_empty() && !ran.stdout.is_empty());
        Ok(())
    };
    // Half a bundle, of a container that never was.
    let half = d.folder().join("half/nobody");
    fs::create_dir_all(half.join("rootfs"))?;
    delete("nobody", &half)?;
    delete("nobody", &half)?;
    // One whose shim was killed, and whose configuration is gone too.
    let made = Made::new(d, &api, "halved", OURS, "sleep 1000")?;
    let pid = made.run(&Streams::default())?;
    let bundle = d
        .folder()
        .join("state/io.containerd.runtime.v2.task")
        .join(d.namespace())
        .join("halved");
    // containerd is not to be faster than this test.
    let daemon = d.pid()?;
    let stop = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), signal);
    stop(nix::sys::signal::Signal::SIGSTOP)?;
    let deleted = (|| {
        for shim in d.shims(Some("halved")) {
            kill(shim)?;
        }
        fs::remove_file(bundle.join("config.json"))?;
        delete("halved", &bundle)?;
        delete("halved", &bundle)
    })();
    stop(nix::sys::signal::Signal::SIGCONT)?;
    deleted?;
    until("init's end", LIMIT, || {
        !Path::new(&format!("/proc/{pid}/exe")).exists()
    })?;
    ensure!(
        !d.mounts()?.iter().any(|m| m.ends_with("/halved/rootfs")),
        "a mount is left"
    );
    d.forget("halved")?;
    // The lease is free.
    Made::new(d, &api, "halved", OURS, "true")?.run(&Streams::default())?;
    d.forget("halved")
}

/// Many containers, one shim: what each leaves behind would add up.
fn a_pods_shim_leaks_nothing(d: &Daemon) -> Result<()> {
    let api = Api::connect(d)?;
    let life = |id: &str, script: &str, runtime: &str| {
        Made::edited(d, &api, id, runtime, script, |spec| {
            spec["annotations"]["io.containerd.runc.v2.group"] = "leaks".into();
        })
    };
    let anchor = life("anchor", "sleep 1000", OURS)?;
    anchor.run(&Streams::default())?;
    let shim = *d.shims(Some("anchor")).first().context("no shim")?;
    let stdout = fifo(d, "leaks-out")?;
    let mut out = reader(&stdout)?;
    let streams = Streams {
        stdout: text(&stdout),
        ..Streams::default()
    };
    let mut one = |n: u32| -> Result<()> {
        let member = life("member", "echo one; sleep 0 & sleep 0 & exit 3", OURS)?;
        member.run(&streams)?;
        ensure!(api.wait("member", "")? == 3, "{n}");
        api.delete_task("member")?;
        read_until(&mut out, "one")?;
        api.delete("member")
    };
    let open = || -> Result<(usize, usize)> {
        let fds = fs::read_dir(format!("/proc/{shim}/fd"))?.count();
        let threads = fs::read_dir(format!("/proc/{shim}/task"))?.count();
        Ok((fds, threads))
    };
    // The first ones fill what is made once: buffers, blocking threads.
    (0..3).try_for_each(&mut one)?;
    std::thread::sleep(Duration::from_secs(1));
    let before = open()?;
    (0..if crate::soak() { 1000 } else { 20 }).try_for_each(&mut one)?;
    until("descriptors as before", Duration::from_secs(20), || {
        open().is_ok_and(|now| now <= before)
    })
    .with_context(|| format!("descriptors and threads: {before:?} before, {:?} after", open()))?;
    let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"))?;
    ensure!(
        children.split_whitespace().count() == 1,
        "besides the anchor there are: {children}"
    );
    d.forget("anchor")
}

fn names_with_nul(d: &Daemon) -> Result<()> {
    let api = Api::connect(d)?;
    let made = Made::edited(d, &api, "nul", OURS, "true", |spec| {
        spec["annotations"]["diffkeeper.io/state"] = "a\0b".into();
    })?;
    let told = match made.run(&Streams::default()) {
        Ok(_) => anyhow::bail!("it started"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(told.contains("cannot name a state"), "{told}");
    d.forget("nul")
}
