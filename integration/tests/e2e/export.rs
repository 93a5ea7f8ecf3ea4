//! What leaves a history, and what enters one.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use integration::{Daemon, OURS, STOCK, daemon::run as run_command, history::Keeper};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("export::an_image_runs_anywhere", an_image_runs_anywhere),
    (
        "export::an_archive_is_whole_or_not_there",
        an_archive_is_whole_or_not_there,
    ),
    (
        "export::a_history_begins_from_outside",
        a_history_begins_from_outside,
    ),
];

/// What a container does to its image.
const WORK: &str = "echo written > /data; ln /data /second; ln -s /data /link; echo more >> /etc/group; \
     rm /etc/passwd /bin/vi; rm -r /home /usr/bin; mkdir /home /usr/bin; echo own > /usr/bin/own; chown 12:34 /data; \
     chmod 4711 /data; mkfifo /fifo; mknod /null c 1 3; dd if=/dev/urandom of=/long bs=64k count=20 2>/dev/null; \
     dd if=/dev/zero of=/sparse bs=1 count=1 seek=9999999 2>/dev/null; touch -d '2001-02-03 04:05:06' /long; \
     touch /bin/added";

/// What of it can be seen.
const LOOK: &str = "cd /; stat -c '%n %F %a %u %g %h %s' data second link fifo null sparse long etc/group; \
     stat -c '%n %F %a %u %g' home usr/bin etc; stat -c %Y long; cat data etc/group usr/bin/own; md5sum long sparse; \
     ls bin home usr/bin etc | md5sum; ls bin/vi etc/passwd 2>&1 | grep -c 'No such'";

fn container(d: &Daemon, runtime: &str, image: &str, name: &str, script: &str) -> Result<String> {
    Ok(d.ctr(&[
        "run",
        "--rm",
        "--runtime",
        runtime,
        image,
        name,
        "sh",
        "-c",
        script,
    ])?
    .ok()?
    .trim_end()
    .to_owned())
}

