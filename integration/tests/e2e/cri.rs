//! What a kubelet has open to a container, and what a handler's configuration and a pod's words can reach: each beside
//! the stock handler where that has the same.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    Daemon,
    cri::{Cri, NAMESPACE},
    stream::Stream,
    wait::until,
};
use k8s_cri::v1::{
    AttachRequest, ContainerEventType, ExecRequest, ExecSyncRequest, KeyValue, Mount, PodSandboxConfig,
};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("cri::exec_streams", exec_streams),
    ("cri::attach_streams", attach_streams),
    ("cri::exec_ends_in_time", exec_ends_in_time),
    ("cri::events_in_order", events_in_order),
    (
        "cri::handlers_with_a_configuration_of_their_own",
        handlers_with_a_configuration_of_their_own,
    ),
    ("cri::no_word_leads_to_a_neighbour", no_word_leads_to_a_neighbour),
    ("cri::no_link_leads_to_a_neighbour", no_link_leads_to_a_neighbour),
    (
        "cri::no_descriptor_leads_to_a_neighbour",
        no_descriptor_leads_to_a_neighbour,
    ),
];

const HANDLERS: [&str; 2] = ["runc", "diffkeeper"];

fn same<T: PartialEq + std::fmt::Debug>(found: &T, expected: &T) -> Result<()> {
    ensure!(found == expected, "{found:?} instead of {expected:?}");
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ends_with(words: &str) -> impl Fn(&[u8]) -> bool {
    move |seen| seen.ends_with(words.as_bytes())
}

/// Everything that streams do for `kubectl exec`, under each handler.
fn exec_streams(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    for handler in HANDLERS {
        let pod = cri.run_pod(
            handler,
            cri.pod_config("default", "exec-0", &format!("e-{handler}")),
        )?;
        let id = pod.run("app", 0, &image, "sleep 1000")?;
        let exec = |script: &str, stdin: bool| {
            cri.exec_streams(ExecRequest {
                container_id: id.clone(),
                cmd: ["sh", "-c", script].map(str::to_owned).into(),
                stdin,
                stdout: true,
                stderr: true,
                ..ExecRequest::default()
            })
        };
        let result = exec_conversations(&exec).and_then(|()| {
            let mut terminal = cri.exec_streams(ExecRequest {
                container_id: id.clone(),
                cmd: ["sh", "-c", "tty; read x; stty size; exit 4"]
                    .map(str::to_owned)
                    .into(),
                tty: true,
                stdin: true,
                stdout: true,
                ..ExecRequest::default()
            })?;
            terminal.until(ends_with("\r\n"))?;
            terminal.resize(123, 45)?;
            // The size is told beside the input, and may come after it.
            until("the size", Duration::from_secs(10), || {
                cri.sh(&id, "stty size < /dev/pts/0")
                    .is_ok_and(|size| size == "45 123\n")
            })?;
            terminal.send(b"x\n")?;
            same(&terminal.exit()?, &4)?;
            let seen = text(&terminal.stdout);
            ensure!(
                seen.starts_with("/dev/pts/0\r\n") && seen.ends_with("x\r\n45 123\r\n"),
                "{seen:?}"
            );
            Ok(())
        });
        pod.delete()?;
        result.with_context(|| format!("under {handler}"))?;
    }
    Ok(())
}

fn exec_conversations(exec: &dyn Fn(&str, bool) -> Result<Stream>) -> Result<()> {
    let mut both = exec("echo out; echo err >&2; exit 3", false)?;
    same(&both.exit()?, &3)?;
    same(
        &(text(&both.stdout), text(&both.stderr)),
        &("out\n".into(), "err\n".into()),
    )?;
    same(&exec("true", false)?.exit()?, &0)?;
    same(&exec("kill -9 $$", false)?.exit()?, &137)?;
    // A conversation: each line is answered before the next is written.
    let mut talk = exec(
        "while read line; do echo \"<$line>\"; [ $line != end ] || exit 7; done",
        true,
    )?;
    for line in ["one", "two", "end"] {
        talk.send(format!("{line}\n").as_bytes())?;
        talk.until(ends_with(&format!("<{line}>\n")))?;
    }
    same(&talk.exit()?, &7)?;
    // More than any buffer on the way holds, to the byte.
    let mut much = exec("seq 1 200000", false)?;
    same(&much.exit()?, &0)?;
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    ensure!(text(&much.stdout) == expected, "{} bytes came", much.stdout.len());
    let mut echo = exec("exec cat", true)?;
    let chunk: Vec<u8> = (0..32_768u32).map(|n| (n % 251) as u8).collect();
    for n in 1..=32 {
        echo.send(&chunk)?;
        echo.until(|seen| seen.len() >= n * chunk.len())?;
    }
    ensure!(echo.stdout == chunk.repeat(32), "what came back is another");
    // Whoever goes away leaves no command behind that waits for input.
    drop(echo);
    let mut left = exec(
        "for n in $(seq 100); do pidof cat || exit 0; sleep 0.1; done; exit 1",
        false,
    )?;
    same(&left.exit()?, &0)?;
    Ok(())
}

/// `kubectl attach`, and `kubectl run -i`.
fn attach_streams(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    for handler in HANDLERS {
        let pod = cri.run_pod(
            handler,
            cri.pod_config("default", "attach-0", &format!("t-{handler}")),
        )?;
        let result = (|| {
            let mut config = pod.container_config(
                "app",
                0,
                &image,
                "while read line; do echo \"<$line>\"; echo \"!$line\" >&2; done; echo over",
            );
            (config.stdin, config.stdin_once) = (true, true);
            let id = pod.create(config)?;
            cri.start(&id)?;
            let request = AttachRequest {
                container_id: id.clone(),
                stdin: true,
                stdout: true,
                stderr: true,
                ..AttachRequest::default()
            };
            let mut person = cri.attach(request)?;
            for line in ["one", "two"] {
                person.send(format!("{line}\n").as_bytes())?;
                person.until(ends_with(&format!("<{line}>\n")))?;
            }
            person.send(b"three\n")?;
            person.until(ends_with("<three>\n"))?;
            ensure!(
                text(&person.stderr).starts_with("!one\n!two\n"),
                "{:?}",
                text(&person.stderr)
            );
            // Once: with the person's connection goes the input.
            drop(person);
            same(&cri.wait(&id)?, &0)?;
            until("the log", Duration::from_secs(10), || {
                pod.log("app", 0)
                    .is_ok_and(|log| log.contains("stdout F over") && log.contains("stderr F !three"))
            })?;
            // A terminal, and an input that outlives a connection.
            let mut config = pod.container_config("shell", 0, &image, "");
            (config.stdin, config.tty) = (true, true);
            config.command = vec!["sh".into()];
            let id = pod.create(config)?;
            cri.start(&id)?;
            let request = AttachRequest {
                container_id: id.clone(),
                tty: true,
                stdin: true,
                stdout: true,
                ..AttachRequest::default()
            };
            // Another looks on.
            let mut onlooker = cri.attach(request.clone())?;
            for n in 1..=2 {
                let mut terminal = cri.attach(request.clone())?;
                terminal.send(format!("echo it is $((40+{n}))\n").as_bytes())?;
                let answered = |seen: &[u8]| text(seen).contains(&format!("it is 4{n}\r\n"));
                terminal.until(answered)?;
                onlooker.until(answered)?;
            }
            let mut terminal = cri.attach(request)?;
            terminal.send(b"exit 6\n")?;
            same(&cri.wait(&id)?, &6)?;
            // The end reaches all who are attached.
            terminal.exit()?;
            onlooker.exit().map(drop)
        })();
        pod.delete()?;
        result.with_context(|| format!("under {handler}"))?;
    }
    Ok(())
}

/// A probe's command that takes too long is ended, and what it started with it.
fn exec_ends_in_time(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    for handler in HANDLERS {
        let pod = cri.run_pod(
            handler,
            cri.pod_config("default", "probed-0", &format!("x-{handler}")),
        )?;
        let result = (|| {
            let id = pod.run("app", 0, &image, "sleep 1000")?;
            let since = Instant::now();
            let late = cri.call(
                cri.client().exec_sync(ExecSyncRequest {
                    container_id: id.clone(),
                    cmd: ["sh", "-c", "echo $$ > /pid; exec sleep 777"]
                        .map(str::to_owned)
                        .into(),
                    timeout: 1,
                }),
            );
            let told = late.err().map(|e| e.to_string()).unwrap_or_default();
            ensure!(
                told.starts_with("DeadlineExceeded") || told.contains("timeout"),
                "{told:?}"
            );
            ensure!(since.elapsed() >= Duration::from_secs(1), "{:?}", since.elapsed());
            until("the command's end", Duration::from_secs(10), || {
                cri.sh(&id, "! kill -0 $(cat /pid) 2>/dev/null").is_ok()
            })?;
            // The container goes on, and the next probe passes.
            same(&cri.exec(&id, &["true"])?.exit_code, &0)
        })();
        pod.delete()?;
        result.with_context(|| format!("under {handler}"))?;
    }
    Ok(())
}

/// What a kubelet with `EventedPLEG` goes by.
fn events_in_order(d: &Daemon) -> Result<()> {
    use ContainerEventType::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
        ContainerStoppedEvent as Stopped,
    };
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    let events = cri.events();
    let types = |id: &str| -> Vec<ContainerEventType> {
        events.of(id).iter().map(|e| e.container_event_type()).collect()
    };
    let mut of_sandboxes = Vec::new();
    for handler in HANDLERS {
        let pod = cri.run_pod(
            handler,
            cri.pod_config("default", "told-0", &format!("v-{handler}")),
        )?;
        let sandbox = pod.id.clone();
        // One ends by itself, one is killed.
        let ends = pod.run("ends", 0, &image, "exit 5")?;
        same(&cri.wait(&ends)?, &5)?;
        let stays = pod.run("stays", 0, &image, "sleep 1000")?;
        cri.stop(&stays, 0)?;
        cri.remove(&stays)?;
        pod.delete()?;
        if let Some(end) = events.end() {
            ensure!(d.version == "1.6", "{end}");
            println!("skipped containerd-1.6::cri::events_in_order: {}", end.message());
            return Ok(());
        }
        for (id, code) in [(&ends, 5), (&stays, 137)] {
            until("all events", Duration::from_secs(20), || {
                types(id).last() == Some(&Deleted)
            })
            .with_context(|| format!("{handler}: {:?}", types(id)))?;
            same(&types(id), &vec![Created, Started, Stopped, Deleted])
                .with_context(|| format!("under {handler}"))?;
            let all = events.of(id);
            let times: Vec<i64> = all.iter().map(|e| e.created_at).collect();
            ensure!(times.is_sorted() && times[0] > 0, "{times:?}");
            let stopped = all.iter().find(|e| e.container_event_type() == Stopped);
            let status = stopped.and_then(|e| e.containers_statuses.iter().find(|s| &s.id == id));
            same(&status.map(|s| s.exit_code), &Some(code)).with_context(|| format!("under {handler}"))?;
        }
        until("the sandbox's events", Duration::from_secs(20), || {
            types(&sandbox).last() == Some(&Deleted)
        })
        .with_context(|| format!("{handler}: {:?}", types(&sandbox)))?;
        of_sandboxes.push(types(&sandbox));
    }
    same(&of_sandboxes[1], &of_sandboxes[0])
}

