//! Content that is on the disk already is shared with it, where the file system can.
//!
//! What is shared is believed as little as anything else: each of its pieces is read and hashed, and of what is not what
//! the version says, those blocks are written that differ from what the store has.

use std::{
    collections::{HashMap, hash_map},
    fs::File,
    io,
    ops::ControlFlow,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FallocateFlags, OFlag, fallocate, openat},
    sys::stat::{Mode, fstat},
};
use rayon::prelude::*;
use store::{
    Id, Look, Store,
    content::Pieces,
    format::{Entry, Kind, Piece, place},
};

use crate::{
    error::{Context, Error, Result},
    progress::Progress,
    tree,
};

/// A clone makes the file system write its source out first: below this, bytes are written sooner.
const SMALLEST: u64 = 256 << 10;
/// No chunk is longer.
const LONGEST: u64 = 1 << 20;
/// Of these a file system shares some and not others.
const BLOCK: u64 = 4096;
/// Pieces that are read back at a time.
const SOME: usize = 512;

/// A tree that lies on the disk and that nobody writes to, and the version that it should be.
pub struct Present {
    /// The version's dedup domain.
    pub domain: u32,
    /// The version's tree.
    pub tree: Id,
    /// Where its roots' directories are.
    pub tops: HashMap<Vec<u8>, PathBuf>,
}

/// What a file's content is called.
type Content<'a> = (&'a [u8], u32);

fn content(entry: &Entry) -> Option<Content<'_>> {
    let shares = entry.what() == Kind::File && entry.link.is_empty() && entry.size >= SMALLEST;
    (shares && !entry.content.is_empty()).then_some((&entry.content, entry.height))
}

/// What a new tree can share.
pub(super) struct Reflinks<'a> {
    store: &'a Store,
    domain: u32,
    /// Of each content of the new tree, the file that has it first.
    firsts: HashMap<Content<'a>, &'a Entry>,
    present: Option<Lying>,
}

/// The files of a tree that lies on the disk.
struct Lying {
    domain: u32,
    tops: HashMap<Vec<u8>, OwnedFd>,
    files: HashMap<Vec<u8>, Entry>,
    /// The name of a file with that content.
    named: HashMap<(Vec<u8>, u32), Vec<u8>>,
}

