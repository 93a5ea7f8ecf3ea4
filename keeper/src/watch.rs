//! When each live tree is looked at.
//!
//! A state whose container runs is looked at once in each interval while something changes. When nothing does, the time
//! between two looks doubles, up to a minute, and what the watcher is told of the tree brings the next one forward.
//!
//! The kernel is asked besides to tell of the first write to each file that the container has open; where there is no
//! watcher, of the first change in any of the tree's directories. One event is all that is wanted: then these watches go, so
//! that a container that writes is not slowed down by being watched. Events are hints; memory that is mapped is written
//! without one, and the look after a minute sees it.

use std::{
    collections::{HashMap, HashSet},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        inotify::{AddWatchFlags, InitFlags, Inotify},
    },
};
use runtime_spec::name::StateName;
use store::format::Reason;

use crate::{
    error::Result,
    keeper::Keeper,
    place::{Place, Places},
    progress::Progress,
    tree,
    watcher::Watcher as _,
};

/// Events are taken in as often at most: a busy disk must not keep the keeper busy.
const BREATH: u16 = 50;

/// The longest time between two looks at a state in use.
const LONGEST: Duration = Duration::from_secs(60);
/// The same where the kernel tells of no changes: before 6.5 it does not see an overlay's writes on its upper.
const BLIND: Duration = Duration::from_secs(10);
/// A tree of more directories is not watched: the kernel's limit is for the whole node.
const DIRECTORIES: usize = 4096;
/// Of so many states the kernel is asked to tell at a time: it gives a user 128 such instances (`max_user_instances`), and
/// this one is everybody else's too.
const ARMED: usize = 32;

/// With less on its disk a keeper whose catalog has met a full one does not begin anew: it would not come up.
const ROOM: u64 = 32 << 20;

/// How often space is got back, while something is recorded.
const TIDY: Duration = Duration::from_secs(3600);

/// One state that is looked at.
struct Watched {
    at: Instant,
    wait: Duration,
    reason: Reason,
    /// Nobody uses it: one look, and no more.
    last: bool,
    events: Option<Armed>,
}

/// The kernel will tell of a change. Those that have an instance for it hold the one thing that they are counted by.
struct Armed(Option<(Inotify, Arc<()>)>);

/// What tells the watch of states.
pub struct Watch {
    keeper: Arc<Keeper>,
    states: Mutex<HashMap<StateName, Watched>>,
    /// Those that something was told of while they were looked at.
    told: Mutex<HashSet<StateName>>,
    woken: EventFd,
    /// Written to once, at the end.
    ended: EventFd,
    stop: std::sync::atomic::AtomicBool,
    tidied: Mutex<Instant>,
    places: Places,
    armed: Arc<()>,
}

