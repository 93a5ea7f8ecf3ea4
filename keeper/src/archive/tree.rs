//! Entries from outside, one after the other, become a tree that RedShift can make.
//!
//! Nothing is written to a file system here: a path is a key, and what would lead out of the tree is none.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use live::Root;
use store::format::{Entry, Kind, Shown, Xattr, key, place};

use super::write::{OPAQUE, WHITEOUT};
use crate::{
    error::{Error, Result},
    tree::{DEEPEST, LONGEST_KEY},
};

/// The root that all goes to for which there is no other.
pub(super) const ROOT: &[u8] = b"rootfs";
/// The longest name that a file system takes.
const NAME: usize = 255;
/// The longest that a link may point to.
const LINK: usize = 4095;
/// The longest value of an extended attribute.
const VALUE: usize = 64 << 10;
/// More entries are not held in memory.
const MOST: usize = 20_000_000;

/// A tree that grows.
#[derive(Default)]
pub(super) struct Tree {
    /// The deepest first.
    roots: Vec<Below>,
    entries: BTreeMap<Vec<u8>, Entry>,
    /// The further names of a file, by its key.
    names: HashMap<Vec<u8>, BTreeSet<Vec<u8>>>,
}

fn refused(path: &[u8], why: &str) -> Error {
    Error::Refused(format!("{}: {why}", path.escape_ascii()))
}

/// Where what lies below a path of the container goes instead of [`ROOT`].
struct Below {
    /// Without slashes around it.
    path: Vec<u8>,
    /// The root's name.
    root: Vec<u8>,
    /// A directory as it is, where nothing of an image can be hidden.
    volume: bool,
}

/// The parts of a path, one after the other.
fn normal(path: &[u8]) -> Result<Vec<u8>> {
    let parts = path
        .split(|b| *b == b'/')
        .filter(|part| !part.is_empty() && *part != b".");
    for part in parts.clone() {
        if part == b".." {
            return Err(refused(path, "it leads up, out of the tree perhaps"));
        }
        if part.len() > NAME || part.contains(&0) {
            return Err(refused(path, "no file system takes such a name"));
        }
    }
    Ok(parts.collect::<Vec<_>>().join(&b'/'))
}

fn parent(key: &[u8]) -> Option<&[u8]> {
    key.get(..key.iter().rposition(|b| *b == 0)?)
}

fn directory(key: &[u8]) -> Entry {
    Entry {
        key: key.to_vec(),
        kind: Kind::Directory as i32,
        mode: 0o755,
        ..Entry::default()
    }
}

fn whiteout(key: &[u8]) -> Entry {
    Entry {
        key: key.to_vec(),
        kind: Kind::Whiteout as i32,
        ..Entry::default()
    }
}

/// What of an entry's attributes is kept; overlayfs's own are judged.
pub(super) fn judge(path: &[u8], entry: &mut Entry, xattrs: Vec<Xattr>) -> Result<()> {
    let plain = matches!(entry.what(), Kind::File | Kind::Directory);
    for xattr in xattrs {
        let name = xattr.name.as_slice();
        match name {
            b"trusted.overlay.opaque" => {
                entry.opaque = entry.what() == Kind::Directory && xattr.value == b"y";
                continue;
            }
            b"trusted.overlay.redirect" | b"trusted.overlay.metacopy" => {
                return Err(refused(
                    path,
                    "it is half a file, whose other half is in an overlay's lower directories (redirect_dir, metacopy): \
                     read the merged directory instead",
                ));
            }
            _ if name.starts_with(b"trusted.overlay.") || name == b"security.selinux" => continue,
            _ => {}
        }
        let class = [&b"user."[..], b"trusted.", b"security.", b"system.posix_acl_"]
            .iter()
            .any(|class| name.starts_with(class));
        if !class || name.len() > NAME || name.contains(&0) || xattr.value.len() > VALUE {
            return Err(refused(
                path,
                &format!(
                    "it has an extended attribute {} that no file system takes",
                    name.escape_ascii()
                ),
            ));
        }
        if name.starts_with(b"user.") && !plain {
            return Err(refused(
                path,
                "only files and directories have attributes of users",
            ));
        }
        entry.xattrs.retain(|other| other.name != name);
        entry.xattrs.push(xattr);
    }
    entry.xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(())
}

fn is_top(key: &[u8]) -> bool {
    !key.contains(&0)
}

