//! What a life writes, the next one finds.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use integration::{Daemon, OURS};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    (
        "keeps::everything_a_file_system_can_hold",
        everything_a_file_system_can_hold,
    ),
    (
        "keeps::on_any_snapshotter_and_image",
        on_any_snapshotter_and_image,
    ),
    ("keeps::read_only_and_rootfs", read_only_and_rootfs),
    ("keeps::excluded_paths_start_fresh", excluded_paths_start_fresh),
    ("keeps::one_writer_at_a_time", one_writer_at_a_time),
    ("keeps::of_racing_creates_one_wins", of_racing_creates_one_wins),
    ("keeps::the_lease_is_waited_for", the_lease_is_waited_for),
    ("keeps::placeholders_go", placeholders_go),
    (
        "keeps::a_leaked_mount_harms_nothing",
        a_leaked_mount_harms_nothing,
    ),
    (
        "keeps::owners_under_any_user_namespace",
        owners_under_any_user_namespace,
    ),
    ("keeps::image_upgrades", image_upgrades),
    (
        "keeps::a_broken_container_is_healed",
        a_broken_container_is_healed,
    ),
    ("keeps::other_configurations", other_configurations),
    ("keeps::doctor_finds_what_is_wrong", doctor_finds_what_is_wrong),
    ("keeps::states_rm_and_prune", states_rm_and_prune),
];

/// Runs a script in a container that is removed with its snapshot afterwards.
fn life(d: &Daemon, image: &str, name: &str, more: &[&str], script: &str) -> Result<String> {
    let mut line = vec!["run", "--rm", "--runtime", OURS];
    line.extend_from_slice(more);
    // The tools image's sh is busybox, whose own small tools come before the real ones.
    let shell = if image.contains("tools") { "bash" } else { "sh" };
    line.extend_from_slice(&[image, name, shell, "-c", script]);
    d.ctr(&line)?.ok()
}

pub const WRITE: &str = r#"set -e
mkdir -p /w/dir/sub && cd /w
echo new > file; chown 1234:5678 file; chmod 4751 file
touch -d '2001-02-03 04:05:06.123456789 UTC' file
ln file hard; ln -s ../target link
mkfifo fifo; mknod chr c 1 3; mknod blk b 7 0
truncate -s 10M sparse; echo end >> sparse
printf x > "$(printf 'not-utf8-\377')"
setfattr -n user.note -v value file
setfacl -m u:77:rw file
cp /bin/true caps; setcap cap_net_raw+ep caps
echo changed >> /etc/passwd
rm /etc/hostname.kept 2>/dev/null || true
rm -f /usr/bin/tac
rm -rf /usr/share/doc && mkdir /usr/share/doc && echo mine > /usr/share/doc/only
mkdir -p /w/old/below && echo moved > /w/old/below/f && mv /w/old /w/renamed
chmod 700 /opt 2>/dev/null || mkdir -m 700 /opt
"#;

pub const LIST: &str = r#"set +e; cd /w
find . | LC_ALL=C sort | while IFS= read -r f; do stat -c '%n %F %a %u:%g %s %h %t:%T %Y' "$f" 2>/dev/null; done
stat -c '%y' file; cat file; readlink link
stat -c '%b' sparse; tail -c4 sparse
ls -1b | grep not-utf8
getfattr -d file; getfacl -c file; getcap caps
tail -1 /etc/passwd; ls /usr/bin/tac 2>&1; ls /usr/share/doc; cat /w/renamed/below/f; stat -c %a /opt
[ file -ef hard ] && echo same inode
"#;

fn everything_a_file_system_can_hold(d: &Daemon) -> Result<()> {
    let image = d.import("tools")?;
    let first = life(d, &image, "all", &[], &format!("{WRITE}{LIST}"))?;
    for expected in [
        "same inode",
        "cap_net_raw",
        "user.note",
        "user:77:rw",
        "not-utf8-\\377",
        "123456789",
        "only",
        "moved",
    ] {
        ensure!(
            first.contains(expected),
            "{expected:?} is missing in the first life already: {first}"
        );
    }
    let second = life(d, &image, "all", &[], LIST)?;
    ensure!(first == second, "first life:\n{first}\nsecond life:\n{second}");
    ensure!(
        second.contains("No such file"),
        "a deleted file of the image came back"
    );
    Ok(())
}

