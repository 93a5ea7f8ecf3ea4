//! A version as an archive: plain, as `tar` unpacks it, or as a layer of an OCI image.
//!
//! One pass over the tree, each chunk checked against its name as it is read, and no more of it in memory than that.

use std::{
    io::{self, Write},
    ops::ControlFlow,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use live::Root;
use nix::sys::stat::{major, minor};
use store::{
    Id, Store,
    content::{Pieces, Stretch},
    format::{Entry, Kind, Shown},
};
use tar::EntryType;

use super::tar::{BLOCK, Head, Writer};
use crate::error::{Error, Result};

/// What marks in a layer that a name of the layers below is gone.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// What marks in a layer that nothing of the layers below is in its directory.
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";

/// Which archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// What is there. What the container deleted of its image is not told, and sparse files stay sparse.
    Plain,
    /// The changes to an image: `.wh.` files say what is gone. Paths are the container's.
    Layer,
}

/// How much an archive holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Entries.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// One root of a version.
struct Part {
    name: Vec<u8>,
    root: Root,
}

/// What is written of a version.
pub(super) struct Plan<'a> {
    store: &'a Store,
    domain: u32,
    tree: Id,
    parts: Vec<Part>,
    below: Option<&'a [u8]>,
    form: Form,
}

impl<'a> Plan<'a> {
    /// Of a tree with these roots, or of what has the key `below`.
    pub fn new(
        store: &'a Store,
        domain: u32,
        tree: Id,
        roots: Vec<(Vec<u8>, Root)>,
        below: Option<&'a [u8]>,
        form: Form,
    ) -> Plan<'a> {
        let parts = roots.into_iter().map(|(name, root)| Part { name, root });
        let mut parts: Vec<Part> = parts.collect();
        // What lies in another comes after it.
        parts.sort_by(|a, b| a.root.destination().cmp(b.root.destination()));
        Plan {
            store,
            domain,
            tree,
            parts,
            below,
            form,
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// Missing or damaged content, a name that a layer cannot hold, a writer that fails: what was written is no archive
    /// then.
    pub fn run<W: Write>(&self, out: W) -> Result<Packed> {
        let mut pack = Pack {
            plan: self,
            out: Writer::new(out),
            packed: Packed::default(),
        };
        for part in &self.parts {
            let from = match self.below {
                Some(below) if store::format::place(below).0 != part.name => continue,
                Some(below) => below,
                None => part.name.as_slice(),
            };
            let mut failed = None;
            self.store.entries(self.domain, self.tree, from, |entry| {
                if !is_below(&entry.key, from) {
                    return Ok(ControlFlow::Break(()));
                }
                Ok(match pack.entry(part, &entry) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                })
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
        }
        let packed = pack.packed;
        pack.out.finish().map_err(writing)?;
        Ok(packed)
    }

    /// Where an entry is in the container.
    fn path(part: &Part, key: &[u8]) -> PathBuf {
        let (_, below) = store::format::place(key);
        let below = std::ffi::OsStr::from_bytes(&below);
        match below.is_empty() {
            true => part.root.destination().to_owned(),
            false => part.root.destination().join(below),
        }
    }

    /// Whether another root was mounted over it: then nobody in the container saw it.
    fn hidden(&self, part: &Part, path: &Path) -> bool {
        self.parts.iter().any(|other| {
            let over = other.root.destination();
            other.name != part.name && over.starts_with(part.root.destination()) && path.starts_with(over)
        })
    }

    /// The name in the archive: the container's, without the directories above what was asked for.
    fn name(&self, part: &Part, path: &Path) -> Vec<u8> {
        let above = match (self.below, self.form) {
            (Some(below), Form::Plain) => {
                let asked = Plan::path(part, below);
                asked.parent().unwrap_or(Path::new("/")).to_owned()
            }
            _ => PathBuf::from("/"),
        };
        let name = path.strip_prefix(&above).unwrap_or(path).as_os_str().as_bytes();
        if name.is_empty() {
            b".".to_vec()
        } else {
            name.to_vec()
        }
    }
}

pub(super) fn is_below(key: &[u8], top: &[u8]) -> bool {
    key.strip_prefix(top)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(&[0]))
}

fn writing(source: io::Error) -> Error {
    Error::Io {
        context: "write the archive".into(),
        source,
    }
}

/// A directory's name, with what is in it.
fn inside(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    path.extend_from_slice(name);
    path
}

struct Pack<'a, W> {
    plan: &'a Plan<'a>,
    out: Writer<W>,
    packed: Packed,
}

