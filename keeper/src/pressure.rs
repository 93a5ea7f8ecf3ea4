//! How much others wait for the processors, as the kernel tells it (`Documentation/accounting/psi.rst`).

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The kernel counts anew so often.
const ANEW: Duration = Duration::from_secs(2);

/// The pressure on the node's processors, read no more often than it changes.
#[derive(Debug, Default)]
pub struct Pressure(Mutex<Option<(Instant, Option<f32>)>>);

impl Pressure {
    /// For how much of the last ten seconds something waited for a processor, in percent; none where the kernel does not
    /// tell.
    pub fn now(&self) -> Option<f32> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((read, told)) if read.elapsed() < ANEW => told,
            _ => {
                let text = std::fs::read_to_string("/proc/pressure/cpu");
                let told = text.ok().and_then(|text| some_avg10(&text));
                *last = Some((Instant::now(), told));
                told
            }
        }
    }
}

fn some_avg10(text: &str) -> Option<f32> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let average = some.split(' ').find_map(|word| word.strip_prefix("avg10="))?;
    average.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_what_waits() {
        let told = "some avg10=12.50 avg60=1.00 avg300=0.10 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(some_avg10(told), Some(12.5));
        assert_eq!(some_avg10("full avg10=1.00"), None);
        assert_eq!(some_avg10(""), None);
    }
}