fn on_any_snapshotter_and_image(d: &Daemon) -> Result<()> {
    for name in ["layers-1", "layers-2", "layers-120"] {
        let image = d.import(name)?;
        life(
            d,
            &image,
            &format!("any-{name}"),
            &[],
            "echo kept > /kept; rm -f /bin/ls",
        )?;
        let seen = life(
            d,
            &image,
            &format!("any-{name}"),
            &[],
            "cat /kept; [ -e /bin/ls ] || echo gone",
        )?;
        ensure!(seen == "kept\ngone\n", "{name}: {seen}");
    }
    let image = d.import("busybox")?;
    for expected in ["", "kept\n"] {
        let seen = life(
            d,
            &image,
            "any-native",
            &["--snapshotter", "native"],
            "cat /kept 2>/dev/null; echo kept > /kept",
        )?;
        ensure!(seen == expected, "native: {seen}");
    }
    Ok(())
}

fn read_only_and_rootfs(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    life(d, &image, "ro", &[], "echo kept > /kept")?;
    let seen = life(
        d,
        &image,
        "ro",
        &["--read-only"],
        "cat /kept; echo x > /no 2>/dev/null || echo refused",
    )?;
    ensure!(seen == "kept\nrefused\n", "{seen}");

    // A directory of the client's own, here an image's snapshot mounted by hand.
    let root = d.folder().join("own-root");
    fs::create_dir_all(&root)?;
    d.ctr(&["images", "mount", "--rw", &image, &root.to_string_lossy()])?
        .ok()?;
    let at = root.to_string_lossy().into_owned();
    for expected in ["", "kept\n"] {
        let script = "cat /kept 2>/dev/null; echo kept > /kept";
        let seen = d
            .ctr(&[
                "run",
                "--rm",
                "--runtime",
                OURS,
                "--rootfs",
                &at,
                "own-root",
                "/bin/sh",
                "-c",
                script,
            ])?
            .ok()?;
        ensure!(seen == expected, "{seen}");
    }
    let written = root.join("kept").exists();
    d.ctr(&["images", "unmount", &root.to_string_lossy()])?;
    ensure!(!written, "the directory itself was written to");
    Ok(())
}

fn excluded_paths_start_fresh(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let name = ["--annotation", "diffkeeper.io/state=fresh"];
    let look = "ls /tmp/a /run/b /kept 2>/dev/null || true";
    life(
        d,
        &image,
        "fr1",
        &name,
        "mkdir -p /tmp /run; touch /tmp/a /run/b /kept",
    )?;
    let seen = life(d, &image, "fr2", &name, &format!("{look}; touch /tmp/a"))?;
    ensure!(seen == "/kept\n", "{seen}");
    let own = [name[0], name[1], "--annotation", "diffkeeper.io/exclude=/kept"];
    let seen = life(d, &image, "fr3", &own, look)?;
    ensure!(seen == "/tmp/a\n", "{seen}");

    // The same container again keeps them.
    d.ctr(&[
        "run",
        "-d",
        "--runtime",
        OURS,
        &image,
        "fr4",
        "sh",
        "-c",
        "ls /tmp/a; touch /tmp/a; sleep 100",
    ])?
    .ok()?;
    d.ctr(&["task", "rm", "-f", "fr4"])?;
    ensure!(d.upper("fr4").join("tmp/a").exists());
    d.ctr(&["task", "start", "-d", "fr4"])?.ok()?;
    ensure!(d.upper("fr4").join("tmp/a").exists());
    d.forget("fr4")
}

fn one_writer_at_a_time(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let name = "diffkeeper.io/state=shared";
    d.ctr(&[
        "run",
        "-d",
        "--runtime",
        OURS,
        "--annotation",
        name,
        &image,
        "w1",
        "sleep",
        "100",
    ])?
    .ok()?;
    let second = d.ctr(&[
        "run",
        "-d",
        "--runtime",
        OURS,
        "--annotation",
        name,
        &image,
        "w2",
        "sleep",
        "100",
    ])?;
    second.fails_with(&["/shared", "w1", d.namespace(), "diffkeeper.io/state"])?;
    let states: serde_json::Value = serde_json::from_str(&d.diffkeeper(&["states", "--json"])?.ok()?)?;
    let holder = states
        .as_array()
        .into_iter()
        .flatten()
        .find(|s| s["name"].as_str().is_some_and(|n| n.ends_with("/shared")));
    ensure!(
        holder.is_some_and(|s| s["in_use_by"]["container"] == "w1"),
        "{states}"
    );
    d.diffkeeper(&["rm", "--yes", "shared"])?
        .fails_with(&["in use", "w1"])?;
    d.forget("w2")?;
    d.forget("w1")?;
    life(d, &image, "w3", &["--annotation", name], "true").map(drop)
}

