//! The programs in the kernel, and what they say.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, RingBuf},
    programs::{ProgramError, RawTracePoint},
};

use crate::{FileSystem, btf, event::Told, misses::Misses, ring};

#[cfg(programs)]
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/written.o"));

/// Where the kernel describes its types.
const TYPES: &str = "/sys/kernel/btf";

/// Why programs are not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There was no clang.
    #[error("this build has no eBPF programs: it was made without clang")]
    NotBuilt,
    /// The kernel does not say where the members of its types are.
    #[error("the kernel does not describe its types in {TYPES} (CONFIG_DEBUG_INFO_BTF)")]
    NoTypes,
    /// Not permitted, or not understood.
    #[error("the kernel does not take the programs (root, or CAP_BPF and CAP_PERFMON, is needed)")]
    Load(#[source] EbpfError),
    /// The same, of one.
    #[error("the kernel does not take the program `{program}`")]
    Program {
        /// Which.
        program: &'static str,
        #[source]
        /// What it says.
        source: ProgramError,
    },
    /// Some way of writing would not be seen.
    #[error("the kernel has no tracepoint `{0}`, without which not every way of writing is seen")]
    Tracepoint(&'static str),
    /// A map that is not there, or full.
    #[error("the programs' map `{map}` cannot be used")]
    Map {
        /// Which.
        map: &'static str,
        #[source]
        /// Why.
        source: MapError,
    },
    /// What they say could not be followed up.
    #[error("what the programs say cannot be had in full")]
    Told(#[source] io::Error),
    /// A part of the object is missing.
    #[error("the programs lack `{0}`: they were not built from this source")]
    Missing(&'static str),
}

/// A program and what it is put on: whether it must be there.
type On = (&'static str, &'static str, bool);

const ALWAYS: [On; 3] = [
    ("dirty_folio", "writeback_dirty_folio", true),
    ("direct_begin", "iomap_dio_rw_begin", true),
    ("direct_end", "iomap_dio_complete", true),
];
const EXT4: [On; 6] = [
    ("whole", "ext4_punch_hole", true),
    ("whole", "ext4_zero_range", true),
    ("whole", "ext4_collapse_range", true),
    ("whole", "ext4_insert_range", true),
    ("whole", "ext4_truncate_enter", true),
    ("extent_gone", "ext4_es_remove_extent", true),
];
const XFS: [On; 9] = [
    ("xfs_whole", "xfs_free_file_space", true),
    ("xfs_whole", "xfs_zero_file_space", true),
    ("xfs_whole", "xfs_collapse_file_space", true),
    ("xfs_whole", "xfs_insert_file_space", true),
    ("xfs_whole", "xfs_itruncate_extents_start", true),
    ("xfs_cloned", "xfs_reflink_remap_range", true),
    // What changes the extents of two files one for the other, by its names of several versions.
    ("xfs_whole", "xfs_swap_extent_before", false),
    ("xfs_whole", "xfs_exchrange_before", false),
    ("xfs_whole", "xfs_exchmaps_mapping1", false),
];

/// The programs, at work.
pub struct Programs {
    /// Owns what was put on tracepoints.
    ebpf: Ebpf,
    files: HashMap<MapData, u64, u32>,
    told: RingBuf<MapData>,
    end: ring::End,
    /// How much of the ring was taken in.
    taken: u64,
    lost: Array<MapData, u64>,
    misses: Misses,
    /// What had been lost or missed when that was last asked.
    known: u64,
    ranges: Result<(), Error>,
    attributes: Result<(), Error>,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs")
            .field("ranges", &self.ranges)
            .field("attributes", &self.attributes)
            .finish_non_exhaustive()
    }
}

#[cfg(programs)]
fn object() -> Result<&'static [u8], Error> {
    Ok(OBJECT)
}

#[cfg(not(programs))]
fn object() -> Result<&'static [u8], Error> {
    Err(Error::NotBuilt)
}

