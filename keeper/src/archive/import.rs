//! From outside into a history: a tar, plain or a layer, or a directory.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    time::Duration,
};

use live::{Attempt, Holder, Root, State};
use nix::sys::stat::{FileStat, fstat, makedev};
use runtime_spec::name::StateName;
use store::{
    Known, Recorded, Session,
    format::{Commit, Consistency, Entry, Kind, Reason, place},
};
use tar::EntryType;

use super::{
    read::{Item, Reader},
    tree::{ROOT, Tree, judge},
};
use crate::{
    error::{Context, Error, Result},
    keeper::Keeper,
    progress::Progress,
    tree as walking,
};

/// A file up to this length is not written to the disk before it is stored, in bytes.
const SHORT: u64 = 1 << 20;

/// What begins a compressed archive.
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// Where entries come from, and where their content goes.
pub(super) struct Import<'s, 'd> {
    session: &'s Session<'d>,
    /// A directory for what must be on the disk for a moment.
    beside: &'s Path,
    spool: Option<File>,
    tree: Tree,
    progress: &'s Progress,
    bytes: u64,
}

impl<'s, 'd> Import<'s, 'd> {
    /// Into a tree of its own.
    pub fn new(
        session: &'s Session<'d>,
        beside: &'s Path,
        tree: Tree,
        progress: &'s Progress,
    ) -> Import<'s, 'd> {
        Import {
            session,
            beside,
            spool: None,
            tree,
            progress,
            bytes: 0,
        }
    }

    /// The entries, and how many bytes were read.
    pub fn finish(self) -> Result<(Vec<Entry>, u64)> {
        Ok((self.tree.entries()?, self.bytes))
    }

    /// Takes all of an archive; `from` is what errors call it.
    pub fn archive(&mut self, archive: impl Read, from: &Path) -> Result<()> {
        let mut archive = BufReader::with_capacity(1 << 16, archive);
        let mut magic = [0; 4];
        let n = read_some(&mut archive, &mut magic).on("read", from)?;
        let magic = magic.get(..n).unwrap_or_default();
        let whole = magic.chain(archive);
        if magic.starts_with(GZIP) {
            self.tar(flate2::read::MultiGzDecoder::new(whole), from)
        } else if magic.starts_with(ZSTD) {
            let whole = zstd::stream::read::Decoder::with_buffer(BufReader::new(whole)).on("unpack", from)?;
            self.tar(whole, from)
        } else {
            self.tar(whole, from)
        }
    }

    fn tar(&mut self, archive: impl Read, from: &Path) -> Result<()> {
        let mut reader = Reader::new(archive);
        let before = self.tree.len();
        while let Some(item) = reader.next().on("read", from)? {
            self.item(&item, &mut reader)?;
            self.progress.add(1, 0);
            self.progress.go_on()?;
        }
        if self.tree.len() == before {
            return Err(Error::Refused(format!(
                "{} has nothing in it, or is no tar (plain, gzip or zstd)",
                from.display()
            )));
        }
        Ok(())
    }

    fn item(&mut self, item: &Item, body: &mut impl Read) -> Result<()> {
        let path = item.path.as_slice();
        let file = item.kind.is_file() || item.kind.is_contiguous() || item.kind.is_gnu_sparse();
        // Of the oldest tars.
        let directory = item.kind.is_dir() || file && path.ends_with(b"/");
        if file && !directory && self.tree.mark(path)? {
            return Ok(());
        }
        if item.kind.is_hard_link() {
            return self.tree.link(path, &item.link);
        }
        let kind = match item.kind {
            _ if directory => Kind::Directory,
            _ if file => Kind::File,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char if item.device == (0, 0) => Kind::Whiteout,
            EntryType::Char => Kind::Character,
            EntryType::Block => Kind::Block,
            other => {
                return Err(Error::Refused(format!(
                    "{}: its kind {:?} is not known",
                    path.escape_ascii(),
                    char::from(other.as_byte())
                )));
            }
        };
        let mut entry = Entry {
            key: self.tree.key_of(path)?,
            kind: kind as i32,
            ..Entry::default()
        };
        if kind != Kind::Whiteout {
            entry.mode = if kind == Kind::Symlink { 0o777 } else { item.mode };
            (entry.uid, entry.gid) = (item.uid, item.gid);
            (entry.mtime, entry.mtime_nanos) = item.mtime;
            judge(path, &mut entry, item.xattrs.clone())?;
        }
        match kind {
            Kind::Symlink => entry.inline.clone_from(&item.link),
            Kind::Character | Kind::Block => {
                entry.device = makedev(item.device.0.into(), item.device.1.into());
            }
            Kind::File => self.content(&mut entry, item, body)?,
            _ => {}
        }
        self.tree.put(path, entry)
    }