fn of_racing_creates_one_wins(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let racers = if crate::soak() { 50 } else { 12 };
    let names: Vec<String> = (0..racers).map(|n| format!("race{n}")).collect();
    let mut started = Vec::new();
    for name in &names {
        let args = [
            "run",
            "-d",
            "--runtime",
            OURS,
            "--annotation",
            "diffkeeper.io/state=race",
            &image,
            name,
            "sleep",
            "100",
        ];
        started.push(
            d.command("ctr", &args)
                .stderr(std::process::Stdio::null())
                .spawn()?,
        );
    }
    let mut won = 0;
    for mut child in started {
        won += usize::from(child.wait()?.success());
    }
    for name in &names {
        d.forget(name)?;
    }
    ensure!(won == 1, "{won} of {racers} won");
    Ok(())
}

fn the_lease_is_waited_for(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let name = "diffkeeper.io/state=waited";
    d.ctr(&[
        "run",
        "-d",
        "--runtime",
        OURS,
        "--annotation",
        name,
        &image,
        "lw1",
        "sleep",
        "100",
    ])?
    .ok()?;
    let wait = [
        "--annotation",
        name,
        "--annotation",
        "diffkeeper.io/lease-wait=20s",
    ];
    let mut second = d
        .command(
            "ctr",
            &[
                "run",
                "--rm",
                "--runtime",
                OURS,
                wait[0],
                wait[1],
                wait[2],
                wait[3],
                &image,
                "lw2",
                "true",
            ],
        )
        .spawn()?;
    std::thread::sleep(std::time::Duration::from_millis(700));
    ensure!(second.try_wait()?.is_none(), "it did not wait");
    d.forget("lw1")?;
    ensure!(second.wait()?.success());
    Ok(())
}

fn placeholders_go(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let (file, dir) = (d.folder().join("bound-file"), d.folder().join("bound-dir"));
    fs::write(&file, "bound")?;
    fs::create_dir_all(dir.join("inside"))?;
    let mount = |source: &Path| {
        format!(
            "type=bind,src={},dst=/opt/app/place,options=rbind:ro",
            source.display()
        )
    };
    ensure!(life(d, &image, "ph", &["--mount", &mount(&file)], "cat /opt/app/place")? == "bound");
    ensure!(
        !d.upper("ph").join("opt").exists(),
        "the runtime's placeholder was kept"
    );
    ensure!(life(d, &image, "ph", &["--mount", &mount(&dir)], "ls /opt/app/place")? == "inside\n");
    ensure!(!d.upper("ph").join("opt").exists());
    // What a life itself leaves in the way is set aside, and the container starts.
    life(
        d,
        &image,
        "ph",
        &[],
        "mkdir -p /opt/app; echo mine > /opt/app/place; rmdir /proc 2>/dev/null; true",
    )?;
    ensure!(life(d, &image, "ph", &["--mount", &mount(&dir)], "ls /opt/app/place")? == "inside\n");
    let state = d.upper("ph").join("../../..");
    let aside = fs::read_dir(state.join("aside"))?.count();
    ensure!(aside == 1, "{aside} times set aside");
    Ok(())
}

fn a_leaked_mount_harms_nothing(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    d.ctr(&[
        "run",
        "-d",
        "--runtime",
        OURS,
        &image,
        "leak",
        "sh",
        "-c",
        "echo kept > /kept; sleep 100",
    ])?
    .ok()?;
    let rootfs = d.mounts()?.into_iter().find(|m| m.ends_with("/leak/rootfs"));
    let rootfs = rootfs.ok_or_else(|| anyhow::anyhow!("no mount of the container"))?;
    let elsewhere = d.folder().join("elsewhere");
    fs::create_dir_all(&elsewhere)?;
    let bind = |args: &[&std::ffi::OsStr]| std::process::Command::new("mount").args(args).status();
    bind(&["--bind".as_ref(), rootfs.as_ref(), elsewhere.as_os_str()])?;
    d.forget("leak")?;
    ensure!(fs::read_to_string(d.upper("leak").join("kept"))? == "kept\n");
    // While it stands the kernel says so, and nobody writes beside it.
    let refused = d.ctr(&["run", "--rm", "--runtime", OURS, &image, "leak", "true"])?;
    std::process::Command::new("umount").arg(&elsewhere).status()?;
    refused.fails_with(&["still mounted"])?;
    d.forget("leak")?;
    ensure!(life(d, &image, "leak", &[], "cat /kept")? == "kept\n");
    Ok(())
}

