//! `export --format image`: the image that a commit stood on, with what the container wrote as one more layer.
//!
//! What is written is an OCI layout in a tar, with the `manifest.json` that older Dockers look for beside it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use containerd_client::{
    Client,
    services::v1::{GetImageRequest, InfoRequest, ReadContentRequest},
    tonic::{Request, metadata::MetadataValue},
};
use keeper::archive::tar::{Head, Writer};
use keeper_api::keeper::keeper as api;
use protobuf::MessageField;
use runtime_spec::config::Config;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::EntryType;

use super::{
    client::with_keeper_at,
    export::{Target, archive, told},
    look::{resolve, short},
};

/// The longest manifest or configuration, in bytes.
const LONGEST: u64 = 8 << 20;
/// What is read of a layer at a time.
const PART: usize = 1 << 20;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What the image is made on.
#[derive(Args, Clone, Default, PartialEq, Eq)]
pub struct Base {
    /// For an image: take the one that the container ran from this archive, of ctr images export or docker save
    #[arg(long, value_name = "ARCHIVE")]
    pub base: Option<PathBuf>,
    /// For an image: take this one of containerd's, where the commit does not know which it stood on
    #[arg(long, value_name = "REFERENCE", conflicts_with = "base")]
    pub image: Option<String>,
    /// For an image: what to call it
    #[arg(long)]
    pub name: Option<String>,
    /// containerd's socket
    #[arg(
        long,
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub address: PathBuf,
    /// containerd's namespace that has the image; that of the state where it is not given
    #[arg(long)]
    pub namespace: Option<String>,
}

impl Base {
    /// Whether nothing was said that only images need.
    pub fn is_default(&self) -> bool {
        self.base.is_none() && self.image.is_none() && self.name.is_none()
    }
}

/// Exports a version as an image.
pub fn export(config: &Config, of: &str, to: &Path, how: &Base) -> Result<ExitCode> {
    let mut target = Target::new(to)?;
    let packed = with_keeper_at(config, async |client, at| {
        let commit = resolve(&client, of).await?;
        // Before anything is read: what is missing is said at once.
        let mut source = Source::open(config, how, &commit).await?;
        let image = Image::find(&mut source, &commit).await?;
        image.complete(&mut source).await?;
        let request = api::ArchiveRequest {
            version: MessageField::some(api::Version {
                state: commit.state.clone(),
                version: commit.id.clone(),
                ..api::Version::default()
            }),
            layer: true,
            ..api::ArchiveRequest::default()
        };
        let mut layer = Hashing {
            file: target.beside()?,
            hash: Sha256::new(),
            bytes: 0,
        };
        let packed = archive(&client, at, request, &mut layer).await?;
        let name = how.name.as_deref().map_or_else(|| name_of(&commit), whole);
        image
            .write(&mut source, layer, &commit, &name, &mut target)
            .await?;
        if to != Path::new("-") {
            println!("{name}");
        }
        Ok(packed)
    })?;
    target.keep()?;
    told(packed.entries, packed.bytes, to);
    Ok(ExitCode::SUCCESS)
}

/// A reference as containerd keeps it, with all that Docker lets people leave out: whose it is, and which.
fn whole(name: &str) -> String {
    let host = |first: &str| first == "localhost" || first.contains(['.', ':']);
    let name = match name.split_once('/') {
        Some((first, _)) if host(first) => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    };
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if tagged { name } else { format!("{name}:latest") }
}

/// A reference that Docker and containerd both take: repositories are written small.
fn name_of(commit: &api::Commit) -> String {
    let leaf = commit.state.rsplit('/').next().unwrap_or_default();
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let leaf: String = leaf.chars().map(plain).collect();
    let words: Vec<&str> = leaf.split('-').filter(|word| !word.is_empty()).collect();
    let leaf = if words.is_empty() {
        "state".to_owned()
    } else {
        words.join("-")
    };
    format!("diffkeeper.local/{leaf}:{}", short(&commit.id))
}

