//! The speed of cutting, hashing and encoding on one processor, in memory, beside memcpy, BLAKE3 and zstd's fastest
//! ordinary level in the same run. `make bench-delta`.

use std::{collections::HashSet, hint::black_box, time::Duration};

use anyhow::{Context, Result};
use delta::{
    Bases, Budget, Encoding, Experience, LEVEL, cut, decode, encode, encode_as, encode_within, features,
    incompressible, likeness,
};
use integration::bench::{self, Bar, Figure, figure};
use nix::time::{ClockId, clock_gettime};

const LENGTH: usize = 16 << 20;
const CHUNK: usize = delta::AVERAGE;
/// zstd's own, whose speed is the bar's measure.
const FASTEST: i32 = 1;

/// Always the same noise (xorshift).
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    let number = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    });
    number.flatten().take(length).collect()
}

fn documents(length: usize) -> Vec<u8> {
    let line = |n: u64| {
        let x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!(
            "{{\"id\": {n}, \"name\": \"user{}\", \"active\": {}, \"balance\": {}.{:02}}}\n",
            x >> 48,
            x & 1 == 0,
            x >> 52,
            x % 100
        )
    };
    (0..)
        .map(line)
        .flat_map(String::into_bytes)
        .take(length)
        .collect()
}

fn logs(length: usize) -> Vec<u8> {
    let line = |n: u64| {
        let x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let what = [
            "GET /index.html",
            "POST /orders",
            "GET /static/app.js",
            "PUT /cart",
        ];
        let asked = what.get((x >> 62) as usize).copied().unwrap_or_default();
        let (minutes, seconds) = (n / 600 % 60, n / 10 % 60);
        format!(
            "2026-11-21T10:{minutes:02}:{seconds:02}Z 10.0.{}.{} \"{asked}\" 200 {}\n",
            x >> 56,
            x >> 40 & 255,
            x >> 50
        )
    };
    (0..)
        .map(line)
        .flat_map(String::into_bytes)
        .take(length)
        .collect()
}

/// Numbers whose first bytes are alike.
fn floats(length: usize, seed: u64) -> Vec<u8> {
    let one = |n: &[u8]| (1.0 + f32::from(u16::from_le_bytes([n[0], n[1]])) / 7.0e5).to_le_bytes();
    noise(length / 2, seed)
        .as_chunks::<2>()
        .0
        .iter()
        .flat_map(|n| one(n))
        .collect()
}

/// A quarter each of documents, logs, numbers and noise.
fn mixed() -> Vec<u8> {
    let part = LENGTH / 4;
    [documents(part), logs(part), floats(part, 3), noise(part, 5)].concat()
}

/// Of each tenth page 200 bytes changed where they are.
fn changed(base: &[u8]) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for (page, other) in bytes
        .chunks_mut(8192)
        .step_by(10)
        .zip(noise(LENGTH, 11).chunks(200))
    {
        page.iter_mut()
            .skip(1000)
            .zip(other)
            .for_each(|(byte, other)| *byte = *other);
    }
    bytes
}