fn owners_under_any_user_namespace(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let list = "stat -c '%n %u:%g' /mine /theirs / 2>/dev/null";
    let range = |base: &str| [format!("0:{base}:65536"), format!("0:{base}:65536")];
    let mut seen = Vec::new();
    for base in ["100000", "300000"] {
        let [uids, gids] = range(base);
        let more = [
            "--annotation",
            "diffkeeper.io/state=ranges",
            "--uidmap",
            &uids,
            "--gidmap",
            &gids,
        ];
        let script = format!("[ -e /mine ] || {{ touch /mine /theirs; chown 33:44 /theirs; }}; {list}");
        let mut line = vec!["run", "--rm", "--runtime", OURS];
        line.extend_from_slice(&more);
        let name = format!("range{base}");
        line.extend_from_slice(&[&image, &name, "sh", "-c", &script]);
        let ran = d.ctr(&line)?;
        if ran.status != 0
            && (ran.err.contains("flag provided but not defined") || ran.err.contains("not supported"))
        {
            println!(
                "skipped containerd-{}::keeps::owners_under_any_user_namespace: {}",
                d.version,
                ran.err.trim()
            );
            return Ok(());
        }
        seen.push(ran.ok()?);
    }
    ensure!(
        seen.first() == seen.last()
            && seen
                .first()
                .is_some_and(|s| s.contains("/mine 0:0\n/theirs 33:44\n")),
        "{seen:?}"
    );
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(d.upper("ranges").join("theirs"))?);
    ensure!(owner == 33, "on disk are the container's ids, not {owner}");
    Ok(())
}

fn states_rm_and_prune(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    life(
        d,
        &image,
        "sr1",
        &["--annotation", "diffkeeper.io/reclaim=0s"],
        "echo x > /x",
    )?;
    life(d, &image, "sr2", &[], "echo x > /x")?;
    life(
        d,
        &image,
        "sr3",
        &["--annotation", "diffkeeper.io/reclaim=delete"],
        "echo x > /x",
    )?;
    ensure!(!d.upper("sr3").exists(), "reclaim=delete kept it");
    let listed = d.diffkeeper(&["states"])?.ok()?;
    ensure!(
        listed.contains("/sr1") && listed.contains("/sr2") && !listed.contains("/sr3"),
        "{listed}"
    );
    let would = d.diffkeeper(&["prune", "--dry-run"])?.ok()?;
    ensure!(
        would.contains("/sr1") && !would.contains("/sr2") && d.upper("sr1").exists(),
        "{would}"
    );
    d.diffkeeper(&["prune"])?.ok()?;
    ensure!(!d.upper("sr1").exists() && d.upper("sr2").exists());
    d.diffkeeper(&["rm", "sr2"])?.fails_with(&["--yes"])?;
    d.diffkeeper(&["rm", "--yes", "sr2"])?.ok()?;
    ensure!(!d.upper("sr2").exists());
    d.diffkeeper(&["rm", "--yes", "sr2"])?.fails_with(&["no state"])
}