/// Counts and hashes what is written to a file.
struct Hashing {
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(bytes.get(..n).unwrap_or_default());
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn digest_of(bytes: &[u8]) -> String {
    named(Sha256::digest(bytes).as_slice())
}

fn named(hash: &[u8]) -> String {
    let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// One blob, as manifests name it.
#[derive(Debug, Clone)]
struct Blob {
    digest: String,
    size: u64,
    value: Value,
}

impl Blob {
    fn of(value: &Value) -> Result<Blob> {
        let digest = value["digest"].as_str().unwrap_or_default();
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        ensure!(
            hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()),
            "{digest:?} is not the digest of a blob"
        );
        Ok(Blob {
            digest: digest.to_owned(),
            size: value["size"].as_u64().context("a blob without a size")?,
            value: value.clone(),
        })
    }

    fn path(digest: &str) -> String {
        format!("blobs/{}", digest.replace(':', "/"))
    }
}

/// Where the image's blobs are.
enum Source {
    Archive {
        file: File,
        name: PathBuf,
        /// Where each file in it is, and how long.
        files: BTreeMap<String, (u64, u64)>,
    },
    Containerd {
        client: Client,
        namespace: MetadataValue<containerd_client::tonic::metadata::Ascii>,
        /// The digest of the image's index or manifest.
        top: String,
    },
}

impl Source {
    async fn open(config: &Config, how: &Base, commit: &api::Commit) -> Result<Source> {
        match &how.base {
            Some(path) => Source::archive(path),
            None => Source::containerd(config, how, commit).await,
        }
    }

    fn archive(path: &Path) -> Result<Source> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut files = BTreeMap::new();
        let mut read = tar::Archive::new(file.try_clone()?);
        let reading = || format!("read {} as a tar", path.display());
        for entry in read.entries_with_seek().with_context(reading)? {
            let entry = entry.with_context(reading)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.trim_start_matches("./").to_owned();
            files.insert(name, (entry.raw_file_position(), entry.size()));
        }
        ensure!(
            files.contains_key("index.json"),
            "{} is not an OCI archive (it has no index.json): make one with ctr images export, or with docker save of \
             Docker 25 or later",
            path.display()
        );
        Ok(Source::Archive {
            file,
            name: path.to_owned(),
            files,
        })
    }

    async fn containerd(config: &Config, how: &Base, commit: &api::Commit) -> Result<Source> {
        let none =
            "--format layer needs no image; --base ARCHIVE takes one from ctr images export or docker save";
        let namespace = match &how.namespace {
            Some(namespace) => namespace.clone(),
            None => match commit.state.split('/').collect::<Vec<_>>().as_slice() {
                ["ctr", namespace, ..] => (*namespace).to_owned(),
                ["k8s", ..] => "k8s.io".into(),
                _ => "moby".into(),
            },
        };
        let client = Client::from_path(&how.address).await.with_context(|| {
            format!(
                "connect to containerd at {} for the image; {none}",
                how.address.display()
            )
        })?;
        let metadata: MetadataValue<_> = namespace.parse().context("the namespace's name")?;
        let top = match &how.image {
            None if !commit.image.is_empty() => commit.image.clone(),
            None => last_image(config, &how.address, &namespace, &commit.state)
                .await
                .with_context(|| {
                    format!("the commit does not say which image it stood on: name it with --image REFERENCE; {none}")
                })?,
            Some(reference) => {
                let mut get = Request::new(GetImageRequest {
                    name: reference.clone(),
                });
                get.metadata_mut()
                    .insert("containerd-namespace", metadata.clone());
                let found = client.images().get(get).await;
                let found = found.map_err(|e| {
                    anyhow!(
                        "containerd (namespace {namespace}) has no image {reference}: {}",
                        e.message()
                    )
                })?;
                let image = found.into_inner().image;
                image
                    .and_then(|image| image.target)
                    .map(|target| target.digest)
                    .with_context(|| format!("containerd does not say what {reference} is"))?
            }
        };
        Ok(Source::Containerd {
            client,
            namespace: metadata,
            top,
        })
    }

    fn missing(&self, digest: &str) -> String {
        match self {
            Source::Archive { name, .. } => format!("{} does not hold {digest}", name.display()),
            Source::Containerd { .. } => format!(
                "containerd does not have {digest} of the image (any more): pull the image again (where containerd discards \
                 unpacked layers, elsewhere), and give it as --base ARCHIVE; --format layer needs no image"
            ),
        }
    }

