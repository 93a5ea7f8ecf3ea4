//! No content takes much longer than ordinary content of its length: what is kept is written by containers, some of
//! which want the machine's time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use delta::{Encoding, LEVEL, cut, decode, encode, encode_as, features, incompressible, likeness};

const LENGTH: usize = 128 << 10;
/// bsdiff takes a hundred times as long as the others.
const SHORT: usize = 8 << 10;
/// The bar is three (`make bench-delta`); here other things run at the same time, and nothing is optimised.
const TIMES: u32 = 8;

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    (0..length)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_le_bytes()[3]
        })
        .collect()
}

fn text() -> Vec<u8> {
    (0..)
        .flat_map(|n: u64| {
            format!(
                "{n} {} is what was written\n",
                n.wrapping_mul(2_654_435_761) % 10_007
            )
            .into_bytes()
        })
        .take(LENGTH)
        .collect()
}

/// Every pair of bytes once, again and again (de Bruijn, by the usual recursion over Lyndon words).
fn de_bruijn() -> Vec<u8> {
    fn words(t: usize, p: usize, a: &mut [u8; 3], to: &mut Vec<u8>) {
        if t > 2 {
            if 2 % p == 0 {
                to.extend_from_slice(&a[1..=p]);
            }
            return;
        }
        a[t] = a[t - p];
        words(t + 1, p, a, to);
        for byte in a[t - p].saturating_add(1)..=255 {
            if byte > a[t - p] {
                a[t] = byte;
                words(t + 1, t, a, to);
            }
        }
    }
    let mut to = Vec::new();
    words(1, 1, &mut [0; 3], &mut to);
    assert_eq!(to.len(), 65_536);
    to.into_iter().cycle().take(LENGTH).collect()
}

fn periodic(period: usize) -> Vec<u8> {
    noise(period, 9).into_iter().cycle().take(LENGTH).collect()
}

/// Blocks that all begin alike: each look-up finds something, and it is the wrong one.
fn nearly_alike(seed: u64) -> Vec<u8> {
    let mut bytes = periodic(32);
    for (block, other) in bytes.chunks_exact_mut(32).zip(noise(LENGTH, seed)) {
        block[31] = other;
    }
    bytes
}

fn adversarial() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("all bytes are the same", vec![0; LENGTH]),
        ("a period of 7", periodic(7)),
        ("a period of 31", periodic(31)),
        ("a period of 1000", periodic(1000)),
        ("de Bruijn", de_bruijn()),
        ("nearly the same", nearly_alike(3)),
    ]
}

/// The shortest of some times: what else runs makes it longer only.
fn time(work: &mut dyn FnMut()) -> Duration {
    let once = || {
        let since = Instant::now();
        work();
        since.elapsed()
    };
    std::iter::repeat_with(once).take(3).min().unwrap()
}

/// Compares a work's time for each pair of a content and a base with the longest of ordinary pairs.
fn check(name: &str, mut work: impl FnMut(&[u8], &[u8])) {
    let (noise, text) = (noise(LENGTH, 1), text());
    let mut edited = noise.clone();
    edited.iter_mut().step_by(1000).for_each(|byte| *byte ^= 1);
    let others = [b"inserted".as_slice(), &text[..LENGTH - 8]].concat();
    let ordinary = [(&edited, &noise), (&others, &text), (&text, &noise)];
    let mut of = |bytes: &[u8], base: &[u8]| time(&mut || work(bytes, base));
    let longest = ordinary
        .map(|(bytes, base)| of(bytes, base))
        .into_iter()
        .max()
        .unwrap();
    let all = adversarial();
    for (what, bytes) in &all {
        let mut changed = bytes.clone();
        changed.iter_mut().step_by(1001).for_each(|byte| *byte ^= 1);
        for (against, base) in [
            ("itself, changed", &changed),
            ("text", &text),
            ("nearly the same", &all[5].1),
        ] {
            let took = of(bytes, base);
            // A timer's resolution.
            let most = longest * TIMES + Duration::from_micros(200);
            assert!(
                took <= most,
                "{name}: {what} against {against} takes {took:?}, ordinary content {longest:?}"
            );
        }
    }
}

fn coded(encoding: Encoding, level: i32, length: usize) {
    check(&format!("{encoding:?} at {level}"), |bytes, base| {
        let (bytes, base) = (&bytes[..length], &base[..length]);
        let mut to = Vec::new();
        encode_as(encoding, level, bytes, Some(base), &mut to).unwrap();
        black_box(to);
    });
    let mut last = (Vec::new(), Vec::new(), Vec::new());
    check(&format!("reading {encoding:?}"), |bytes, base| {
        let (bytes, base) = (&bytes[..length], &base[..length]);
        if last.0 != bytes || last.1 != base {
            let mut to = Vec::new();
            encode_as(encoding, level, bytes, Some(base), &mut to).unwrap();
            last = (bytes.to_vec(), base.to_vec(), to);
        }
        black_box(decode(encoding, &last.2, Some(base), bytes.len()).unwrap());
    });
}

#[test]
fn block_match() {
    coded(Encoding::Match, LEVEL, LENGTH);
}

#[test]
fn xor_and_prefix() {
    coded(Encoding::Xor, LEVEL, LENGTH);
    coded(Encoding::Prefix, LEVEL, LENGTH);
}

#[test]
fn bsdiff() {
    coded(Encoding::Bsdiff, LEVEL, SHORT);
}

#[test]
fn cutting_and_encoding() {
    check("cut", |bytes, _| {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = &rest[cut(rest)..];
        }
    });
    check("encode", |bytes, _| {
        let mut to = Vec::new();
        encode(bytes, &mut to).unwrap();
        black_box(to);
    });
}

#[test]
fn estimates_and_features() {
    check("incompressible", |bytes, _| {
        black_box(incompressible(bytes));
    });
    check("likeness", |bytes, base| {
        black_box(likeness(bytes, base));
    });
    check("features", |bytes, _| {
        black_box(features(bytes));
    });
}