impl Watch {
    /// Of a keeper; finds the states that are in use already.
    ///
    /// # Errors
    /// A failing disk.
    pub fn new(keeper: Arc<Keeper>) -> Result<Watch> {
        let eventfd = || {
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|e| {
                crate::Error::Io {
                    context: "make an eventfd".into(),
                    source: e.into(),
                }
            })
        };
        let (woken, ended) = (eventfd()?, eventfd()?);
        match keeper.watching().fanotify() {
            Ok(fanotify) => tracing::info!(watcher = %fanotify.kind(), "the kernel tells where to look"),
            Err(why) => tracing::info!(why, "all of a live tree is looked at each time"),
        }
        if let Err(why) = keeper.watching().pages() {
            tracing::info!(why, "a large file that has changed is compared whole");
        }
        let watch = Watch {
            keeper,
            states: Mutex::default(),
            told: Mutex::default(),
            woken,
            ended,
            stop: false.into(),
            tidied: Mutex::new(Instant::now()),
            places: Places::default(),
            armed: Arc::default(),
        };
        for info in watch.keeper.node().states()? {
            if info.in_use_by.is_some() {
                watch.in_use(info.name);
            }
        }
        Ok(watch)
    }

    /// A container has taken or started with a state.
    pub fn in_use(&self, name: StateName) {
        let Some(interval) = self.keeper.interval(&name) else {
            return;
        };
        self.put(
            name,
            Watched {
                at: Instant::now() + interval,
                wait: interval,
                reason: Reason::Interval,
                last: false,
                events: None,
            },
        );
    }

    /// Its container has ended, or left it.
    pub fn ended(&self, name: StateName) {
        if self.keeper.interval(&name).is_none() {
            return;
        }
        self.put(
            name,
            Watched {
                at: Instant::now(),
                wait: Duration::ZERO,
                reason: Reason::Exit,
                last: true,
                events: None,
            },
        );
    }

    fn put(&self, name: StateName, watched: Watched) {
        self.states
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, watched);
        self.wake();
    }

    fn wake(&self) {
        // Full means that it is awake already.
        let _ = self.woken.write(1);
    }

    /// Ends [`Watch::run`], after the commit that is being made.
    pub fn stop(&self) {
        self.stop.store(true, std::sync::atomic::Ordering::Release);
        let _ = self.ended.write(1);
        self.wake();
    }

    fn stopped(&self) -> bool {
        self.stop.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Looks at states when it is time, until it is told to stop.
    pub fn run(&self) {
        std::thread::scope(|scope| {
            scope.spawn(|| self.listen());
            while !self.stopped() {
                match self.due() {
                    Some((name, watched)) => {
                        let place = self.places.take();
                        scope.spawn(move || {
                            self.look(name, watched, &place);
                            drop(place);
                            // When it is looked at next is known now.
                            self.wake();
                        });
                    }
                    None => self.sleep(),
                }
            }
        });
    }

    /// Takes in what the watcher is told, before its queue is full.
    fn listen(&self) {
        let Ok(fanotify) = self.keeper.watching().fanotify() else {
            return;
        };
        while !self.stopped() {
            let ended = std::iter::once(self.ended.as_fd());
            let mut readable: Vec<PollFd<'_>> = ended
                .chain(fanotify.events())
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            // Interrupted is woken too.
            let _ = poll(&mut readable, PollTimeout::NONE);
            for name in fanotify.pump() {
                if let Ok(name) = name.parse() {
                    self.told_of(name);
                }
            }
            let ended = PollFd::new(self.ended.as_fd(), PollFlags::POLLIN);
            let _ = poll(&mut [ended], PollTimeout::from(BREATH));
        }
    }

    /// Something was told of a state: its next look is not to wait.
    fn told_of(&self, name: StateName) {
        let Some(interval) = self.keeper.interval(&name) else {
            return;
        };
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Instant::now() + interval;
        match states.get_mut(&name) {
            Some(watched) if watched.at > at => {
                watched.wait = interval;
                watched.at = at;
                drop(states);
                self.wake();
            }
            Some(_) => {}
            None => {
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                told.insert(name);
            }
        }
    }

    fn due(&self) -> Option<(StateName, Watched)> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let name = states
            .iter()
            .filter(|(_, watched)| watched.at <= now)
            .min_by_key(|(_, watched)| watched.at)
            .map(|(name, _)| name.clone())?;
        states.remove_entry(&name)
    }

    /// Until the next look, or somebody has something to say: an event of a watched tree brings its look forward.
    fn sleep(&self) {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let next = states.values().map(|watched| watched.at).min();
        let timeout = match next {
            // Rounded up: to wake a moment too early is to wake twice.
            Some(at) => at.saturating_duration_since(now) + Duration::from_millis(1),
            None => Duration::MAX,
        };
        // Taken out while the lock is not held.
        let events: Vec<(StateName, Armed)> = {
            let mut states = states;
            states
                .iter_mut()
                .filter_map(|(name, watched)| {
                    let asked = watched.events.take_if(|events| events.0.is_some());
                    Some((name.clone(), asked?))
                })
                .collect()
        };
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        let instances = events.iter().filter_map(|(_, events)| events.0.as_ref());
        fds.extend(instances.map(|(events, _)| PollFd::new(events.as_fd(), PollFlags::POLLIN)));
        let timeout = match next {
            Some(_) => PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        // Interrupted is woken too.
        let _ = poll(&mut fds, timeout);
        let spoke: Vec<bool> = fds.iter().skip(1).map(|fd| fd.any().unwrap_or(false)).collect();
        let _ = self.woken.read();
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        for ((name, events), spoke) in events.into_iter().zip(spoke) {
            let Some(watched) = states.get_mut(&name) else {
                continue;
            };
            if watched.last || watched.events.is_some() {
                continue;
            }
            if spoke {
                let interval = self.keeper.interval(&name).unwrap_or(LONGEST);
                watched.wait = interval;
                watched.at = watched.at.min(Instant::now() + interval);
            } else {
                watched.events = Some(events);
            }
        }
    }

    /// Gets space back if it is time, beside what else there is to do.
    fn tidy(&self) {
        let mut tidied = self.tidied.lock().unwrap_or_else(PoisonError::into_inner);
        if tidied.elapsed() < TIDY {
            return;
        }
        *tidied = Instant::now();
        let keeper = self.keeper.clone();
        std::thread::spawn(move || match keeper.tidy(false, &Progress::default()) {
            Ok((expired, done)) => {
                tracing::info!(
                    expired,
                    freed = done.freed,
                    copied = done.copied,
                    packs = done.packs,
                    "got space back"
                );
            }
            Err(error) => tracing::error!(%error, "space could not be got back"),
        });
    }

    fn look(&self, name: StateName, mut watched: Watched, place: &Place<'_>) {
        let state = self.keeper.node().state(&name);
        // Shims that were killed tell nobody that their container has gone.
        if !watched.last && state.in_use_by().is_none() {
            watched.last = true;
            watched.reason = Reason::Exit;
        }
        let told = |watch: &Watch| {
            watch
                .told
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&name)
        };
        told(self);
        let begun = Instant::now();
        let made = self.keeper.commit_from(&name, watched.reason, place);
        let took = begun.elapsed();
        let interval = self.keeper.interval(&name).unwrap_or(LONGEST);
        let idle = match made {
            Ok(Some(recorded)) => {
                tracing::info!(state = %name, commit = recorded.id.short(), changed = recorded.commit.changed,
                    written = recorded.commit.written, pause_ms = recorded.commit.pause / 1_000_000,
                    took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX), "committed");
                self.tidy();
                false
            }
            Ok(None) => true,
            Err(crate::Error::NotFound(_)) => return,
            Err(error) => {
                tracing::error!(state = %name, %error, "the state could not be recorded");
                if let crate::Error::Store(error) = &error
                    && error.wants_opening()
                    && self.keeper.free().is_ok_and(|free| free >= ROOM)
                {
                    begin_anew();
                }
                true
            }
        };
        if watched.last {
            return;
        }
        if idle && !told(self) {
            watched.wait = (watched.wait * 2).min(LONGEST);
            if watched.events.is_none() {
                watched.events = self.arm(&name);
            }
            if watched.events.is_none() {
                watched.wait = watched.wait.min(BLIND.max(interval));
            }
        } else {
            watched.wait = interval;
            watched.events = None;
        }
        // A look that takes long must not take the machine: one part in ten.
        watched.at = Instant::now() + watched.wait.max(took * 9);
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        // What was said meanwhile is newer.
        states.entry(name).or_insert(watched);
    }

    /// Has the kernel tell of the next change; none where it cannot, or does so for enough others.
    fn arm(&self, name: &StateName) -> Option<Armed> {
        let silent = match self.keeper.watching().fanotify() {
            Ok(_) => Some(self.keeper.written_in_silence(name)?),
            Err(_) => None,
        };
        if silent.as_ref().is_some_and(Vec::is_empty) {
            return Some(Armed(None));
        }
        let one = Arc::clone(&self.armed);
        if Arc::strong_count(&one) > ARMED + 1 {
            return None;
        }
        arm(&self.keeper, name, silent).map(|events| Armed(Some((events, one))))
    }
}

