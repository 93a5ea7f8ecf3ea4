//! `/proc/self/mountinfo`.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use crate::error::{Context, Result};

/// One line of the table, what we need of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Where it is mounted.
    pub target: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// The file system's own options.
    pub options: String,
}

/// The mounts at and below a path, in the order they were made.
///
/// # Errors
/// When the table cannot be read.
pub fn mounts_under(prefix: &Path) -> Result<Vec<MountInfo>> {
    let table = std::fs::read("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo".into())?;
    Ok(table
        .split(|b| *b == b'\n')
        .filter_map(parse)
        .filter(|m| m.target.starts_with(prefix))
        .collect())
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw` (proc(5)).
fn parse(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|b| *b == b' ');
    let target = fields.nth(4)?;
    let mut rest = fields.skip_while(|f| *f != b"-").skip(1);
    let kind = rest.next()?;
    let options = rest.nth(1).unwrap_or_default();
    Some(MountInfo {
        target: unescape(target),
        kind: String::from_utf8_lossy(kind).into_owned(),
        options: unescape(options).to_string_lossy().into_owned(),
    })
}

/// Blanks, tabs, newlines and backslashes are written in octal.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        let octal = |d: &[u8]| {
            d.iter().try_fold(0u32, |n, b| {
                (b'0'..=b'7').contains(b).then(|| n * 8 + u32::from(b - b'0'))
            })
        };
        if *byte == b'\\'
            && let Some((digits, after)) = tail.split_at_checked(3)
            && let Some(value) = octal(digits).and_then(|n| u8::try_from(n).ok())
        {
            path.push(value);
            rest = after;
        } else {
            path.push(*byte);
            rest = tail;
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_with_escapes() {
        let m = parse(b"36 35 98:0 / /a\\040b\\134 rw master:1 - overlay none rw,lowerdir=/x").unwrap();
        assert_eq!(
            (m.target, m.kind.as_str(), m.options.as_str()),
            ("/a b\\".into(), "overlay", "rw,lowerdir=/x")
        );
        assert_eq!(parse(b""), None);
    }

    proptest! {
        #[test]
        fn never_panics(line: Vec<u8>) {
            let _ = parse(&line);
        }
    }
}