    /// How long a blob is; none where it is not there.
    async fn length(&mut self, digest: &str) -> Result<Option<u64>> {
        Ok(match self {
            Source::Archive { files, .. } => files.get(&Blob::path(digest)).map(|(_, size)| *size),
            Source::Containerd {
                client, namespace, ..
            } => {
                let mut info = Request::new(InfoRequest {
                    digest: digest.to_owned(),
                });
                info.metadata_mut()
                    .insert("containerd-namespace", namespace.clone());
                match client.content().info(info).await {
                    Ok(found) => found
                        .into_inner()
                        .info
                        .map(|info| u64::try_from(info.size).unwrap_or(0)),
                    Err(status) if status.code() == containerd_client::tonic::Code::NotFound => None,
                    Err(status) => bail!("containerd says of {digest}: {}", status.message()),
                }
            }
        })
    }

    /// Reads a blob, in parts, and checks it against its digest.
    async fn read(&mut self, digest: &str, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let missing = self.missing(digest);
        let mut hash = Sha256::new();
        let mut each = |bytes: &[u8]| {
            hash.update(bytes);
            each(bytes)
        };
        match self {
            Source::Archive { file, name, files } => {
                let (at, size) = *files.get(&Blob::path(digest)).context(missing)?;
                let mut part = vec![0; PART];
                let mut done = 0;
                while done < size {
                    let wanted = usize::try_from(size - done).unwrap_or(PART).min(PART);
                    let part = part.get_mut(..wanted).unwrap_or_default();
                    file.read_exact_at(part, at + done)
                        .with_context(|| format!("read {}", name.display()))?;
                    each(part)?;
                    done += wanted as u64;
                }
            }
            Source::Containerd {
                client, namespace, ..
            } => {
                let mut read = Request::new(ReadContentRequest {
                    digest: digest.to_owned(),
                    ..ReadContentRequest::default()
                });
                read.metadata_mut()
                    .insert("containerd-namespace", namespace.clone());
                let stream = client.content().read(read).await;
                let mut stream = stream
                    .map_err(|e| anyhow!("{missing}: {}", e.message()))?
                    .into_inner();
                while let Some(part) = stream
                    .message()
                    .await
                    .map_err(|e| anyhow!("containerd says of {digest}: {}", e.message()))?
                {
                    each(&part.data)?;
                }
            }
        }
        let found = named(hash.finalize().as_slice());
        ensure!(
            found == digest,
            "{digest} is damaged: its content is that of {found}"
        );
        Ok(())
    }

    async fn json(&mut self, digest: &str) -> Result<Value> {
        let length = self.length(digest).await?.with_context(|| self.missing(digest))?;
        ensure!(
            length <= LONGEST,
            "{digest} has {length} bytes: that is no manifest"
        );
        let mut bytes = Vec::new();
        self.read(digest, |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })
        .await?;
        serde_json::from_slice(&bytes).with_context(|| format!("{digest} is no JSON"))
    }

    /// What describes the image that a commit stood on, an index or a manifest, and its digest.
    async fn top(&mut self, commit: &api::Commit) -> Result<(Value, String)> {
        match self {
            Source::Containerd { top, .. } => {
                let top = top.clone();
                Ok((self.json(&top).await?, top))
            }
            Source::Archive { file, name, files } => {
                let (at, size) = *files.get("index.json").context("no index.json")?;
                ensure!(
                    size <= LONGEST,
                    "the index.json of {} is too long",
                    name.display()
                );
                let mut bytes = vec![0; usize::try_from(size)?];
                file.read_exact_at(&mut bytes, at)
                    .with_context(|| format!("read {}", name.display()))?;
                let index: Value = serde_json::from_slice(&bytes).context("its index.json is no JSON")?;
                let images = index["manifests"].as_array().cloned().unwrap_or_default();
                let same = images
                    .iter()
                    .find(|image| image["digest"] == commit.image.as_str());
                let chosen = match (same, images.as_slice()) {
                    (Some(same), _) => same,
                    (None, [only]) => only,
                    (None, _) => bail!(
                        "{} holds {} images, and none is {:?}, which the commit stood on: make one with that image alone",
                        name.display(),
                        images.len(),
                        commit.image
                    ),
                };
                let digest = Blob::of(chosen)?.digest;
                Ok((self.json(&digest).await?, digest))
            }
        }
    }
}

