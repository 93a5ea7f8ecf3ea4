//! Whose directory an event is of, and what it says of its state: no effects.
//!
//! Events name a directory by its handle. The handles of a state's directories are known from the walk that looked at
//! all of it, and from then on by events: a directory comes into a tree by being made or moved there, in a directory that is
//! known; all that is below it is listed before the next event is read. So a directory that is not known is none of ours.
//!
//! While a tree is walked its directories are known in part: what happens to it meanwhile, or to what is not known, waits
//! until the walk is done. To read an event late does no harm, for an event says where to look and never what is there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::record::{Event, Handle};

/// How many events wait for the end of a walk at most.
const MOST: usize = 1 << 16;
/// What is kept of one state, in bytes: beyond this everything is looked at, which takes less.
const ROOM: usize = 8 << 20;
/// And of all together.
const ALL: usize = 48 << 20;
/// What it takes to keep something, besides the thing itself.
const EACH: usize = 96;

/// What is to be looked at because of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hint {
    /// And everything below it.
    pub deep: bool,
    /// What was closed or changed under this name, which may have another by now.
    pub handles: BTreeSet<Handle>,
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

impl Place {
    fn bytes(&self) -> usize {
        EACH + self.key.len()
    }
}

/// What was told of one state since it was last asked.
#[derive(Debug, Default)]
struct Told {
    hints: Hints,
    /// What they take.
    bytes: usize,
    /// What its directories take, and took when it was walked.
    dirs: usize,
    walked: usize,
    /// Anything may have happened.
    doubt: bool,
    /// Something was told that nobody was woken for.
    news: bool,
}

impl Told {
    /// Says that a key is to be looked at; `all` is what is told of all states takes.
    fn add(&mut self, key: Vec<u8>, all: &mut usize) -> &mut Hint {
        if !self.hints.0.contains_key(&key) {
            let bytes = EACH + key.len();
            self.bytes += bytes;
            *all += bytes;
        }
        self.hints.add(key)
    }

    /// Gives what was told, and how much it took.
    fn take(&mut self) -> (Hints, usize) {
        (std::mem::take(&mut self.hints), std::mem::take(&mut self.bytes))
    }

    /// What was told is lost; answers with how much it took.
    fn doubt(&mut self) -> usize {
        self.doubt = true;
        self.take().1
    }

    /// Whether it takes more than there is room for.
    fn is_too_much(&self) -> bool {
        self.bytes > ROOM || self.dirs > 2 * self.walked + ROOM
    }
}

/// All directories that are watched.
#[derive(Debug, Default)]
pub struct Index {
    dirs: HashMap<Handle, Place>,
    states: HashMap<u64, Told>,
    learning: HashSet<u64>,
    waiting: Waiting,
    /// What was told of all states takes, without what waits.
    told: usize,
}

/// Events that wait for the end of a walk.
#[derive(Debug, Default)]
struct Waiting {
    events: Vec<Event>,
    bytes: usize,
}

impl Waiting {
    fn push(&mut self, event: Event) {
        let handles = [&event.dir, &event.itself].into_iter().flatten();
        let parts = handles.map(|handle| handle.parts().1.len()).sum::<usize>();
        self.bytes += EACH + event.name.len() + parts;
        self.events.push(event);
    }
}

/// Lists a directory that has come into a state's tree at a key, and all below it, if it is there still.
pub type List<'a> = dyn FnMut(u64, &[u8]) -> std::io::Result<Vec<(Handle, Vec<u8>)>> + 'a;

impl Index {
    /// A state's whole tree is about to be walked.
    pub fn begin(&mut self, state: u64) {
        self.learning.insert(state);
        let told = self.states.entry(state).or_default();
        self.told -= told.bytes;
        *told = Told {
            dirs: told.dirs,
            walked: told.walked,
            ..Told::default()
        };
    }

    /// It was walked, and these are its directories.
    pub fn learned(&mut self, state: u64, dirs: Vec<(Handle, Vec<u8>)>, list: &mut List<'_>) {
        let walked = dirs.iter().map(|(_, key)| EACH + key.len()).sum();
        let told = self.states.entry(state).or_default();
        // Those that are gone stay for a while: a file that was linked elsewhere is told of where it was opened first.
        if told.dirs > 2 * walked + ROOM / 2 {
            self.dirs.retain(|_, place| place.state != state);
            told.dirs = 0;
        }
        told.walked = walked;
        self.learn(state, dirs);
        self.learning.remove(&state);
        for event in std::mem::take(&mut self.waiting).events {
            self.apply(event, list);
        }
    }