/// One life of a pod's container: what its script printed.
fn life(cri: &Cri<'_>, handler: &str, config: PodSandboxConfig, image: &str, script: &str) -> Result<String> {
    let pod = cri.run_pod(handler, config)?;
    let out = pod
        .run("app", 0, image, "sleep 1000")
        .and_then(|id| cri.sh(&id, script));
    pod.delete()?;
    out
}

fn handlers_with_a_configuration_of_their_own(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    let (options, own) = (d.folder().join("options.toml"), d.folder().join("handler.toml"));
    fs::write(&options, format!("DiffkeeperConfig = {own:?}\n"))?;
    let _ = fs::remove_file(&own);
    let run = |handler: &str, life_of: &str, script: &str| {
        let uid = format!("{handler}-{life_of}");
        life(
            &cri,
            handler,
            cri.pod_config("default", handler, &uid),
            &image,
            script,
        )
    };
    // containerd 1.6 hands on nothing of the table but the path of a file.
    let handlers = match d.version.as_str() {
        "1.6" => &["diffkeeper-file"][..],
        _ => &["diffkeeper-file", "diffkeeper-inline"],
    };
    for handler in handlers {
        // A file that somebody named and that is not there is no reason to go by another.
        let told = run(handler, "none", "true")
            .err()
            .map(|e| format!("{e:#}"))
            .unwrap_or_default();
        ensure!(true, "{handler}: {told:?}");
    }
    fs::write(
        &own,
        format!(
            "root = {:?}\nstart-keeper = false\npaths = [\"/srv/app\"]\n",
            d.folder().join("diffkeeper")
        ),
    )?;
    let write = "echo x > /srv/app/x; echo y > /y";
    let read = "cat /srv/app/x /y 2>/dev/null || true";
    for handler in handlers {
        run(handler, "1", write)?;
        same(&run(handler, "2", read)?, &"x\n".into()).with_context(|| (*handler).to_owned())?;
        let roots = d.live().join("k8s/default").join(handler).join("app/roots");
        ensure!(roots.join("path@srv@app").is_dir() && !roots.join("rootfs").exists());
    }
    // The handler beside them goes by the machine's.
    run("diffkeeper", "1", &format!("mkdir -p /srv/app; {write}"))?;
    same(&run("diffkeeper", "2", read)?, &"x\ny\n".into())?;
    fs::write(&own, "path = []\n")?;
    let told = run("diffkeeper-file", "typo", "true")
        .err()
        .map(|e| format!("{e:#}"))
        .unwrap_or_default();
    ensure!(
        told.contains("handler.toml") && told.contains("line 1"),
        "{told:?}"
    );
    // An option that nobody knows, in the file that the handler names.
    fs::write(&options, "DiffkeeperConfi = \"/etc/other.toml\"\n")?;
    let told = run("diffkeeper-file", "option", "true")
        .err()
        .map(|e| format!("{e:#}"))
        .unwrap_or_default();
    ensure!(told.contains("DiffkeeperConfi"), "{told:?}");
    Ok(())
}

