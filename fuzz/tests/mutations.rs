//! Each target over its committed seeds and over mutations of them: the same ones each time. `FUZZ_ROUNDS` sets
//! how many for each target.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use diffkeeper_fuzz::{TARGETS, Target};

const ROUNDS: usize = 20_000;
const LONGEST: usize = 4_096;
/// Bytes that mean something to some decoder.
const WORDS: [&[u8]; 24] = [
    b"/",
    b"..",
    b"\0",
    b"\n",
    b"\x1b[31m",
    b"%2f",
    b"%00",
    b"+",
    b"?",
    b"&",
    b"=",
    b":",
    b"\\",
    b"{{",
    b"\"",
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"18446744073709551616",
    b"\xff\xfe",
    "\u{a0}ß".as_bytes(),
    b"none",
    b" ",
];

/// Small, seeded, and the same everywhere (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit.max(1)
    }

    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        start..start + self.below((len - start).min(16) + 1)
    }
}

fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(data.len() + 1);
        match random.below(6) {
            0 if at < data.len() => data[at] ^= 1 << random.below(8),
            1 => drop(data.splice(at..at, WORDS[random.below(WORDS.len())].iter().copied())),
            2 => drop(data.drain(random.range(data.len()))),
            3 => {
                let copy = data[random.range(data.len())].to_vec();
                data.splice(at..at, copy);
            }
            4 => {
                let other = &seeds[random.below(seeds.len())];
                let part = other[random.range(other.len())].to_vec();
                data.splice(at..at, part);
            }
            _ => {
                let range = random.range(data.len());
                data.splice(range, WORDS[random.below(WORDS.len())].iter().copied());
            }
        }
    }
    data.truncate(LONGEST);
    data
}

fn run(name: &str, target: Target, data: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target(data))).is_err() {
        panic!("{name} fails on {:?}", data.escape_ascii().to_string());
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn check(name: &str) {
    let rounds = std::env::var("FUZZ_ROUNDS").map_or(ROUNDS, |n| n.parse().expect("FUZZ_ROUNDS is a number"));
    let (_, target) = TARGETS.into_iter().find(|(n, _)| *n == name).unwrap();
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    seeds.iter().for_each(|seed| run(name, target, seed));
    run(name, target, b"");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..rounds {
        run(name, target, &mutate(&seeds, &mut random));
    }
}

macro_rules! tests {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_tested() {
            assert_eq!(TARGETS.map(|(name, _)| name), [$(stringify!($name)),*]);
        }
    };
}

tests! { annotations bootstrap bundle config deltas duration events messages mount packs records runtime_options state_name stream_uri }

#[test]
fn every_target_has_a_binary_for_cargo_fuzz() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("libfuzzer");
    let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        let text = std::fs::read_to_string(dir.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(text.contains(&format!("diffkeeper_fuzz::{name}(data)")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
