//! Content of files: chunks, and above them lists of chunks, of which those that nothing changed in are shared.
//!
//! Lists are nodes as those of trees, with pieces (chunks and holes) on their lowest level. A node ends by the hash of
//! its last item's name, at least 16 items, at most 256.

mod kept;
mod place;

use std::{collections::VecDeque, fs::File, io, os::unix::fs::FileExt, sync::Arc};

use prost::Message;
use rayon::prelude::*;

use crate::{
    direct::Buffer,
    error::{Error, Result, damaged},
    format::{Child, Entry, HIGHEST, INLINE, Node, Piece},
    id::Id,
    pack::Object,
    store::{Session, Store},
};

/// So much of a file is cut, hashed and compressed at a time.
const WINDOW: usize = 8 << 20;
/// So much is read for one writing at least.
const RUN: usize = 1 << 20;
const FEWEST: usize = 16;
const MOST: usize = 256;
const SPREAD: u8 = 64;
/// So many pieces that were gone past are remembered, and lists of each level: more than the longest chunk reaches over, and
/// than are looked ahead.
const BEHIND: usize = 64;

/// So much may have changed between two pieces that have not, and keep its boundaries: more may have moved within.
const BETWEEN: u64 = 4 * delta::LONGEST as u64;

/// Where content comes from: a file, or anything that can be read at any place and knows its holes.
pub trait Source: Sync {
    /// The next stretch of data at or after `at`: where it begins and ends. None where only a hole follows.
    ///
    /// # Errors
    /// As lseek(2).
    fn data(&self, at: u64, length: u64) -> io::Result<Option<(u64, u64)>>;

    /// How long it is now.
    ///
    /// # Errors
    /// As fstat(2).
    fn length(&self) -> io::Result<u64>;

    /// Reads at a place; fewer bytes than wanted only at the end.
    ///
    /// # Errors
    /// As pread(2).
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// Up to where, from `at` on, it is known to be as the content before was, and is not read; `at` where that is not known.
    fn same_until(&self, at: u64) -> u64 {
        at
    }

    /// Up to where, from `at` on, nothing is known of it.
    fn changed_until(&self, _at: u64) -> u64 {
        u64::MAX
    }
}