/// A state of the Kubernetes namespace `victim`, and what there is to see of it.
struct Victim {
    tree: PathBuf,
    upper: PathBuf,
    before: Vec<String>,
}

impl Victim {
    fn new(d: &Daemon, cri: &Cri<'_>, image: &str) -> Result<Victim> {
        let config = cri.pod_config("victim", "db-0", "victim");
        // Empty ones are what is easiest taken for a leftover.
        let script = "rm -rf /*.d /secret; echo secret > /secret; mkdir -p /empty.d /full.d; : > /empty; echo x > /full.d/x";
        life(cri, "diffkeeper", config, image, script)?;
        let tree = d.live().join("k8s/victim");
        let mut victim = Victim {
            upper: tree.join("db-0/app/roots/rootfs/upper"),
            tree,
            before: Vec::new(),
        };
        ensure!(victim.upper.join("secret").is_file());
        victim.before = victim.look()?;
        Ok(victim)
    }

    /// All that is there, with what can be told of each without reading it.
    fn look(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut todo = vec![self.tree.clone()];
        while let Some(path) = todo.pop() {
            let meta = fs::symlink_metadata(&path)?;
            let looks = (
                meta.mode(),
                meta.uid(),
                meta.len(),
                meta.mtime(),
                meta.ctime_nsec(),
            );
            found.push(format!("{} {looks:?}", path.display()));
            if meta.is_dir() {
                let entries = fs::read_dir(&path)?.map(|entry| entry.map(|e| e.path()));
                todo.extend(entries.collect::<Result<Vec<_>, _>>()?);
            }
        }
        found.sort();
        Ok(found)
    }

