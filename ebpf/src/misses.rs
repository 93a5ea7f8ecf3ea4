//! How often the kernel has not run a program because it was running on that CPU: where an interrupt comes in between. It
//! counts that for each program and tells beside the program's descriptor.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::FileExt,
    },
};

/// The counts of some programs.
#[derive(Debug, Default)]
pub(crate) struct Misses(Vec<File>);

impl Misses {
    /// Of this one, too.
    pub(crate) fn of(&mut self, program: BorrowedFd<'_>) -> io::Result<()> {
        let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
        self.0.push(File::open(path)?);
        Ok(())
    }

    /// All of them together.
    pub(crate) fn count(&self) -> io::Result<u64> {
        let mut buffer = [0; 1024];
        let mut all = 0_u64;
        for told in &self.0 {
            let read = told.read_at(&mut buffer, 0)?;
            let told = std::str::from_utf8(buffer.get(..read).unwrap_or_default());
            let count = told.ok().and_then(count).ok_or(io::ErrorKind::InvalidData)?;
            all = all.saturating_add(count);
        }
        Ok(all)
    }
}

fn count(told: &str) -> Option<u64> {
    let of = |line: &str| line.strip_prefix("recursion_misses:")?.trim().parse().ok();
    told.lines().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_tells_how_often_it_was_missed() {
        let told = "pos:\t0\nflags:\t02000002\nprog_type:\t17\nrun_cnt:\t9\nrecursion_misses:\t7\n";
        assert_eq!(count(told), Some(7));
        assert_eq!(count("pos:\t0\n"), None);
    }
}