/// Of each chunk the end came before the beginning, with some new bytes between.
fn moved(base: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (n, chunk) in base.chunks(CHUNK).enumerate() {
        let (begin, end) = chunk.split_at(n * 37 % CHUNK);
        for part in [end, b"inserted bytes here", begin] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.truncate(base.len());
    bytes
}

/// Every pair of bytes once, again and again: the greedy de Bruijn sequence.
fn de_bruijn(length: usize) -> Vec<u8> {
    let mut next = [255u8; 256];
    let mut seen = vec![false; 1 << 16];
    let (mut bytes, mut last) = (Vec::new(), 0u8);
    for _ in 0..1 << 16 {
        let mut byte = next[usize::from(last)];
        while byte > 0 && seen[usize::from(last) << 8 | usize::from(byte)] {
            byte -= 1;
        }
        seen[usize::from(last) << 8 | usize::from(byte)] = true;
        next[usize::from(last)] = byte;
        bytes.push(byte);
        last = byte;
    }
    bytes.into_iter().cycle().take(length).collect()
}

/// The processor's time, not the clock's: others on the machine do not count.
fn time(mut work: impl FnMut() -> Result<()>) -> Result<Duration> {
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let since = now()?;
    work()?;
    Ok(now()?.saturating_sub(since))
}

/// Megabytes a second.
fn rate(length: usize, took: Duration) -> f64 {
    length as f64 / 1e6 / took.as_secs_f64()
}

/// Ours and a peer by turns, as rates; the bar is a rate, the ratio says what it is worth on another machine.
fn rates(
    case: &str,
    pairs: usize,
    least: f64,
    mut ours: impl FnMut() -> Result<()>,
    (name, mut peer): (&'static str, impl FnMut() -> Result<()>),
) -> Result<Figure> {
    let (mut our_rates, mut peer_rates) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        our_rates.push(rate(LENGTH, time(&mut ours)?));
        peer_rates.push(rate(LENGTH, time(&mut peer)?));
    }
    let mut made = figure(
        case,
        "MB/s",
        &our_rates,
        &peer_rates,
        name,
        &Bar::LowerAtLeast(0.0),
    );
    made.bar = format!("ours >= {least}");
    made.holds = made.ours >= least;
    Ok(made)
}

/// Each chunk in this encoding.
fn encoded(encoding: Encoding, level: i32, bytes: &[u8], base: &[u8]) -> Result<Vec<Vec<u8>>> {
    let chunks = bytes.chunks(CHUNK).zip(base.chunks(CHUNK));
    let all = chunks.map(|(chunk, base)| {
        let mut to = Vec::new();
        encode_as(encoding, level, chunk, Some(base), &mut to).map(|()| to)
    });
    Ok(all.collect::<Result<_, _>>()?)
}

fn all_encoded(encoding: Encoding, level: i32, bytes: &[u8], base: &[u8]) -> Result<()> {
    let mut to = Vec::new();
    for (chunk, base) in bytes.chunks(CHUNK).zip(base.chunks(CHUNK)) {
        to.clear();
        encode_as(encoding, level, chunk, Some(base), &mut to)?;
        black_box(&to);
    }
    Ok(())
}

fn speeds(pairs: usize) -> Result<Vec<Figure>> {
    let (plain, mixed, mut copy) = (noise(LENGTH, 1), mixed(), vec![0; LENGTH]);
    let (changed, moved) = (changed(&mixed), moved(&mixed));
    let mut memcpy = || {
        black_box(&mut copy).copy_from_slice(black_box(&plain));
        Ok(())
    };
    let zstd = || all_encoded(Encoding::Zstd, FASTEST, &mixed, &mixed);

    let mut known = HashSet::new();
    let mut rest = mixed.as_slice();
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(cut(rest));
        known.insert(*blake3::hash(chunk).as_bytes());
        rest = after;
    }
    let look_up = || {
        let mut rest = mixed.as_slice();
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(cut(rest));
            anyhow::ensure!(
                known.contains(blake3::hash(chunk).as_bytes()),
                "a chunk is unknown"
            );
            rest = after;
        }
        Ok(())
    };
    let hash = || {
        for chunk in mixed.chunks(CHUNK) {
            black_box(blake3::hash(chunk));
        }
        Ok(())
    };

    let mut written = Vec::new();
    for chunk in mixed.chunks(CHUNK) {
        let mut to = Vec::new();
        written.push((encode(chunk, &mut to)?, to, chunk.len()));
    }
    let fastest = encoded(Encoding::Zstd, FASTEST, &mixed, &mixed)?;
    let read = || {
        for (encoding, bytes, length) in &written {
            black_box(decode(*encoding, bytes, None, *length)?);
        }
        Ok(())
    };
    let read_fastest = || {
        for (bytes, chunk) in fastest.iter().zip(mixed.chunks(CHUNK)) {
            black_box(decode(Encoding::Zstd, bytes, None, chunk.len())?);
        }
        Ok(())
    };
    let default = || {
        let mut to = Vec::new();
        for chunk in mixed.chunks(CHUNK) {
            to.clear();
            encode(chunk, &mut to)?;
            black_box(&to);
        }
        Ok(())
    };
    let recognised = || {
        let all = plain.chunks(CHUNK).all(|chunk| black_box(incompressible(chunk)));
        anyhow::ensure!(all, "noise is taken for something");
        Ok(())
    };
    let zstd_name = "zstd -1";
    Ok(vec![
        rates(
            "cut, hashed, looked up: known content",
            pairs,
            1500.0,
            look_up,
            ("BLAKE3", hash),
        )?,
        rates(
            "XOR: pages changed in place",
            pairs,
            2000.0,
            || all_encoded(Encoding::Xor, LEVEL, &changed, &mixed),
            ("memcpy", &mut memcpy),
        )?,
        rates(
            "block match: parts moved",
            pairs,
            400.0,
            || all_encoded(Encoding::Match, LEVEL, &moved, &mixed),
            (zstd_name, zstd),
        )?,
        rates(
            "block match: nothing in common",
            pairs,
            400.0,
            || all_encoded(Encoding::Match, LEVEL, &plain, &mixed),
            (zstd_name, zstd),
        )?,
        rates("encode, mixed data", pairs, 300.0, default, (zstd_name, zstd))?,
        rates(
            "decode, mixed data",
            pairs,
            1200.0,
            read,
            ("zstd -1 -d", read_fastest),
        )?,
        rates(
            "incompressible, recognised",
            pairs,
            2000.0,
            recognised,
            ("memcpy", &mut memcpy),
        )?,
    ])
}

