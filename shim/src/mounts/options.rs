//! Mount options in containerd's spelling.

use nix::mount::MsFlags;

/// Options sorted into what mount(2) takes.
#[derive(Debug)]
pub struct Parsed {
    /// Flags of the mount itself.
    pub flags: MsFlags,
    /// Propagation, which mount(2) takes in calls of its own.
    pub propagation: Vec<MsFlags>,
    /// What the file system itself understands.
    pub data: Vec<String>,
    /// The source is a file to be mounted through a loop device.
    pub loop_device: bool,
}

impl Parsed {
    /// Sorts the options; a later one overrules an earlier.
    pub fn of(options: &[String]) -> Parsed {
        let mut parsed = Parsed {
            flags: MsFlags::empty(),
            propagation: Vec::new(),
            data: Vec::new(),
            loop_device: false,
        };
        for option in options {
            if let Some((set, flag)) = flag(option) {
                parsed.flags.set(flag, set);
            } else if let Some(flag) = propagation(option) {
                parsed.propagation.push(flag);
            } else if option == "loop" {
                parsed.loop_device = true;
            } else if !option.is_empty() && !option.starts_with("X-containerd.") {
                parsed.data.push(option.clone());
            }
        }
        parsed
    }
}

fn flag(option: &str) -> Option<(bool, MsFlags)> {
    Some(match option {
        "async" => (false, MsFlags::MS_SYNCHRONOUS),
        "atime" => (false, MsFlags::MS_NOATIME),
        "bind" => (true, MsFlags::MS_BIND),
        "defaults" => (false, MsFlags::empty()),
        "dev" => (false, MsFlags::MS_NODEV),
        "diratime" => (false, MsFlags::MS_NODIRATIME),
        "dirsync" => (true, MsFlags::MS_DIRSYNC),
        "exec" => (false, MsFlags::MS_NOEXEC),
        "mand" => (true, MsFlags::MS_MANDLOCK),
        "noatime" => (true, MsFlags::MS_NOATIME),
        "nodev" => (true, MsFlags::MS_NODEV),
        "nodiratime" => (true, MsFlags::MS_NODIRATIME),
        "noexec" => (true, MsFlags::MS_NOEXEC),
        "nomand" => (false, MsFlags::MS_MANDLOCK),
        "norelatime" => (false, MsFlags::MS_RELATIME),
        "nostrictatime" => (false, MsFlags::MS_STRICTATIME),
        "nosuid" => (true, MsFlags::MS_NOSUID),
        "rbind" => (true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
        "relatime" => (true, MsFlags::MS_RELATIME),
        "remount" => (true, MsFlags::MS_REMOUNT),
        "ro" => (true, MsFlags::MS_RDONLY),
        "rw" => (false, MsFlags::MS_RDONLY),
        "strictatime" => (true, MsFlags::MS_STRICTATIME),
        "suid" => (false, MsFlags::MS_NOSUID),
        "sync" => (true, MsFlags::MS_SYNCHRONOUS),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MsFlags> {
    let rec = MsFlags::MS_REC;
    Some(match option {
        "private" => MsFlags::MS_PRIVATE,
        "rprivate" => MsFlags::MS_PRIVATE | rec,
        "shared" => MsFlags::MS_SHARED,
        "rshared" => MsFlags::MS_SHARED | rec,
        "slave" => MsFlags::MS_SLAVE,
        "rslave" => MsFlags::MS_SLAVE | rec,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        "runbindable" => MsFlags::MS_UNBINDABLE | rec,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Parsed {
        Parsed::of(&options.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn sorted() {
        let p = of(&[
            "rbind",
            "ro",
            "rprivate",
            "lowerdir=/a:/b",
            "X-containerd.mkfs=1",
            "nosuid",
        ]);
        assert_eq!(
            p.flags,
            MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID
        );
        assert_eq!(p.propagation, [MsFlags::MS_PRIVATE | MsFlags::MS_REC]);
        assert_eq!(p.data, ["lowerdir=/a:/b"]);
        assert!(of(&["loop"]).loop_device);
    }

    #[test]
    fn the_last_word_counts() {
        assert!(of(&["ro", "rw"]).flags.is_empty());
        assert!(of(&["rw", "ro"]).flags.contains(MsFlags::MS_RDONLY));
    }
}