fn image_upgrades(d: &Daemon) -> Result<()> {
    let (old, new) = (d.import("upgrade-1")?, d.import("upgrade-2")?);
    let state = |name: &str| format!("diffkeeper.io/state={name}");
    let change = |what: &str| format!("diffkeeper.io/on-image-change={what}");
    let run = |image: &str, name: &str, what: &str, script: &str| {
        let (state, change) = (state(name), change(what));
        let more = ["--annotation", state.as_str(), "--annotation", change.as_str()];
        life(d, image, "upgraded", &more, script)
    };
    let write = "echo mine > /app/changed-by-user; echo new > /app/written; echo into > /app/becomes-file/added; echo over > /app/becomes-directory";
    let list = "cd /app; for f in $(find . -type f | sort); do echo $f: $(cat $f); done";

    // What the container wrote wins, everything else comes from the new image.
    run(&old, "upgrade-keep", "keep", write)?;
    let seen = run(&new, "upgrade-keep", "keep", list)?;
    let expected = "./appears: new\n./becomes-directory: over\n./becomes-file/added: into\n./changed-by-user: mine\n./version: version 2\n./written: new\n";
    ensure!(seen == expected, "{seen}");
    // And back.
    let seen = run(
        &old,
        "upgrade-keep",
        "keep",
        "cat /app/version /app/more /app/vanishes /app/changed-by-user; ls /app/becomes-file",
    )?;
    ensure!(seen == "version 1\nmore\nold\nmine\nadded\nin\n", "{seen}");

    // The old live tree is set aside under a name of its own.
    run(&old, "upgrade-fresh", "fresh", write)?;
    ensure!(run(&old, "upgrade-fresh", "fresh", "cat /app/changed-by-user")? == "mine\n");
    let seen = run(
        &new,
        "upgrade-fresh",
        "fresh",
        "cat /app/changed-by-user; ls /app/written 2>/dev/null || echo fresh",
    )?;
    ensure!(seen == "version 2\nfresh\n", "{seen}");
    let listed = d.diffkeeper(&["states"])?.ok()?;
    let aside = listed
        .split_whitespace()
        .find(|word| word.contains("/upgrade-fresh.before-"));
    let aside = aside
        .and_then(|name| name.rsplit('/').next())
        .with_context(|| format!("it is not listed: {listed}"))?;
    ensure!(run(&old, aside, "keep", "cat /app/changed-by-user")? == "mine\n");

    // Both digests are said, and nothing is lost.
    run(&old, "upgrade-refuse", "refuse", write)?;
    let told = run(&new, "upgrade-refuse", "refuse", "true")
        .err()
        .map(|e| format!("{e:#}"))
        .unwrap_or_default();
    d.forget("upgraded")?;
    ensure!(
        told.matches("sha256:").count() == 2 && told.contains("upgrade-refuse"),
        "{told}"
    );
    ensure!(run(&old, "upgrade-refuse", "refuse", "cat /app/changed-by-user")? == "mine\n");
    // The same image unpacked anew is the same image.
    d.ctr(&["images", "rm", "--sync", &old])?.ok()?;
    ensure!(d.import("upgrade-1")? == old);
    ensure!(run(&old, "upgrade-refuse", "refuse", "cat /app/changed-by-user")? == "mine\n");
    Ok(())
}

fn a_broken_container_is_healed(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let after = [
        "--annotation",
        "diffkeeper.io/after-crashes=3",
        "--annotation",
        "diffkeeper.io/state=heals",
    ];
    let run = |script: &str| life(d, &image, "healing", &after, script);
    ensure!(run("echo precious > /data; test ! -e /broken || exit 1; echo up").is_ok());
    run("touch /broken")?;
    let start = "test ! -e /broken || exit 1; cat /data 2>/dev/null || echo fresh";
    ensure!(run(start).is_err() && run(start).is_err());
    // One that comes up ends the row.
    run("cat /data")?;
    for _ in 0..3 {
        ensure!(run(start).is_err());
    }
    ensure!(run(start)? == "fresh\n");
    let listed = d.diffkeeper(&["states"])?.ok()?;
    let aside = listed
        .split_whitespace()
        .find(|word| word.contains("/heals.before-"));
    let aside = aside
        .and_then(|name| name.rsplit('/').next())
        .with_context(|| format!("it is not listed: {listed}"))?;
    let state = format!("diffkeeper.io/state={aside}");
    ensure!(life(d, &image, "healing", &["--annotation", &state], "cat /data")? == "precious\n");
    // What somebody ended did not fail, and one that cannot even be started did.
    let broken = [
        "--annotation",
        "diffkeeper.io/after-crashes=2",
        "--annotation",
        "diffkeeper.io/state=unstartable",
    ];
    life(d, &image, "healing", &broken, "rm /bin/sh")?;
    for _ in 0..2 {
        ensure!(life(d, &image, "healing", &broken, "true").is_err());
        d.forget("healing")?;
    }
    life(d, &image, "healing", &broken, "true").map(drop)
}