fn said(d: &Daemon, args: &[&str]) -> Result<String> {
    Ok(d.diffkeeper(args)?.ok()?.trim_end().to_owned())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn an_image_runs_anywhere(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let _keeper = Keeper::start(d, "interval = \"1h\"")?;
    container(d, OURS, &image, "leaves", WORK)?;
    let expected = container(d, OURS, &image, "leaves", LOOK)?;
    ensure!(
        expected.contains("data regular file 4711 12 34 2 8"),
        "{expected}"
    );
    said(d, &["commit", "leaves", "--tag", "now"])?;
    // Nobody knows the image any more: it is asked for. While its last container is there, that one's is taken.
    let name = "example.org/leaves:1";
    let export = |file: &str, more: &[&str]| {
        let line = ["export", "leaves@now", file, "--format", "image", "--name", name];
        d.diffkeeper(&[&line, more].concat())
    };
    let file = text(&d.folder().join("leaves.oci"));
    export(&file, &[])?.fails_with(&["--image", "--base"])?;
    d.ctr(&["run", "-d", "--runtime", OURS, &image, "leaves"])?.ok()?;
    export(&file, &[])?.ok()?;
    d.forget("leaves")?;
    // With the image from an archive, under the name that it gets by itself.
    let base = text(&d.folder().join("base.oci"));
    d.ctr(&["images", "export", &base, &image])?.ok()?;
    let other = text(&d.folder().join("other.oci"));
    let told = said(
        d,
        &[
            "export",
            "leaves@now",
            &other,
            "--format",
            "image",
            "--base",
            &base,
        ],
    )?;
    let own = told.lines().next().unwrap_or_default().to_owned();
    ensure!(own.starts_with("diffkeeper.local/leaves:"), "{told}");
    for (file, name) in [(&file, name), (&other, own.as_str())] {
        d.ctr(&["images", "import", file])?.ok()?;
        let found = container(d, STOCK, name, "elsewhere", LOOK)?;
        ensure!(found == expected, "{name}: expected\n{expected}\nfound\n{found}");
        // And it can be kept in turn.
        let kept = container(d, OURS, name, "kept-in-turn", LOOK)?;
        ensure!(kept == expected, "{name}: expected\n{expected}\nfound\n{kept}");
        said(d, &["rm", "kept-in-turn", "--yes"])?;
        d.ctr(&["images", "rm", name])?.ok()?;
    }
    // The same version gives the same bytes.
    let again = text(&d.folder().join("again.oci"));
    export(&again, &["--image", &image])?.ok()?;
    ensure!(
        fs::read(&file)? == fs::read(&again)?,
        "two exports of a commit differ"
    );
    Ok(())
}

fn an_archive_is_whole_or_not_there(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let _keeper = Keeper::start(d, "interval = \"1h\"")?;
    container(d, OURS, &image, "packs", WORK)?;
    said(d, &["commit", "packs"])?;
    let dir = d.folder().join("packs");
    fs::create_dir_all(&dir)?;
    // By its name, and by way of standard output: the same.
    let file = dir.join("packs.tar");
    said(d, &["export", "packs", &text(&file)])?;
    let tar = |line: &str| {
        let program = fs::canonicalize(d.folder().join("bin/containerd-shim-diffkeeper-v1"));
        let program = text(&program.unwrap_or_default().with_file_name("diffkeeper"));
        run_command(
            d.command(
                "bash",
                &["-o", "pipefail", "-c", &line.replace("diffkeeper", &program)],
            )
            .current_dir(&dir),
        )
    };
    let listed = tar("diffkeeper export packs - | tee piped.tar | tar -t")?.ok()?;
    ensure!(
        fs::read(&file)? == fs::read(dir.join("piped.tar"))?,
        "a pipe gets something else"
    );
    ensure!(
        listed.lines().any(|name| name == "usr/bin/own") && !listed.contains("passwd"),
        "{listed}"
    );
    let marks = tar("diffkeeper export packs - --format layer | tar -t")?.ok()?;
    for mark in ["etc/.wh.passwd", "bin/.wh.vi", "usr/bin/.wh..wh..opq"] {
        ensure!(
            marks.lines().any(|name| name == mark),
            "{mark} is not in\n{marks}"
        );
    }
    let part = tar("diffkeeper export packs - --path /usr/bin | tar -t")?.ok()?;
    ensure!(part == "bin/\nbin/own\n", "{part}");
    // A reader that goes away, a version that is not there, an image that is not there.
    ensure!(tar("diffkeeper export packs - | head -c 1000 >/dev/null")?.status != 0);
    fs::write(dir.join("no-image.tar"), [0; 2048])?;
    for (line, why) in [
        ("export packs@nowhere new.tar", "nowhere"),
        ("export packs new.tar --path /nothing", "/nothing"),
        (
            "export packs new.oci --format image --base no-image.tar",
            "not an OCI archive",
        ),
        (
            "export packs new.oci --format image --image example.org/none:1",
            "no image",
        ),
        ("export packs new.oci --format image --path /etc", "whole version"),
        ("export packs new.tar --name x", "--format image"),
        ("export packs .", "not empty"),
        ("export packs . --format tar", "is a directory"),
    ] {
        tar(&format!("diffkeeper {line}"))?.fails_with(&[why])?;
    }
    let mut left: Vec<String> = fs::read_dir(&dir)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    left.sort();
    ensure!(left == ["no-image.tar", "packs.tar", "piped.tar"], "{left:?}");
    Ok(())
}

fn a_history_begins_from_outside(d: &Daemon) -> Result<()> {
    let image = d.import("busybox")?;
    let _keeper = Keeper::start(d, "interval = \"1h\"")?;
    let name = |leaf: &str| format!("ctr/{}/{leaf}", d.namespace());
    let dir = d.folder().join("enters");
    fs::create_dir_all(dir.join("tree/etc"))?;
    container(d, OURS, &image, "origin", WORK)?;
    let expected = container(d, OURS, &image, "origin", LOOK)?;
    said(d, &["commit", "origin"])?;
    // What left as a layer enters as one; a gzip of it too.
    let layer = dir.join("layer.tar");
    said(d, &["export", "origin", &text(&layer), "--format", "layer"])?;
    run_command(std::process::Command::new("gzip").arg("-1k").arg(&layer))?.ok()?;
    for (leaf, file) in [("copy", "layer.tar"), ("copy-gz", "layer.tar.gz")] {
        said(d, &["import", &name(leaf), &text(&dir.join(file))])?;
        let found = container(d, OURS, &image, leaf, LOOK)?;
        ensure!(found == expected, "{file}: expected\n{expected}\nfound\n{found}");
    }
    let log = said(d, &["log", "copy"])?;
    ensure!(log.contains("import") && log.contains("layer.tar"), "{log}");
    // A directory.
    fs::write(dir.join("tree/seed"), "planted\n")?;
    fs::write(dir.join("tree/etc/passwd"), "nobody\n")?;
    said(d, &["import", &name("planted"), &text(&dir.join("tree"))])?;
    let look = "cat /seed /etc/passwd; echo grown > /seed";
    ensure!(container(d, OURS, &image, "planted", look)? == "planted\nnobody");
    // What is there is not lost.
    let again = ["import", &name("planted"), &text(&layer)];
    d.diffkeeper(&again)?.fails_with(&["--replace"])?;
    d.ctr(&["run", "-d", "--runtime", OURS, &image, "planted", "sleep", "1000"])?
        .ok()?;
    let replace = [&again[..], &["--replace", "--json"]].concat();
    d.diffkeeper(&replace)?.fails_with(&["in use"])?;
    d.forget("planted")?;
    let made: serde_json::Value = serde_json::from_str(&d.diffkeeper(&replace)?.ok()?)?;
    ensure!(container(d, OURS, &image, "planted", LOOK)? == expected);
    let before = made["previous"].as_str().unwrap_or_default();
    said(d, &["restore", &format!("planted@{before}")])?;
    ensure!(container(d, OURS, &image, "planted", "cat /seed")? == "grown");
    // What means harm, or is none, leaves nothing behind.
    let bash = |line: &str| {
        run_command(
            std::process::Command::new("bash")
                .args(["-c", line])
                .current_dir(&dir),
        )?
        .ok()
    };
    bash(
        "tar -P -cf up.tar --transform 's,^,../,' layer.tar; head -c 100000 layer.tar > short.tar; head -c 2000 /dev/zero | tr '\\0' x > no.tar",
    )?;
    for (file, why) in [
        ("up.tar", "leads up"),
        ("short.tar", "ends in the middle"),
        ("no.tar", "not a tar"),
    ] {
        let ran = d.diffkeeper(&["import", &name("harmed"), &text(&dir.join(file))])?;
        ensure!(ran.status != 0 && ran.err.contains(why), "{file}: {ran:?}");
        let states = said(d, &["states"])?;
        ensure!(!states.contains("harmed"), "{states}");
        d.diffkeeper(&["log", &name("harmed")])?
            .fails_with(&["no state"])?;
    }
    // Nor does it in the history of what it was to replace.
    let before = || {
        Ok::<_, anyhow::Error>(
            said(d, &["log", "planted", "--json"])?
                .matches("before-restore")
                .count(),
        )
    };
    let logged = before()?;
    container(d, OURS, &image, "planted", "echo unrecorded > /seed")?;
    let short = [
        "import",
        &name("planted"),
        &text(&dir.join("short.tar")),
        "--replace",
    ];
    d.diffkeeper(&short)?.fails_with(&["ends in the middle"])?;
    let after = before()?;
    ensure!(after == logged, "{logged} before, {after} now");
    ensure!(container(d, OURS, &image, "planted", "cat /seed")? == "unrecorded");
    d.diffkeeper(&["import", "a/b", &text(&layer)])?
        .fails_with(&["name"])?;
    said(d, &["import", &name("harmed"), &text(&layer)])?;
    ensure!(container(d, OURS, &image, "harmed", LOOK)? == expected);
    ensure!(said(d, &["verify", "--read-data"])?.contains("all is well"));
    Ok(())
}