    fn content(&mut self, entry: &mut Entry, item: &Item, body: &mut impl Read) -> Result<()> {
        let what = item.path.escape_ascii().to_string();
        let at = Path::new(&what);
        let written = if item.size <= SHORT {
            let mut bytes = vec![0; usize::try_from(item.size).unwrap_or(0)];
            for (begin, length) in &item.map {
                let (begin, length) = (usize::try_from(*begin), usize::try_from(*length));
                let part = match (begin, length) {
                    (Ok(begin), Ok(length)) => bytes.get_mut(begin..begin.saturating_add(length)),
                    _ => None,
                };
                body.read_exact(part.unwrap_or_default()).on("read", at)?;
            }
            self.session.content(bytes.as_slice(), item.size, None, &what)?
        } else {
            let mut spool = match self.spool.take() {
                Some(spool) => spool,
                None => tempfile::tempfile_in(self.beside).on("make a file in", self.beside)?,
            };
            spool.set_len(0).on("empty", self.beside)?;
            for (begin, length) in &item.map {
                spool.seek(SeekFrom::Start(*begin)).on("unpack", at)?;
                let done = io::copy(&mut body.take(*length), &mut spool).on("unpack", at)?;
                if done != *length {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof)).on("unpack", at);
                }
            }
            spool.flush().on("unpack", at)?;
            spool.set_len(item.size).on("unpack", at)?;
            let written = self.session.content(&spool, item.size, None, &what)?;
            self.spool = Some(spool);
            written
        };
        self.bytes += written.size;
        written.set(entry);
        Ok(())
    }

    /// Takes all of a directory, which may be an overlay's upper.
    pub fn directory(&mut self, dir: &Path) -> Result<()> {
        let top = walking::top(dir).on("open", dir)?;
        let mut seen = Vec::new();
        let each = |found| {
            seen.push(found);
            Ok(())
        };
        walking::walk(dir, ROOT, |_| true, each).on("walk", dir)?;
        self.progress.expect(seen.len() as u64, 0);
        let mut first: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
        for found in seen {
            let (_, path) = place(&found.key);
            let shown = dir.join(std::ffi::OsString::from_vec(path.clone()));
            let open = walking::find(&top, &path).on("open", &shown)?;
            let stat = fstat(&open).on("look at", &shown)?;
            let Some(kind) = crate::recorder::kind(&stat, true) else {
                continue;
            };
            let id = (stat.st_dev, stat.st_ino);
            if let Some(first) = first.get(&id) {
                self.progress.add(1, 0);
                self.tree.link(&path, first)?;
                continue;
            }
            let entry = self.found(&path, kind, &open, &stat, &shown)?;
            self.progress.add(1, entry.size);
            self.progress.go_on()?;
            self.tree.put(&path, entry)?;
            if stat.st_nlink > 1 && !matches!(kind, Kind::Directory | Kind::Whiteout) {
                first.insert(id, path);
            }
        }
        Ok(())
    }

    fn found(
        &mut self,
        path: &[u8],
        kind: Kind,
        open: &std::os::fd::OwnedFd,
        stat: &FileStat,
        shown: &Path,
    ) -> Result<Entry> {
        let mut entry = Entry {
            key: self.tree.key_of(path)?,
            kind: kind as i32,
            ..Entry::default()
        };
        if kind == Kind::Whiteout {
            return Ok(entry);
        }
        entry.mode = stat.st_mode & 0o7777;
        (entry.uid, entry.gid) = (stat.st_uid, stat.st_gid);
        entry.mtime = stat.st_mtime;
        entry.mtime_nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        judge(path, &mut entry, walking::all_xattrs(open).on("look at", shown)?)?;
        match kind {
            Kind::Symlink => {
                let link = nix::fcntl::readlinkat(open, "").on("read", shown)?;
                entry.inline = link.into_vec();
            }
            Kind::Character | Kind::Block => entry.device = stat.st_rdev,
            Kind::File => {
                let file = walking::reopen(open).on("open", shown)?;
                let size = stat.st_size.cast_unsigned();
                let written = self
                    .session
                    .content(&file, size, None, &shown.display().to_string())?;
                self.bytes += written.size;
                written.set(&mut entry);
            }
            _ => {}
        }
        Ok(entry)
    }
}

/// An archive of which all is to be read: how much of it has been.
struct Counted<'p> {
    archive: File,
    progress: &'p Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.archive.read(buffer)?;
        self.progress.add(0, read as u64);
        Ok(read)
    }
}

/// Fills as much of a buffer as there is.
fn read_some(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// What is imported.
#[derive(Debug)]
pub struct Importing<'a> {
    /// An archive or a directory.
    pub from: &'a Path,
    /// What lies below these paths of the container goes to volumes.
    pub volumes: &'a [PathBuf],
    /// Where the state is there, not in use: in its place.
    pub replace: bool,
}

