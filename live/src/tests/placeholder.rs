use std::{
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

use super::Bench;
use crate::{Misfit, State, Want};

/// An image, a state on it, and what the runtime does between the two.
struct Life {
    bench: Bench,
    state: State,
    image: PathBuf,
}

impl Life {
    fn new(test: &str) -> Option<Life> {
        let bench = Bench::new(test)?;
        let state = bench.prepared("ctr/default/a");
        let image = bench.scratch("image");
        for dir in ["etc/ssl", "proc", "run", "var/lib"] {
            fs::create_dir_all(image.join(dir)).unwrap();
        }
        fs::write(image.join("etc/passwd"), "root").unwrap();
        fs::set_permissions(image.join("etc/ssl"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("/run", image.join("var/run")).unwrap();
        Some(Life { bench, state, image })
    }

    /// Notes the targets, makes what is missing as the runtime does, runs `inside` in the mounted root, unmounts.
    fn live(&self, targets: &[(&str, Want)], inside: &str) -> Vec<Misfit> {
        let mounted = self.bench.mounted(&self.state, &self.image, "merged");
        let wanted: Vec<_> = targets.iter().map(|(p, w)| (PathBuf::from(p), *w)).collect();
        let misfits = self.state.note_targets(&mounted.0, &wanted).unwrap();
        let mut script = String::from("set -e\n");
        for (path, want) in targets.iter().filter(|_| misfits.is_empty()) {
            let made = match want {
                Want::File => format!("[ -e .{path} ] || {{ mkdir -p $(dirname .{path}); : > .{path}; }}\n"),
                _ => format!("[ -d .{path} ] || mkdir -p .{path}\n"),
            };
            script.push_str(&made);
        }
        script.push_str(inside);
        let ran = Command::new("sh")
            .args(["-c", &script])
            .current_dir(&mounted.0)
            .status();
        assert!(ran.unwrap().success(), "{script}");
        misfits
    }

    /// What the upper holds, apart from the attributes of its directories.
    fn left(&self) -> Vec<String> {
        let found = Command::new("find")
            .args([".", "-mindepth", "1", "-printf", "%P\n"])
            .current_dir(self.state.upper())
            .output()
            .unwrap();
        let mut lines: Vec<String> = String::from_utf8_lossy(&found.stdout)
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    }

    fn upper(&self, path: &str) -> PathBuf {
        self.state.upper().join(path)
    }
}

#[test]
fn what_the_container_used_or_changed_stays() {
    let Some(life) = Life::new("what_the_container_used_or_changed_stays") else {
        return;
    };
    let targets = [
        ("/etc/hosts", Want::File),
        ("/etc/ssl/key", Want::File),
        ("/data", Want::Directory),
        ("/cache/a/b", Want::Directory),
        ("/var/lib/x", Want::Directory),
    ];
    let used = "echo 1 > etc/hosts; echo 1 > data/row; chmod 700 etc/ssl; chown 5 var/lib";
    assert_eq!(life.live(&targets, used), []);
    life.state.remove_placeholders().unwrap();
    let kept = [
        "data",
        "data/row",
        "etc",
        "etc/hosts",
        "etc/ssl",
        "var",
        "var/lib",
    ];
    assert_eq!(life.left(), kept);
    assert_eq!(fs::metadata(life.upper("etc/ssl")).unwrap().mode() & 0o777, 0o700);
    // The record is gone: what the next life leaves in the same places is its own.
    life.live(&[], "mkdir -p cache/a");
    life.state.remove_placeholders().unwrap();
    assert!(life.upper("cache/a").is_dir());
}

#[test]
fn a_crash_between_two_lives_loses_no_record() {
    let Some(life) = Life::new("a_crash_between_two_lives_loses_no_record") else {
        return;
    };
    life.live(&[("/data/x", Want::File)], "true");
    // The shim died here; the next attach begins with this.
    life.state.remove_placeholders().unwrap();
    assert_eq!(life.left(), [""; 0]);
    assert!(!life.state.dir().join("roots/rootfs/placeholders.json").exists());
}

#[test]
fn what_the_container_had_deleted_stays_deleted() {
    let Some(life) = Life::new("what_the_container_had_deleted_stays_deleted") else {
        return;
    };
    life.live(&[], "rm -r etc/ssl etc/passwd");
    let targets = [("/etc/ssl/key", Want::File), ("/etc/passwd", Want::File)];
    life.live(&targets, "true");
    life.state.remove_placeholders().unwrap();
    for path in ["etc/ssl", "etc/passwd"] {
        let whiteout = fs::symlink_metadata(life.upper(path)).unwrap();
        assert!(
            whiteout.file_type().is_char_device() && whiteout.rdev() == 0,
            "{path}"
        );
    }
    life.live(&[], "test ! -e etc/ssl && test ! -e etc/passwd");
}

#[test]
fn a_directory_made_anew_stays() {
    let Some(life) = Life::new("a_directory_made_anew_stays") else {
        return;
    };
    life.live(
        &[("/etc/ssl/key", Want::File)],
        "rm -r etc/ssl; mkdir -m 750 etc/ssl",
    );
    life.state.remove_placeholders().unwrap();
    assert_eq!(life.left(), ["etc", "etc/ssl"]);
}

#[test]
fn file_and_directory_change_places_between_lives() {
    let Some(life) = Life::new("file_and_directory_change_places_between_lives") else {
        return;
    };
    life.live(&[], "mkdir -p conf; echo 1 > conf/kept; echo 2 > data");
    let targets = [("/conf", Want::File), ("/data/sub", Want::Directory)];
    let misfits = life.live(&targets, "true");
    let paths: Vec<_> = misfits.iter().map(|m| m.path.as_path()).collect();
    assert_eq!(paths, [Path::new("conf"), Path::new("data")]);
    let now = UNIX_EPOCH + Duration::from_secs(77);
    let moved = life.state.set_aside_misfits(&misfits, now).unwrap();
    let aside = life.state.dir().join("aside/77");
    assert_eq!(moved, [aside.join("0-conf"), aside.join("1-data")]);
    assert_eq!(fs::read_to_string(moved[0].join("kept")).unwrap(), "1\n");
    assert_eq!(fs::read_to_string(&moved[1]).unwrap(), "2\n");
    assert_eq!(life.live(&targets, "test -f conf && test -d data/sub"), []);
    life.state.remove_placeholders().unwrap();
    assert_eq!(life.left(), [""; 0]);
    // What is gone by now is no error.
    assert!(life.state.set_aside_misfits(&misfits, now).unwrap().is_empty());
}

#[test]
fn a_link_in_a_circle_is_in_the_way() {
    let Some(life) = Life::new("a_link_in_a_circle_is_in_the_way") else {
        return;
    };
    life.live(&[], "ln -s /loop loop; ln -s b a; ln -s a b");
    let targets = [("/loop", Want::Directory), ("/a/below", Want::File)];
    for round in 0.. {
        let misfits = life.live(&targets, "true");
        if misfits.is_empty() {
            break;
        }
        assert!(round < 2, "still in the way: {misfits:?}");
        let now = UNIX_EPOCH + Duration::from_secs(round);
        life.state.set_aside_misfits(&misfits, now).unwrap();
    }
    assert!(life.upper("loop").is_dir() && life.upper("a/below").is_file());
}

#[test]
fn what_the_image_has_is_reported_and_left() {
    let Some(life) = Life::new("what_the_image_has_is_reported_and_left") else {
        return;
    };
    let misfits = life.live(&[("/etc/passwd", Want::Directory)], "true");
    assert_eq!(misfits.len(), 1);
    assert!(
        life.state
            .set_aside_misfits(&misfits, UNIX_EPOCH)
            .unwrap()
            .is_empty()
    );
    assert!(!life.state.dir().join("aside").exists());
}

#[test]
fn links_never_lead_out_of_the_tree() {
    let Some(life) = Life::new("links_never_lead_out_of_the_tree") else {
        return;
    };
    let victim = life.bench.scratch("victim");
    fs::create_dir(victim.join("empty")).unwrap();
    fs::write(victim.join("file"), "").unwrap();
    let up = "../".repeat(30);
    life.live(
        &[],
        &format!("ln -s {up}{0} out; ln -s {0} abs", victim.display()),
    );
    let mounted = life.bench.mounted(&life.state, &life.image, "merged");
    let targets = [("/out/file", Want::Directory), ("/abs/empty", Want::File)];
    let targets = targets.map(|(path, want)| (PathBuf::from(path), want));
    let misfits = life.state.note_targets(&mounted.0, &targets).unwrap();
    assert_eq!(misfits, [], "in the root there are no such places");
    drop(mounted);
    // Records that name paths behind links, as if the container had put the links there since.
    let record = r#"{"made":["abs/empty","abs/file","out/empty","out/file"],
        "copied_up":[{"path":"abs/empty","mode":493,"uid":0,"gid":0},{"path":"out/empty","mode":493,"uid":0,"gid":0}]}"#;
    fs::write(life.state.dir().join("roots/rootfs/placeholders.json"), record).unwrap();
    life.state.remove_placeholders().unwrap();
    assert!(!life.state.dir().join("roots/rootfs/placeholders.json").exists());
    let behind = ["abs/file", "out/empty"].map(|path| Misfit { path: path.into() });
    assert!(
        life.state
            .set_aside_misfits(&behind, UNIX_EPOCH)
            .unwrap()
            .is_empty()
    );
    assert!(victim.join("empty").is_dir() && victim.join("file").is_file());
}

#[test]
fn a_link_to_a_name_that_is_no_text_stops_nobody() {
    let Some(life) = Life::new("a_link_to_a_name_that_is_no_text_stops_nobody") else {
        return;
    };
    let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    fs::create_dir(life.upper("").join(odd)).unwrap();
    symlink(odd, life.upper("data")).unwrap();
    let targets = [("/data/made", Want::Directory), ("/other", Want::File)];
    assert_eq!(life.live(&targets, "true"), []);
    assert!(life.upper("").join(odd).join("made").is_dir());
    life.state.remove_placeholders().unwrap();
    assert_eq!(fs::read_dir(life.upper("").join(odd)).unwrap().count(), 0);
    assert!(!life.upper("other").exists());
}

#[test]
fn targets_of_any_length_and_depth() {
    let Some(life) = Life::new("targets_of_any_length_and_depth") else {
        return;
    };
    let mounted = life.bench.mounted(&life.state, &life.image, "merged");
    let longest = "n".repeat(255);
    let all = [
        format!("/{longest}/{longest}"),
        format!("/{}", "n".repeat(256)),
        "/d".repeat(400),
        "/".into(),
        String::new(),
    ];
    let targets: Vec<_> = all.iter().map(|p| (PathBuf::from(p), Want::Directory)).collect();
    assert_eq!(life.state.note_targets(&mounted.0, &targets).unwrap(), []);
    drop(mounted);
    life.state.remove_placeholders().unwrap();
    assert_eq!(life.left(), [""; 0]);
}