/// The image of the container that had the state last; none where that has gone.
async fn last_image(config: &Config, address: &Path, namespace: &str, state: &str) -> Option<String> {
    let record = live::Node::open(&config.root)
        .ok()?
        .state(&state.parse().ok()?)
        .record()?;
    let container = record.last_container?;
    let known = crate::image::ask(address, namespace, &container).await.ok()?;
    let (reference, digest) = (known.reference?, known.digest?);
    eprintln!(
        "the commit does not say which image it stood on: taking {reference}, which its last container has"
    );
    Some(digest)
}

/// An image as its manifest has it.
struct Image {
    config: Value,
    layers: Vec<Blob>,
}

impl Image {
    async fn find(source: &mut Source, commit: &api::Commit) -> Result<Image> {
        let (mut found, mut digest) = source.top(commit).await?;
        let mut digests = vec![digest];
        // An index may be of indexes; four deep is deeper than any.
        for _ in 0..4 {
            let Some(manifests) = found["manifests"].as_array().cloned() else {
                break;
            };
            (found, digest) = Image::choose(source, &manifests).await?;
            digests.push(digest);
        }
        let config = Blob::of(&found["config"]).context("the image's manifest names no configuration")?;
        // Docker calls an image by its configuration.
        digests.push(config.digest.clone());
        if !commit.image.is_empty() && !digests.contains(&commit.image) {
            eprintln!(
                "the commit stood on {}, and this is {}: what the container changed may not fit",
                commit.image,
                digests.join(", ")
            );
        }
        let config = source.json(&config.digest).await?;
        let layers = found["layers"]
            .as_array()
            .context("the image's manifest has no layers")?;
        let layers: Vec<Blob> = layers.iter().map(Blob::of).collect::<Result<_>>()?;
        let ids = config["rootfs"]["diff_ids"].as_array().map_or(0, Vec::len);
        ensure!(
            ids == layers.len(),
            "the image's manifest has {} layers and its configuration {ids}",
            layers.len()
        );
        Ok(Image { config, layers })
    }

    /// The manifest for this machine, as far as the source has it.
    async fn choose(source: &mut Source, manifests: &[Value]) -> Result<(Value, String)> {
        let machine = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let fits = |manifest: &&Value| {
            let of = &manifest["platform"]["architecture"];
            of.is_null() || of == machine
        };
        let mut error = anyhow!("the image has no manifest for {machine}");
        for manifest in manifests.iter().filter(fits) {
            let digest = Blob::of(manifest)?.digest;
            match source.json(&digest).await {
                Ok(found) => return Ok((found, digest)),
                Err(why) => error = why,
            }
        }
        Err(error)
    }

    async fn complete(&self, source: &mut Source) -> Result<()> {
        for layer in &self.layers {
            ensure!(
                source.length(&layer.digest).await?.is_some(),
                "{}",
                source.missing(&layer.digest)
            );
        }
        Ok(())
    }