impl Tree {
    /// One that has these roots besides the container's `/`.
    ///
    /// # Errors
    /// A path that no root can stand on.
    pub fn with(roots: &[Root]) -> Result<Tree> {
        let mut tree = Tree::default();
        for root in roots {
            let path = normal(root.destination().as_os_str().as_bytes())?;
            if !path.is_empty() {
                tree.roots.push(Below {
                    path,
                    root: root.dir_name()?.into_vec(),
                    volume: matches!(root, Root::Volume(_)),
                });
            }
        }
        tree.roots.sort_by_key(|below| Reverse(below.path.len()));
        Ok(tree)
    }

    /// The key of a path.
    ///
    /// # Errors
    /// One that leads out of the tree, or that cannot be recorded.
    pub fn key_of(&self, path: &[u8]) -> Result<Vec<u8>> {
        let said = normal(path)?;
        let in_root = |below: &Below| {
            let rest = said.strip_prefix(below.path.as_slice())?;
            match rest.split_first() {
                None => Some(key(&below.root, b"")),
                Some((b'/', rest)) => Some(key(&below.root, rest)),
                Some(_) => None,
            }
        };
        let found = self.roots.iter().find_map(in_root);
        let key = found.unwrap_or_else(|| key(ROOT, &said));
        if key.len() > LONGEST_KEY || said.split(|b| *b == b'/').count() >= DEEPEST {
            return Err(refused(path, "it is deeper or longer than can be recorded"));
        }
        Ok(key)
    }

