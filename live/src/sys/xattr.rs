//! Extended attributes.

use std::{
    ffi::{CStr, CString, OsStr},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Neither a list of names nor a value is longer.
const LONGEST: usize = 65536;

/// Sets an extended attribute, not following a link.
///
/// # Errors
/// As setxattr(2).
pub fn set_xattr(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both strings and the value live across the call, the value's length is passed with it.
    let done = unsafe {
        libc::lsetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    told(done as isize).map(drop)
}

/// Whether an open file or directory has extended attributes of these prefixes.
///
/// # Errors
/// As flistxattr(2).
pub fn has_xattr(fd: BorrowedFd<'_>, wanted: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
    let mut names = vec![0u8; 65536];
    // SAFETY: the buffer's length is passed with it.
    let n = unsafe { libc::flistxattr(fd.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    names.truncate(n);
    Ok(names
        .split(|b| *b == 0)
        .any(|name| !name.is_empty() && wanted(name)))
}

/// What attributes are read from and given to.
trait Attributed {
    /// As listxattr(2).
    fn list(&self, into: &mut [u8]) -> isize;
    /// As getxattr(2).
    fn get(&self, name: &CStr, into: &mut [u8]) -> isize;
    /// As setxattr(2).
    fn set(&self, name: &CStr, value: &[u8]) -> isize;
}

impl Attributed for BorrowedFd<'_> {
    fn list(&self, into: &mut [u8]) -> isize {
        // SAFETY: the buffer's length is passed with it.
        unsafe { libc::flistxattr(self.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) }
    }

    fn get(&self, name: &CStr, into: &mut [u8]) -> isize {
        // SAFETY: the name is a C string, the buffer's length is passed with it.
        unsafe {
            libc::fgetxattr(
                self.as_raw_fd(),
                name.as_ptr(),
                into.as_mut_ptr().cast(),
                into.len(),
            )
        }
    }

    fn set(&self, name: &CStr, value: &[u8]) -> isize {
        // SAFETY: the name is a C string, the value's length is passed with it.
        let done = unsafe {
            libc::fsetxattr(
                self.as_raw_fd(),
                name.as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                0,
            )
        };
        done as isize
    }
}

/// An entry that cannot be opened: the path to it through its directory's descriptor.
struct Unopened(CString);

impl Unopened {
    fn new((dir, name): (BorrowedFd<'_>, &OsStr)) -> io::Result<Unopened> {
        let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
        path.extend_from_slice(name.as_bytes());
        Ok(Unopened(CString::new(path)?))
    }
}

impl Attributed for Unopened {
    fn list(&self, into: &mut [u8]) -> isize {
        // SAFETY: the path is a C string, the buffer's length is passed with it.
        unsafe { libc::llistxattr(self.0.as_ptr(), into.as_mut_ptr().cast(), into.len()) }
    }

    fn get(&self, name: &CStr, into: &mut [u8]) -> isize {
        // SAFETY: path and name are C strings, the buffer's length is passed with it.
        unsafe {
            libc::lgetxattr(
                self.0.as_ptr(),
                name.as_ptr(),
                into.as_mut_ptr().cast(),
                into.len(),
            )
        }
    }

    fn set(&self, name: &CStr, value: &[u8]) -> isize {
        // SAFETY: path and name are C strings, the value's length is passed with it.
        let done = unsafe {
            libc::lsetxattr(
                self.0.as_ptr(),
                name.as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                0,
            )
        };
        done as isize
    }
}

fn told(done: isize) -> io::Result<usize> {
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// Copies the extended attributes that belong to the content: not overlayfs's own, nor the label of SELinux, which is
/// the mount's.
///
/// # Errors
/// As flistxattr(2), fgetxattr(2) and fsetxattr(2). Attributes that the target's file system does not know at all are left out.
pub fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    copy(&from, &to, content)
}

/// As [`copy_xattrs`], of entries of directories that are not opened; with `all` also what is not of the content.
///
/// # Errors
/// As llistxattr(2), lgetxattr(2) and lsetxattr(2). Attributes that the target's file system does not know at all are left out.
pub fn copy_special_xattrs(
    from: (BorrowedFd<'_>, &OsStr),
    to: (BorrowedFd<'_>, &OsStr),
    all: bool,
) -> io::Result<()> {
    let (from, to) = (Unopened::new(from)?, Unopened::new(to)?);
    copy(&from, &to, |name| all || content(name))
}

fn content(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"security.selinux")
}

/// Nothing is left out silently: what is copied may replace the original.
fn copy(from: &impl Attributed, to: &impl Attributed, wanted: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    // With no buffer only the length is asked for.
    if but(from.list(&mut []), &[libc::EOPNOTSUPP])?.is_none_or(|length| length == 0) {
        return Ok(());
    }
    let mut names = vec![0u8; LONGEST];
    let n = told(from.list(&mut names))?;
    names.truncate(n);
    let mut value = vec![0u8; LONGEST];
    for name in names.split_inclusive(|b| *b == 0).filter(|name| wanted(name)) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        // Somebody may just have removed it.
        if let Some(n) = but(from.get(name, &mut value), &[libc::EOPNOTSUPP, libc::ENODATA])? {
            let value = value.get(..n).unwrap_or_default();
            but(to.set(name, value), &[libc::EOPNOTSUPP])?;
        }
    }
    Ok(())
}

/// None where the call says one of these errors.
fn but(done: isize, errors: &[i32]) -> io::Result<Option<usize>> {
    match told(done) {
        Err(error) if error.raw_os_error().is_some_and(|error| errors.contains(&error)) => Ok(None),
        done => done.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use nix::errno::Errno;

    use super::*;

    /// Has one attribute, and answers to one call with an error.
    struct Failing(&'static str, Errno, RefCell<Vec<u8>>);

    impl Failing {
        fn answer(&self, call: &str, what: &[u8], into: &mut [u8]) -> isize {
            if self.0 == call {
                self.1.set();
                return -1;
            }
            if let Some(part) = into.get_mut(..what.len()) {
                part.copy_from_slice(what);
            }
            what.len() as isize
        }
    }

    impl Attributed for Failing {
        fn list(&self, into: &mut [u8]) -> isize {
            self.answer("list", b"user.a\0", into)
        }

        fn get(&self, _: &CStr, into: &mut [u8]) -> isize {
            self.answer("get", b"value", into)
        }

        fn set(&self, _: &CStr, value: &[u8]) -> isize {
            self.2.replace(value.to_owned());
            self.answer("set", b"", &mut [])
        }
    }

    #[test]
    fn an_attribute_that_cannot_be_copied_is_an_error() {
        let copied = |call, error| {
            let of = || Failing(call, error, RefCell::default());
            let (from, to) = (of(), of());
            copy(&from, &to, |_| true).map(|()| to.2.into_inner())
        };
        assert_eq!(copied("none", Errno::EIO).unwrap(), b"value");
        for call in ["list", "get", "set"] {
            for error in [Errno::EIO, Errno::EPERM, Errno::ENOSPC, Errno::ERANGE] {
                let told = copied(call, error).unwrap_err();
                assert_eq!(told.raw_os_error(), Some(error as i32), "{call}");
            }
            // A file system without attributes, or without such ones.
            copied(call, Errno::EOPNOTSUPP).unwrap();
        }
        assert_eq!(copied("get", Errno::ENODATA).unwrap(), b"");
        assert!(copied("set", Errno::ENODATA).is_err());
    }
}