/// Namespaces and handlers with a configuration of their own, and another runtime than runc.
fn other_configurations(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let kept = fs::read_to_string(d.config())?;
    let with = |text: &str, test: &dyn Fn() -> Result<()>| {
        fs::write(d.config(), text)?;
        let result = test();
        fs::write(d.config(), &kept)?;
        result
    };
    let own = format!("{kept}[namespaces.{:?}]\npaths = [\"/srv/app\"]\n", d.namespace());
    with(&own, &|| {
        life(d, &image, "conf", &[], "echo x > /srv/app/x; echo y > /y")?;
        ensure!(life(d, &image, "conf", &[], "cat /srv/app/x; test ! -e /y")? == "x\n");
        // The container's own annotation overrules.
        let all = ["--annotation", "diffkeeper.io/paths=all"];
        life(d, &image, "conf", &all, "echo z > /z")?;
        ensure!(life(d, &image, "conf", &all, "cat /z")? == "z\n");
        Ok(())
    })?;
    // A handler's options name another file.
    let (options, other) = (d.folder().join("handler.toml"), d.folder().join("other.toml"));
    fs::write(&options, format!("DiffkeeperConfig = {other:?}\n"))?;
    fs::write(&other, format!("{kept}exclude = [\"/scratch\"]\n"))?;
    let path = options.to_string_lossy().into_owned();
    let handler = [
        "--annotation",
        "diffkeeper.io/state=handled",
        "--runtime-config-path",
        path.as_str(),
    ];
    life(
        d,
        &image,
        "conf-first",
        &handler,
        "mkdir /scratch; echo s > /scratch/s; echo t > /tmp/t",
    )?;
    ensure!(
        life(
            d,
            &image,
            "conf-second",
            &handler,
            "ls /scratch 2>/dev/null; cat /tmp/t"
        )? == "t\n"
    );
    // The configured runtime is the one that is called.
    let script = d.folder().join("counting-runc");
    fs::write(
        &script,
        format!(
            "#!/bin/sh\necho $* >> {}\nexec runc \"$@\"\n",
            d.folder().join("calls").display()
        ),
    )?;
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    with(&format!("runtime = {script:?}\n{kept}"), &|| {
        life(d, &image, "conf-runtime", &[], "true")?;
        let calls = fs::read_to_string(d.folder().join("calls"))?;
        ensure!(
            calls.contains(" create ") && calls.contains(" delete "),
            "{calls}"
        );
        Ok(())
    })
}

fn doctor_finds_what_is_wrong(d: &Daemon) -> Result<()> {
    let ask = |address: &str| -> Result<(i32, serde_json::Value)> {
        let ran = d.diffkeeper(&["doctor", "--json", "--address", address])?;
        Ok((ran.status, serde_json::from_str(&ran.out)?))
    };
    let about = |findings: &serde_json::Value, verdict: &str| -> Vec<String> {
        let all = findings.as_array().into_iter().flatten();
        all.filter(|f| f["verdict"] == verdict)
            .map(ToString::to_string)
            .collect()
    };
    let socket = d.socket().to_string_lossy().into_owned();
    let (status, findings) = ask(&socket)?;
    ensure!(status == 0 && about(&findings, "error").is_empty(), "{findings}");
    let fine = about(&findings, "ok").join(" ");
    for word in [
        "kernel",
        "overlay",
        "runc",
        "containerd",
        "containerd-shim-diffkeeper-v1",
        "free",
    ] {
        ensure!(fine.contains(word), "no {word:?} in {findings}");
    }
    // What is wrong is said with what to do, and the exit status says so too.
    let kept = fs::read_to_string(d.config())?;
    fs::write(d.config(), "root = \"/proc/live\"\nnonsense = 1\n")?;
    let broken = ask(&socket);
    fs::write(d.config(), kept)?;
    let (status, findings) = broken?;
    let errors = about(&findings, "error").join(" ");
    ensure!(
        status != 0 && errors.contains("nonsense") && errors.contains("advice"),
        "{findings}"
    );
    let (_, findings) = ask("/no/such/socket")?;
    let told = [about(&findings, "warning"), about(&findings, "error")]
        .concat()
        .join(" ");
    ensure!(told.contains("/no/such/socket"), "{findings}");
    Ok(())
}