impl<'a> Reflinks<'a> {
    /// What a tree of these entries that is made below `top` can share; none where its file system cannot share, or
    /// nothing is worth it.
    pub fn new(
        store: &'a Store,
        domain: u32,
        entries: &'a [Entry],
        top: &OwnedFd,
        present: Option<&Present>,
    ) -> Option<Reflinks<'a>> {
        let mut firsts = HashMap::new();
        for entry in entries {
            if let Some(content) = content(entry) {
                firsts.entry(content).or_insert(entry);
            }
        }
        if firsts.is_empty() || !can_share(top) {
            return None;
        }
        // Without it everything comes from the store, as it would anywhere else.
        let present = present.and_then(|present| {
            Lying::new(store, present, top)
                .inspect_err(|error| tracing::debug!(%error, "nothing is shared with the present tree"))
                .ok()?
        });
        Some(Reflinks {
            store,
            domain,
            firsts,
            present,
        })
    }

    /// The other file of the new tree that this one is a copy of.
    pub fn first(&self, entry: &Entry) -> Option<&'a Entry> {
        let first = self.firsts.get(&content(entry)?)?;
        (first.key != entry.key).then_some(*first)
    }

    /// Fills a new file with what the present tree has of it, and the store the rest; says whether it did.
    ///
    /// # Errors
    /// As of reading from the store, and a failing disk.
    pub fn fill(&self, entry: &Entry, file: &File, place: &Path, progress: &Progress) -> Result<bool> {
        let Some(lying) = &self.present else {
            return Ok(false);
        };
        let Some(like) = lying.like(self.store, self.domain, entry) else {
            return Ok(false);
        };
        let Some(mut pieces) = Pieces::new(self.store, self.domain, entry)? else {
            return Ok(false);
        };
        // Gone or something else by now is no reason to fail, and neither is a file system's limit.
        let Ok((source, looked)) = lying.open(like) else {
            return Ok(false);
        };
        if clone(&source, file).is_err() {
            return Ok(false);
        }
        file.set_len(entry.size).on("shorten", place)?;
        let mut like = Beside::new(self.store, lying.domain, like);
        let mut length = 0;
        let mut some = Vec::with_capacity(SOME);
        loop {
            let piece = pieces.next_piece()?;
            let ended = piece.is_none();
            if let Some((at, piece)) = piece {
                length = at + piece.length;
                let same = like.as_mut().is_some_and(|like| like.has(at, &piece));
                some.push(Wanted { at, piece, same });
            }
            if length > entry.size || ended && length != entry.size {
                return Err(Error::Refused(format!(
                    "the list of {} is of another length than its entry says: `diffkeeper repair` drops what is damaged",
                    place.display()
                )));
            }
            if ended || some.len() >= SOME {
                let put = |buffer: &mut Vec<u8>, wanted: &Wanted| {
                    progress.go_on()?;
                    self.put(&source, file, wanted, buffer, place)?;
                    match wanted.piece.chunk.is_empty() {
                        true => progress.spare(wanted.piece.length),
                        false => progress.add(0, wanted.piece.length),
                    }
                    Ok(())
                };
                some.par_iter().map_init(Vec::new, put).collect::<Result<()>>()?;
                some.clear();
            }
            if ended {
                break;
            }
        }
        // Read was the source. Whoever wrote to it meanwhile has no right to, and what was shared is not what was read.
        let still = fstat(&source).is_ok_and(|stat| tree::look(&stat) == looked);
        if !still {
            file.set_len(0).on("empty", place)?;
        }
        Ok(still)
    }

    /// Makes one piece of a clone what it is to be.
    fn put(
        &self,
        source: &File,
        file: &File,
        wanted: &Wanted,
        buffer: &mut Vec<u8>,
        place: &Path,
    ) -> Result<()> {
        let Wanted { at, piece, same } = wanted;
        if piece.chunk.is_empty() {
            return punch(file, *at, piece.length).on("make a hole in", place);
        }
        let wrong = || Error::Refused(format!("a piece of {} is damaged", place.display()));
        let id = Id::from_slice(&piece.chunk).ok_or_else(wrong)?;
        if piece.length > LONGEST {
            return Err(wrong());
        }
        buffer.resize(usize::try_from(piece.length).map_err(|_| wrong())?, 0);
        // What the disk cannot read is written anew.
        let read = source.read_exact_at(buffer, *at).is_ok();
        if *same && read && self.store.hash().chunk(buffer) == id {
            return Ok(());
        }
        let bytes = self.store.chunk(self.domain, id)?;
        if bytes.len() as u64 != piece.length {
            return Err(wrong());
        }
        if !read {
            return file.write_all_at(&bytes, *at).on("write", place);
        }
        let mut at = *at;
        let (mut wanted, mut found) = (bytes.as_slice(), buffer.as_slice());
        while !wanted.is_empty() {
            // To the end of the block of the file: whoever writes to one has it all.
            let length = usize::try_from(BLOCK - at % BLOCK).unwrap_or(1).min(wanted.len());
            let (these, those);
            (these, wanted) = wanted.split_at(length);
            (those, found) = found.split_at_checked(length).unwrap_or_default();
            if these != those {
                file.write_all_at(these, at).on("write", place)?;
            }
            at += length as u64;
        }
        Ok(())
    }
}

