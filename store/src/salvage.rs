//! Finding packs without the catalog.

use std::path::{Path, PathBuf};

use crate::error::{Context, Result};

/// The packs in a directory.
pub(crate) fn packs(dir: &Path) -> Result<impl Iterator<Item = (u32, PathBuf)>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(dir).on("read", dir)? {
        let path = file.on("read", dir)?.path();
        let number = path
            .file_stem()
            .and_then(|stem| u32::from_str_radix(stem.to_str()?, 16).ok())
            .filter(|_| path.extension().is_some_and(|e| e == "pack"));
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found.into_iter())
}
