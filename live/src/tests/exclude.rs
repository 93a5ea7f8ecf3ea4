use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Bench, Mounted};

fn paths(all: &[&str]) -> Vec<PathBuf> {
    all.iter().map(PathBuf::from).collect()
}

#[test]
fn whiteouts_go_and_links_stay() {
    let Some(bench) = Bench::new("whiteouts_go_and_links_stay") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    let upper = state.upper();
    fs::create_dir_all(upper.join("run/app/deep")).unwrap();
    fs::create_dir(upper.join("var")).unwrap();
    symlink("/run", upper.join("var/run")).unwrap();
    let made = Command::new("mknod")
        .arg(upper.join("tmp"))
        .args(["c", "0", "0"])
        .status();
    assert!(made.unwrap().success());
    let excluded = paths(&["/run", "/var/run", "/tmp", "/missing/too", "/"]);
    let trash = state.set_aside_excluded(&excluded).unwrap();
    assert!(!upper.join("run").exists());
    assert!(
        upper.join("tmp").symlink_metadata().is_err(),
        "the image's /tmp is back"
    );
    assert!(upper.join("var/run").symlink_metadata().is_ok());
    assert_eq!(bench.node.leftovers().unwrap(), 2);
    trash.delete().unwrap();
    assert_eq!(bench.node.leftovers().unwrap(), 0);
    // Again, as after a crash between the two: there is nothing left to set aside.
    assert!(state.set_aside_excluded(&excluded).unwrap().is_empty());
}

#[test]
fn nothing_is_reached_through_a_link() {
    let Some(bench) = Bench::new("nothing_is_reached_through_a_link") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    let victim = bench.scratch("victim");
    fs::create_dir(victim.join("run")).unwrap();
    fs::write(victim.join("run/precious"), "x").unwrap();
    symlink(&victim, state.upper().join("var")).unwrap();
    symlink(victim.join("run"), state.upper().join("run")).unwrap();
    let up = "../".repeat(30) + victim.to_str().unwrap();
    for path in ["/var/run", "/run", "/run/precious", &up, "/var/../var/run"] {
        assert!(
            state.set_aside_excluded(&paths(&[path])).unwrap().is_empty(),
            "{path}"
        );
    }
    // And a link inside what is deleted.
    fs::create_dir(state.upper().join("tmp")).unwrap();
    symlink(&victim, state.upper().join("tmp/link")).unwrap();
    let trash = state.set_aside_excluded(&paths(&["/tmp"])).unwrap();
    trash.delete().unwrap();
    assert!(victim.join("run/precious").exists());
    assert_eq!(bench.node.leftovers().unwrap(), 0);
}

#[test]
fn deletion_stops_at_another_disk() {
    let Some(bench) = Bench::new("deletion_stops_at_another_disk") else {
        return;
    };
    let inside = bench.node.trash().join("t/m");
    fs::create_dir_all(&inside).unwrap();
    let tmpfs = Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(&inside)
        .status();
    assert!(tmpfs.unwrap().success());
    let mounted = Mounted(inside.clone());
    fs::write(inside.join("precious"), "x").unwrap();
    let told = bench.node.empty_trash().unwrap_err().to_string();
    assert!(told.contains("delete") && told.contains("/t"), "{told}");
    assert!(inside.join("precious").exists());
    drop(mounted);
    assert_eq!(bench.node.empty_trash().unwrap(), 1);
}

#[test]
fn what_a_crashed_deleter_left_is_deleted_by_many_at_once() {
    let Some(bench) = Bench::new("what_a_crashed_deleter_left_is_deleted_by_many_at_once") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    for dir in 0..40 {
        let path = state.upper().join(format!("tmp/{dir}/below"));
        fs::create_dir_all(&path).unwrap();
        for file in 0..20 {
            fs::write(path.join(file.to_string()), "x").unwrap();
        }
    }
    drop(state.set_aside_excluded(&paths(&["/tmp"])).unwrap());
    assert_eq!(bench.node.leftovers().unwrap(), 1);
    std::thread::scope(|scope| {
        let deleters: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| bench.node.empty_trash().map(drop)))
            .collect();
        for deleter in deleters {
            deleter.join().unwrap().unwrap();
        }
    });
    assert_eq!(bench.node.leftovers().unwrap(), 0);
}

#[test]
fn without_a_live_tree_there_is_nothing_to_exclude() {
    let Some(bench) = Bench::new("without_a_live_tree_there_is_nothing_to_exclude") else {
        return;
    };
    let state = bench.state("ctr/default/a");
    assert!(state.set_aside_excluded(&paths(&["/tmp"])).unwrap().is_empty());
    assert!(!Path::new(state.dir()).exists(), "looking makes nothing");
}
