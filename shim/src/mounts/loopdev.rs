//! Loop devices: a file mounted as a disk (`loop` in a mount's options), as the blockfile snapshotter and erofs images
//! ask for.

use std::{
    fs::{File, OpenOptions},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use super::sys;
use crate::error::{Context, Error, Result};

/// Another process may take the free device that the kernel named to us.
const TRIES: u32 = 100;

/// A file bound to a loop device. The device stays bound while this is open or something is mounted from it.
pub struct LoopDevice {
    /// `/dev/loop<n>`
    pub path: PathBuf,
    _open: File,
}

impl LoopDevice {
    /// Binds `file` to a free device.
    ///
    /// # Errors
    /// A file that cannot be opened, no loop devices, a kernel before 5.8.
    pub fn new(file: &Path, readonly: bool, direct: bool) -> Result<LoopDevice> {
        let open = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(!readonly)
                .open(path)
                .context(|| format!("open {}", path.display()))
        };
        let backing = open(file)?;
        let control = File::open("/dev/loop-control")
            .context(|| "open /dev/loop-control (is the kernel module `loop` loaded?)".into())?;
        for round in 0..TRIES {
            let number =
                sys::free_loop_device(control.as_fd()).context(|| "find a free loop device".into())?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = open(&path)?;
            match sys::bind_loop_device(device.as_fd(), backing.as_fd(), file, readonly, direct) {
                Ok(()) => return Ok(LoopDevice { path, _open: device }),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(u64::from(round % 10)));
                }
                Err(source) => {
                    return Err(Error::Io {
                        context: format!("bind {} to {}", file.display(), path.display()),
                        source,
                    });
                }
            }
        }
        Err(Error::Other(format!(
            "no loop device stayed free long enough for {}",
            file.display()
        )))
    }
}