    fn is_as_before(&self) -> Result<()> {
        let now = self.look()?;
        let new: Vec<_> = now.iter().filter(|line| !self.before.contains(line)).collect();
        ensure!(
            now == self.before,
            "the neighbour's tree is another: {new:?} is new of {now:?}"
        );
        Ok(())
    }
}

/// Somebody in another namespace.
#[derive(Clone)]
struct Attacker<'a> {
    handler: &'a str,
    namespace: String,
    pod: String,
    container: String,
    on_pod: Vec<(String, String)>,
    on_container: Vec<(String, String)>,
    image: &'a str,
}

impl<'a> Attacker<'a> {
    fn new(image: &'a str) -> Attacker<'a> {
        Attacker {
            handler: "diffkeeper",
            namespace: "attacker".into(),
            pod: "web".into(),
            container: "app".into(),
            on_pod: Vec::new(),
            on_container: Vec::new(),
            image,
        }
    }

    fn saying(&self, key: &str, value: &str) -> Attacker<'a> {
        let mut other = self.clone();
        other.on_pod.push((key.into(), value.into()));
        other
    }

    /// Runs, with an environment and labels that name the victim, and answers with what it finds.
    fn sees(&self, cri: &Cri<'_>, uid: &str) -> Result<String> {
        let mut config = cri.pod_config(&self.namespace, &self.pod, uid);
        config.annotations.extend(self.on_pod.iter().cloned());
        // Of labels containerd takes 4 KiB.
        let labels = self.on_pod.iter().filter(|(_, value)| value.len() < 1000);
        config.labels.extend(labels.cloned());
        let pod = cri.run_pod(self.handler, config)?;
        let seen = (|| {
            let mut config = pod.container_config(&self.container, 0, self.image, "sleep 1000");
            config.log_path = "log".into();
            config.annotations.extend(self.on_container.iter().cloned());
            config.labels.extend(self.on_container.iter().cloned());
            let env = |value: &str| KeyValue {
                key: "DIFFKEEPER_STATE".into(),
                value: value.into(),
            };
            config.envs = vec![env("k8s/victim/db-0/app"), env("db-0")];
            let id = pod.create(config)?;
            cri.start(&id)?;
            cri.sh(&id, "cat /secret 2>/dev/null || echo none")
        })();
        pod.delete()?;
        seen
    }
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// Names of every kind on pod, container, sandbox and image, under a handler that hands on everything, with a
/// configuration that believes the environment.
fn no_word_leads_to_a_neighbour(d: &Daemon) -> Result<()> {
    const STATE: &str = "diffkeeper.io/state";
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    let hostile = d.import_into(NAMESPACE, "hostile")?;
    let victim = Victim::new(d, &cri, &image)?;
    let plain = Attacker::new(&image);
    let namespaces = || -> Result<Vec<String>> {
        let entries = fs::read_dir(d.live().join("k8s"))?.flatten();
        Ok(entries
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect())
    };
    let places = namespaces()?;
    let mut count = 0;
    let mut uid = || {
        count += 1;
        format!("word-{count}")
    };

    let forged = pairs(&[
        ("io.kubernetes.cri.container-type", "container"),
        ("io.kubernetes.cri.sandbox-namespace", "victim"),
        ("io.kubernetes.cri.sandbox-name", "db-0"),
        ("io.kubernetes.cri.container-name", "app"),
        ("io.kubernetes.cri.sandbox-uid", "victim"),
        ("io.kubernetes.pod.namespace", "victim"),
    ]);
    let wide = Attacker {
        handler: "diffkeeper-wide",
        ..plain.clone()
    };
    // What is allowed gives a state of one's own, which holds nothing of the neighbour's.
    let own = [
        plain.saying(STATE, "db-0"),
        plain.saying("diffkeeper.io/state.app", "db-0"),
        plain.saying("diffkeeper.io/state.db", "db-0"),
        plain.saying(STATE, "..."),
        plain.saying(STATE, "-rf"),
        plain.saying(STATE, "db-0.before-1"),
        // What live trees and their leases are made of is no less a name.
        plain.saying(STATE, "roots"),
        plain.saying(STATE, "state.json"),
        plain.saying(STATE, "lock"),
        Attacker {
            container: "roots".into(),
            ..plain.saying(STATE, "holder.json")
        },
        Attacker {
            namespace: "Victim".into(),
            pod: "db-0".into(),
            ..plain.clone()
        },
        Attacker {
            namespace: "victim.".into(),
            pod: "db-0".into(),
            ..plain.clone()
        },
        Attacker {
            image: &hostile,
            ..plain.clone()
        },
        Attacker {
            on_pod: forged.clone(),
            on_container: forged.clone(),
            ..wide.clone()
        },
        Attacker {
            on_container: forged.clone(),
            pod: "db-0".into(),
            ..wide.clone()
        },
        Attacker {
            on_container: pairs(&[(STATE, "db-0"), ("diffkeeper.io/state.app", "db-0")]),
            ..wide.clone()
        },
        Attacker {
            on_container: pairs(&[("io.kubernetes.cri.container-type", "sandbox")]),
            ..wide.clone()
        },
    ];
    let kept = fs::read_to_string(d.config())?;
    fs::write(d.config(), format!("{kept}allow-env-state = true\n"))?;
    let seen: Result<Vec<_>> = own
        .iter()
        .map(|attacker| {
            let seen = attacker.sees(&cri, &uid());
            seen.with_context(|| format!("{:?} {:?}", attacker.on_pod, attacker.on_container))
        })
        .collect();
    fs::write(d.config(), kept)?;
    for (attacker, seen) in own.iter().zip(seen?) {
        same(&seen, &"none\n".into())
            .with_context(|| format!("{:?} {:?}", attacker.on_pod, attacker.on_container))?;
    }
    victim.is_as_before()?;

    // All else is refused.
    let long = "x".repeat(129);
    let huge = "../victim/".repeat(6000);
    let words = [
        "",
        ".",
        "..",
        "./db-0",
        "db-0/",
        "/",
        "/db-0",
        "../victim/db-0",
        "victim/db-0",
        "k8s/victim/db-0/app",
        "/k8s/victim/db-0",
        "..%2fvictim%2fdb-0",
        "%2e%2e",
        "..\\victim\\db-0",
        "\u{ff0e}\u{ff0e}\u{ff0f}victim",
        "\u{2025}",
        "db\u{2010}0",
        "db-0\0",
        "\0",
        "db-0\0/../..",
        "db-0\n",
        "\ndb-0",
        " db-0",
        "db-0 ",
        "db-0,none",
        "*",
        "~",
        "db-0@head",
        "$HOME",
        "victim:db-0",
        &long,
        &huge,
    ];
    let mut bad: Vec<Attacker<'_>> = words.iter().map(|word| plain.saying(STATE, word)).collect();
    bad.extend(
        ["../../victim/db-0", "..", "", "db-0\0"].map(|word| plain.saying("diffkeeper.io/state.app", word)),
    );
    for (key, value) in [
        ("from", "k8s/victim/db-0/app"),
        ("from", "../victim/db-0"),
        ("restore", "k8s/victim/db-0/app@head"),
        ("paths", "/../victim"),
        ("paths", "/a\0b"),
        ("exclude", "/../../../../victim"),
        ("include-mounts", "/../../victim"),
        ("State", "db-0"),
    ] {
        bad.push(plain.saying(&format!("diffkeeper.io/{key}"), value));
    }
    // A kubelet would not say these; the shim does not rely on that.
    for word in [
        "..",
        ".",
        "../../victim/db-0",
        "a/../../../victim/db-0/app",
        "app\0",
        "/app",
        "\u{ff0f}",
        &long,
    ] {
        bad.push(Attacker {
            container: word.into(),
            ..plain.clone()
        });
    }
    for word in ["..", "../victim/db-0", "victim/db-0", "db-0\0", "/", &long] {
        bad.push(Attacker {
            pod: word.into(),
            ..plain.clone()
        });
    }
    for word in [
        "..",
        ".",
        "attacker/../victim",
        "victim/",
        "/victim",
        "victim\0",
        "../k8s/victim",
        &long,
    ] {
        bad.push(Attacker {
            namespace: word.into(),
            pod: "db-0".into(),
            ..plain.clone()
        });
    }
    for attacker in &bad {
        let seen = attacker.sees(&cri, &uid());
        let Attacker {
            namespace,
            pod,
            container,
            on_pod,
            ..
        } = attacker;
        let told = seen.as_ref().err().map(|e| format!("{e:#}"));
        // What stands in the way is this shim's rule, wherever containerd has none of its own.
        let ours = |told: &String| on_pod.is_empty() || told.contains("diffkeeper.io/");
        let short = |text: String| text.chars().take(200).collect::<String>();
        ensure!(
            told.as_ref().is_some_and(ours),
            "{}: {}",
            short(format!("{namespace:.20} {pod:.20} {container:.20} {on_pod:?}")),
            short(format!("{seen:?}"))
        );
    }
    victim.is_as_before()?;
    let mut new = namespaces()?;
    new.retain(|name| !places.contains(name) && !["attacker", "Victim", "victim."].contains(&name.as_str()));
    ensure!(new.is_empty(), "{new:?}");
    // Whoever it belongs to does see it.
    let owner = Attacker {
        namespace: "victim".into(),
        pod: "db-0".into(),
        ..plain
    };
    same(&owner.sees(&cri, &uid())?, &"secret\n".into())?;
    let mode = fs::metadata(d.live())?.mode();
    ensure!(mode & 0o077 == 0, "the live trees are open to others: {mode:o}");
    Ok(())
}

fn mount(at: &str, from: &Path) -> Mount {
    Mount {
        container_path: at.into(),
        host_path: from.to_string_lossy().into_owned(),
        ..Mount::default()
    }
}

/// A container leaves links to its neighbour's tree, where the next life's mounts, kept and excluded paths go.
fn no_link_leads_to_a_neighbour(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    let volumes = d.import_into(NAMESPACE, "volumes")?;
    let victim = Victim::new(d, &cri, &image)?;
    let to = victim.upper.to_string_lossy().into_owned();
    let (dir, file) = (d.folder().join("mounted.d"), d.folder().join("mounted"));
    fs::create_dir_all(&dir)?;
    fs::write(&file, "mounted\n")?;
    let mut lives = 0;
    let mut run =
        |pod: &str, image: &str, said: &[(&str, &str)], mounts: &[Mount], script: &str| -> Result<String> {
            lives += 1;
            let mut config = cri.pod_config("attacker", pod, &format!("link-{lives}"));
            let said = said
                .iter()
                .map(|(k, v)| (format!("diffkeeper.io/{k}"), (*v).to_owned()));
            config.annotations.extend(said);
            let pod = cri.run_pod("diffkeeper", config)?;
            let seen = (|| {
                let mut config = pod.container_config("app", 0, image, "sleep 1000");
                config.mounts = mounts.to_vec();
                let id = pod.create(config)?;
                cri.start(&id)?;
                cri.sh(&id, script)
            })();
            pod.delete()?;
            victim.is_as_before()?;
            seen
        };
    let plant = format!(
        "mkdir -p /d; ln -s {to} /d/abs; ln -s ../../../../../../../../../../../..{to} /d/rel; ln -s {to} /srv"
    );
    let look = "cat /srv/secret /d/abs/secret /d/rel/secret 2>/dev/null || true";
    let within = |at: &str| {
        [
            mount(&format!("{at}/empty.d"), &dir),
            mount(&format!("{at}/empty"), &file),
            mount(&format!("{at}/full.d/new"), &dir),
        ]
    };
    // What is excluded is renamed and deleted; what is mounted on is made and removed.
    run("links", &image, &[], &[], &plant)?;
    for exclude in [
        "/srv/full.d,/srv/secret,/d/abs/empty.d,/d/rel/empty",
        "/srv,/d/abs,/d/rel",
    ] {
        same(
            &run("links", &image, &[("exclude", exclude)], &[], look)?,
            &String::new(),
        )?;
    }
    for at in ["/srv", "/d/abs", "/d/rel"] {
        same(&run("links", &image, &[], &within(at), look)?, &String::new())?;
    }
    // The way is changed under a mount that stands.
    let turn = format!("mv /late /before && ln -s {to} /late && test -d /before/empty.d");
    run("turned", &image, &[], &within("/late"), &turn)?;
    run("turned", &image, &[], &[], "true")?;
    // A mount that is filled into the live tree, and an image's volume.
    let include = [("include-mounts", "/srv/empty.d")];
    run("included", &image, &[], &[], &plant)?;
    let filled = run(
        "included",
        &image,
        &include,
        &[mount("/srv/empty.d", &dir)],
        "echo x > /srv/empty.d/x",
    );
    ensure!(filled.is_err() || !dir.join("x").exists(), "{filled:?}");
    let turn = format!("mv /var/lib /var/before; ln -s {to} /var/lib");
    run("volume", &volumes, &[], &[], &turn)?;
    let _ = run("volume", &volumes, &[], &[], "echo x > /var/lib/data/x");
    // A kept path in which links lie, and one that leads through them.
    let paths = [("paths", "/d")];
    run("paths", &image, &paths, &[], &plant)?;
    for at in ["/d/abs", "/d/rel"] {
        same(&run("paths", &image, &paths, &within(at), look)?, &String::new())?;
        let _ = run(
            "paths",
            &image,
            &[("paths", &format!("{at}/full.d"))],
            &[],
            "echo x > /d/x",
        );
    }
    Ok(())
}

/// Nothing that the shim has open is passed on: not to a container's processes, and not by way of the working
/// directory that an image or a pod asks for.
fn no_descriptor_leads_to_a_neighbour(d: &Daemon) -> Result<()> {
    let cri = Cri::connect(d)?;
    let image = d.import_into(NAMESPACE, "busybox")?;
    let victim = Victim::new(d, &cri, &image)?;
    let open = "for fd in /proc/1/fd/* /proc/self/fd/*; do readlink $fd || true; done";
    let pod = cri.run_pod("diffkeeper", cri.pod_config("attacker", "open-0", "open"))?;
    let result = (|| {
        let id = pod.run("app", 0, &image, "sleep 1000")?;
        for line in cri.sh(&id, open)?.lines() {
            let harmless = ["pipe:[", "/dev/", "/proc/"]
                .iter()
                .any(|start| line.starts_with(start));
            ensure!(harmless, "{line}");
        }
        let way = format!(
            "../../../../../../../../../../../../../../../..{}/secret",
            victim.upper.display()
        );
        for fd in 3..20 {
            let name = format!("fd-{fd}");
            let script = format!("cat {way} 2>/dev/null || echo none; sleep 1000");
            let mut config = pod.container_config(&name, 0, &image, &script);
            config.working_dir = format!("/proc/self/fd/{fd}");
            let id = pod.create(config)?;
            // Newer runtimes refuse it at once.
            if cri.start(&id).is_err() {
                continue;
            }
            until("its word", Duration::from_secs(20), || {
                pod.log(&name, 0).is_ok_and(|log| log.contains("stdout F "))
            })?;
            let log = pod.log(&name, 0)?;
            ensure!(
                log.contains("stdout F none") && !log.contains("secret"),
                "{fd}: {log}"
            );
        }
        Ok(())
    })();
    pod.delete()?;
    result
}
