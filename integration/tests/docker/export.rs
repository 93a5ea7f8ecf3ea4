//! A version becomes an image that Docker loads; what Docker exports becomes a state.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::Docker;

use crate::{Test, clean, life, remove, same};

pub const TESTS: &[(&str, Test)] = &[("export::an_image_is_loaded", an_image_is_loaded)];

fn stock(d: &Docker, image: &str, script: &str) -> Result<String> {
    let line = [
        "run",
        "--rm",
        "--runtime",
        "runc",
        "--network",
        "none",
        image,
        "sh",
        "-c",
        script,
    ];
    d.docker(&line)?.ok()
}

fn an_image_is_loaded(d: &Docker) -> Result<()> {
    let image = d.load("busybox")?;
    let work =
        "echo kept > /file; rm /etc/group; rm -r /home; mkdir /home; echo own > /home/own; chmod 4711 /file";
    life(d, "leaves", &image, work)?;
    clean(d)?;
    let dir = d.folder().join("leaves");
    fs::create_dir_all(&dir)?;
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (base, made, plain) = (path("base.tar"), path("made.tar"), path("plain.tar"));
    d.docker(&["save", "-o", &base, &image])?.ok()?;
    d.diffkeeper(&["commit", "docker/leaves"])?.ok()?;
    let name = "example/leaves:1";
    let line = [
        "export", "leaves", &made, "--format", "image", "--base", &base, "--name", name,
    ];
    let told = d.diffkeeper(&line)?;
    ensure!(told.status == 0 && told.err.is_empty(), "{told:?}");
    d.docker(&["load", "-i", &made])?.ok()?;
    let look = "cat /file /home/own; ls /home; stat -c %a /file; ls /etc/group 2>/dev/null || echo gone";
    let expected = "kept\nown\nown\n4711\ngone\n";
    same(&stock(d, name, look)?, expected)?;
    // Back again, by way of what Docker writes of a whole container.
    let whole = d.docker(&["create", "--runtime", "runc", name])?.ok()?;
    d.docker(&["export", "-o", &plain, whole.trim()])?.ok()?;
    remove(d, whole.trim())?;
    d.docker(&["rmi", name])?.ok()?;
    d.diffkeeper(&["import", "docker/enters", &plain])?.ok()?;
    let look = "cat /file /home/own; ls /home; stat -c %a /file";
    same(
        &life(d, "enters", &image, look)?,
        expected.strip_suffix("gone\n").context("gone")?,
    )?;
    clean(d)
}