impl Programs {
    /// Loads them for one file system, of which the kernel's number of the device is given.
    ///
    /// # Errors
    /// What the kernel says against it.
    pub fn load(system: FileSystem, device: u32) -> Result<Programs, Error> {
        let object = object()?;
        let types = std::path::Path::new(TYPES);
        if !types.join("vmlinux").exists() {
            return Err(Error::NoTypes);
        }
        let vnode = match system {
            FileSystem::Ext4 => 0,
            FileSystem::Xfs => btf::member(types, "xfs", "xfs_inode", "i_vnode").ok_or(Error::NoTypes)?,
        };
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .ok()
            .flatten();
        let page_shift = u64::try_from(page.unwrap_or(4096))
            .unwrap_or(4096)
            .trailing_zeros();
        let mut ebpf = EbpfLoader::new()
            .override_global("device", &device, true)
            .override_global("vnode", &vnode, true)
            .override_global("page_shift", &page_shift, true)
            .load(object)
            .map_err(Error::Load)?;
        let told: RingBuf<MapData> = map(&mut ebpf, "told")?;
        let mut programs = Programs {
            files: map(&mut ebpf, "files")?,
            end: ring::End::of(told.as_fd()).map_err(Error::Told)?,
            taken: 0,
            told,
            lost: map(&mut ebpf, "lost")?,
            misses: Misses::default(),
            ebpf,
            known: 0,
            ranges: Ok(()),
            attributes: Ok(()),
        };
        let own: &[On] = match system {
            FileSystem::Ext4 => &EXT4,
            FileSystem::Xfs => &XFS,
        };
        programs.ranges = ALWAYS.iter().chain(own).try_for_each(|on| programs.put(on));
        let attributes = match system {
            FileSystem::Ext4 => ("marked", "writeback_mark_inode_dirty", true),
            FileSystem::Xfs => ("xfs_set", "xfs_setattr", true),
        };
        programs.attributes = programs.put(&attributes);
        Ok(programs)
    }

    /// Puts a program on a tracepoint.
    fn put(&mut self, (program, on, needed): &On) -> Result<(), Error> {
        let failed = |source| Error::Program { program, source };
        let found = self.ebpf.program_mut(program).ok_or(Error::Missing(program))?;
        let raw: &mut RawTracePoint = found.try_into().map_err(failed)?;
        if raw.fd().is_err() {
            raw.load().map_err(failed)?;
            let fd = raw.fd().map_err(failed)?;
            self.misses.of(fd.as_fd()).map_err(Error::Told)?;
        }
        match raw.attach(on) {
            Ok(_) => Ok(()),
            Err(_) if !needed => Ok(()),
            Err(ProgramError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Err(Error::Tracepoint(on))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Whether every way of writing to files that are followed is told of.
    ///
    /// # Errors
    /// Why not.
    pub fn ranges(&self) -> Result<(), &Error> {
        self.ranges.as_ref().copied()
    }

    /// Whether it is told of attributes that are set.
    ///
    /// # Errors
    /// Why not.
    pub fn attributes(&self) -> Result<(), &Error> {
        self.attributes.as_ref().copied()
    }

    /// What is written to a file is told from now on.
    ///
    /// # Errors
    /// There are too many.
    pub fn follow(&mut self, inode: u64) -> Result<(), Error> {
        let map = "files";
        self.files
            .insert(inode, 0, 0)
            .map_err(|source| Error::Map { map, source })
    }

    /// And no more.
    pub fn forget(&mut self, inode: u64) {
        // It was not followed.
        let _ = self.files.remove(&inode);
    }

    /// Takes in all that was told until now; false where something was lost, or kept back by what is not complete.
    pub fn drain(&mut self, mut each: impl FnMut(Told)) -> bool {
        let mut whole = true;
        let Programs { told, taken, .. } = self;
        let complete = ring::take(taken, self.end.now(), || {
            let record = told.next()?;
            match Told::read(&record) {
                Some(told) => each(told),
                None => whole = false,
            }
            Some(record.len())
        });
        whole &= complete;
        let lost = self.lost.get(&0, 0).ok();
        let gone = lost.and_then(|lost| Some(lost.saturating_add(self.misses.count().ok()?)));
        match gone {
            Some(gone) => {
                whole &= gone == self.known;
                self.known = gone;
            }
            None => whole = false,
        }
        whole
    }
}

/// What is readable when attributes were set since the last [`Programs::drain`].
impl AsFd for Programs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }
}

fn map<T: TryFrom<aya::maps::Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, Error> {
    let map = ebpf.take_map(name).ok_or(Error::Missing(name))?;
    T::try_from(map).map_err(|source| Error::Map { map: name, source })
}

#[cfg(test)]
#[cfg(programs)]
mod tests;
