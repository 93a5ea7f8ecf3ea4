//! Whose directory an event is of, and what it says of its state: no effects.
//!
//! Events name a directory by its handle. The handles of a state's directories are known from the walk that looked at
//! all of it, and from then on by events: a directory comes into a tree by being made or moved there, in a directory that is
//! known; all that is below it is listed before the next event is read. So a directory that is not known is none of ours.
//!
//! While a tree is walked its directories are known in part: what happens to it meanwhile, or to what is not known, waits
//! until the walk is done. To read an event late does no harm, for an event says where to look and never what is there.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::record::{Event, Handle};

/// Of one state: beyond this everything is looked at, which takes less.
const MOST: usize = 1 << 16;

/// What is to be looked at because of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hint {
    /// And everything below it.
    pub deep: bool,
    /// What was closed or changed under this name, which may have another by now.
    pub handles: Vec<Handle>,
}

/// Where to look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints(pub BTreeMap<Vec<u8>, Hint>);

impl Hints {
    /// This key too.
    pub fn add(&mut self, key: Vec<u8>) -> &mut Hint {
        self.0.entry(key).or_default()
    }

    /// The same, where there is nothing more to say of it.
    pub fn look_at(&mut self, key: Vec<u8>) {
        self.add(key);
    }

    /// These too.
    pub fn extend(&mut self, other: Hints) {
        for (key, hint) in other.0 {
            let here = self.add(key);
            here.deep |= hint.deep;
            here.handles.extend(hint.handles);
        }
    }

    /// Whether this key is to be looked at.
    #[must_use]
    pub fn covers(&self, key: &[u8]) -> bool {
        if self.0.contains_key(key) {
            return true;
        }
        let above = key.iter().enumerate().rev().filter(|(_, b)| **b == 0);
        above
            .filter_map(|(at, _)| self.0.get(key.get(..at)?))
            .any(|hint| hint.deep)
    }
}

/// A directory of a live tree.
#[derive(Debug)]
struct Place {
    state: u64,
    key: Box<[u8]>,
}

/// What was told of one state since it was last asked.
#[derive(Debug, Default)]
struct Told {
    hints: Hints,
    /// Anything may have happened.
    doubt: bool,
    /// Something was told that nobody was woken for.
    news: bool,
}

/// All directories that are watched.
#[derive(Debug, Default)]
pub struct Index {
    dirs: HashMap<Handle, Place>,
    states: HashMap<u64, Told>,
    learning: HashSet<u64>,
    waiting: Vec<Event>,
}

/// Lists a directory that has come into a state's tree at a key, and all below it, if it is there still.
pub type List<'a> = dyn FnMut(u64, &[u8]) -> std::io::Result<Vec<(Handle, Vec<u8>)>> + 'a;

impl Index {
    /// A state's whole tree is about to be walked.
    pub fn begin(&mut self, state: u64) {
        self.learning.insert(state);
        let told = self.states.entry(state).or_default();
        *told = Told::default();
    }

    /// It was walked, and these are its directories.
    pub fn learned(&mut self, state: u64, dirs: Vec<(Handle, Vec<u8>)>, list: &mut List<'_>) {
        // Those that are gone stay for a while: a file that was linked elsewhere is told of where it was opened first.
        let before = self.dirs.values().filter(|place| place.state == state).count();
        if before > 2 * dirs.len() + MOST {
            self.dirs.retain(|_, place| place.state != state);
        }
        self.learn(state, dirs);
        self.learning.remove(&state);
        for event in std::mem::take(&mut self.waiting) {
            self.apply(event, list);
        }
    }

    /// Nothing is to be told of a state any more.
    pub fn forget(&mut self, state: u64) {
        self.dirs.retain(|_, place| place.state != state);
        self.states.remove(&state);
        self.learning.remove(&state);
        if self.learning.is_empty() {
            self.waiting.clear();
        }
    }

    /// Something may have been missed of all states.
    pub fn overflow(&mut self) {
        for told in self.states.values_mut() {
            told.doubt = true;
            told.news = true;
            told.hints = Hints::default();
        }
    }

    /// What was told of a state since this was last asked; none where anything may have happened.
    pub fn take(&mut self, state: u64) -> Option<Hints> {
        let told = self.states.get_mut(&state)?;
        told.news = false;
        let known = !told.doubt && !self.learning.contains(&state);
        known.then(|| std::mem::take(&mut told.hints))
    }

    /// A state of which what was told is lost.
    pub fn doubt(&mut self, state: u64) {
        if let Some(told) = self.states.get_mut(&state) {
            told.doubt = true;
            told.hints = Hints::default();
        }
    }

    /// States of which something new was told.
    pub fn news(&mut self) -> Vec<u64> {
        let mut news = Vec::new();
        for (state, told) in &mut self.states {
            if std::mem::take(&mut told.news) {
                news.push(*state);
            }
        }
        news
    }

    /// How many directories are known.
    #[must_use]
    pub fn directories(&self) -> usize {
        self.dirs.len()
    }

    fn learn(&mut self, state: u64, dirs: Vec<(Handle, Vec<u8>)>) {
        for (handle, key) in dirs {
            let key = key.into();
            self.dirs.insert(handle, Place { state, key });
        }
    }