    /// Nothing is to be told of a state any more.
    pub fn forget(&mut self, state: u64) {
        self.dirs.retain(|_, place| place.state != state);
        self.told -= self.states.remove(&state).map_or(0, |told| told.bytes);
        self.learning.remove(&state);
        if self.learning.is_empty() {
            self.waiting = Waiting::default();
        }
    }

    /// Something may have been missed of all states.
    pub fn overflow(&mut self) {
        for told in self.states.values_mut() {
            self.told -= told.doubt();
            told.news = true;
        }
    }

    /// What was told of a state since this was last asked; none where anything may have happened.
    pub fn take(&mut self, state: u64) -> Option<Hints> {
        let told = self.states.get_mut(&state)?;
        told.news = false;
        let known = !told.doubt && !self.learning.contains(&state);
        known.then(|| {
            let (hints, bytes) = told.take();
            self.told -= bytes;
            hints
        })
    }

    /// A state of which what was told is lost.
    pub fn doubt(&mut self, state: u64) {
        if let Some(told) = self.states.get_mut(&state) {
            self.told -= told.doubt();
        }
    }

    /// What waits is lost: all that is walked has to be walked again.
    fn doubt_waiting(&mut self) {
        self.waiting = Waiting::default();
        for state in self.learning.clone() {
            self.doubt(state);
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
        let mut more = 0;
        for (handle, key) in dirs {
            let place = Place {
                state,
                key: key.into(),
            };
            more += place.bytes();
            if let Some(before) = self.dirs.insert(handle, place)
                && let Some(of) = self.states.get_mut(&before.state)
            {
                of.dirs = of.dirs.saturating_sub(before.bytes());
            }
        }
        if let Some(told) = self.states.get_mut(&state) {
            told.dirs += more;
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
            self.waiting.push(event);
            if self.waiting.events.len() > MOST {
                self.doubt_waiting();
            }
            self.keep_all();
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
            told.add(above, &mut self.told);
            self.keep_room(state);
            return;
        }
        let key = [&above, &[0][..], &event.name].concat();
        let named = libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
        if event.mask & named != 0 {
            // Its own times have moved.
            told.add(above, &mut self.told);
        }
        let hint = told.add(key.clone(), &mut self.told);
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
        } else if !directory
            && event.mask & (libc::FAN_CLOSE_WRITE | libc::FAN_ATTRIB) != 0
            && let Some(itself) = event.itself
        {
            let bytes = EACH + itself.parts().1.len();
            if hint.handles.insert(itself) {
                told.bytes += bytes;
                self.told += bytes;
            }
        }
        self.keep_room(state);
    }

    /// Where a state takes too much, what was told of it is lost.
    fn keep_room(&mut self, state: u64) {
        if let Some(told) = self.states.get_mut(&state).filter(|told| told.is_too_much()) {
            self.told -= told.doubt();
        }
        self.keep_all();
    }

