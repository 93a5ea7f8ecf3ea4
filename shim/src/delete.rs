//! `delete`: containerd's call after a shim died. Nothing of the container may be left: no process, no mount, no
//! lock. It works on half a bundle, and twice.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::SystemTime,
};

use containerd_shim_protos::api::DeleteResponse;
use protobuf::{Message, MessageField};

use crate::{
    args::Args,
    error::{Context, Error, Result},
    keep, mounts,
    options::Options,
    process::read_pid,
    reaper::Reaper,
    runc::Runc,
};

/// 128 + SIGKILL: how the container ended, as far as anybody knows.
const KILLED: u32 = 137;

/// Cleans up and prints the encoded answer.
///
/// # Errors
/// When something of the container cannot be removed.
pub fn delete(args: &Args) -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context(|| "become the subreaper".into())?;
    let bundle = bundle(args)?;
    let pid = read_pid(&bundle.join("init.pid")).unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "start the event loop".into())?;
    runtime.block_on(clean_up(args, &bundle))?;
    let answer = DeleteResponse {
        pid,
        exit_status: KILLED,
        exited_at: MessageField::some(SystemTime::now().into()),
        ..DeleteResponse::default()
    };
    let bytes = answer
        .write_to_bytes()
        .map_err(|e| Error::Other(format!("encode the answer: {e}")))?;
    let mut stdout = std::io::stdout();
    stdout
        .write_all(&bytes)
        .and_then(|()| stdout.flush())
        .context(|| "print the answer".into())
}

fn bundle(args: &Args) -> Result<PathBuf> {
    if let Some(bundle) = &args.bundle {
        return Ok(bundle.clone());
    }
    let here = std::env::current_dir().context(|| "find the bundle".into())?;
    Ok(here.parent().unwrap_or(Path::new("/")).join(&args.id))
}

async fn clean_up(args: &Args, bundle: &Path) -> Result<()> {
    let reaper = Reaper::start()?;
    let options = Options::load(bundle);
    let runc = Runc::new(&options, &args.namespace, bundle, &reaper);
    if let Err(error) = runc.delete(&args.id, true).await {
        // Usually it was never made, or is gone; what matters is looked for below.
        tracing::debug!(id = args.id, %error, "the OCI runtime had nothing to delete");
    }
    let rootfs = bundle.join("rootfs");
    mounts::unmount_recursive(&rootfs)?;
    if let Err(error) = keep::clean_up(&args.namespace, &args.id, bundle) {
        // A configuration that does not parse must not keep containerd from forgetting the container. What is left
        // of the lease is its record, which the next attach goes by. containerd logs our standard error.
        let _ = writeln!(std::io::stderr(), "give up the lease of {}: {error}", args.id);
    }
    Ok(())
}
