//! How much others wait for the processors: whoever opened the store tells it, and less is spent on each chunk meanwhile.

use std::sync::OnceLock;

use delta::Budget;

use crate::{pack::Object, store::Store};

/// For how much of the last seconds, in percent, something waited for a processor; none where nobody knows.
type Told = Box<dyn Fn() -> Option<f32> + Send + Sync>;

/// Who tells it.
#[derive(Default)]
pub(crate) struct Pressure(OnceLock<Told>);

impl Store {
    /// From now on what is spent on a chunk follows this: for how much of the last seconds, in percent, something waited for
    /// a processor (PSI's `some avg10`), none where that is not known. It is asked for every chunk.
    pub fn follow(&self, pressure: impl Fn() -> Option<f32> + Send + Sync + 'static) {
        // A second one would be of the same machine: the first stays.
        let _ = self.pressure.0.set(Box::new(pressure));
    }

    /// What [`Store::follow`] tells.
    #[must_use]
    pub fn pressure(&self) -> Option<f32> {
        self.pressure.0.get().and_then(|told| told())
    }

    /// What may be spent on a chunk now.
    pub(crate) fn budget(&self) -> Budget {
        self.pressure().map_or(Budget::Ordinary, Budget::of)
    }

    /// What may be spent on an object now: only for chunks a recompaction makes up.
    pub(crate) fn budget_for(&self, object: Object) -> Budget {
        match object {
            Object::Chunk => self.budget(),
            _ => Budget::Ordinary,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use crate::{
        pack::Object,
        tests::{commit, known, noise, put, read, store, write},
    };

    const STATE: &str = "ctr/default/web";

    #[test]
    fn others_that_wait_make_chunks_longer_and_cheaper() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let busy = Arc::new(AtomicBool::new(true));
        let told = Arc::clone(&busy);
        store.follow(move || Some(if told.load(Ordering::Relaxed) { 60.0 } else { 1.0 }));
        let text = |seed: u64| -> Vec<u8> {
            let words = noise(2_000, seed);
            let line = |(n, word): (usize, &u8)| format!("{n} of word {}\n", u32::from(*word) * 7_919);
            words
                .iter()
                .enumerate()
                .flat_map(|each| line(each).into_bytes())
                .collect()
        };
        let mut files = Vec::new();
        let mut encodings = Vec::new();
        for (path, now) in [("busy", true), ("idle", false)] {
            busy.store(now, Ordering::Relaxed);
            // As alike as two can be that have nothing in common.
            let mut bytes = text(now.into());
            let first = commit(&store, STATE, |s| vec![put(write(s, path, &bytes, None))]);
            let entry = |recorded: &crate::Recorded| {
                let tree = recorded.commit.tree_id().unwrap();
                let key = crate::format::key(b"rootfs", path.as_bytes());
                let domain = known(&store, STATE).domain;
                store.entry(domain, tree, &key).unwrap().unwrap()
            };
            let before = entry(&first);
            bytes[1_000] ^= 1;
            let second = commit(&store, STATE, |s| {
                vec![put(write(s, path, &bytes, Some(&before)))]
            });
            let domain = known(&store, STATE).domain;
            for recorded in [&first, &second] {
                let chunk = entry(recorded).content_id().unwrap();
                let place = store
                    .place(domain, crate::pack::Object::Chunk, chunk)
                    .unwrap()
                    .unwrap();
                encodings.push((place.encoding, place.stored));
            }
            files.push((entry(&second), bytes));
        }
        let [busy_first, busy_second, first, second] = encodings.as_slice() else {
            panic!("{encodings:?}")
        };
        assert_eq!(busy_second.0, delta::Encoding::Xor);
        assert_eq!(second.0, delta::Encoding::Prefix);
        assert_eq!([busy_first.0, first.0], [delta::Encoding::Zstd; 2]);
        assert!(busy_first.1 > first.1 + first.1 / 10, "{encodings:?}");
        for (entry, bytes) in files {
            assert!(read(&store, known(&store, STATE).domain, &entry).unwrap() == bytes);
        }
    }

    /// Nothing makes nodes shorter later.
    #[test]
    fn only_chunks_are_written_cheaper() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        store.follow(|| Some(60.0));
        let digits = noise(8_000, 1);
        let digits: Vec<u8> = digits.iter().map(|byte| b'a' + byte % 16).collect();
        let session = store.session(store.domain("ctr/default").unwrap());
        let written = [Object::Chunk, Object::Node].map(|object| {
            let id = crate::Id([7; 32]);
            session.put(object, id, &digits, None).unwrap();
            store.place(session.domain, object, id).unwrap().unwrap().encoding
        });
        assert_eq!(written, [delta::Encoding::Raw, delta::Encoding::Zstd]);
    }
}
