//! Tar as POSIX has it (pax): what a plain header cannot say stands in records before it.
//!
//! The same heads and bodies give the same bytes: nothing here knows the time or who runs it.

use std::io::{self, Write};

use store::format::Xattr;
use tar::{EntryType, Header};

/// Everything in an archive begins at a multiple of this.
pub const BLOCK: usize = 512;
/// What extended attributes are called in records.
pub const XATTR: &[u8] = b"SCHILY.xattr.";
/// The longest name in a plain header.
const NAME: usize = 100;
/// The greatest numbers in a plain header's fields of 8 and 12 bytes.
const OCTAL_7: u64 = 0o7_777_777;
const OCTAL_11: u64 = 0o77_777_777_777;

/// What stands before a body.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Where it is, without a slash in front; a directory ends with one.
    pub path: &'a [u8],
    /// What it is.
    pub kind: EntryType,
    /// What a link points to, or the other name of a hard link.
    pub link: &'a [u8],
    /// Permissions, set-id and sticky bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was modified: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes that follow.
    pub size: u64,
    /// The length of a sparse file, of which only a map and the data follow.
    pub sparse: Option<u64>,
    /// A device's major and minor number.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: &'a [Xattr],
}

impl<'a> Head<'a> {
    /// Of a file, a link or whatever has these.
    #[must_use]
    pub fn new(path: &'a [u8], kind: EntryType) -> Head<'a> {
        Head {
            path,
            kind,
            link: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            sparse: None,
            device: (0, 0),
            xattrs: &[],
        }
    }
}

/// Writes an archive.
pub struct Writer<W> {
    out: W,
    /// What is still missing of the body.
    left: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// Into `out`.
    pub fn new(out: W) -> Writer<W> {
        Writer {
            out,
            left: 0,
            padding: 0,
        }
    }

    /// Begins an entry; a body of the promised length follows.
    ///
    /// # Errors
    /// A body before it that is not whole; as the writer below.
    pub fn head(&mut self, head: &Head<'_>) -> io::Result<()> {
        self.close()?;
        let records = records(head);
        if !records.is_empty() {
            let mut before = plain(b"PaxHeaders.0", EntryType::XHeader, records.len() as u64)?;
            before.set_mode(0o644);
            before.set_cksum();
            self.out.write_all(before.as_bytes())?;
            self.body(records.len() as u64);
            self.write(&records)?;
            self.close()?;
        }
        let mut name = head.path;
        if head.sparse.is_some() {
            // Who does not know of sparse files must not take the map for the file.
            name = b"GNUSparseFile.0";
        }
        let mut plain = plain(name, head.kind, head.size)?;
        plain.set_mode(head.mode & 0o7777);
        plain.set_uid(fits(head.uid.into(), OCTAL_7));
        plain.set_gid(fits(head.gid.into(), OCTAL_7));
        plain.set_mtime(fits(u64::try_from(head.mtime.0).unwrap_or(0), OCTAL_11));
        if let Some(ustar) = plain.as_ustar_mut() {
            fill(&mut ustar.linkname, head.link);
        }
        if matches!(head.kind, EntryType::Char | EntryType::Block) {
            plain.set_device_major(head.device.0)?;
            plain.set_device_minor(head.device.1)?;
        }
        plain.set_cksum();
        self.out.write_all(plain.as_bytes())?;
        self.body(head.size);
        Ok(())
    }

    fn body(&mut self, size: u64) {
        self.left = size;
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        self.padding = (BLOCK - over) % BLOCK;
    }

    /// A part of the body.
    ///
    /// # Errors
    /// More than was promised; as the writer below.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("there is more content than its entry says"))?;
        self.out.write_all(bytes)
    }

