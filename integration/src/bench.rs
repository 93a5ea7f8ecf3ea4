//! Figures from alternating pairs in one run: medians of the paired ratios with their 95% intervals.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Result;
use serde::Serialize;

/// One figure.
#[derive(Serialize)]
pub struct Figure {
    /// What is measured.
    pub case: String,
    /// Its unit.
    pub unit: &'static str,
    /// The median of ours.
    pub ours: f64,
    /// The median of the peer's.
    pub peer: f64,
    /// Who the peer is.
    pub peer_name: &'static str,
    /// ours / peer; of pairs the median of the ratios.
    pub ratio: f64,
    /// 95% interval of the ratio's median, where there are pairs.
    pub interval: Option<(f64, f64)>,
    /// What the figure has to reach.
    pub bar: String,
    /// Whether it does.
    pub holds: bool,
}

/// The median.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.get(middle.wrapping_sub(1))) {
        (Some(a), Some(b)) if sorted.len().is_multiple_of(2) => (a + b) / 2.0,
        (Some(a), _) => *a,
        _ => f64::NAN,
    }
}

/// The distribution-free 95% interval of a median: by the binomial distribution, approximated.
fn interval(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let half = 0.98 * n.sqrt();
    let at = |x: f64| {
        sorted
            .get((x.max(0.0) as usize).min(sorted.len().saturating_sub(1)))
            .copied()
            .unwrap_or(f64::NAN)
    };
    (at((n / 2.0 - half).floor()), at((n / 2.0 + half).ceil()))
}

/// What a figure has to reach.
pub enum Bar {
    /// The interval's upper end is at most this.
    UpperAtMost(f64),
    /// The interval's lower end is at least this.
    LowerAtLeast(f64),
    /// The ratio is at most this.
    AtMost(f64),
}

/// A figure from paired samples.
#[must_use]
pub fn figure(
    case: &str,
    unit: &'static str,
    ours: &[f64],
    peer: &[f64],
    peer_name: &'static str,
    bar: &Bar,
) -> Figure {
    let ratios: Vec<f64> = ours.iter().zip(peer).map(|(a, b)| a / b).collect();
    let ratio = median(&ratios);
    let interval = (ratios.len() > 1).then(|| interval(&ratios));
    let (low, high) = interval.unwrap_or((ratio, ratio));
    let (bar, holds) = match bar {
        Bar::UpperAtMost(x) => (format!("upper end <= {x}"), high <= *x),
        Bar::LowerAtLeast(x) => (format!("lower end >= {x}"), low >= *x),
        Bar::AtMost(x) => (format!("ratio <= {x}"), ratio <= *x),
    };
    Figure {
        case: case.into(),
        unit,
        ours: median(ours),
        peer: median(peer),
        peer_name,
        ratio,
        interval,
        bar,
        holds,
    }
}

/// A figure that is to be no more than so much.
#[must_use]
pub fn allowed(case: &str, unit: &'static str, value: f64, most: f64) -> Figure {
    let mut figure = figure(case, unit, &[value], &[most], "allowed", &Bar::AtMost(1.0));
    figure.interval = None;
    figure
}

/// Paired samples by case: ours, and the peer's.
pub type Samples = BTreeMap<&'static str, (Vec<f64>, Vec<f64>)>;

/// How long something takes.
///
/// # Errors
/// Its own.
pub fn milliseconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let since = Instant::now();
    work()?;
    Ok(since.elapsed().as_secs_f64() * 1000.0)
}

/// Where a file of this name is among the figures.
///
/// # Errors
/// When their folder cannot be made.
pub fn beside(name: &str) -> Result<PathBuf> {
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    fs::create_dir_all(&out)?;
    Ok(out.join(name))
}

/// Prints the figures as a table and writes them to `target/bench/NAME.json`.
///
/// # Errors
/// When the file cannot be written.
pub fn report(name: &str, heading: &str, figures: &[Figure]) -> Result<()> {
    println!("{heading}\n");
    println!(
        "{:<48} {:>9} {:>9} {:<6} {:>6} {:<15} {:<20} holds",
        "case", "ours", "peer", "unit", "ratio", "95% interval", "bar"
    );
    for f in figures {
        let interval = f
            .interval
            .map_or_else(String::new, |(a, b)| format!("{a:.3} - {b:.3}"));
        let holds = if f.holds { "yes" } else { "NO" };
        println!(
            "{:<48} {:>9.2} {:>9.2} {:<6} {:>6.3} {interval:<15} {:<20} {holds}",
            f.case, f.ours, f.peer, f.unit, f.ratio, f.bar
        );
    }
    fs::write(
        beside(&format!("{name}.json"))?,
        serde_json::to_string_pretty(figures)?,
    )?;
    Ok(())
}

/// The same numbers from the same seed on every machine (a xorshift); the seed is not zero.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    #[must_use]
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One below a limit; zero where there is none.
    #[must_use]
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() >> 32) as usize % limit.max(1)
    }

    /// From 0 to 1.
    #[must_use]
    pub fn part(&mut self) -> f32 {
        (self.number() >> 40) as f32 / (1 << 24) as f32
    }

    /// Fills bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let word = self.number().to_le_bytes();
            part.iter_mut().zip(word).for_each(|(to, from)| *to = from);
        }
    }
}
