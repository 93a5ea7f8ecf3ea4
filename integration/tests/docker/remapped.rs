//! A daemon that maps users to others (`userns-remap`).

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::{Result, ensure};
use integration::{Docker, wait::until};

use crate::{LIMIT, Test, clean, same};

pub const TESTS: &[(&str, Test)] = &[("remapped::keeps_ids_of_the_container", keeps_ids_of_the_container)];

fn keeps_ids_of_the_container(d: &Docker) -> Result<()> {
    let d = match Docker::another(&d.store, "remapped", &["--default", "--userns-remap"])? {
        Ok(remapped) => remapped,
        Err(reason) => {
            println!(
                "skipped docker-{}::remapped::keeps_ids_of_the_container: {reason}",
                d.store
            );
            return Ok(());
        }
    };
    let d = &d;
    let image = d.load("volumes")?;
    let run = |more: &[&str], script: &str| -> Result<String> {
        let mut line = vec!["run", "--rm", "--network", "none"];
        line.extend_from_slice(more);
        line.extend_from_slice(&[image.as_str(), "sh", "-c", script]);
        d.docker(&line)?.ok()
    };
    let named = ["--name", "mapped"];
    // Nobody's container: Docker's own, with nothing of ours.
    run(&[], "echo x > /file")?;
    ensure!(fs::read_dir(d.state("")).map_or(0, Iterator::count) == 0);
    let map = run(&named, "cat /proc/self/uid_map")?;
    let host: u32 = map
        .split_whitespace()
        .nth(1)
        .and_then(|id| id.parse().ok())
        .unwrap_or(0);
    ensure!(host != 0, "no user namespace: {map}");
    run(
        &named,
        "touch /mine /var/lib/data/mine; chown 7:8 /mine /var/lib/data/mine; rm /etc/group; mkdir /srv; mv /srv /moved",
    )?;
    clean(d)?;
    let seen = "stat -c '%n %u:%g' / /bin /mine /moved /var/lib/data /var/lib/data/mine /var/lib/data/sub/file; ls /etc/group 2>/dev/null";
    let expected = "/ 0:0\n/bin 0:0\n/mine 7:8\n/moved 0:0\n/var/lib/data 999:999\n/var/lib/data/mine 7:8\n\
                    /var/lib/data/sub/file 1234:5678\n";
    same(&run(&named, &format!("{seen}; true"))?, expected)?;
    // On disk are the container's ids: another range, or none, would find the same.
    let roots = d.state("mapped").join("roots");
    for mine in ["rootfs/upper/mine", "volume@var@lib@data/tree/mine"] {
        let found = fs::metadata(roots.join(mine))?;
        ensure!((found.uid(), found.gid()) == (7, 8), "{mine}: {found:?}");
    }
    // The engine's own commands, and a death.
    d.docker(&[
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "mapped",
        &image,
        "sh",
        "-c",
        "echo life >> /lives; exec sleep 1000",
    ])?
    .ok()?;
    let file = d.folder().join("copied");
    fs::write(&file, "copied\n")?;
    d.docker(&["cp", &file.to_string_lossy(), "mapped:/copied"])?
        .ok()?;
    same(
        &d.docker(&["exec", "mapped", "cat", "/copied"])?.ok()?,
        "copied\n",
    )?;
    d.shims().into_iter().try_for_each(integration::daemon::kill)?;
    until("its removal", LIMIT, || {
        d.docker(&["rm", "-f", "-v", "mapped"])
            .is_ok_and(|r| r.status == 0)
    })?;
    clean(d)?;
    same(&run(&named, "cat /lives /copied")?, "life\ncopied\n")?;
    // Paths of their own.
    let paths = [
        "--name",
        "paths",
        "--annotation",
        "diffkeeper.io/paths=/srv/app,/etc",
    ];
    run(
        &paths,
        "echo x > /srv/app/x; chown 7:8 /srv/app/x; echo y > /etc/y; echo z > /z",
    )?;
    same(
        &run(
            &paths,
            "stat -c '%u:%g' /srv/app /srv/app/x /etc; cat /etc/y; ls /z 2>/dev/null; true",
        )?,
        "0:0\n7:8\n0:0\ny\n",
    )?;
    clean(d)?;
    // A container that the daemon does not map, with the same state: it has the same owners. (The image's own files are
    // then the range's, under any runtime.)
    let unmapped = [&named[..], &["--userns", "host"]].concat();
    same(
        &run(&unmapped, &format!("{seen}; true"))?,
        &expected.replace("/bin 0:0", &format!("/bin {host}:{host}")),
    )?;
    run(
        &unmapped,
        "touch /var/lib/data/later; chown 9:9 /var/lib/data/later",
    )?;
    same(&run(&named, "stat -c '%u:%g' /var/lib/data/later")?, "9:9\n")?;
    clean(d)
}
