//! Reads tar as it comes: POSIX's with records, GNU's with long names and sparse files, the old one.
//!
//! Whoever made it may mean harm: every length is checked before it is believed, what describes an entry is bounded, and
//! an error is all that a broken archive gets.

use std::io::{self, Read};

use store::format::Xattr;
use tar::{EntryType, GnuExtSparseHeader, Header};

use super::tar::{BLOCK, XATTR};

/// The most that may describe one entry, in bytes: names, and extended attributes.
const DESCRIPTION: u64 = 1 << 20;
/// The most stretches of a sparse file.
const STRETCHES: u64 = 1 << 20;
/// Longer than any file on a disk of today.
const LONGEST: u64 = 1 << 44;

/// One entry; its body is read from the [`Reader`].
#[derive(Debug)]
pub struct Item {
    pub path: Vec<u8>,
    pub kind: EntryType,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    /// The length of the file, holes included.
    pub size: u64,
    pub device: (u32, u32),
    pub xattrs: Vec<Xattr>,
    /// Where the body's bytes belong, in order: places and lengths.
    pub map: Vec<(u64, u64)>,
}

/// Reads the entries of an archive, one after the other.
pub struct Reader<R> {
    from: R,
    /// What is left of the body, and what fills its last block.
    left: u64,
    padding: u64,
    begun: bool,
}

/// What stands before an entry, and describes it.
#[derive(Default)]
struct Before {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<Xattr>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_format: (Option<u64>, Option<u64>),
    sparse_other: bool,
}

