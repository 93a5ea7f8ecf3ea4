//! Content that is made of pages: databases and images of file systems, which change a page where it is and move nothing.
//! Cut at fixed places, no change moves a boundary, nor has one to be looked for, and what a chunk was before is what
//! stood there.

use crate::cut::AVERAGE;

/// No page of these is shorter or longer.
const SIZES: std::ops::RangeInclusive<usize> = 512..=65_536;
/// From so many in-place writes on they tell a page's length.
const WRITES: usize = 8;
/// What a write's place is aligned to if it is one to a page.
const SMALLEST: u64 = 4096;

/// The length of the chunk that begins where `bytes` does in content of pages of this length; `bytes` is the content to its
/// end, or at least [`LONGEST`](crate::LONGEST) of it. Whole pages, as many as there are in [`AVERAGE`]. Zero only where there are no bytes.
#[must_use]
pub fn cut_fixed(bytes: &[u8], page: usize) -> usize {
    let page = page.clamp(1, AVERAGE);
    (AVERAGE / page * page).min(bytes.len())
}

/// The length of a page, if content that begins so is made of pages: SQLite, PostgreSQL, InnoDB, LMDB, ext2 to ext4. Some
/// 128 KiB are enough to tell; fewer may be.
#[must_use]
pub fn page_size(head: &[u8]) -> Option<usize> {
    let ways = [sqlite, lmdb, ext4, innodb, postgres];
    let size = ways.into_iter().find_map(|way| way(head))?;
    (SIZES.contains(&size) && size.is_power_of_two()).then_some(size)
}

/// The length of a page, if this is how content is written that is made of pages: places and lengths of writes that left
/// the content's length as it was.
#[must_use]
pub fn page_size_of_writes(writes: &[(u64, u64)]) -> Option<usize> {
    if writes.len() < WRITES || writes.iter().any(|(_, length)| *length == 0) {
        return None;
    }
    let all = writes.iter().fold(0, |all, (at, length)| all | at | length);
    let size = 1u64.checked_shl(all.trailing_zeros())?;
    // Alignment that low is anybody's, and that high is of larger buffers.
    let largest = *SIZES.end() as u64;
    (size >= SMALLEST).then(|| usize::try_from(size.min(largest)).ok())?
}

fn bytes<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..)?.first_chunk().copied()
}

fn little16(head: &[u8], at: usize) -> Option<usize> {
    bytes(head, at).map(u16::from_le_bytes).map(usize::from)
}

fn little32(head: &[u8], at: usize) -> Option<u32> {
    bytes(head, at).map(u32::from_le_bytes)
}

fn big32(head: &[u8], at: usize) -> Option<u32> {
    bytes(head, at).map(u32::from_be_bytes)
}

/// <https://www.sqlite.org/fileformat2.html#the_database_header>
fn sqlite(head: &[u8]) -> Option<usize> {
    head.starts_with(b"SQLite format 3\0").then_some(())?;
    match u16::from_be_bytes(bytes(head, 16)?) {
        1 => Some(65_536),
        size => Some(size.into()),
    }
}

/// `MDB_meta` behind the first page's head.
fn lmdb(head: &[u8]) -> Option<usize> {
    (little32(head, 16)? == 0xbeef_c0de && little32(head, 20)? == 1).then_some(())?;
    usize::try_from(little32(head, 40)?).ok()
}

/// The superblock at 1024.
fn ext4(head: &[u8]) -> Option<usize> {
    (little16(head, 1024 + 56)? == 0xef53).then_some(())?;
    1024usize.checked_shl(little32(head, 1024 + 24)?)
}

/// The first page says what it is, and the second that it is the second.
fn innodb(head: &[u8]) -> Option<usize> {
    let file_space_header = big32(head, 4)? == 0 && bytes(head, 24)? == [0, 8];
    let space = big32(head, 34)?;
    (file_space_header && big32(head, 38)? == space).then_some(())?;
    [16_384, 4096, 8192, 32_768, 65_536]
        .into_iter()
        .find(|size| big32(head, size + 4) == Some(1) && big32(head, size + 34) == Some(space))
}

