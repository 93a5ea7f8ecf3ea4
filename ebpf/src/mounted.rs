//! The file system, and whether pages that turn dirty tell all there.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use nix::sys::statfs::{self, statfs};

/// A file system whose ways of writing are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4, and its forerunners as it serves them.
    Ext4,
    /// XFS.
    Xfs,
}

impl FileSystem {
    /// The one that a path is on, and its device as the kernel numbers it; else why it is none of them.
    ///
    /// # Errors
    /// A path that cannot be looked at.
    pub fn of(path: &Path) -> io::Result<Result<(FileSystem, u32), String>> {
        let device = fs::metadata(path)?.dev();
        let found = match statfs(path)?.filesystem_type() {
            statfs::EXT4_SUPER_MAGIC => FileSystem::Ext4,
            statfs::XFS_SUPER_MAGIC => FileSystem::Xfs,
            other => {
                return Ok(Err(format!(
                    "{} is neither on ext4 nor on XFS, but on a file system of type {:#x}",
                    path.display(),
                    other.0
                )));
            }
        };
        let part = |part: u64| u32::try_from(part).map_err(io::Error::other);
        let major = part(nix::sys::stat::major(device))?;
        let minor = part(nix::sys::stat::minor(device))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        if let Some(option) = bypass(&mounts, &format!("{major}:{minor}")) {
            return Ok(Err(format!(
                "{} is mounted with {option}, with which pages do not tell when they are written",
                path.display()
            )));
        }
        Ok(Ok((found, major << 20 | minor)))
    }
}

/// An option of a device's file system by which its files' pages are written without a word.
fn bypass(mounts: &str, device: &str) -> Option<String> {
    let of = |line: &&str| line.split(' ').nth(2) == Some(device);
    let options = mounts
        .lines()
        .filter(of)
        .filter_map(|line| line.rsplit(' ').next());
    let mut all = options.flat_map(|options| options.split(','));
    all.find(|option| ["data=journal", "dax", "dax=always"].contains(option))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_pass_the_pages_by_are_found() {
        let mounts = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext4 /dev/root rw,errors=continue\n\
                      37 35 98:1 / /mnt3 rw - ext4 /dev/other rw,data=journal\n\
                      38 35 98:2 / /mnt4 rw - xfs /dev/pmem0 rw,attr2,dax=always,noquota\n\
                      39 35 98:3 / /mnt5 rw - xfs /dev/pmem0 rw,attr2,dax=inode,noquota\n";
        assert_eq!(bypass(mounts, "98:0"), None);
        assert_eq!(bypass(mounts, "98:1").as_deref(), Some("data=journal"));
        assert_eq!(bypass(mounts, "98:2").as_deref(), Some("dax=always"));
        assert_eq!(bypass(mounts, "98:3"), None);
    }
}