impl Source for File {
    fn data(&self, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
        use nix::unistd::{Whence, lseek};
        let at = i64::try_from(at).map_err(io::Error::other)?;
        let begin = match lseek(self, at, Whence::SeekData) {
            Ok(begin) => begin,
            Err(nix::errno::Errno::ENXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let end = lseek(self, begin, Whence::SeekHole)?;
        let (begin, end) = (begin.cast_unsigned(), end.cast_unsigned().min(length));
        Ok((begin < end).then_some((begin, end)))
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(self, rest, at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

impl Source for [u8] {
    fn data(&self, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
        let end = length.min(self.len() as u64);
        Ok((at < end).then_some((at, end)))
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let rest = usize::try_from(at)
            .ok()
            .and_then(|at| self.get(at..))
            .unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Ok(n)
    }
}

/// What became of a file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// How long it was in the end.
    pub size: u64,
    /// The content, if it is short.
    pub inline: Vec<u8>,
    /// The name of its chunk or top list, if not.
    pub content: Vec<u8>,
    /// How many levels of lists there are above the chunks.
    pub height: u32,
}

impl Written {
    /// Puts it into an entry.
    pub fn set(self, entry: &mut Entry) {
        entry.size = self.size;
        entry.inline = self.inline;
        entry.content = self.content;
        entry.height = self.height;
    }
}

impl Session<'_> {
    /// Adds content of `length` bytes; where it has become shorter meanwhile, what there is. `before` is the entry that
    /// this content follows: what stands at the same place there is only compared, not cut again.
    ///
    /// # Errors
    /// A source that cannot be read (as [`Error::Io`] with `what`), a full or failing disk.
    pub fn content(
        &self,
        source: &(impl Source + ?Sized),
        length: u64,
        before: Option<&Entry>,
        what: &str,
    ) -> Result<Written> {
        let reading = |source: io::Error| Error::Io {
            context: format!("read {what}"),
            source,
        };
        if length <= INLINE as u64 {
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(INLINE)];
            let n = source.read_at(&mut bytes, 0).map_err(reading)?;
            bytes.truncate(n);
            return Ok(Written {
                size: n as u64,
                inline: bytes,
                ..Written::default()
            });
        }
        let mut old = match before {
            Some(entry) => Pieces::new(self.store, self.domain, entry)?,
            None => None,
        };
        let mut lists = Lists::new(self);
        let (mut at, mut buffer) = (0, Vec::new());
        while at < length {
            at = self.kept(source, at, &mut lists, &mut old)?;
            let Some((begin, end)) = source.data(at, length).map_err(reading)? else {
                break;
            };
            if begin > at {
                lists.push(None, begin - at, &old)?;
            }
            at = begin;
            while at < end {
                at = self.kept(source, at, &mut lists, &mut old)?;
                if at >= end {
                    break;
                }
                let known = match &mut old {
                    // What stands where a change begins may begin before it.
                    Some(old) => old.within(at, end, source.changed_until(source.same_until(at)))?,
                    None => Vec::new(),
                };
                let standing = self.standing(source, &known, what)?;
                let mut compared = known.iter().zip(standing).peekable();
                let begun = at;
                while let Some(((begins, piece), standing)) =
                    compared.next_if(|((begins, _), _)| *begins <= at)
                {
                    if *begins < at {
                        continue;
                    }
                    if let Some(id) = standing {
                        lists.push(Some(id), piece.length, &old)?;
                        at += piece.length;
                    } else if self.recut(source, &mut at, end, &mut lists, &mut old, &mut buffer, what)? {
                        return lists.end(at, &old);
                    }
                }
                if at == begun && self.recut(source, &mut at, end, &mut lists, &mut old, &mut buffer, what)? {
                    return lists.end(at, &old);
                }
            }
        }
        if at >= length {
            return lists.end(at, &old);
        }
        // A hole at the end, unless the file was made shorter meanwhile.
        let length = length.min(source.length().map_err(reading)?.max(at));
        if at < length {
            lists.push(None, length - at, &old)?;
        }
        lists.end(length, &old)
    }

    /// The chunks that stand now where these pieces were, if the pieces' boundaries still hold: of a piece that has not
    /// changed, and of one that has between two that have not, for then nothing has moved. The latter are added, several
    /// at a time. Where it is known what has changed, nothing has before the first, and perhaps behind the last.
    fn standing(
        &self,
        source: &(impl Source + ?Sized),
        known: &[(u64, Piece)],
        what: &str,
    ) -> Result<Vec<Option<Id>>> {
        let read = |buffer: &mut Vec<u8>, (begin, piece): &(u64, Piece)| {
            let length = usize::try_from(piece.length).unwrap_or(0).min(delta::LONGEST);
            buffer.resize(length, 0);
            let n = source.read_at(buffer, *begin).map_err(|source| Error::Io {
                context: format!("read {what}"),
                source,
            })?;
            Ok(n as u64 == piece.length)
        };
        let same: Result<Vec<bool>> = known
            .par_iter()
            .map_init(Vec::new, |buffer, known| {
                Ok(read(buffer, known)? && self.store.hash.chunk(buffer).0.as_slice() == known.1.chunk)
            })
            .collect();
        let same = same?;
        let mut between = vec![false; known.len()];
        let after = |(begins, piece): &(u64, Piece)| begins.saturating_add(piece.length);
        let told = known
            .first()
            .is_some_and(|(begins, _)| source.changed_until(source.same_until(*begins)) < u64::MAX);
        let (mut unchanged, mut changed) = (told.then_some(0), 0);
        for (n, ((_, piece), same)) in known.iter().zip(&same).enumerate() {
            if !same {
                changed += piece.length;
                continue;
            }
            if let Some(between) = unchanged.and_then(|unchanged| between.get_mut(unchanged..n))
                && changed <= BETWEEN
            {
                between.fill(true);
            }
            (unchanged, changed) = (Some(n), 0);
        }
        if let Some(between) = unchanged.and_then(|unchanged| between.get_mut(unchanged..))
            && changed <= BETWEEN
            && known
                .last()
                .map(after)
                .is_some_and(|end| source.same_until(end) > end)
        {
            between.fill(true);
        }
        let pieces = known.par_iter().zip(same).zip(between);
        let standing = pieces.map_init(Vec::new, |buffer, ((known, same), between)| {
            let id = Id::from_slice(&known.1.chunk);
            if same {
                return Ok(match id {
                    Some(id) if self.has(Object::Chunk, id)? => Some(id),
                    _ => None,
                });
            }
            if !between || !read(buffer, known)? {
                return Ok(None);
            }
            self.chunk(buffer, id).map(Some)
        });
        standing.collect()
    }

    /// Cuts anew from `at` until a boundary falls on an old one, or to `end`; says whether the source ended before that.
    #[allow(clippy::too_many_arguments)]
    fn recut(
        &self,
        source: &(impl Source + ?Sized),
        at: &mut u64,
        end: u64,
        lists: &mut Lists<'_, '_>,
        old: &mut Option<Pieces<'_>>,
        buffer: &mut Vec<u8>,
        what: &str,
    ) -> Result<bool> {
        // Beside old content a change is most likely short.
        let most = match old {
            // And where it is known how short, not much behind it is wanted.
            Some(_) if source.changed_until(*at) < u64::MAX => 2 * delta::LONGEST,
            Some(_) => 4 * delta::LONGEST,
            None => WINDOW,
        };
        loop {
            let window = usize::try_from(end - *at).unwrap_or(usize::MAX).min(most);
            buffer.resize(window, 0);
            let n = source.read_at(buffer, *at).map_err(|source| Error::Io {
                context: format!("read {what}"),
                source,
            })?;
            let short = n < window;
            buffer.truncate(n);
            let last = short || *at + n as u64 >= end;
            let (cut, resumed) = self.cut(buffer, *at, last, old, what)?;
            for (id, length) in cut {
                lists.push(Some(id), length as u64, old)?;
                *at += length as u64;
            }
            if resumed || last {
                return Ok(short && !resumed);
            }
        }
    }

    /// Cuts a window into chunks and adds them; says whether it ended where an old piece begins. The last bytes of a
    /// window are left for the next, unless it is the last.
    fn cut(
        &self,
        bytes: &[u8],
        at: u64,
        last: bool,
        old: &mut Option<Pieces<'_>>,
        what: &str,
    ) -> Result<(Vec<(Id, usize)>, bool)> {
        let (mut ends, mut end, mut resumed) = (Vec::new(), 0, false);
        while let Some(rest) = bytes.get(end..)
            && !rest.is_empty()
            && (last || rest.len() >= delta::LONGEST)
            && !resumed
        {
            let Some(old) = old else {
                end += delta::cut(rest);
                ends.push(end);
                continue;
            };
            let (length, stayed) = old.boundary(rest, at + end as u64, last)?;
            end += length;
            ends.push(end);
            resumed = old.begins_at(at + end as u64)?;
            // Changed in their places, several are written at a time.
            if stayed && resumed {
                resumed = old.begins_with(bytes.get(end..).unwrap_or_default());
            }
        }
        // A change that ends where it should has moved nothing: what stands between keeps its boundaries, and each chunk
        // the base that has most of it.
        if resumed && let Some(kept) = old.as_ref().and_then(|old| old.ends_within(at, end)) {
            ends = kept;
        }
        let mut begin = 0;
        let parts: Vec<(&[u8], Option<Id>)> = ends
            .into_iter()
            .map(|end| {
                let part = bytes.get(begin..end).unwrap_or_default();
                let stood = old
                    .as_ref()
                    .and_then(|old| old.stood_at(at + begin as u64, at + end as u64));
                begin = end;
                (part, stood)
            })
            .collect();
        let added: Result<Vec<(Id, usize)>> = parts
            .par_iter()
            .map(|(part, old)| Ok((self.chunk_of(part, *old, what)?, part.len())))
            .collect();
        Ok((added?, resumed))
    }
}

/// Builds the lists of one content.
struct Lists<'s, 'a> {
    session: &'a Session<'s>,
    levels: Vec<Vec<Vec<u8>>>,
    counts: Vec<u64>,
    pieces: u64,
    /// How long it is so far.
    at: u64,
    last: Option<(Option<Id>, u64)>,
}

impl<'s, 'a> Lists<'s, 'a> {
    fn new(session: &'a Session<'s>) -> Self {
        Lists {
            session,
            levels: Vec::new(),
            counts: Vec::new(),
            pieces: 0,
            at: 0,
            last: None,
        }
    }

    fn push(&mut self, chunk: Option<Id>, length: u64, old: &Option<Pieces<'_>>) -> Result<()> {
        self.pieces += 1;
        self.at += length;
        self.last = Some((chunk, length));
        let piece = Piece {
            chunk: chunk.map(|id| id.0.to_vec()).unwrap_or_default(),
            length,
        };
        // A hole has no hash of its own: its length decides.
        let decides = chunk.map_or(length.to_le_bytes().first().copied(), |id| id.0.first().copied());
        self.item(0, piece.encode_to_vec(), length, decides.unwrap_or(0), old)
    }

    fn item(
        &mut self,
        level: usize,
        item: Vec<u8>,
        count: u64,
        decides: u8,
        old: &Option<Pieces<'_>>,
    ) -> Result<()> {
        if self.levels.len() <= level {
            self.levels.push(Vec::new());
            self.counts.push(0);
        }
        let (Some(items), Some(sum)) = (self.levels.get_mut(level), self.counts.get_mut(level)) else {
            return Ok(());
        };
        items.push(item);
        *sum += count;
        let full = items.len() >= MOST || items.len() >= FEWEST && decides.is_multiple_of(SPREAD);
        if full { self.close(level, old) } else { Ok(()) }
    }

    /// Writes the list that is open on a level and names it on the one above.
    fn close(&mut self, level: usize, old: &Option<Pieces<'_>>) -> Result<()> {
        let (Some(items), Some(sum)) = (self.levels.get_mut(level), self.counts.get_mut(level)) else {
            return Ok(());
        };
        if items.is_empty() {
            return Ok(());
        }
        let (items, count) = (std::mem::take(items), std::mem::take(sum));
        let node = Node {
            level: u32::try_from(level).unwrap_or(u32::MAX),
            items,
        };
        let begin = self.at.saturating_sub(count);
        let old_list = old.as_ref().and_then(|old| old.list_at(level, begin));
        let id = self.session.node(&node, old_list)?;
        let child = Child {
            key: Vec::new(),
            id: id.0.to_vec(),
            count,
        };
        self.item(
            level + 1,
            child.encode_to_vec(),
            count,
            id.0.first().copied().unwrap_or(0),
            old,
        )
    }

    fn end(mut self, size: u64, old: &Option<Pieces<'_>>) -> Result<Written> {
        if self.pieces == 0 {
            return Ok(Written::default());
        }
        if self.pieces == 1
            && let Some((Some(chunk), length)) = self.last
            && length == size
        {
            return Ok(Written {
                size,
                content: chunk.0.to_vec(),
                ..Written::default()
            });
        }
        let mut level = 0;
        loop {
            let alone = self.levels.len() == level + 1;
            let items = self.levels.get(level).map(Vec::as_slice).unwrap_or_default();
            if let [only] = items
                && alone
                && level > 0
            {
                let child = Child::decode(only.as_slice()).map_err(|e| damaged("a list", e))?;
                return Ok(Written {
                    size,
                    content: child.id,
                    height: u32::try_from(level).unwrap_or(u32::MAX),
                    inline: Vec::new(),
                });
            }
            self.close(level, old)?;
            level += 1;
        }
    }
}

/// The pieces of a content, one after the other.
pub struct Pieces<'s> {
    store: &'s Store,
    domain: u32,
    stack: Vec<(Arc<Node>, usize)>,
    /// What was looked at and not taken: where it begins, and what it is.
    ahead: VecDeque<(u64, Piece)>,
    /// What was gone past last: what is cut anew there follows it.
    behind: VecDeque<(u64, Piece)>,
    /// By level, the lists that were gone into last: where each begins, and its name.
    lists: Vec<VecDeque<(u64, Id)>>,
    /// Where what was not looked at begins.
    at: u64,
}

impl<'s> Pieces<'s> {
    /// Of an entry's content; none where it is short or there is none.
    ///
    /// # Errors
    /// A damaged list.
    pub fn new(store: &'s Store, domain: u32, entry: &Entry) -> Result<Option<Pieces<'s>>> {
        let Some(id) = entry.content_id() else {
            return Ok(None);
        };
        if entry.height > HIGHEST {
            return Err(damaged("a file's list", "it is too deep"));
        }
        let mut pieces = Pieces {
            store,
            domain,
            stack: Vec::new(),
            ahead: VecDeque::new(),
            behind: VecDeque::new(),
            lists: Vec::new(),
            at: 0,
        };
        if entry.height == 0 {
            let piece = Piece {
                chunk: id.0.to_vec(),
                length: entry.size,
            };
            pieces.at = entry.size;
            pieces.ahead.push_back((0, piece));
        } else {
            let node = store.node(domain, id)?;
            if node.level + 1 != entry.height {
                return Err(damaged(
                    "a file's list",
                    "it has another depth than its entry says",
                ));
            }
            pieces.entered(&node, id);
            pieces.stack.push((node, 0));
        }
        Ok(Some(pieces))
    }

    fn pull(&mut self) -> Result<Option<Piece>> {
        loop {
            let Some((node, at)) = self.stack.last_mut() else {
                return Ok(None);
            };
            let Some(item) = node.items.get(*at) else {
                self.stack.pop();
                continue;
            };
            *at += 1;
            if node.level == 0 {
                let piece = Piece::decode(item.as_slice()).map_err(|e| damaged("a list's piece", e))?;
                if piece.length == 0 {
                    return Err(damaged("a list's piece", "it has no length"));
                }
                return Ok(Some(piece));
            }
            let child = Child::decode(item.as_slice()).map_err(|e| damaged("a list's child", e))?;
            let id = Id::from_slice(&child.id)
                .ok_or_else(|| damaged("a list's child", "its name has another length"))?;
            let below = self.store.node(self.domain, id)?;
            if below.level + 1 != node.level {
                return Err(damaged("a list", "a node stands on the wrong level"));
            }
            self.entered(&below, id);
            self.stack.push((below, 0));
        }
    }

    fn entered(&mut self, node: &Node, id: Id) {
        let level = node.level as usize;
        if self.lists.len() <= level {
            self.lists.resize_with(level + 1, VecDeque::new);
        }
        if let Some(lists) = self.lists.get_mut(level) {
            if lists.len() == BEHIND {
                lists.pop_front();
            }
            lists.push_back((self.at, id));
        }
    }

    /// The list of a level in which a place was, of those that were gone into last.
    fn list_at(&self, level: usize, at: u64) -> Option<Id> {
        let lists = self.lists.get(level)?;
        let around = lists.iter().rev().find(|(begins, _)| *begins <= at);
        around.or_else(|| lists.front()).map(|(_, id)| *id)
    }

    /// Looks at one more.
    fn look(&mut self) -> Result<bool> {
        let Some(piece) = self.pull()? else {
            return Ok(false);
        };
        let at = self.at;
        self.at = at
            .checked_add(piece.length)
            .ok_or_else(|| damaged("a list", "it is longer than anything can be"))?;
        self.ahead.push_back((at, piece));
        Ok(true)
    }

    /// The next piece and where it begins.
    ///
    /// # Errors
    /// A damaged list.
    pub fn next_piece(&mut self) -> Result<Option<(u64, Piece)>> {
        if self.ahead.is_empty() {
            self.look()?;
        }
        Ok(self.ahead.pop_front())
    }

    /// Whether a chunk begins here; what is before it is gone past.
    fn begins_at(&mut self, at: u64) -> Result<bool> {
        loop {
            if let Some((begins, piece)) = self.ahead.front() {
                if *begins >= at {
                    return Ok(*begins == at && !piece.chunk.is_empty());
                }
                if self.behind.len() == BEHIND {
                    self.behind.pop_front();
                }
                self.behind.extend(self.ahead.pop_front());
            } else if !self.look()? {
                return Ok(false);
            }
        }
    }

    /// Where the pieces end that lie from `at` on, as far as they were gone past, up to `end` bytes behind it; none where
    /// one of them is longer than a chunk.
    fn ends_within(&self, at: u64, end: usize) -> Option<Vec<usize>> {
        let begins = self.behind.iter().map(|(begins, _)| begins.saturating_sub(at));
        let begins = begins.filter_map(|begins| usize::try_from(begins).ok());
        let mut ends: Vec<usize> = begins.filter(|begins| (1..end).contains(begins)).collect();
        ends.push(end);
        let mut begin = 0;
        let short = ends.iter().all(|end| {
            let length = end.saturating_sub(begin);
            begin = *end;
            length <= delta::LONGEST
        });
        // Of more pieces than are remembered the first ones are not known.
        let known = self.behind.len() < BEHIND || self.behind.front()?.0 <= at;
        (short && known).then_some(ends)
    }

    /// The chunk of which most stands, or stood, between two places that were gone past.
    fn stood_at(&self, begin: u64, end: u64) -> Option<Id> {
        let within = |(begins, piece): &&(u64, Piece)| {
            let ends = begins.saturating_add(piece.length);
            end.min(ends).saturating_sub(begin.max(*begins))
        };
        let found = self.behind.iter().filter(|(_, piece)| !piece.chunk.is_empty());
        let (_, piece) = found.max_by_key(within)?;
        Id::from_slice(&piece.chunk)
    }

    /// The chunks from here to the next hole, to `end`, or as many as are compared at a time; of those that begin before
    /// `before`.
    fn within(&mut self, at: u64, end: u64, before: u64) -> Result<Vec<(u64, Piece)>> {
        if !self.begins_at(at)? {
            return Ok(Vec::new());
        }
        // One more than is asked for: whether a stretch ends behind a piece is seen by what follows it.
        while self.at <= end.min(at + WINDOW as u64).min(before) && self.look()? {}
        self.look()?;
        let mut found = Vec::new();
        for (n, (begins, piece)) in self.ahead.iter().enumerate() {
            let ends = begins + piece.length;
            let followed = self
                .ahead
                .get(n + 1)
                .is_some_and(|(_, next)| !next.chunk.is_empty());
            // The last piece of a stretch ends where that did, not where its content says: when more stands behind it
            // now, it is cut anew. Else each line of a log would stay a chunk of its own.
            if *begins >= before || piece.chunk.is_empty() || ends > end || !followed && ends != end {
                break;
            }
            found.push((*begins, piece.clone()));
        }
        Ok(found)
    }
}

impl Store {
    /// One chunk of content.
    ///
    /// # Errors
    /// A missing or damaged chunk, a failing disk.
    pub fn chunk(&self, domain: u32, id: Id) -> Result<Vec<u8>> {
        self.object(domain, Object::Chunk, id)
    }

