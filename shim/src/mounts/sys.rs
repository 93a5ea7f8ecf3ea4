//! The raw system calls of mounts.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// A private clone of one mount, attached nowhere.
///
/// # Errors
/// As open_tree(2).
pub fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_long = 1;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::c_long::from(libc::O_CLOEXEC);
    // SAFETY: `path` is a C string that lives across the call; the call returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    owned(fd)
}

/// Gives a detached clone the id mapping of a user namespace.
///
/// # Errors
/// As mount_setattr(2): EINVAL where the kernel or the file system cannot.
pub fn map_ids(tree: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let attr = MountAttr {
        attr_set: MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(user_namespace.as_raw_fd().cast_unsigned()),
    };
    // SAFETY: the path is empty, `attr` lives across the call and its size is passed with it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A child that sleeps in a new user namespace until the returned pipe is closed.
///
/// # Errors
/// When the kernel allows no more processes or namespaces.
pub fn child_in_user_namespace() -> io::Result<(i32, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let (read_raw, write_raw) = (read.as_raw_fd(), write.as_raw_fd());
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    // SAFETY: like fork; the child calls only close, read and _exit, which are async-signal-safe.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        let mut byte = 0u8;
        // SAFETY: as above; `byte` is valid for one byte.
        unsafe {
            libc::close(write_raw);
            libc::read(read_raw, (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
    }
    Ok((i32::try_from(pid).unwrap_or_default(), write))
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

nix::ioctl_none_bad!(loop_ctl_get_free, 0x4c82);
nix::ioctl_write_ptr_bad!(loop_configure, 0x4c0a, LoopConfig);

/// The number of a loop device that was free a moment ago.
///
/// # Errors
/// As the ioctl LOOP_CTL_GET_FREE.
pub fn free_loop_device(control: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: no pointers are passed.
    Ok(unsafe { loop_ctl_get_free(control.as_raw_fd()) }?)
}

/// Binds a file to a loop device, which unbinds itself when nobody uses it any more.
///
/// # Errors
/// As the ioctl LOOP_CONFIGURE (kernel 5.8): EBUSY when somebody else took the device meanwhile.
pub fn bind_loop_device(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    name: &Path,
    readonly: bool,
    direct: bool,
) -> io::Result<()> {
    const READ_ONLY: u32 = 1;
    const AUTOCLEAR: u32 = 4;
    const DIRECT_IO: u32 = 16;
    let mut file_name = [0; 64];
    // losetup shows it; the last byte stays 0.
    for (to, from) in file_name.iter_mut().take(63).zip(name.as_os_str().as_bytes()) {
        *to = *from;
    }
    let config = LoopConfig {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: 0,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: AUTOCLEAR | if readonly { READ_ONLY } else { 0 } | if direct { DIRECT_IO } else { 0 },
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: `config` has the layout of linux/loop.h and lives across the call.
    unsafe { loop_configure(device.as_raw_fd(), &raw const config) }?;
    Ok(())
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