    async fn write(
        mut self,
        source: &mut Source,
        layer: Hashing,
        commit: &api::Commit,
        name: &str,
        out: &mut impl Write,
    ) -> Result<()> {
        let mut out = Writer::new(out);
        let Hashing {
            mut file,
            hash,
            bytes,
        } = layer;
        let top = named(hash.finalize().as_slice());
        let created = jiff::Timestamp::from_nanosecond(commit.time.into())
            .map(|at| at.to_string())
            .unwrap_or_default();
        self.config["created"] = json!(created);
        push(&mut self.config["rootfs"]["diff_ids"], json!(top));
        let said = format!("diffkeeper export {}@{}", commit.state, short(&commit.id));
        push(
            &mut self.config["history"],
            json!({"created": created, "created_by": said}),
        );
        let config = serde_json::to_vec(&self.config)?;
        let mut layers: Vec<Value> = self.layers.iter().map(described).collect();
        layers.push(json!({"mediaType": LAYER, "digest": top, "size": bytes}));
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest_of(&config), "size": config.len()},
            "layers": layers,
        }))?;
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": MANIFEST,
                "digest": digest_of(&manifest),
                "size": manifest.len(),
                "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag},
                "platform": {"architecture": self.config["architecture"], "os": self.config["os"]},
            }],
        }))?;
        let paths = layers
            .iter()
            .filter_map(|layer| layer["digest"].as_str())
            .map(Blob::path);
        let docker = serde_json::to_vec(&json!([{
            "Config": Blob::path(&digest_of(&config)),
            "RepoTags": [name],
            "Layers": paths.collect::<Vec<_>>(),
        }]))?;

        put(&mut out, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        put(&mut out, &Blob::path(&digest_of(&config)), &config)?;
        put(&mut out, &Blob::path(&digest_of(&manifest)), &manifest)?;
        let mut written = std::collections::HashSet::new();
        for layer in &self.layers {
            // Two layers may be the same.
            if written.insert(layer.digest.clone()) {
                begin(&mut out, &Blob::path(&layer.digest), layer.size)?;
                source.read(&layer.digest, |part| Ok(out.write(part)?)).await?;
            }
        }
        if written.insert(top.clone()) {
            begin(&mut out, &Blob::path(&top), bytes)?;
            file.seek(SeekFrom::Start(0))?;
            let mut part = vec![0; PART];
            loop {
                let n = file.read(&mut part).context("read the layer")?;
                let Some(part) = part.get(..n).filter(|part| !part.is_empty()) else {
                    break;
                };
                out.write(part).context("write the image")?;
            }
        }
        put(&mut out, "index.json", &index)?;
        put(&mut out, "manifest.json", &docker)?;
        out.finish().context("write the image")?;
        Ok(())
    }
}

fn begin(out: &mut Writer<impl Write>, name: &str, size: u64) -> Result<()> {
    let head = Head {
        size,
        ..Head::new(name.as_bytes(), EntryType::Regular)
    };
    out.head(&head).context("write the image")
}

fn put(out: &mut Writer<impl Write>, name: &str, bytes: &[u8]) -> Result<()> {
    begin(out, name, bytes.len() as u64)?;
    out.write(bytes).context("write the image")
}

fn push(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(item),
        None => *list = json!([item]),
    }
}

/// A layer in an OCI manifest: Docker's names for what OCI has names of its own for.
fn described(layer: &Blob) -> Value {
    let mut value = layer.value.clone();
    let kind = value["mediaType"].as_str().unwrap_or_default();
    let oci = match kind {
        "application/vnd.docker.image.rootfs.diff.tar" => LAYER.to_owned(),
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => format!("{LAYER}+gzip"),
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => format!("{LAYER}+zstd"),
        other => other.to_owned(),
    };
    value["mediaType"] = json!(oci);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_gives_a_name_that_registries_take() {
        let name = |state: &str| {
            name_of(&api::Commit {
                state: state.into(),
                id: "0123456789abcdef".into(),
                ..api::Commit::default()
            })
        };
        assert_eq!(
            name("ctr/default/Web_1..x-"),
            "diffkeeper.local/web-1-x:0123456789ab"
        );
        assert_eq!(name("docker/--"), "diffkeeper.local/state:0123456789ab");
    }

    #[test]
    fn names_are_whole() {
        for (said, meant) in [
            ("web", "docker.io/library/web:latest"),
            ("me/web:1", "docker.io/me/web:1"),
            ("example.org/web", "example.org/web:latest"),
            ("localhost:5000/a/web:1", "localhost:5000/a/web:1"),
            ("localhost/web", "localhost/web:latest"),
        ] {
            assert_eq!(whole(said), meant);
        }
    }

    #[test]
    fn a_digest_is_no_path() {
        for digest in ["sha256:../../etc/passwd", "sha256:", "md5:00", ""] {
            assert!(
                Blob::of(&json!({"digest": digest, "size": 1})).is_err(),
                "{digest}"
            );
        }
    }

    #[test]
    fn what_is_no_image_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [0; 1024]).unwrap();
        let told = Source::archive(file.path()).err().unwrap().to_string();
        assert!(told.contains("not an OCI archive"), "{told}");
    }
}