    /// Reads an entry's content in order: bytes where they are, `None` with a length for a hole.
    ///
    /// # Errors
    /// Missing or damaged content, and what `each` says.
    pub fn read(
        &self,
        domain: u32,
        entry: &Entry,
        each: impl FnMut(u64, Stretch<'_>) -> Result<()>,
    ) -> Result<()> {
        self.read_range(domain, entry, 0, u64::MAX, each)
    }

    /// As [`Store::read`], of long content: several parts at a time, in no order. Every part is named once, and lies in
    /// memory as in a file's blocks ([`crate::direct`]).
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn read_parallel(
        &self,
        domain: u32,
        entry: &Entry,
        each: impl Fn(u64, Stretch<'_>) -> Result<()> + Sync,
    ) -> Result<()> {
        let Some(mut pieces) = Pieces::new(self, domain, entry)? else {
            return self.read(domain, entry, each);
        };
        let mut length = 0;
        let mut runs: Vec<Run> = Vec::new();
        let mut gathered = 0;
        loop {
            let piece = pieces.next_piece()?;
            let ended = piece.is_none();
            if let Some((at, piece)) = piece {
                length = at + piece.length;
                if length > entry.size {
                    break;
                }
                gathered += 1;
                match runs.last_mut().filter(|run| run.takes(&piece)) {
                    Some(run) => run.pieces.push(piece),
                    None => runs.push(Run::new(at, piece)),
                }
            }
            if ended || gathered >= 512 {
                runs.par_iter()
                    .try_for_each_init(Buffer::default, |buffer, run| {
                        self.read_run(domain, run, buffer, &each)
                    })?;
                runs.clear();
                gathered = 0;
            }
            if ended {
                break;
            }
        }
        if length != entry.size {
            return Err(damaged(
                "a file's list",
                "it has another length than its entry says",
            ));
        }
        Ok(())
    }

    fn read_run(
        &self,
        domain: u32,
        run: &Run,
        buffer: &mut Buffer,
        each: &impl Fn(u64, Stretch<'_>) -> Result<()>,
    ) -> Result<()> {
        if let [hole] = run.pieces.as_slice()
            && hole.chunk.is_empty()
        {
            return each(run.at, Stretch::Hole(hole.length));
        }
        buffer.begin(RUN + delta::LONGEST, run.at);
        for piece in &run.pieces {
            let id = Id::from_slice(&piece.chunk)
                .ok_or_else(|| damaged("a list's piece", "its name has another length"))?;
            let bytes = self.chunk(domain, id)?;
            if bytes.len() as u64 != piece.length {
                return Err(damaged("a list's piece", "its chunk has another length"));
            }
            buffer.push(&bytes);
        }
        each(run.at, Stretch::Bytes(buffer.bytes()))
    }

    /// As [`Store::read`], of what lies between two places; the first and last stretch may reach beyond them.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn read_range(
        &self,
        domain: u32,
        entry: &Entry,
        begin: u64,
        end: u64,
        mut each: impl FnMut(u64, Stretch<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(mut pieces) = Pieces::new(self, domain, entry)? else {
            return if entry.inline.is_empty() {
                Ok(())
            } else {
                each(0, Stretch::Bytes(&entry.inline))
            };
        };
        let mut length = 0;
        while let Some((at, piece)) = pieces.next_piece()? {
            length = at + piece.length;
            if length > entry.size {
                break;
            }
            if length <= begin {
                continue;
            }
            if at >= end {
                return Ok(());
            }
            if piece.chunk.is_empty() {
                each(at, Stretch::Hole(piece.length))?;
                continue;
            }
            let id = Id::from_slice(&piece.chunk)
                .ok_or_else(|| damaged("a list's piece", "its name has another length"))?;
            let bytes = self.chunk(domain, id)?;
            if bytes.len() as u64 != piece.length {
                return Err(damaged("a list's piece", "its chunk has another length"));
            }
            each(at, Stretch::Bytes(&bytes))?;
        }
        if length != entry.size {
            return Err(damaged(
                "a file's list",
                "it has another length than its entry says",
            ));
        }
        Ok(())
    }
}

/// Pieces that follow one another without a hole, or one hole.
struct Run {
    at: u64,
    pieces: Vec<Piece>,
}

impl Run {
    fn new(at: u64, piece: Piece) -> Run {
        Run {
            at,
            pieces: vec![piece],
        }
    }

    /// Whether what follows belongs to it.
    fn takes(&self, piece: &Piece) -> bool {
        let hole = |piece: &Piece| piece.chunk.is_empty();
        let length: u64 = self.pieces.iter().map(|piece| piece.length).sum();
        !hole(piece) && !self.pieces.iter().any(hole) && length < RUN as u64
    }
}

/// A part of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stretch<'a> {
    /// Data.
    Bytes(&'a [u8]),
    /// Nothing, of this length.
    Hole(u64),
}