/// Nothing names the file: every page must look like one (`PageHeaderData`), and one at least must not be all zeros.
fn postgres(head: &[u8]) -> Option<usize> {
    let (mut size, mut some) = (8192, false);
    for at in 0..4 {
        let page = match head.get(at * size..) {
            Some(page) if page.len() >= 24 => page,
            _ => break,
        };
        if page.iter().take(size).all(|byte| *byte == 0) {
            continue;
        }
        let (version, length) = (bytes::<2>(page, 18)?[0], little16(page, 18)? & 0xff00);
        let (lower, upper, special) = (little16(page, 12)?, little16(page, 14)?, little16(page, 16)?);
        let whole = 24 <= lower && lower <= upper && upper <= special && special <= length;
        if !(1..=5).contains(&version) || !whole || (some && length != size) || !length.is_power_of_two() {
            return None;
        }
        (size, some) = (length, true);
    }
    some.then_some(size)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::noise;

    fn put(head: &mut [u8], at: usize, what: &[u8]) {
        head[at..at + what.len()].copy_from_slice(what);
    }

    #[test]
    fn databases_tell_their_pages() {
        let mut sqlite = noise(70_000, 1);
        put(&mut sqlite, 0, b"SQLite format 3\0\x10\x00");
        assert_eq!(page_size(&sqlite), Some(4096));
        put(&mut sqlite, 16, &[0, 1]);
        assert_eq!(page_size(&sqlite), Some(65_536));
        put(&mut sqlite, 16, &[0x10, 1]);
        assert_eq!(page_size(&sqlite), None, "no power of two");

        let mut lmdb = vec![0; 8192];
        put(&mut lmdb, 16, &0xbeef_c0de_u32.to_le_bytes());
        put(&mut lmdb, 20, &1u32.to_le_bytes());
        put(&mut lmdb, 40, &4096u32.to_le_bytes());
        assert_eq!(page_size(&lmdb), Some(4096));

        let mut ext4 = vec![0; 4096];
        put(&mut ext4, 1080, &[0x53, 0xef]);
        put(&mut ext4, 1048, &2u32.to_le_bytes());
        assert_eq!(page_size(&ext4), Some(4096));
        put(&mut ext4, 1048, &u32::MAX.to_le_bytes());
        assert_eq!(page_size(&ext4), None);

        let mut innodb = vec![0; 65_536];
        put(&mut innodb, 24, &[0, 8]);
        for page in [0usize, 16_384] {
            put(&mut innodb, page + 34, &7u32.to_be_bytes());
        }
        put(&mut innodb, 38, &7u32.to_be_bytes());
        put(&mut innodb, 16_384 + 4, &1u32.to_be_bytes());
        assert_eq!(page_size(&innodb), Some(16_384));
    }

    #[test]
    fn postgres_is_told_by_every_page() {
        let mut table = noise(65_536, 1);
        for page in table.chunks_exact_mut(8192) {
            put(page, 12, &200u16.to_le_bytes());
            put(page, 14, &4000u16.to_le_bytes());
            put(page, 16, &8192u16.to_le_bytes());
            put(page, 18, &0x2004u16.to_le_bytes());
        }
        assert_eq!(page_size(&table), Some(8192));
        table[..8192].fill(0);
        assert_eq!(page_size(&table), Some(8192), "a page may be new");
        put(&mut table, 8192 + 14, &100u16.to_le_bytes());
        assert_eq!(page_size(&table), None, "a page that ends before it begins");
        assert_eq!(page_size(&[0; 65_536]), None);
    }

    #[test]
    fn what_is_not_made_of_pages_has_none() {
        for seed in 0..200 {
            assert_eq!(page_size(&noise(65_536, seed)), None);
        }
        assert_eq!(page_size(b""), None);
        assert_eq!(page_size(b"SQLite format 3\0"), None);
    }

    #[test]
    fn writes_tell_pages() {
        let pages = |size: u64| (0..20u64).map(|n| (n * n * size, size)).collect::<Vec<_>>();
        assert_eq!(page_size_of_writes(&pages(4096)), Some(4096));
        assert_eq!(page_size_of_writes(&pages(8192)), Some(8192));
        assert_eq!(page_size_of_writes(&pages(1 << 20)), Some(65_536));
        assert_eq!(page_size_of_writes(&pages(100)), None);
        assert_eq!(page_size_of_writes(&pages(4096)[..5]), None, "too few");
        assert_eq!(page_size_of_writes(&[(0, 0); 20]), None);
    }

    #[test]
    fn a_page_that_changes_changes_one_chunk() {
        let bytes = noise(1 << 20, 3);
        for page in [512, 4096, 8192, 16_384, 65_536] {
            let mut at = 0;
            while at < bytes.len() {
                let length = cut_fixed(&bytes[at..], page);
                assert_eq!((at % page, length), (0, AVERAGE));
                at += length;
            }
        }
        assert_eq!(cut_fixed(b"", 4096), 0);
        assert_eq!(cut_fixed(b"rest", 0), 4);
    }

    proptest! {
        #[test]
        fn no_head_is_too_strange(head in vec(any::<u8>(), 0..3000), page: usize, writes in vec(any::<(u64, u64)>(), 0..20)) {
            for size in page_size(&head).into_iter().chain(page_size_of_writes(&writes)) {
                prop_assert!(size.is_power_of_two() && SIZES.contains(&size));
            }
            let length = cut_fixed(&head, page);
            prop_assert!(length <= head.len() && (length > 0 || head.is_empty()));
        }
    }
}
