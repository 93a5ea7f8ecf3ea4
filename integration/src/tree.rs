//! What a tree holds, entry by entry, to be compared with what it was recorded as.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fs,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Which times of modification count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// Everybody's.
    All,
    /// All but the directories'.
    Files,
    /// Nobody's.
    None,
}

/// One line for each entry below a directory; without the marks of overlayfs, opaque directories excepted, and without
/// sockets.
///
/// # Errors
/// What cannot be read.
pub fn listing(top: &Path, times: Times) -> Result<BTreeMap<PathBuf, String>> {
    let (mut found, mut links) = (BTreeMap::new(), HashMap::new());
    let mut names = vec![PathBuf::new()];
    // Sorted, so that of several names the same one comes first in any copy.
    while let Some(name) = names.pop() {
        let path = top.join(&name);
        let meta = fs::symlink_metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        let kind = meta.file_type();
        if kind.is_dir() {
            let mut below = fs::read_dir(&path)?
                .map(|entry| Ok(name.join(entry?.file_name())))
                .collect::<Result<Vec<_>>>()?;
            below.sort_by(|a, b| b.cmp(a));
            names.extend(below);
        }
        if std::os::unix::fs::FileTypeExt::is_socket(&kind) || name.as_os_str().is_empty() {
            continue;
        }
        if std::os::unix::fs::FileTypeExt::is_char_device(&kind) && meta.rdev() == 0 {
            // Owner, times and links of a whiteout mean nothing: the kernel makes many of one.
            found.insert(name, "whiteout".to_owned());
            continue;
        }
        let mut line = format!("{:o} {}:{} {}", meta.mode(), meta.uid(), meta.gid(), meta.rdev());
        match times {
            Times::None => {}
            Times::Files if kind.is_dir() => {}
            Times::All | Times::Files => line += &format!(" {}.{:09}", meta.mtime(), meta.mtime_nsec()),
        }
        if kind.is_symlink() {
            line += &format!(" -> {}", fs::read_link(&path)?.display());
        } else {
            line += &format!(" {:?}", attributes(&path)?);
        }
        if !kind.is_dir() {
            let first = links.entry(meta.ino()).or_insert_with(|| name.clone());
            line += &format!(" {} names, {}", meta.nlink(), first.display());
        }
        if kind.is_file() {
            line += &format!(" {} bytes, {}", meta.len(), hash(&path)?);
        }
        found.insert(name, line);
    }
    Ok(found)
}

/// Demands that two listings are the same.
///
/// # Errors
/// How they differ.
pub fn same(expected: &BTreeMap<PathBuf, String>, found: &BTreeMap<PathBuf, String>) -> Result<()> {
    let mut differences = Vec::new();
    for (name, line) in expected {
        match found.get(name) {
            Some(other) if other == line => {}
            Some(other) => differences.push(format!("{}: {line}\n  but {other}", name.display())),
            None => differences.push(format!("{}: {line}\n  is missing", name.display())),
        }
    }
    let more = found.keys().filter(|name| !expected.contains_key(*name));
    differences.extend(more.map(|name| format!("{} is too many", name.display())));
    if differences.is_empty() {
        return Ok(());
    }
    let count = differences.len();
    differences.truncate(5);
    bail!("{count} entries differ:\n{}", differences.join("\n"))
}

fn hash(path: &Path) -> Result<blake3::Hash> {
    let (mut file, mut hasher) = (fs::File::open(path)?, blake3::Hasher::new());
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            n => hasher.update(buffer.get(..n).unwrap_or_default()),
        };
    }
}

/// Extended attributes, not a symlink's: users' cannot have any.
fn attributes(path: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let mut names = Vec::with_capacity(1 << 16);
    rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut names))?;
    let mut found = BTreeMap::new();
    for name in names.split(|byte| *byte == 0) {
        let text = String::from_utf8_lossy(name);
        let ours = text.starts_with("trusted.overlay.") && text != "trusted.overlay.opaque";
        if name.is_empty() || ours || text == "security.selinux" {
            continue;
        }
        let mut value = Vec::with_capacity(1 << 16);
        rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value))?;
        found.insert(std::os::unix::ffi::OsStringExt::from_vec(name.to_owned()), value);
    }
    Ok(found)
}
