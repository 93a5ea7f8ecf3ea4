//! Reading the kernel's small text files.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

/// A buffer that one file after the other is read into.
#[derive(Default)]
pub(super) struct Files {
    bytes: Vec<u8>,
}

impl Files {
    /// The text of `dir/name`.
    ///
    /// # Errors
    /// The kernel's, naming the file; its kind is kept.
    pub(super) fn read(&mut self, dir: &Path, name: &str) -> io::Result<&str> {
        let path = dir.join(name);
        self.bytes.clear();
        File::open(&path)
            .and_then(|mut file| file.read_to_end(&mut self.bytes))
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        std::str::from_utf8(&self.bytes).map_err(|_| invalid(&path, "not UTF-8"))
    }

    /// The pairs of a file of lines `key value`.
    ///
    /// # Errors
    /// As [`Files::read`]; `InvalidData` for a line of another form.
    pub(super) fn pairs(
        &mut self,
        dir: &Path,
        name: &str,
        mut each: impl FnMut(&str, u64),
    ) -> io::Result<()> {
        for line in self.read(dir, name)?.lines() {
            let mut fields = line.split_whitespace();
            let (Some(key), Some(value), None) = (fields.next(), fields.next(), fields.next()) else {
                return Err(invalid(&dir.join(name), line));
            };
            each(
                key,
                unsigned(value).ok_or_else(|| invalid(&dir.join(name), line))?,
            );
        }
        Ok(())
    }
}

/// A number that is negative counts as zero: the kernel's counters can be short-lived negative sums.
pub(super) fn unsigned(text: &str) -> Option<u64> {
    text.parse().ok().or_else(|| {
        let digits = text.strip_prefix('-')?;
        (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(0)
    })
}

/// An error that names the file and what stands in it.
pub(super) fn invalid(path: &Path, what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{}: unknown form: {what:?}", path.display()),
    )
}

/// The huge page sizes, each by its directory's name (`hugepages-2048kB`) and as cgroup files spell it (`2MB`),
/// in the directory's own order.
///
/// # Errors
/// When the directory cannot be read: the kernel has no huge pages.
pub(super) fn huge_page_sizes(hugepages: &Path) -> io::Result<Vec<(String, String)>> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir(hugepages)? {
        let Ok(name) = entry?.file_name().into_string() else {
            continue;
        };
        let kilobytes = name
            .strip_prefix("hugepages-")
            .and_then(|name| name.strip_suffix("kB"));
        let Some(kilobytes) = kilobytes.and_then(|text| text.parse::<u64>().ok()) else {
            continue;
        };
        let size = match kilobytes {
            0..1024 => format!("{kilobytes}KB"),
            1024..1_048_576 => format!("{}MB", kilobytes >> 10),
            _ => format!("{}GB", kilobytes >> 20),
        };
        sizes.push((name, size));
    }
    Ok(sizes)
}

/// One device's line of an rdma file: `mlx4_0 hca_handle=2 hca_object=max`. Lines of another form are none.
pub(super) fn rdma_line(line: &str) -> Option<(&str, u32, u32)> {
    let mut fields = line.split_whitespace();
    let (device, pairs) = (fields.next()?, [fields.next()?, fields.next()?]);
    if fields.next().is_some() {
        return None;
    }
    let (mut handles, mut objects) = (0, 0);
    for (key, value) in pairs.iter().filter_map(|pair| pair.split_once('=')) {
        let value = match value {
            "max" => Some(u32::MAX),
            number => unsigned(number).and_then(|number| u32::try_from(number).ok()),
        };
        match (key, value) {
            ("hca_handle", Some(value)) => handles = value,
            ("hca_object", Some(value)) => objects = value,
            _ => {}
        }
    }
    Some((device, handles, objects))
}
