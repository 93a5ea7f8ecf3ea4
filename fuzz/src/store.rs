//! What is read back from a store: a disk that flips bits, or whoever can write to it.

use std::{fs::File, io::Write};

use ::store::{
    format::{Commit, Entry},
    pack::{self, HEADER, Header, RECORD, Record},
    tree::Proof,
};

/// Messages are refused or read; a proof that is accepted leads to the commit that it names.
pub fn messages(data: &[u8]) {
    if let Ok(entry) = Entry::read(data) {
        let (root, path) = entry.place();
        assert!(!root.contains(&0) && root.len() + path.len() <= entry.key.len());
    }
    if let Ok(commit) = Commit::read(data) {
        assert_eq!(commit.format, ::store::format::COMMIT);
    }
    if let Ok(proof) = Proof::read(data)
        && let Ok((_, commit, entry)) = proof.check()
    {
        // Nobody can be led to another commit by bytes that are appended or changed.
        let again = Proof::read(&proof.bytes()).unwrap().check().unwrap();
        assert_eq!((again.1, again.2), (commit, entry));
    }
}

/// Heads are refused or the same when written again; a chunk is refused or of the length that was recorded.
pub fn packs(data: &[u8]) {
    if let Some(head) = data.first_chunk::<HEADER>()
        && let Some(header) = Header::read(head)
    {
        assert_eq!(header.write(), *head);
    }
    if let Some(head) = data.first_chunk::<RECORD>()
        && let Some(record) = Record::read(head)
    {
        assert_eq!(record.write(), *head);
        let length = (record.length as usize).min(1 << 20);
        if let Ok(bytes) = delta::decode(
            record.encoding,
            data.get(RECORD..).unwrap_or_default(),
            None,
            length,
        ) {
            assert_eq!(bytes.len(), length);
        }
    }
    let mut file = memory();
    file.write_all(data).unwrap();
    let mut end = HEADER as u64;
    let path = std::path::Path::new("pack");
    let walked = pack::walk(&file, path, data.len() as u64, |at, record| {
        assert_eq!(u64::from(at), end, "records follow each other");
        end += RECORD as u64 + u64::from(record.stored);
        Ok(())
    });
    assert!(walked.is_err() || end == (data.len() as u64).max(HEADER as u64));
}

/// A file that is on no disk.
fn memory() -> File {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    nix::sys::memfd::memfd_create(c"pack", flags).unwrap().into()
}