/// What a megabyte of a repeated sentence is stored in, each chunk once, against the one before.
fn repetitive() -> Result<Figure> {
    let sentence = b"The quick brown fox jumps over the lazy dog. ";
    let bytes: Vec<u8> = sentence.iter().copied().cycle().take(1 << 20).collect();
    let (mut rest, mut stored, mut seen) = (bytes.as_slice(), 0, HashSet::new());
    let mut bases = Bases::default();
    let mut experience = Experience::default();
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(cut(rest));
        if seen.insert(chunk) {
            let mut to = Vec::new();
            encode_within(Budget::Ordinary, chunk, bases, &mut experience, &mut to)?;
            stored += to.len();
        }
        bases.like = Some(chunk);
        rest = after;
    }
    let case = "1 MiB of a repeated sentence: payload";
    Ok(figure(
        case,
        "bytes",
        &[stored as f64],
        &[162.0],
        "its claim",
        &Bar::AtMost(1.0),
    ))
}

type Work<'a> = &'a dyn Fn(&[u8], &[u8]) -> Result<()>;

/// The longest time that crafted content takes, beside the longest of ordinary content.
fn adversarial(case: &str, length: usize, work: Work<'_>) -> Result<Figure> {
    let of = |bytes: &[u8], base: &[u8]| -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..5 {
            times.push(time(|| work(bytes, base))?.as_secs_f64());
        }
        times.into_iter().min_by(f64::total_cmp).context("a time")
    };
    let mut text = documents(length);
    let (plain, numbers) = (noise(length, 7), floats(length, 7));
    let mut edited = plain.clone();
    edited.iter_mut().step_by(1000).for_each(|byte| *byte ^= 1);
    let mut ordinary = of(&edited, &plain)?
        .max(of(&plain, &text)?)
        .max(of(&numbers, &plain)?);
    text.rotate_right(100);
    ordinary = ordinary.max(of(&text, &documents(length))?);
    let crafted = [
        vec![0; length],
        noise(7, 1).into_iter().cycle().take(length).collect(),
        noise(1000, 1).into_iter().cycle().take(length).collect(),
        de_bruijn(length),
    ];
    let mut longest = 0f64;
    for bytes in &crafted {
        let mut changed = bytes.clone();
        changed.iter_mut().step_by(1001).for_each(|byte| *byte ^= 1);
        for base in [bytes, &changed, &text] {
            longest = longest.max(of(bytes, base)?).max(of(&changed, base)?);
        }
    }
    let nanoseconds = |seconds: f64| [seconds * 1e9 / length as f64];
    Ok(figure(
        case,
        "ns/B",
        &nanoseconds(longest),
        &nanoseconds(ordinary),
        "ordinary",
        &Bar::AtMost(3.0),
    ))
}

fn crafted() -> Result<Vec<Figure>> {
    let coded = |encoding: Encoding| {
        move |bytes: &[u8], base: &[u8]| {
            let mut to = Vec::new();
            encode_as(encoding, LEVEL, bytes, Some(base), &mut to)?;
            black_box(to);
            Ok(())
        }
    };
    let length = 4 * CHUNK;
    Ok(vec![
        adversarial("crafted content: cut", length, &|bytes, _| {
            let mut rest = bytes;
            while !rest.is_empty() {
                rest = rest.split_at(cut(rest)).1;
            }
            Ok(())
        })?,
        adversarial("crafted content: encode", length, &|bytes, _| {
            black_box(encode(bytes, &mut Vec::new())?);
            Ok(())
        })?,
        adversarial("crafted content: XOR", length, &coded(Encoding::Xor))?,
        adversarial("crafted content: prefix", length, &coded(Encoding::Prefix))?,
        adversarial("crafted content: block match", length, &coded(Encoding::Match))?,
        adversarial("crafted content: bsdiff", CHUNK, &coded(Encoding::Bsdiff))?,
        adversarial("crafted content: likeness", length, &|bytes, base| {
            black_box(likeness(bytes, base));
            Ok(())
        })?,
        adversarial("crafted content: features", length, &|bytes, _| {
            black_box(features(bytes));
            Ok(())
        })?,
    ])
}

fn main() -> Result<()> {
    if std::env::var("BENCH_ONLY").is_ok_and(|only| only != "delta") {
        return Ok(());
    }
    let wanted = std::env::var("BENCH_PAIRS").ok().and_then(|n| n.parse().ok());
    let pairs = wanted.unwrap_or(30);
    let mut figures = speeds(pairs)?;
    figures.push(repetitive()?);
    figures.extend(crafted()?);
    bench::report(
        "delta",
        &format!("{pairs} pairs, one processor, in memory"),
        &figures,
    )
}