impl<W: Write> Pack<'_, W> {
    fn entry(&mut self, part: &Part, entry: &Entry) -> Result<()> {
        let plan = self.plan;
        let path = Plan::path(part, &entry.key);
        if plan.hidden(part, &path) {
            return Ok(());
        }
        let mut name = plan.name(part, &path);
        let own = match name.iter().rposition(|b| *b == b'/') {
            Some(at) => name.split_off(at + 1),
            None => std::mem::take(&mut name),
        };
        let (above, layer) = (name, plan.form == Form::Layer);
        if entry.what() == Kind::Whiteout {
            if layer {
                let mark = inside(&above, &inside(WHITEOUT, &own));
                self.head(&Head::new(&mark, EntryType::Regular))?;
            }
            return Ok(());
        }
        if layer && own.starts_with(WHITEOUT) {
            return Err(Error::Refused(format!(
                "{} cannot be in a layer: whoever unpacks one takes names that begin with .wh. for marks of what is gone; \
                 --format tar has no such marks",
                path.display()
            )));
        }
        let name = inside(&above, &own);
        if entry.what() == Kind::Directory {
            let name = inside(&name, b"/");
            self.head(&head(&name, EntryType::Directory, entry))?;
            // A volume was never the image's.
            let volume = matches!(part.root, Root::Volume(_)) && entry.key == part.name;
            if layer && (entry.opaque || volume) {
                let name = if name == b"./" { b"".to_vec() } else { name };
                self.head(&Head::new(&inside(&name, OPAQUE), EntryType::Regular))?;
            }
            return Ok(());
        }
        if !entry.link.is_empty() {
            return self.further(part, entry, &name);
        }
        match entry.what() {
            Kind::File => self.file(&name, entry),
            Kind::Symlink => self.head(&Head {
                link: &entry.inline,
                ..head(&name, EntryType::Symlink, entry)
            }),
            Kind::Fifo => self.head(&head(&name, EntryType::Fifo, entry)),
            _ => {
                let kind = if entry.what() == Kind::Block {
                    EntryType::Block
                } else {
                    EntryType::Char
                };
                let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
                self.head(&Head {
                    device: (number(major(entry.device)), number(minor(entry.device))),
                    ..head(&name, kind, entry)
                })
            }
        }
    }

    /// A further name of a file; where the first is not in the archive, a file of its own.
    fn further(&mut self, part: &Part, entry: &Entry, name: &[u8]) -> Result<()> {
        let plan = self.plan;
        let first = plan.store.entry(plan.domain, plan.tree, &entry.link)?;
        let first = first.ok_or_else(|| Error::NotFound(format!("{} is missing", Shown(&entry.link))))?;
        let path = Plan::path(part, &entry.link);
        let written = is_below(&entry.link, plan.below.unwrap_or(&part.name))
            && entry.link < entry.key
            && !plan.hidden(part, &path);
        if written {
            return self.head(&Head {
                link: &plan.name(part, &path),
                ..head(name, EntryType::Link, &first)
            });
        }
        self.file(name, &first)
    }

    fn head(&mut self, head: &Head<'_>) -> Result<()> {
        self.packed.entries += 1;
        // Of a hard link all stands with the first name.
        let head = match head.kind {
            EntryType::Link => Head { xattrs: &[], ..*head },
            _ => *head,
        };
        self.out.head(&head).map_err(writing)
    }

    fn file(&mut self, name: &[u8], entry: &Entry) -> Result<()> {
        let plan = self.plan;
        let map = match plan.form {
            Form::Plain => stretches(plan.store, plan.domain, entry)?,
            // Not every reader of layers knows of sparse files.
            Form::Layer => None,
        };
        let head = head(name, EntryType::Regular, entry);
        match &map {
            None => self.head(&Head {
                size: entry.size,
                ..head
            })?,
            Some(map) => {
                let table = table(map);
                let data: u64 = map.iter().map(|(_, length)| length).sum();
                self.head(&Head {
                    size: table.len() as u64 + data,
                    sparse: Some(entry.size),
                    ..head
                })?;
                self.out.write(&table).map_err(writing)?;
            }
        }
        let (out, packed) = (&mut self.out, &mut self.packed);
        let mut failed = None;
        let read = plan.store.read(plan.domain, entry, |_, stretch| {
            let done = match stretch {
                Stretch::Bytes(bytes) => {
                    packed.bytes += bytes.len() as u64;
                    out.write(bytes)
                }
                Stretch::Hole(_) if map.is_some() => Ok(()),
                Stretch::Hole(length) => out.zeros(length),
            };
            done.map_err(|error| {
                failed = Some(error);
                store::Error::Refused("the archive cannot be written".into())
            })
        });
        match failed {
            Some(error) => Err(writing(error)),
            None => Ok(read?),
        }
    }
}

fn head<'a>(path: &'a [u8], kind: EntryType, entry: &'a Entry) -> Head<'a> {
    Head {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: (entry.mtime, entry.mtime_nanos),
        xattrs: &entry.xattrs,
        ..Head::new(path, kind)
    }
}

/// Where a file's data is: places and lengths; none where it has no holes.
fn stretches(store: &Store, domain: u32, entry: &Entry) -> Result<Option<Vec<(u64, u64)>>> {
    let Some(mut pieces) = Pieces::new(store, domain, entry)? else {
        // All of it is a hole, or it is short.
        return Ok((entry.inline.is_empty() && entry.size > 0).then(|| vec![(entry.size, 0)]));
    };
    let (mut found, mut holes, mut end): (Vec<(u64, u64)>, _, _) = (Vec::new(), false, 0);
    while let Some((at, piece)) = pieces.next_piece()? {
        end = at.saturating_add(piece.length);
        match found.last_mut() {
            _ if piece.chunk.is_empty() => holes = true,
            Some((begin, length)) if *begin + *length == at => *length += piece.length,
            _ => found.push((at, piece.length)),
        }
    }
    if found.last().is_none_or(|(begin, length)| begin + length < end) {
        // Where it ends.
        found.push((end, 0));
    }
    Ok(holes.then_some(found))
}

/// The map of a sparse file, as GNU tar's format 1.0 has it.
fn table(map: &[(u64, u64)]) -> Vec<u8> {
    let mut text = format!("{}\n", map.len());
    for (begin, length) in map {
        text.push_str(&format!("{begin}\n{length}\n"));
    }
    let mut table = text.into_bytes();
    table.resize(table.len().next_multiple_of(BLOCK), 0);
    table
}