impl Keeper {
    /// Begins a state with what an archive or a directory holds; with `replace` one that is there and not in use goes on
    /// with it: what it holds is recorded first.
    ///
    /// # Errors
    /// A name that is taken or none, an archive that is broken or means harm, something that this disk cannot hold. The
    /// live tree is as it was then.
    pub fn import(&self, name: &str, how: &Importing<'_>, progress: &Progress) -> Result<Recorded> {
        let replace = how.replace;
        let name = match name.contains('/') {
            true => name.to_owned(),
            false => format!("ctr/default/{name}"),
        };
        let name: StateName = name
            .parse()
            .map_err(|e: runtime_spec::Error| Error::Refused(e.to_string()))?;
        let there = self.names()?.contains(&name.to_string());
        if there && !replace {
            return Err(Error::Refused(format!(
                "there is a state {name} already: choose another name, or --replace, which records what it holds and puts \
                 this in its place"
            )));
        }
        let turn = self.turn(&name.to_string());
        let _turn = turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let state = self.node().state(&name);
        let lease = match state.acquire(Holder::new("diffkeeper import", "", Path::new("/")))? {
            Attempt::Held(lease) => lease,
            Attempt::Busy(holder) => return Err(state.busy(holder).into()),
        };
        state.evict(&lease, Duration::from_secs(10))?;
        let done = self.import_now(&state, &name, how, progress);
        let released = lease.release();
        if done.is_err() && !there {
            // Nobody has it: as if it had never been asked for.
            let forgotten = self.forget_begun(&name);
            if let Err(error) = forgotten {
                tracing::warn!(state = %name, %error, "what an import that failed had begun is not removed");
            }
        }
        let made = done?;
        released?;
        Ok(made)
    }

    fn forget_begun(&self, name: &StateName) -> Result<()> {
        if self.store().state(&name.to_string())?.is_some() {
            self.store().forget_state(&name.to_string())?;
        }
        self.node().remove(name)?;
        Ok(())
    }

    /// The caller has the lease.
    fn import_now(
        &self,
        state: &State,
        name: &StateName,
        how: &Importing<'_>,
        progress: &Progress,
    ) -> Result<Recorded> {
        let from = how.from;
        let known = self.store().make_state(&name.to_string(), &self.domain(name))?;
        let tree = Tree::with(&self.roots_for(state, &known, how)?)?;
        let session = self.store().session(known.domain);
        progress.begin("importing");
        let mut import = Import::new(&session, self.store().dir(), tree, progress);
        let found = std::fs::metadata(from).on("look at", from)?;
        if found.is_dir() {
            import.directory(from)?;
        } else if found.is_file() {
            progress.expect(0, found.len());
            let archive = Counted {
                archive: File::open(from).on("open", from)?,
                progress,
            };
            import.archive(archive, from)?;
        } else {
            return Err(Error::Refused(format!(
                "{} is neither a file nor a directory",
                from.display()
            )));
        }
        let (entries, bytes) = import.finish()?;
        let count = entries.len() as u64;
        let changes = entries.into_iter().map(|entry| (entry.key.clone(), Some(entry)));
        let top = session.tree(None, changes)?;
        let commit = Commit {
            tree: top.id.0.to_vec(),
            entries: top.entries,
            changed: count,
            read: bytes,
            consistency: Consistency::Quiet as i32,
            reason: Reason::Import as i32,
            message: from
                .file_name()
                .unwrap_or(from.as_os_str())
                .to_string_lossy()
                .into_owned(),
            ..Commit::default()
        };
        session.flush()?;
        // Only now that nothing in it is refused: who asked for what cannot be has no commit of it.
        let recorded = match state.exists() {
            true => self.record_before(state, name, progress)?,
            false => None,
        };
        let put = || -> Result<Recorded> {
            let known = self.store().make_state(&name.to_string(), &self.domain(name))?;
            let made = self.put_in_place(state, &known, known.domain, Some(session), commit, progress)?;
            self.store()
                .change_state(&known.name, |known| known.wanted = None)?;
            state.set_restore_wanted(false)?;
            Ok(made)
        };
        put().map_err(|error| match recorded {
            Some(commit) => Error::Recorded {
                state: name.to_string(),
                commit: commit.short(),
                error: Box::new(error),
            },
            None => error,
        })
    }

    /// The roots that what is imported goes to: those that are to be volumes, and those that the state has.
    fn roots_for(&self, state: &State, known: &Known, how: &Importing<'_>) -> Result<Vec<Root>> {
        let mut roots: Vec<Root> = how.volumes.iter().cloned().map(Root::Volume).collect();
        if let Some(bad) = how.volumes.iter().find(|path| !path.is_absolute()) {
            return Err(Error::Refused(format!(
                "{}: a volume is named as the container sees it, such as /var/lib/mysql",
                bad.display()
            )));
        }
        if state.exists() {
            roots.extend(state.roots().into_iter().map(|dir| dir.root));
        } else if let Some((head, _)) = known.head {
            let head = self.store().commit(head)?;
            let there = self.roots(known.domain, head.commit.tree_id()?)?;
            roots.extend(there.into_iter().map(|(_, root)| root));
        }
        Ok(roots)
    }
}