impl Lying {
    /// None where it lies on another file system than `beside`.
    fn new(store: &Store, present: &Present, beside: &OwnedFd) -> Result<Option<Lying>> {
        let device = |open: &OwnedFd| fstat(open).map(|stat| stat.st_dev).ok();
        let mut tops = HashMap::new();
        for (name, path) in &present.tops {
            if let Ok(top) = tree::top(path)
                && device(&top) == device(beside)
            {
                tops.insert(name.clone(), top);
            }
        }
        if tops.is_empty() {
            return Ok(None);
        }
        let (mut files, mut named) = (HashMap::new(), HashMap::new());
        store.entries(present.domain, present.tree, b"", |entry| {
            if let Some((id, height)) = content(&entry)
                && tops.contains_key(place(&entry.key).0)
            {
                if let hash_map::Entry::Vacant(vacant) = named.entry((id.to_vec(), height)) {
                    vacant.insert(entry.key.clone());
                }
                files.insert(entry.key.clone(), entry);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(Some(Lying {
            domain: present.domain,
            tops,
            files,
            named,
        }))
    }

    /// The file that has this content, under whatever name, or else a good part of it at the same places under the same.
    fn like(&self, store: &Store, domain: u32, entry: &Entry) -> Option<&Entry> {
        let (id, height) = content(entry)?;
        let own = self.files.get(&entry.key);
        if let Some(own) = own
            && content(own) == Some((id, height))
        {
            return Some(own);
        }
        if let Some(key) = self.named.get(&(id.to_vec(), height)) {
            return self.files.get(key);
        }
        let own = own?;
        let mut beside = Beside::new(store, self.domain, own)?;
        // A damaged list is told by whoever needs it.
        let mut pieces = Pieces::new(store, domain, entry).ok()??;
        let mut same = 0;
        while let Some((at, piece)) = pieces.next_piece().ok()? {
            if !piece.chunk.is_empty() && beside.has(at, &piece) {
                same += piece.length;
            }
        }
        (same >= entry.size / 4).then_some(own)
    }

    fn open(&self, entry: &Entry) -> io::Result<(File, Look)> {
        let (root, path) = place(&entry.key);
        let top = self.tops.get(root).ok_or(io::ErrorKind::NotFound)?;
        let found = tree::find(top, &path)?;
        let stat = fstat(&found)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok((tree::reopen(&found)?, tree::look(&stat)))
    }
}

/// A piece of a file, and whether the one that lies there should have it.
struct Wanted {
    at: u64,
    piece: Piece,
    same: bool,
}

/// The pieces of a content, beside which those of another are gone through.
struct Beside<'s> {
    pieces: Pieces<'s>,
    next: Option<(u64, Piece)>,
}

impl<'s> Beside<'s> {
    fn new(store: &'s Store, domain: u32, entry: &Entry) -> Option<Beside<'s>> {
        let mut pieces = Pieces::new(store, domain, entry).ok()??;
        let next = pieces.next_piece().ok()?;
        Some(Beside { pieces, next })
    }

    /// Whether it has this piece there, too; asked in order.
    fn has(&mut self, at: u64, piece: &Piece) -> bool {
        while self.next.as_ref().is_some_and(|(begins, _)| *begins < at) {
            // Damaged: nothing more of it is known.
            self.next = self.pieces.next_piece().unwrap_or_default();
        }
        self.next
            .as_ref()
            .is_some_and(|(begins, other)| *begins == at && other == piece)
    }
}

/// Asks the file system, with two files that have no name.
fn can_share(dir: &OwnedFd) -> bool {
    let make = || -> io::Result<File> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        Ok(openat(dir, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into())
    };
    let tried = make().and_then(|from| {
        from.write_all_at(&[1; 4096], 0)?;
        clone(&from, &make()?)
    });
    tried.is_ok()
}

/// Makes a file share all content of another.
pub(super) fn clone(from: impl AsFd, to: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

fn punch(file: &File, at: u64, length: u64) -> io::Result<()> {
    let (at, length) = (i64::try_from(at), i64::try_from(length));
    let (at, length) = (at.map_err(io::Error::other)?, length.map_err(io::Error::other)?);
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, how, at, length)?)
}
