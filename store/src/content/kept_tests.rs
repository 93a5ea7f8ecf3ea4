// Lists of ranges that hold one are meant.
#![allow(clippy::single_range_in_vec_init)]

use std::{
    io,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use proptest::prelude::*;

use crate::content::Source;
use crate::tests::{entry, noise, read, store, write};

/// Bytes of which it is known what was changed, and zeros beyond `holes`, which are a hole.
struct Changed {
    bytes: Vec<u8>,
    holes: usize,
    ranges: Vec<Range<u64>>,
    read: AtomicU64,
}

impl Changed {
    fn of(bytes: Vec<u8>, holes: usize, ranges: Vec<Range<u64>>) -> Changed {
        let read = AtomicU64::new(0);
        Changed {
            bytes,
            holes,
            ranges,
            read,
        }
    }
}

impl Source for Changed {
    fn data(&self, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
        self.bytes[..self.holes].data(at, length)
    }

    fn length(&self) -> io::Result<u64> {
        self.bytes.length()
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let n = self.bytes.read_at(buffer, at)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn same_until(&self, at: u64) -> u64 {
        match self.ranges.iter().find(|range| range.end > at) {
            Some(range) => range.start.max(at),
            None => u64::MAX,
        }
    }

    fn changed_until(&self, at: u64) -> u64 {
        let around = self.ranges.iter().find(|range| range.contains(&at));
        around.map_or(at, |range| range.end)
    }
}

#[test]
fn of_a_large_file_little_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let domain = store.domain("d").unwrap();
    let session = store.session(domain);
    // Several lists.
    let mut bytes = noise(24 << 20, 1);
    let before = write(&session, "f", &bytes, None);
    assert!(before.height > 1);
    let at = 11_000_000 / 4096 * 4096;
    bytes[at..at + 4096].fill(7);
    let range = at as u64..at as u64 + 4096;
    let length = bytes.len();
    let source = Changed::of(bytes, length, vec![range]);
    let written = session.written();
    let content = session
        .content(&source, length as u64, Some(&before), "f")
        .unwrap();
    let (read_bytes, wrote) = (source.read.load(Ordering::Relaxed), session.written() - written);
    assert!(read_bytes < 512 << 10, "{read_bytes} bytes were read");
    assert!(wrote < 16 << 10, "{wrote} bytes were written");
    let anew = session
        .content(&source.bytes[..], length as u64, Some(&before), "f")
        .unwrap();
    assert_eq!(content, anew);
}

/// Where something was changed, and how: bytes, or from there on all is gone, or something is added at the end.
#[derive(Debug, Clone)]
enum Change {
    Bytes(usize, usize),
    Grown(usize),
    Short(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let (at, length) = (0..6_000_000_usize, 1..300_000_usize);
    prop_oneof![
        6 => (at.clone(), length.clone()).prop_map(|(at, length)| Change::Bytes(at, length)),
        1 => length.prop_map(Change::Grown),
        1 => at.prop_map(Change::Short),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn what_is_taken_over_is_what_would_have_been_read(
        changes in proptest::collection::vec(change(), 0..6),
        seed in any::<u64>(),
        hole in 0..2_000_000_usize,
        unchanged in (0..6_000_000_u64, 0..500_000_u64),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let domain = store.domain("d").unwrap();
        let session = store.session(domain);
        let mut bytes = noise(5_000_000, seed);
        let data = bytes.len();
        bytes.resize(data + hole, 0);
        let first = Changed::of(bytes.clone(), data, vec![0..u64::MAX]);
        let mut before = entry("f", b"");
        session.content(&first, bytes.len() as u64, None, "f").unwrap().set(&mut before);
        // What was changed, and one place more.
        let mut pages = vec![unchanged.0..unchanged.0 + unchanged.1];
        let mut data = data;
        for (n, change) in changes.iter().enumerate() {
            let end = bytes.len();
            match change {
                Change::Bytes(at, length) => {
                    let (at, to) = ((*at).min(end), (at + length).min(end));
                    bytes[at..to].copy_from_slice(&noise(to - at, seed ^ n as u64));
                    data = data.max(to);
                    pages.push(at as u64..to as u64);
                }
                Change::Grown(length) => {
                    bytes.extend(noise(*length, seed ^ n as u64));
                    data = bytes.len();
                    pages.push(end as u64..u64::MAX);
                }
                Change::Short(at) => {
                    bytes.truncate(*at);
                    data = data.min(bytes.len());
                    pages.push(bytes.len() as u64..u64::MAX);
                }
            }
        }
        pages.retain(|range| !range.is_empty());
        pages.sort_by_key(|range| range.start);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for range in pages {
            match ranges.last_mut().filter(|last| last.end >= range.start) {
                Some(last) => last.end = last.end.max(range.end),
                None => ranges.push(range),
            }
        }
        let source = Changed::of(bytes, data, ranges);
        let mut after = entry("f", b"");
        let length = source.bytes.len() as u64;
        session.content(&source, length, Some(&before), "f").unwrap().set(&mut after);
        let found = read(&store, domain, &after).unwrap();
        prop_assert!(found == source.bytes);
    }
}
