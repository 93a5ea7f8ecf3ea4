//! Versions as archives, and archives as versions.

mod import;
#[cfg(test)]
mod import_tests;
mod read;
pub mod tar;
#[cfg(test)]
mod tests;
mod tree;
mod write;

use std::io::Write;

use store::Recorded;

use self::write::Plan;
pub use self::{
    import::Importing,
    write::{Form, Packed},
};
use crate::{error::Result, keeper::Keeper};

impl Keeper {
    /// Writes a version, or a part of it, as an archive. The same version gives the same bytes.
    ///
    /// # Errors
    /// No such version or path; as the writer, and then what was written is no archive.
    pub fn archive(
        &self,
        said: &str,
        version: &str,
        path: &[u8],
        form: Form,
        out: impl Write,
    ) -> Result<(Recorded, Packed)> {
        let (known, recorded) = self.version(said, version)?;
        let recorded = self.store().with_content(recorded.id)?;
        let below = match path {
            b"" | b"/" => None,
            path => Some(self.key_of(known.domain, &recorded, path)?),
        };
        let tree = recorded.commit.tree_id()?;
        let roots = self.roots(known.domain, tree)?;
        let plan = Plan::new(self.store(), known.domain, tree, roots, below.as_deref(), form);
        let packed = plan.run(out)?;
        Ok((recorded, packed))
    }
}
