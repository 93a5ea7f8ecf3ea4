//! How the programs are compiled: by the build, and again by a test that compares.

use std::{ffi::OsStr, path::Path, process::Command};

/// In `src`.
pub const SOURCE: &str = "written.bpf.c";

/// Whether a clang compiles for eBPF at all: some are built for one machine alone.
pub fn targets(clang: &OsStr) -> bool {
    let nothing = Command::new(clang)
        .args(["-target", "bpf", "-x", "c", "-c", "/dev/null", "-o", "/dev/null"])
        .output();
    nothing.is_ok_and(|done| done.status.success())
}

/// Compiles them; the same bytes wherever it is done.
///
/// # Errors
/// What clang says.
pub fn compile(clang: &OsStr, src: &Path, object: &Path) -> Result<(), String> {
    let object = std::path::absolute(object).map_err(|error| error.to_string())?;
    let done = Command::new(clang)
        .current_dir(src)
        .args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Werror"])
        // Where it lies is no part of it.
        .args(["-fdebug-compilation-dir=.", "-c", SOURCE, "-o"])
        .arg(&object)
        .output()
        .map_err(|error| error.to_string())?;
    if done.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&done.stderr).into_owned())
}