fn wrong(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl<R: Read> Reader<R> {
    pub fn new(from: R) -> Reader<R> {
        Reader {
            from,
            left: 0,
            padding: 0,
            begun: false,
        }
    }

    /// The next entry; none at the end. What was not read of the last body is passed over.
    pub fn next(&mut self) -> io::Result<Option<Item>> {
        let mut before = Before::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let kind = header.entry_type();
            let size = header.entry_size()?;
            match kind {
                EntryType::XHeader => before.read(&self.description(size)?)?,
                EntryType::GNULongName => before.path = Some(until_zero(self.description(size)?)),
                EntryType::GNULongLink => before.link = Some(until_zero(self.description(size)?)),
                // Comments, for all that is there.
                EntryType::XGlobalHeader => drop(self.description(size)?),
                kind if kind.as_byte() == b'V' => self.body(size),
                _ => return self.item(&header, before).map(Some),
            }
        }
    }

    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left.saturating_add(self.padding);
        let passed = io::copy(&mut (&mut self.from).take(rest), &mut io::sink())?;
        (self.left, self.padding) = (0, 0);
        if passed < rest {
            return Err(wrong("it ends in the middle of an entry"));
        }
        Ok(())
    }

    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.from.read(rest) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        match filled {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            _ if self.begun => Err(wrong("it ends in the middle of a block")),
            _ => Err(wrong("it is not a tar: it is shorter than one can be")),
        }
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let Some(block) = self.block()? else {
            // Without the zeros at the end: written by something old, or cut off at a block's edge. An entry's body is
            // never cut off unseen.
            return Ok(None);
        };
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte }))
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(wrong("it is not a tar, or damaged: a header's sum is wrong"));
        }
        Ok(Some(header))
    }

    fn body(&mut self, size: u64) {
        self.begun = true;
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn description(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > DESCRIPTION {
            return Err(wrong(format!("{size} bytes describe an entry: that is none")));
        }
        self.body(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn item(&mut self, header: &Header, before: Before) -> io::Result<Item> {
        let number = |what: &str, number: u64| {
            u32::try_from(number).map_err(|_| wrong(format!("its {what} {number} is beyond all bounds")))
        };
        let kind = header.entry_type();
        let body = before.size.map_or_else(|| header.entry_size(), Ok)?;
        // Only files have one; some writers give links the size of what they mean.
        let has_body = kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse();
        self.body(if has_body { body } else { 0 });
        let mut item = Item {
            path: before.path.unwrap_or_else(|| header.path_bytes().into_owned()),
            kind,
            link: before
                .link
                .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
                .unwrap_or_default(),
            mode: header.mode()? & 0o7777,
            uid: number("owner", before.uid.map_or_else(|| header.uid(), Ok)?)?,
            gid: number("group", before.gid.map_or_else(|| header.gid(), Ok)?)?,
            mtime: match before.mtime {
                Some(mtime) => mtime,
                None => (i64::try_from(header.mtime()?).unwrap_or(i64::MAX), 0),
            },
            size: if has_body { body } else { 0 },
            device: (0, 0),
            xattrs: before.xattrs,
            map: Vec::new(),
        };
        if matches!(kind, EntryType::Char | EntryType::Block) {
            let of = |number: io::Result<Option<u32>>| Ok::<_, io::Error>(number?.unwrap_or(0));
            item.device = (of(header.device_major())?, of(header.device_minor())?);
        }
        match before.sparse_format {
            _ if kind.is_gnu_sparse() => self.gnu_map(header, &mut item)?,
            (Some(1), Some(0)) if has_body => {
                item.path = before
                    .sparse_name
                    .ok_or_else(|| wrong("a sparse file without a name"))?;
                item.size = before
                    .sparse_size
                    .ok_or_else(|| wrong("a sparse file without a length"))?;
                self.map(&mut item)?;
            }
            (None, None) if !before.sparse_other => item.map = vec![(0, item.size)],
            _ => {
                return Err(wrong(
                    "a sparse file in a format of GNU tar's that is not read here: only 1.0 and the oldest are",
                ));
            }
        }
        self.check(&item)?;
        Ok(item)
    }

    /// The map that GNU's own format has in its headers.
    fn gnu_map(&mut self, header: &Header, item: &mut Item) -> io::Result<()> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| wrong("a sparse file without a map"))?;
        item.size = gnu.real_size()?;
        let mut more = gnu.is_extended();
        let mut map = Vec::new();
        let mut take = |sparse: &[tar::GnuSparseHeader]| {
            for stretch in sparse.iter().filter(|stretch| !stretch.is_empty()) {
                map.push((stretch.offset()?, stretch.length()?));
            }
            if map.len() as u64 > STRETCHES {
                return Err(wrong("a sparse file of too many stretches"));
            }
            Ok(())
        };
        take(&gnu.sparse)?;
        while more {
            let block = self
                .block()?
                .ok_or_else(|| wrong("it ends in the middle of an entry"))?;
            let mut extended = GnuExtSparseHeader::new();
            extended.as_mut_bytes().copy_from_slice(&block);
            take(extended.sparse())?;
            more = extended.is_extended();
        }
        item.map = map;
        Ok(())
    }

    /// The map that format 1.0 has before the data: lines of digits, filled up to a block.
    fn map(&mut self, item: &mut Item) -> io::Result<()> {
        let mut read = 0_usize;
        let mut number = |from: &mut Self| {
            let mut digits = String::new();
            loop {
                let mut byte = [0];
                from.read_exact(&mut byte)?;
                read += 1;
                match byte {
                    [b'\n'] => break,
                    [digit @ b'0'..=b'9'] if digits.len() < 20 => digits.push(digit.into()),
                    _ => return Err(wrong("the map of a sparse file is no map")),
                }
            }
            digits
                .parse::<u64>()
                .map_err(|_| wrong("the map of a sparse file is no map"))
        };
        let stretches = number(self)?;
        if stretches > STRETCHES {
            return Err(wrong("a sparse file of too many stretches"));
        }
        for _ in 0..stretches {
            item.map.push((number(self)?, number(self)?));
        }
        let mut filling = vec![0; read.next_multiple_of(BLOCK) - read];
        self.read_exact(&mut filling)
    }

    /// Whether the map is one of this body, and this length.
    fn check(&self, item: &Item) -> io::Result<()> {
        if item.size > LONGEST || self.left > LONGEST {
            return Err(wrong(format!(
                "a file of {} bytes is longer than any disk",
                item.size.max(self.left)
            )));
        }
        let (mut end, mut sum) = (0, 0);
        for (begin, length) in &item.map {
            let ends = begin
                .checked_add(*length)
                .filter(|ends| *begin >= end && *ends <= item.size);
            end = ends.ok_or_else(|| wrong("the map of a sparse file leads out of it"))?;
            sum += length;
        }
        if sum != self.left {
            return Err(wrong(
                "the map of a sparse file is of another length than its data",
            ));
        }
        Ok(())
    }
}