    /// A part of the body that is all zeros.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn zeros(&mut self, mut length: u64) -> io::Result<()> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        while length > 0 {
            let n = usize::try_from(length).unwrap_or(usize::MAX).min(ZEROS.len());
            self.write(ZEROS.get(..n).unwrap_or(&ZEROS))?;
            length -= n as u64;
        }
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other("there is less content than its entry says"));
        }
        let padding = std::mem::take(&mut self.padding);
        self.out.write_all([0; BLOCK].get(..padding).unwrap_or_default())
    }

    /// Ends the archive, and gives back what it was written into.
    ///
    /// # Errors
    /// A body that is not whole; as the writer below.
    pub fn finish(mut self) -> io::Result<W> {
        self.close()?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn plain(name: &[u8], kind: EntryType, size: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(fits(size, OCTAL_11));
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_device_major(0)?;
    header.set_device_minor(0)?;
    if let Some(ustar) = header.as_ustar_mut() {
        fill(&mut ustar.name, name);
    }
    Ok(header)
}

/// What does not fit stands in a record.
fn fits(number: u64, most: u64) -> u64 {
    if number > most { 0 } else { number }
}

fn fill(field: &mut [u8; NAME], bytes: &[u8]) {
    field.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
}

/// What a plain header cannot say.
fn records(head: &Head<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(length) = head.sparse {
        record(&mut out, b"GNU.sparse.major", b"1");
        record(&mut out, b"GNU.sparse.minor", b"0");
        record(&mut out, b"GNU.sparse.name", head.path);
        record(&mut out, b"GNU.sparse.realsize", length.to_string().as_bytes());
    } else if head.path.len() > NAME {
        record(&mut out, b"path", head.path);
    }
    if head.link.len() > NAME {
        record(&mut out, b"linkpath", head.link);
    }
    for (key, number, most) in [
        (&b"size"[..], head.size, OCTAL_11),
        (b"uid", head.uid.into(), OCTAL_7),
        (b"gid", head.gid.into(), OCTAL_7),
    ] {
        if number > most {
            record(&mut out, key, number.to_string().as_bytes());
        }
    }
    let (seconds, nanos) = head.mtime;
    if nanos != 0 || seconds < 0 || seconds.unsigned_abs() > OCTAL_11 {
        record(&mut out, b"mtime", time(seconds, nanos).as_bytes());
    }
    for xattr in head.xattrs {
        let mut key = XATTR.to_vec();
        for byte in &xattr.name {
            // As GNU tar has it: a key ends at the first equals sign.
            match byte {
                b'=' => key.extend_from_slice(b"%3D"),
                b'%' => key.extend_from_slice(b"%25"),
                other => key.push(*other),
            }
        }
        record(&mut out, &key, &xattr.value);
    }
    out
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// A time before 1970 has a minus before the whole of it: a second and a half before is -1.5, which the kernel calls
/// -2 seconds and half a billion nanoseconds.
fn time(seconds: i64, nanos: u32) -> String {
    match (seconds < 0, nanos) {
        (_, 0) => seconds.to_string(),
        (false, _) => format!("{seconds}.{nanos:09}"),
        (true, _) => format!(
            "-{}.{:09}",
            seconds.unsigned_abs() - 1,
            1_000_000_000 - nanos.min(999_999_999)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        for length in 0..1100 {
            let mut out = Vec::new();
            record(&mut out, b"k", &vec![b'v'; length]);
            let said: usize = std::str::from_utf8(out.split(|b| *b == b' ').next().unwrap())
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(said, out.len());
        }
    }

    #[test]
    fn times() {
        assert_eq!(time(5, 0), "5");
        assert_eq!(time(5, 70), "5.000000070");
        assert_eq!(time(-2, 500_000_000), "-1.500000000");
        assert_eq!(time(-1, 999_999_999), "-0.000000001");
        assert_eq!(time(-7, 0), "-7");
    }

    #[test]
    fn a_body_is_as_long_as_its_head_says() {
        let mut writer = Writer::new(Vec::new());
        let head = Head {
            size: 3,
            ..Head::new(b"a", EntryType::Regular)
        };
        writer.head(&head).unwrap();
        assert!(writer.write(b"four").is_err());
        let mut writer = Writer::new(Vec::new());
        writer.head(&head).unwrap();
        writer.write(b"tw").unwrap();
        assert!(writer.head(&head).is_err() && writer.finish().is_err());
    }
}