    /// Where all take too much together, what was told of the state that takes most is lost, or what waits where that is more.
    fn keep_all(&mut self) {
        if self.told + self.waiting.bytes <= ALL {
            return;
        }
        let most = self.states.values_mut().max_by_key(|told| told.bytes);
        match most.filter(|most| most.bytes > self.waiting.bytes) {
            Some(most) => self.told -= most.doubt(),
            None => self.doubt_waiting(),
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
    fn what_takes_too_much_room_is_looked_at_whole_and_nothing_else() {
        let another = |index: &mut Index| {
            index.begin(2);
            index.learned(2, vec![(handle(9), b"other".to_vec())], &mut nothing);
            index.apply(event(libc::FAN_CLOSE_WRITE, 9, "kept"), &mut nothing);
        };
        let mut with_names = known();
        another(&mut with_names);
        let mut with_handles = known();
        another(&mut with_handles);
        for n in 0..(ROOM / EACH) as u32 {
            with_names.apply(event(libc::FAN_ATTRIB, 2, &format!("file{n}")), &mut nothing);
            let renamed = Event {
                itself: Some(Handle::new(1, &n.to_ne_bytes())),
                ..event(libc::FAN_CLOSE_WRITE, 2, "one name")
            };
            with_handles.apply(renamed, &mut nothing);
        }
        for index in [&mut with_names, &mut with_handles] {
            assert_eq!(index.take(1), None);
            assert!(index.take(2).unwrap().covers(b"other\0kept"));
            // The next walk sees all; what comes after it is told.
            index.begin(1);
            index.learned(1, Vec::new(), &mut nothing);
            index.apply(event(libc::FAN_ATTRIB, 2, "later"), &mut nothing);
            assert!(index.take(1).unwrap().covers(b"rootfs\0etc\0later"));
        }
    }

    #[test]
    fn directories_that_come_and_go_do_not_pile_up() {
        let mut index = known();
        let mut made = 0u32;
        while index.take(1).is_some() {
            let mut list = |_: u64, key: &[u8]| {
                made += 1;
                Ok(vec![(Handle::new(2, &made.to_ne_bytes()), key.to_vec())])
            };
            index.apply(event(libc::FAN_CREATE | libc::FAN_ONDIR, 2, "dir"), &mut list);
            assert!(index.directories() < ROOM / EACH + 100);
        }
        index.begin(1);
        index.learned(1, vec![(handle(2), b"rootfs\0etc".to_vec())], &mut nothing);
        assert_eq!(index.directories(), 1);
        index.apply(event(libc::FAN_ATTRIB, 2, "later"), &mut nothing);
        assert!(index.take(1).unwrap().covers(b"rootfs\0etc\0later"));
    }

    /// States of which as much is told as that of each, in bytes.
    fn told(shares: &[usize]) -> Index {
        let mut index = Index::default();
        for (state, share) in (1u8..).zip(shares) {
            index.begin(state.into());
            index.learned(state.into(), vec![(handle(state), vec![state])], &mut nothing);
            for n in 0..share / (EACH + 2 + 200) {
                let name = format!("{n:0200}");
                index.apply(event(libc::FAN_DELETE, state, &name), &mut nothing);
            }
        }
        index
    }

    /// What is kept of all, added up.
    fn kept(index: &Index) -> usize {
        let told = index.states.values().map(|told| told.bytes).sum::<usize>();
        assert_eq!(told, index.told);
        told + index.waiting.bytes
    }

    #[test]
    fn all_states_together_have_a_limit_and_who_takes_most_gives() {
        const SHARE: usize = 6 << 20;
        // The fifth more than others.
        let more = SHARE + (1 << 20);
        let mut index = told(&[SHARE, SHARE, SHARE, SHARE, more, SHARE, SHARE, SHARE]);
        let keeps = |state: &u64| index.states[state].bytes > 0;
        assert_eq!((1..=8).filter(keeps).collect::<Vec<_>>(), [1, 2, 3, 4, 6, 7, 8]);
        assert!(kept(&index) <= ALL);
        // However what was told goes, it is counted no more.
        index.take(1);
        index.begin(2);
        index.forget(3);
        index.doubt(4);
        assert!(kept(&index) > 0);
        index.overflow();
        assert_eq!(kept(&index), 0);
    }

    #[test]
    fn what_waits_takes_room_as_well_and_gives_where_it_takes_most() {
        const SHARE: usize = 7 << 20;
        let mut index = told(&[SHARE; 6]);
        index.begin(7);
        let mut waits = 0;
        while !index.states[&7].doubt {
            let event = event(libc::FAN_CLOSE_WRITE, 77, &format!("{waits:0200}"));
            index.apply(event, &mut nothing);
            waits += 1;
            assert!(kept(&index) <= ALL && waits < MOST);
            // Others give first, as long as they take more.
            assert!(waits * (EACH + 200) < 2 * SHARE);
        }
        assert!(index.waiting.events.is_empty());
        index.learned(7, vec![(handle(77), b"rootfs".to_vec())], &mut nothing);
        assert_eq!(index.take(7), None);
        // The next walk sees all; what comes after it is told.
        index.begin(7);
        index.learned(7, Vec::new(), &mut nothing);
        index.apply(event(libc::FAN_ATTRIB, 77, "later"), &mut nothing);
        assert!(index.take(7).unwrap().covers(b"rootfs\0later"));
        assert!((1..=6).any(|state| index.take(state).is_some()));
    }

    #[test]
    fn what_cannot_be_listed_is_in_doubt() {
        let mut index = known();
        let mut fails = |_: u64, _: &[u8]| Err(std::io::ErrorKind::PermissionDenied.into());
        index.apply(event(libc::FAN_CREATE | libc::FAN_ONDIR, 1, "dir"), &mut fails);
        assert_eq!(index.take(1), None);
    }
}