/// The body of the entry that was read last.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..most).filter(|buffer| !buffer.is_empty()) else {
            return Ok(0);
        };
        let n = self.from.read(buffer)?;
        if n == 0 {
            return Err(wrong("it ends in the middle of an entry"));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

impl Before {
    /// Takes records: `<length> <key>=<value>\n`.
    fn read(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let broken = || wrong("the records before an entry are broken");
        while !bytes.is_empty() {
            let space = bytes.iter().position(|b| *b == b' ').ok_or_else(broken)?;
            let length = bytes
                .get(..space)
                .and_then(|digits| std::str::from_utf8(digits).ok());
            let length: usize = length.and_then(|digits| digits.parse().ok()).ok_or_else(broken)?;
            let (record, rest) = bytes.split_at_checked(length).ok_or_else(broken)?;
            let text = record.get(space + 1..).and_then(|text| text.strip_suffix(b"\n"));
            let text = text.ok_or_else(broken)?;
            let equals = text.iter().position(|b| *b == b'=').ok_or_else(broken)?;
            let (key, value) = text.split_at(equals);
            self.take(key, value.get(1..).unwrap_or_default())?;
            bytes = rest;
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let number = || {
            let text = std::str::from_utf8(value).ok();
            text.and_then(|text| text.parse::<u64>().ok())
                .ok_or_else(|| wrong(format!("the record {} is no number", key.escape_ascii())))
        };
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(|| wrong("the record mtime is no time"))?),
            b"GNU.sparse.major" => self.sparse_format.0 = Some(number()?),
            b"GNU.sparse.minor" => self.sparse_format.1 = Some(number()?),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" => self.sparse_size = Some(number()?),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse_other = true,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.push(Xattr {
                        name: plain(name),
                        value: value.to_vec(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// A name as it was before `=` and `%` were written as GNU tar does.
fn plain(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match after.split_at_checked(2) {
            Some((b"3D", after)) if *first == b'%' => (b'=', after),
            Some((b"25", after)) if *first == b'%' => (b'%', after),
            _ => (*first, after),
        };
        out.push(byte);
        rest = after;
    }
    out
}

/// Seconds with a fraction, as the kernel has them: the nanoseconds always count forwards.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if !digits(seconds) || !digits(fraction) || seconds.is_empty() {
        return None;
    }
    let seconds: i64 = seconds.parse().ok()?;
    let fraction: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: u32 = fraction.parse().ok()?;
    Some(match (negative, nanos) {
        (false, nanos) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, nanos) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time(b"5"), Some((5, 0)));
        assert_eq!(time(b"5.00000007"), Some((5, 70)));
        assert_eq!(time(b"5.0000000709"), Some((5, 70)));
        assert_eq!(time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(time(b"-7"), Some((-7, 0)));
        for none in [&b""[..], b"-", b".5", b"1.-5", b"1e9", b"99999999999999999999"] {
            assert_eq!(time(none), None);
        }
    }

    #[test]
    fn names_of_attributes() {
        assert_eq!(plain(b"user.a%3Db%25%3"), b"user.a=b%%3");
    }

    #[test]
    fn records_that_lie_are_refused() {
        let told = |bytes: &[u8]| Before::default().read(bytes).is_err();
        for bytes in [
            &b"5 a=b\n"[..],
            b"99 a=b\n",
            b"0 a=b\n",
            b"6 a=b\nx",
            b"6 ab\n \n",
            b"18446744073709551616 a=b\n",
            b"x",
        ] {
            assert!(told(bytes), "{}", bytes.escape_ascii());
        }
        assert!(!told(b"6 a=b\n"));
    }
}
