//! What install did, so that uninstall takes out exactly that.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Engine, files, host::Host};

/// Where it is, on the host.
pub const PATH: &str = "/etc/diffkeeper/installed.json";
const VERSION: u32 = 1;

/// A configuration file that install wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// Whose it is.
    pub engine: Engine,
    /// The file.
    pub path: PathBuf,
    /// What it was when install had written it. `None`: a person's changes lie between two installs, so
    /// the backup no longer is the file without ours.
    pub sha256: Option<String>,
    /// The file as it was before; `None` if there was none.
    pub backup: Option<PathBuf>,
}

/// Everything that install put on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Each binary with the hash of what was written.
    pub binaries: BTreeMap<PathBuf, String>,
    /// Each configuration file.
    pub edits: Vec<Edit>,
    /// Folders that were not there before, outermost first.
    pub folders: Vec<PathBuf>,
    /// Engines whose configuration changed and whose restart has not succeeded yet.
    pub restart_due: BTreeSet<Engine>,
}

impl Default for Record {
    fn default() -> Self {
        Record {
            version: VERSION,
            binaries: BTreeMap::new(),
            edits: Vec::new(),
            folders: Vec::new(),
            restart_due: BTreeSet::new(),
        }
    }
}

impl Record {
    /// Reads it; nothing recorded is a record too.
    ///
    /// # Errors
    /// A file that cannot be read or understood.
    pub fn load(host: &Host) -> Result<Record> {
        let Some(bytes) = files::read(&host.at(PATH))? else {
            return Ok(Record::default());
        };
        let record: Record = serde_json::from_slice(&bytes).with_context(|| {
            format!("{PATH} (what `diffkeeper install` did) cannot be read: move it away")
        })?;
        ensure!(
            record.version == VERSION,
            "{PATH} is of version {}: use the `diffkeeper` that wrote it, or a newer one",
            record.version
        );
        Ok(record)
    }

    /// Writes it, or removes it if it says nothing.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&mut self, host: &Host) -> Result<()> {
        let path = host.at(PATH);
        let folders = std::mem::take(&mut self.folders);
        let empty = *self == Record::default();
        self.folders = folders;
        if empty {
            files::remove(&path)?;
            // What is not empty is a person's.
            while let Some(folder) = self.folders.pop() {
                let _ = std::fs::remove_dir(host.at(&folder));
            }
            return Ok(());
        }
        self.make_folder(host, Path::new(PATH).parent().unwrap_or(Path::new("/")))?;
        let text = serde_json::to_string_pretty(self)? + "\n";
        files::Staged::new(&path, text.as_bytes(), 0o644)?.commit()
    }

    /// Makes a folder, and remembers which of its parents were not there.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn make_folder(&mut self, host: &Host, folder: &Path) -> Result<()> {
        let missing: Vec<&Path> = folder.ancestors().take_while(|f| !host.at(f).exists()).collect();
        for folder in missing.into_iter().rev() {
            let at = host.at(folder);
            std::fs::create_dir(&at).with_context(|| format!("make the folder {}", at.display()))?;
            self.folders.push(folder.to_owned());
        }
        Ok(())
    }
}

/// The name of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