    /// Takes one event in. What `list` cannot list is in doubt.
    pub fn apply(&mut self, event: Event, list: &mut List<'_>) {
        if event.mask & libc::FAN_Q_OVERFLOW != 0 {
            self.overflow();
            return;
        }
        let Some(dir) = &event.dir else {
            return;
        };
        let place = self.dirs.get(dir);
        let wait = match place {
            Some(place) => self.learning.contains(&place.state),
            None => !self.learning.is_empty(),
        };
        if wait {
            if self.waiting.len() < MOST {
                self.waiting.push(event);
            } else {
                self.learning
                    .clone()
                    .into_iter()
                    .for_each(|state| self.doubt(state));
            }
            return;
        }
        let Some(Place { state, key }) = place else {
            return;
        };
        let (state, above) = (*state, key.to_vec());
        let Some(told) = self.states.get_mut(&state) else {
            return;
        };
        told.news = true;
        if told.doubt {
            // It is walked anew, whatever else is told.
            return;
        }
        if event.name.is_empty() {
            told.hints.add(above);
            return;
        }
        let key = [&above, &[0][..], &event.name].concat();
        let named = libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
        if event.mask & named != 0 {
            // Its own times have moved.
            told.hints.add(above);
        }
        let hint = told.hints.add(key.clone());
        let directory = event.mask & libc::FAN_ONDIR != 0;
        if directory && event.mask & (libc::FAN_CREATE | libc::FAN_MOVED_TO) != 0 {
            hint.deep = true;
            match list(state, &key) {
                Ok(dirs) => self.learn(state, dirs),
                Err(error) => {
                    tracing::debug!(%error, key = %store::format::Shown(&key), "cannot be listed");
                    self.doubt(state);
                    return;
                }
            }
        } else if !directory && event.mask & (libc::FAN_CLOSE_WRITE | libc::FAN_ATTRIB) != 0 {
            hint.handles
                .extend(event.itself.filter(|it| !hint.handles.contains(it)));
        }
        if self
            .states
            .get(&state)
            .is_some_and(|told| told.hints.0.len() > MOST)
        {
            self.doubt(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(n: u8) -> Handle {
        Handle::new(1, &[n])
    }

    fn event(mask: u64, dir: u8, name: &str) -> Event {
        Event {
            mask,
            dir: Some(handle(dir)),
            name: name.into(),
            itself: Some(handle(100)),
        }
    }

    fn nothing(_: u64, _: &[u8]) -> std::io::Result<Vec<(Handle, Vec<u8>)>> {
        Ok(Vec::new())
    }

    fn known() -> Index {
        let mut index = Index::default();
        index.begin(1);
        index.learned(
            1,
            vec![
                (handle(1), b"rootfs".to_vec()),
                (handle(2), b"rootfs\0etc".to_vec()),
            ],
            &mut nothing,
        );
        index
    }

    fn keys(index: &mut Index) -> Vec<Vec<u8>> {
        index.take(1).unwrap().0.into_keys().collect()
    }

    #[test]
    fn a_name_is_said_once_and_of_known_directories_alone() {
        let mut index = known();
        index.apply(event(libc::FAN_CLOSE_WRITE, 2, "hosts"), &mut nothing);
        index.apply(event(libc::FAN_CLOSE_WRITE, 9, "foreign"), &mut nothing);
        index.apply(event(libc::FAN_DELETE, 1, "gone"), &mut nothing);
        assert_eq!(index.news(), [1]);
        assert_eq!(
            keys(&mut index),
            [&b"rootfs"[..], b"rootfs\0etc\0hosts", b"rootfs\0gone"].map(<[u8]>::to_vec)
        );
        assert!(keys(&mut index).is_empty() && index.news().is_empty());
    }

    #[test]
    fn what_comes_in_is_known_before_the_next_event() {
        let mut index = known();
        let mut list = |_: u64, key: &[u8]| Ok(vec![(handle(3), key.to_vec())]);
        index.apply(event(libc::FAN_MOVED_TO | libc::FAN_ONDIR, 2, "new"), &mut list);
        index.apply(event(libc::FAN_CREATE, 3, "file"), &mut nothing);
        let hints = index.take(1).unwrap();
        assert!(hints.0[&b"rootfs\0etc\0new"[..]].deep);
        assert!(hints.0.contains_key(&b"rootfs\0etc\0new\0file"[..]));
        assert!(hints.covers(b"rootfs\0etc\0new\0deep\0er") && !hints.covers(b"rootfs\0etc\0newer"));
    }

    #[test]
    fn what_happens_during_a_walk_waits_for_its_end() {
        let mut index = known();
        index.begin(1);
        index.apply(event(libc::FAN_CREATE, 2, "known"), &mut nothing);
        index.apply(event(libc::FAN_CREATE, 4, "not yet"), &mut nothing);
        assert_eq!(index.take(1), None);
        index.learned(
            1,
            vec![
                (handle(2), b"rootfs\0etc".to_vec()),
                (handle(4), b"rootfs\0var".to_vec()),
            ],
            &mut nothing,
        );
        let keys = keys(&mut index);
        assert!(
            keys.contains(&b"rootfs\0etc\0known".to_vec())
                && keys.contains(&b"rootfs\0var\0not yet".to_vec())
        );
    }

    #[test]
    fn an_overflow_is_of_everything_until_the_next_walk() {
        let mut index = known();
        index.apply(
            Event {
                mask: libc::FAN_Q_OVERFLOW,
                dir: None,
                name: Vec::new(),
                itself: None,
            },
            &mut nothing,
        );
        assert_eq!(index.take(1), None);
        assert_eq!(index.take(1), None);
        index.begin(1);
        index.learned(1, Vec::new(), &mut nothing);
        assert_eq!(index.take(1), Some(Hints::default()));
    }

    #[test]
    fn what_cannot_be_listed_is_in_doubt() {
        let mut index = known();
        let mut fails = |_: u64, _: &[u8]| Err(std::io::ErrorKind::PermissionDenied.into());
        index.apply(event(libc::FAN_CREATE | libc::FAN_ONDIR, 1, "dir"), &mut fails);
        assert_eq!(index.take(1), None);
    }
}