/// This program again, in this process: a catalog that refuses to be written is opened anew that way, and whatever watches
/// over the process sees nothing of it.
fn begin_anew() {
    tracing::warn!("there is room again: the keeper begins anew");
    let error = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .exec();
    tracing::error!(%error, "the keeper cannot begin anew: stop it, and the next container starts another");
}

/// Asks the kernel to tell of the first write to what is written in silence, or, where nothing else is watched, of the first
/// change in each directory; none where it cannot.
fn arm(keeper: &Keeper, name: &StateName, silent: Option<Vec<(PathBuf, Vec<u8>)>>) -> Option<Inotify> {
    let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
    if let Some(silent) = silent {
        let what = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ONESHOT;
        for (top, path) in silent {
            // What is gone is told of.
            if let Ok((_open, path)) = tree::pinned(&top, &path) {
                events.add_watch(&path, what).ok()?;
            }
        }
        return Some(events);
    }
    if !sees_overlays() {
        return None;
    }
    let what = AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_ONESHOT
        | AddWatchFlags::IN_ONLYDIR;
    let mut directories = 0;
    for root in keeper.node().state(name).roots() {
        let path = if root.upper().is_dir() {
            root.upper()
        } else {
            root.tree()
        };
        let walked = tree::directories(&path, |dir: &Path| {
            directories += 1;
            if directories > DIRECTORIES {
                return Err(std::io::Error::other("too many directories"));
            }
            events.add_watch(dir, what)?;
            Ok(())
        });
        walked.ok()?;
    }
    Some(events)
}

/// From 6.5 on what is written through an overlay is seen on its upper (commit bc2473c90fca).
fn sees_overlays() -> bool {
    let release = nix::sys::utsname::uname().ok();
    let release = release
        .as_ref()
        .and_then(|name| name.release().to_str())
        .unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(5))
}

#[cfg(test)]
mod armed_tests;
#[cfg(test)]
mod crowd_tests;
