//! `export`: a version in a directory, as an archive, or as an image.

use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use keeper_api::keeper::{keeper as api, keeper_ttrpc::KeeperClient};
use protobuf::MessageField;
use runtime_spec::config::Config;
use tokio::io::AsyncReadExt;

use super::{
    client::{self, patient, said, with_keeper, with_keeper_at},
    image,
    progress::long,
};
use crate::table;

/// How a version leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Files in a directory
    Dir,
    /// An archive of what the container wrote, for tar
    Tar,
    /// A layer of an OCI image: with marks (.wh.NAME) of what the container deleted
    Layer,
    /// An OCI image that runs: the commit's image with that layer on top, for ctr image import or docker load
    Image,
}

/// Out of the store.
#[derive(Args, Clone)]
pub struct Export {
    /// The version
    pub version: String,
    /// The directory (made where it is missing, else empty) or the file; - is standard output
    pub to: PathBuf,
    /// Only this path of the container
    #[arg(long)]
    pub path: Option<String>,
    /// What to make; tar where TO is - or ends in .tar, else dir
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// The version of so long after the first commit, instead of @VERSION: 2m14s
    #[arg(long)]
    pub at: Option<String>,
    #[command(flatten)]
    pub base: image::Base,
}

/// Exports.
pub fn run(config: &Config, how: &Export) -> Result<ExitCode> {
    let to_tar = how.to == Path::new("-") || how.to.extension().is_some_and(|e| e == "tar");
    let format = how
        .format
        .unwrap_or(if to_tar { Format::Tar } else { Format::Dir });
    let path = how.path.as_deref().unwrap_or_default();
    let version = match &how.at {
        None => how.version.clone(),
        Some(at) => {
            ensure!(
                !how.version.contains('@'),
                "--at and @ both say which version: give one of them"
            );
            format!("{}@+{at}", how.version)
        }
    };
    ensure!(
        format == Format::Image || how.base.is_default(),
        "--base, --image and --name are for --format image"
    );
    match format {
        Format::Dir => {
            ensure!(
                how.to != Path::new("-"),
                "a directory cannot go to standard output: --format tar"
            );
            directory(config, &version, &how.to, path)
        }
        Format::Image => {
            ensure!(
                path.is_empty(),
                "an image is made of a whole version: --path is for the other formats"
            );
            image::export(config, &version, &how.to, &how.base)
        }
        Format::Tar | Format::Layer => {
            let mut target = Target::new(&how.to)?;
            let request = api::ArchiveRequest {
                version: MessageField::some(client::version(&version)),
                path: path.as_bytes().to_vec(),
                layer: format == Format::Layer,
                ..api::ArchiveRequest::default()
            };
            let done = with_keeper_at(config, async |client, at| {
                archive(&client, at, request, &mut target).await
            })?;
            target.keep()?;
            told(done.entries, done.bytes, &how.to);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What was done; standard output may be the archive itself.
pub fn told(entries: u64, bytes: u64, to: &Path) {
    let text = format!("{entries} entries, {}", table::bytes(bytes));
    if to == Path::new("-") {
        eprintln!("{text}");
    } else {
        println!("{text}, in {}", to.display());
    }
}

/// Puts a version into a directory.
pub fn directory(config: &Config, of: &str, to: &Path, below: &str) -> Result<ExitCode> {
    let to = std::path::absolute(to).with_context(|| format!("make {} absolute", to.display()))?;
    let done = with_keeper(config, async |client| {
        let request = api::ExportRequest {
            version: MessageField::some(client::version(of)),
            path: below.as_bytes().to_vec(),
            to: to.to_str().context("the directory's name is not UTF-8")?.into(),
            ..api::ExportRequest::default()
        };
        long(&client, async |context| client.export(context, &request).await).await
    })?;
    told(done.entries, done.bytes, &to);
    Ok(ExitCode::SUCCESS)
}

/// Where an archive goes: a file appears under its name when all of it is on the disk, and not before.
pub struct Target {
    to: PathBuf,
    out: Out,
    bar: ProgressBar,
}

enum Out {
    Fresh(tempfile::NamedTempFile),
    /// Standard output, a pipe, a device.
    Stream(File),
}

impl Target {
    /// A file of this name; `-` is standard output.
    pub fn new(to: &Path) -> Result<Target> {
        let out = if to == Path::new("-") {
            let out = io::stdout();
            ensure!(
                !out.is_terminal(),
                "an archive is not for a terminal: name a file, or send it on with |"
            );
            use std::os::fd::AsFd;
            Out::Stream(
                out.as_fd()
                    .try_clone_to_owned()
                    .context("open standard output")?
                    .into(),
            )
        } else {
            match std::fs::metadata(to) {
                Ok(found) if found.is_dir() => bail!("{} is a directory: name a file", to.display()),
                Ok(found) if found.file_type().is_fifo() || found.file_type().is_char_device() => {
                    let out = File::options().write(true).open(to);
                    Out::Stream(out.with_context(|| format!("open {}", to.display()))?)
                }
                _ => {
                    let above = above(to);
                    let fresh = tempfile::Builder::new().prefix(".export-").tempfile_in(above);
                    Out::Fresh(fresh.with_context(|| format!("make a file in {}", above.display()))?)
                }
            }
        };
        Ok(Target {
            to: to.to_owned(),
            out,
            bar: bar(),
        })
    }

    /// A file without a name for what must be whole before the archive can be begun.
    pub fn beside(&self) -> Result<File> {
        match &self.out {
            Out::Fresh(_) => tempfile::tempfile_in(above(&self.to)),
            Out::Stream(_) => tempfile::tempfile(),
        }
        .context("make a temporary file")
    }

    /// Gives the file its name.
    pub fn keep(self) -> Result<()> {
        self.bar.finish();
        if let Out::Fresh(fresh) = self.out {
            let name = || format!("write {}", self.to.display());
            fresh.as_file().sync_all().with_context(name)?;
            fresh.persist(&self.to).with_context(name)?;
        }
        Ok(())
    }
}

fn above(file: &Path) -> &Path {
    match file.parent() {
        Some(above) if above != Path::new("") => above,
        _ => Path::new("."),
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = match &mut self.out {
            Out::Fresh(fresh) => fresh.as_file_mut().write(bytes),
            Out::Stream(out) => out.write(bytes),
        }?;
        self.bar.inc(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How much has gone out, and how fast: how much there will be is not known before.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_finish(ProgressFinish::AndClear);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {binary_bytes}, {binary_bytes_per_sec}") {
        bar.set_style(style);
    }
    bar
}

/// Has the keeper write an archive, and passes it on. `at` is a directory that both see. What was written is whole only
/// when this returns without an error.
pub async fn archive(
    client: &KeeperClient,
    at: &Path,
    mut request: api::ArchiveRequest,
    out: &mut impl Write,
) -> Result<api::ArchiveResponse> {
    let dir = tempfile::Builder::new().prefix("x").tempdir_in(at);
    let dir = dir.with_context(|| format!("make a folder in {}", at.display()))?;
    let socket = dir.path().join("s");
    let listener =
        tokio::net::UnixListener::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    request.to = socket.to_str().context("the socket's name is not UTF-8")?.into();
    let call = client.archive(patient(), &request);
    tokio::pin!(call);
    let mut stream = tokio::select! {
        accepted = listener.accept() => accepted.context("wait for the keeper")?.0,
        done = &mut call => {
            said(done)?;
            bail!("the keeper sent nothing");
        }
    };
    let mut part = vec![0; 1 << 18];
    loop {
        let n = stream.read(&mut part).await.context("read from the keeper")?;
        let Some(part) = part.get(..n).filter(|part| !part.is_empty()) else {
            break;
        };
        out.write_all(part).context("write the archive")?;
    }
    said(call.await)
}