    fn in_volume(&self, key: &[u8]) -> bool {
        let (root, _) = place(key);
        self.roots.iter().any(|below| below.volume && below.root == root)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// What a path of a layer says is gone, or that a directory hides what is below it; false where it is no such mark.
    pub fn mark(&mut self, path: &[u8]) -> Result<bool> {
        let end = path.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
        let path = path.get(..end).unwrap_or_default();
        let at = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let (above, name) = path.split_at_checked(at).unwrap_or_default();
        if name == OPAQUE {
            let key = self.key_of(above)?;
            if self.in_volume(&key) {
                return Ok(true);
            }
            if is_top(&key) {
                return Err(refused(path, "an overlay's top cannot hide the whole image"));
            }
            self.above(path, &key)?;
            self.entries.entry(key.clone()).or_insert_with(|| directory(&key));
            return match self
                .entries
                .get_mut(&key)
                .filter(|entry| entry.what() == Kind::Directory)
            {
                Some(entry) => {
                    entry.opaque = true;
                    Ok(true)
                }
                None => Err(refused(path, "what it is in is no directory")),
            };
        }
        let Some(gone) = name.strip_prefix(WHITEOUT) else {
            return Ok(false);
        };
        if gone.starts_with(WHITEOUT) {
            // Of AUFS, for itself.
            return Ok(true);
        }
        if matches!(gone, b"" | b"." | b"..") {
            return Err(refused(path, "nothing has the name that it says is gone"));
        }
        let mut gone_path = above.to_vec();
        gone_path.extend_from_slice(gone);
        let key = self.key_of(&gone_path)?;
        if self.in_volume(&key) {
            return Ok(true);
        }
        self.above(path, &key)?;
        match self.entries.get_mut(&key) {
            // It came back as something else, which hides what was below.
            Some(entry) if entry.what() == Kind::Directory => entry.opaque = true,
            Some(_) => {}
            None => {
                self.entries.insert(key.clone(), whiteout(&key));
            }
        }
        Ok(true)
    }

    /// Adds an entry; one of that name makes way, as it does when tar unpacks.
    pub fn put(&mut self, path: &[u8], mut entry: Entry) -> Result<()> {
        let key = entry.key.clone();
        if self.entries.len() >= MOST {
            return Err(refused(
                path,
                "there are more entries than can be imported at once",
            ));
        }
        if self.in_volume(&key) {
            if entry.what() == Kind::Whiteout {
                return Ok(());
            }
            entry.opaque = false;
        }
        if is_top(&key) && (entry.what() != Kind::Directory || entry.opaque) {
            return Err(refused(path, "the top must be a directory that hides nothing"));
        }
        if entry.what() == Kind::Symlink && (entry.inline.is_empty() || entry.inline.len() > LINK) {
            return Err(refused(
                path,
                "a link must point somewhere, in at most 4095 bytes",
            ));
        }
        self.above(path, &key)?;
        let old = self.entries.get(&key);
        if let Some(old) = old {
            match (old.what(), entry.what()) {
                (Kind::Directory, Kind::Directory) => entry.opaque |= old.opaque,
                (Kind::Whiteout, Kind::Directory) => entry.opaque = true,
                (Kind::Directory, _) if self.has_children(&key) => {
                    return Err(refused(
                        path,
                        "it is a directory with something in it, and then something else",
                    ));
                }
                _ => {}
            }
        }
        self.make_way(&key);
        self.entries.insert(key, entry);
        Ok(())
    }

    /// Adds a further name of what was added before.
    pub fn link(&mut self, path: &[u8], to: &[u8]) -> Result<()> {
        let (key, mut first) = (self.key_of(path)?, self.key_of(to)?);
        let target = self.entries.get(&first);
        if let Some(target) = target.filter(|target| !target.link.is_empty()) {
            first.clone_from(&target.link);
        }
        let kind = match self.entries.get(&first).map(Entry::what) {
            None => return Err(refused(path, "it is another name of what is not there (yet)")),
            Some(Kind::Directory | Kind::Whiteout) => {
                return Err(refused(path, "it is another name of a directory, or of nothing"));
            }
            Some(kind) => kind,
        };
        if key == first {
            return Err(refused(path, "it is another name of itself"));
        }
        if place(&key).0 != place(&first).0
            && let Some(target) = self.entries.get(&first)
        {
            // No name goes from one root to another: it has the same content, and is a file of its own.
            let entry = Entry {
                key,
                ..target.clone()
            };
            return self.put(path, entry);
        }
        let entry = Entry {
            key: key.clone(),
            kind: kind as i32,
            link: first.clone(),
            ..Entry::default()
        };
        self.put(path, entry)?;
        self.names.entry(first).or_default().insert(key);
        Ok(())
    }

    /// The directories on the way, made where the archive is silent about them.
    fn above(&mut self, path: &[u8], key: &[u8]) -> Result<()> {
        let mut missing = Vec::new();
        let mut at = key;
        while let Some(above) = parent(at) {
            match self.entries.get(above).map(Entry::what) {
                Some(Kind::Directory) => break,
                Some(Kind::Whiteout) | None => missing.push(above.to_vec()),
                Some(_) => {
                    return Err(refused(
                        path,
                        &format!("it is below {}, which is no directory", Shown(above)),
                    ));
                }
            }
            at = above;
        }
        for key in missing {
            let hides = self.entries.contains_key(&key);
            let mut entry = directory(&key);
            entry.opaque = hides;
            self.entries.insert(key, entry);
        }
        Ok(())
    }

    fn has_children(&self, key: &[u8]) -> bool {
        let mut from = key.to_vec();
        from.push(0);
        let next = self.entries.range(from.clone()..).next();
        next.is_some_and(|(key, _)| key.starts_with(&from))
    }

    /// Takes an entry out; its other names go on with what it was.
    fn make_way(&mut self, key: &[u8]) {
        let Some(old) = self.entries.remove(key) else {
            return;
        };
        if let Some(names) = self.names.get_mut(&old.link) {
            names.remove(key);
        }
        if let Some(names) = self.names.remove(key) {
            self.hand_over(old, names);
        }
    }

    /// The first of these names becomes what the others are names of.
    fn hand_over(&mut self, old: Entry, mut names: BTreeSet<Vec<u8>>) {
        let Some(first) = names.pop_first() else {
            return;
        };
        for name in &names {
            if let Some(entry) = self.entries.get_mut(name) {
                entry.link.clone_from(&first);
            }
        }
        let entry = Entry {
            key: first.clone(),
            ..old
        };
        self.entries.insert(first.clone(), entry);
        if !names.is_empty() {
            self.names.insert(first, names);
        }
    }

    /// All of it, in order. Content stands with the first of a file's names.
    pub fn entries(mut self) -> Result<Vec<Entry>> {
        let groups: Vec<(Vec<u8>, BTreeSet<Vec<u8>>)> = self.names.drain().collect();
        for (first, mut names) in groups {
            if names.first().is_some_and(|name| *name < first)
                && let Some(old) = self.entries.get(&first).cloned()
            {
                let again = Entry {
                    key: first.clone(),
                    kind: old.kind,
                    ..Entry::default()
                };
                self.entries.insert(first.clone(), again);
                names.insert(first);
                self.hand_over(old, names);
            }
        }
        if !self.entries.contains_key(ROOT) {
            self.entries.insert(ROOT.to_vec(), directory(ROOT));
        }
        let there = |name: &[u8]| self.entries.contains_key(&key(ROOT, name));
        if there(b"oci-layout") && there(b"index.json") || there(b"manifest.json") && there(b"repositories") {
            return Err(Error::Refused(
                "it is an image, not what is in one: ctr image import and docker load take it; import takes a layer of it, \
                 or what docker export makes"
                    .into(),
            ));
        }
        Ok(self.entries.into_values().collect())
    }
}
