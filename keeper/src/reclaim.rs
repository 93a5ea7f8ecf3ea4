//! Forgetting what has expired.
//!
//! A live tree goes when its state's time is up. Its history stays for as long again, so that whoever comes back to that
//! name in the meantime finds it; then it is forgotten, and gc gets the space back.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use live::{Policy, Record, StateInfo};
use runtime_spec::name::StateName;
use store::{Known, format::Reason};

use crate::{error::Result, keeper::Keeper, progress::Progress};

/// Clocks are put right, and shims are killed without a word: longer than this nobody sleeps who waits for a time.
const LONGEST: Duration = Duration::from_secs(3600);

/// By itself the keeper waits so much longer: a container that its owner starts again, however far an engine's back-off has
/// come, finds its state.
const PATIENCE: Duration = Duration::from_secs(600);

/// What was forgotten of a state, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// The state.
    pub name: String,
    /// What its live tree took on the disk, where that was due.
    pub tree: Option<u64>,
    /// How many commits its history had, where that was due.
    pub commits: Option<u64>,
    /// Why it is not gone.
    pub problem: Option<String>,
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// When a history goes; never while there is a live tree, or where it is to be kept.
fn goes(known: &Known) -> Option<u64> {
    known.orphaned?.checked_add(known.reclaim?)
}

impl Keeper {
    /// Puts down for how long a state's history is to stay without its live tree.
    pub(crate) fn note_reclaim(&self, known: Known, record: Option<&Record>) -> Result<Known> {
        let Some(record) = record else {
            return Ok(known);
        };
        let reclaim = match record.reclaim {
            Policy::Keep => None,
            Policy::Delete => Some(0),
            Policy::After(seconds) => Some(seconds),
        };
        if known.reclaim == reclaim && known.orphaned.is_none() {
            return Ok(known);
        }
        Ok(self.store().change_state(&known.name, |known| {
            known.reclaim = reclaim;
            known.orphaned = None;
        })?)
    }

    /// Puts down what each live tree's last container has said, whether or not it has been recorded since: without the live
    /// tree nobody knows it any more.
    fn note_all(&self) -> Result<()> {
        for info in self.node().states()? {
            let name = info.name.to_string();
            let turn = self.turn(&name);
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = self.store().state(&name)? {
                self.note_reclaim(known, info.record.as_ref())?;
            }
        }
        Ok(())
    }

    /// Forgets the live trees that had expired `patience` ago, and the histories that have been without one for as long;
    /// with `dry` only says which. Answers with those that were due.
    ///
    /// # Errors
    /// States that cannot be listed, a stop. What keeps a single one is in the answer.
    pub fn reclaim(
        &self,
        now: SystemTime,
        patience: Duration,
        dry: bool,
        progress: &Progress,
    ) -> Result<Vec<Reclaimed>> {
        progress.begin("looking for what has expired");
        let mut done = Vec::new();
        let limit = now.checked_sub(patience).unwrap_or(UNIX_EPOCH);
        if !dry {
            self.note_all()?;
        }
        for info in self.node().due(limit)? {
            progress.go_on()?;
            let name = info.name.to_string();
            // A container that ended while no keeper was there left what nobody has recorded.
            if !dry
                && self.interval(&info.name).is_some()
                && let Err(error) = self.commit(&info.name, Reason::Exit, None)
            {
                done.push(Reclaimed {
                    name,
                    tree: Some(0),
                    problem: Some(error.to_string()),
                    ..Reclaimed::default()
                });
                continue;
            }
            let turn = self.turn(&name);
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            // What was removed before took its time: somebody may have come and gone meanwhile.
            let due = |info: &StateInfo| info.expires_at().is_some_and(|at| at <= limit);
            if !self.node().info(&info.name).as_ref().is_some_and(due) {
                continue;
            }
            let removed = match dry {
                true => info.size(),
                false => self.node().remove(&info.name),
            };
            done.push(Reclaimed {
                name,
                tree: Some(removed.as_ref().map_or(0, |size| size.allocated)),
                problem: removed.err().map(|error| error.to_string()),
                ..Reclaimed::default()
            });
        }
        for known in self.store().states()? {
            progress.go_on()?;
            let turn = self.turn(&known.name);
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(known) = self.store().state(&known.name)? else {
                continue;
            };
            if let Some(commits) = self.orphan(&known, seconds(now), patience, dry)? {
                done.push(Reclaimed {
                    name: known.name,
                    commits: Some(commits),
                    ..Reclaimed::default()
                });
            }
        }
        if !dry {
            let gone = |what: fn(&Reclaimed) -> bool| {
                done.iter()
                    .filter(|one| one.problem.is_none() && what(one))
                    .count() as u64
            };
            self.counts
                .reclaimed(gone(|one| one.tree.is_some()), gone(|one| one.commits.is_some()));
        }
        Ok(done)
    }

    /// Forgets a history whose time is up; answers with how many commits it had.
    fn orphan(&self, known: &Known, now: u64, patience: Duration, dry: bool) -> Result<Option<u64>> {
        let Ok(name) = known.name.parse::<StateName>() else {
            return Ok(None);
        };
        let state = self.node().state(&name);
        // One that is taken gets its live tree in a moment; one that waits for a restore is wanted.
        let wanted = state.exists() || state.in_use_by().is_some() || known.wanted.is_some();
        let due = goes(known).is_some_and(|at| at.saturating_add(patience.as_secs()) <= now);
        match (wanted, known.orphaned) {
            (true, Some(_)) if !dry => {
                self.store()
                    .change_state(&known.name, |known| known.orphaned = None)?;
            }
            (false, None) if known.reclaim.is_some() && !dry => {
                let known = self
                    .store()
                    .change_state(&known.name, |known| known.orphaned = Some(now))?;
                return self.orphan(&known, now, patience, dry);
            }
            (false, Some(_)) if due => {
                let commits = known.head.map_or(0, |(_, commits)| commits);
                if !dry {
                    self.store().forget_state(&known.name)?;
                }
                return Ok(Some(commits));
            }
            _ => {}
        }
        Ok(None)
    }

    /// Puts down that what is in use is used now: should the node stop without a word, its time begins here.
    ///
    /// # Errors
    /// States that cannot be listed, a disk that cannot be written.
    fn still_held(&self, now: SystemTime) -> Result<()> {
        for info in self.node().states()? {
            info.still_held(now)?;
        }
        Ok(())
    }

    /// When there is something to reclaim next; none where nothing will expire by itself.
    ///
    /// # Errors
    /// States that cannot be listed.
    fn next_reclaim(&self, now: SystemTime) -> Result<Option<Duration>> {
        let mut next: Option<Duration> = None;
        let mut sooner = |at: Duration| next = Some(next.map_or(at, |next| next.min(at)));
        for info in self.node().states()? {
            if info.in_use_by.is_some() {
                sooner(LONGEST);
            } else if let Some(at) = info.expires_at() {
                sooner(at.duration_since(now).unwrap_or_default());
            }
        }
        for known in self.store().states()? {
            if let Some(at) = goes(&known) {
                sooner(Duration::from_secs(at.saturating_sub(seconds(now))));
            }
        }
        Ok(next)
    }
}

/// When the keeper reclaims: as soon as something expires. While nothing will, it does not wake up.
#[derive(Debug, Default)]
pub struct Schedule {
    news: Mutex<News>,
    /// When the namespaces were looked at.
    counted: Mutex<Option<Instant>>,
    woken: Condvar,
}

#[derive(Debug, Default)]
struct News {
    changed: bool,
    stopped: bool,
}

impl Schedule {
    /// A container has come or gone: something may expire at another time now.
    pub fn wake(&self) {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).changed = true;
        self.woken.notify_one();
    }

    /// Ends [`Schedule::run`], after what it does just now; what is left is for the next keeper.
    pub fn stop(&self) {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.woken.notify_one();
    }

    /// Reclaims what has expired, until it is told to stop.
    pub fn run(&self, keeper: &Keeper) {
        self.run_after(PATIENCE, keeper);
    }

    /// Nothing in the first `patience`: after a reboot the owners start their containers again, and none is in use before.
    fn run_after(&self, patience: Duration, keeper: &Keeper) {
        let began = Instant::now();
        loop {
            let wait = match patience.checked_sub(began.elapsed()) {
                Some(wait) if !wait.is_zero() => Ok(Some(wait)),
                _ => self.once(keeper),
            };
            let wait = wait.unwrap_or_else(|error| {
                tracing::error!(%error, "what has expired cannot be told");
                Some(LONGEST)
            });
            let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
            let none = |news: &mut News| !news.changed && !news.stopped;
            let mut news = match wait {
                // A problem that keeps a state is not gone in a moment, and neither are those of a burst of starts.
                Some(wait) => {
                    let wait = wait.clamp(Duration::from_secs(1), LONGEST);
                    let waited = self.woken.wait_timeout_while(news, wait, none);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.woken.wait_while(news, none);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
            news.changed = false;
            if news.stopped {
                break;
            }
        }
    }

    /// What the namespaces take, not at every start that wakes us.
    fn count(&self, keeper: &Keeper) -> Result<()> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.is_some_and(|at: Instant| at.elapsed() < PATIENCE) {
            return Ok(());
        }
        *counted = Some(Instant::now());
        keeper.count_totals()
    }

    /// Answers with how long nothing is to be done then.
    fn once(&self, keeper: &Keeper) -> Result<Option<Duration>> {
        let now = SystemTime::now();
        self.count(keeper)?;
        let done = keeper.reclaim(now, PATIENCE, false, &Progress::default())?;
        let mut forgotten = false;
        let mut kept = false;
        for one in &done {
            match &one.problem {
                Some(problem) => tracing::warn!(state = one.name, problem, "expired, and cannot be removed"),
                None => tracing::info!(
                    state = one.name,
                    bytes = one.tree,
                    commits = one.commits,
                    "expired and removed"
                ),
            }
            forgotten |= one.commits.is_some();
            kept |= one.problem.is_some();
        }
        if forgotten {
            keeper.tidy(false, &Progress::default())?;
        }
        keeper.still_held(now)?;
        let next = keeper.next_reclaim(now)?.map(|next| next + PATIENCE);
        Ok(if kept { Some(LONGEST) } else { next })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use live::{Attempt, Holder, Lease, Life, Root};
    use runtime_spec::config::Config;

    const WEEK: u64 = 7 * 86_400;

    fn opened(dir: &Path) -> Keeper {
        let config = Config {
            root: dir.join("root"),
            ..Config::default()
        };
        Keeper::open(&config).unwrap()
    }

    /// A state with a live tree and a commit, last used at `at`.
    fn lived(keeper: &Keeper, name: &str, reclaim: Policy, at: SystemTime) {
        let name: StateName = name.parse().unwrap();
        let state = keeper.node().state(&name);
        let root = state.root(&Root::Rootfs).unwrap();
        root.prepare_overlay(0o755, (0, 0)).unwrap();
        std::fs::write(root.upper().join("f"), name.to_string()).unwrap();
        let life = Life {
            chosen: false,
            reclaim,
            container: "c1",
            roots: &[root],
            image: None,
            exclude: &[],
            capture: None,
        };
        state.attached(&life, at).unwrap();
        keeper.commit(&name, Reason::Manual, None).unwrap().unwrap();
    }

    /// A container has the state.
    fn held(keeper: &Keeper, name: &str) -> Lease {
        let state = keeper.node().state(&name.parse().unwrap());
        match state.acquire(Holder::new("c", "n", Path::new("/b"))).unwrap() {
            Attempt::Held(lease) => lease,
            _ => panic!("it is free"),
        }
    }

    fn told(done: &[Reclaimed]) -> Vec<String> {
        let what = |one: &Reclaimed| match (one.tree, one.commits) {
            (Some(_), None) => format!("tree {}", one.name),
            (None, Some(commits)) => format!("{commits} {}", one.name),
            other => panic!("{other:?}"),
        };
        done.iter().map(what).collect()
    }

    #[test]
    fn a_history_goes_as_long_after_its_live_tree_as_that_after_its_container() {
        if !crate::tests::root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let keeper = opened(dir.path());
        let noon = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let after = |seconds| noon + Duration::from_secs(seconds);
        lived(&keeper, "ctr/default/week", Policy::After(WEEK), noon);
        lived(&keeper, "ctr/default/back", Policy::After(WEEK), noon);
        lived(&keeper, "ctr/default/kept", Policy::Keep, noon);
        lived(&keeper, "ctr/default/busy", Policy::After(1), noon);
        let lease = held(&keeper, "ctr/default/busy");
        let reclaim = |at, patience, dry| {
            let patience = Duration::from_secs(patience);
            told(&keeper.reclaim(at, patience, dry, &Progress::default()).unwrap())
        };
        let trees = ["tree ctr/default/back", "tree ctr/default/week"];
        assert!(reclaim(after(WEEK - 1), 0, false).is_empty());
        assert!(reclaim(after(WEEK), 600, false).is_empty());
        assert_eq!(keeper.next_reclaim(noon).unwrap(), Some(LONGEST), "one is in use");
        assert_eq!(reclaim(after(WEEK), 0, true), trees);
        assert_eq!(reclaim(after(WEEK), 0, true), trees, "dry is dry");
        assert_eq!(reclaim(after(WEEK), 0, false), trees);
        assert!(
            keeper.known("week").unwrap().head.is_some(),
            "its history is there still"
        );
        assert!(reclaim(after(2 * WEEK - 1), 0, false).is_empty());
        // Somebody comes back to one.
        keeper
            .restore("back", "head", crate::keeper::Restore::default())
            .unwrap();
        assert!(reclaim(after(2 * WEEK), 600, false).is_empty());
        let gone = ["1 ctr/default/week"];
        assert_eq!(reclaim(after(2 * WEEK), 0, true), gone);
        assert_eq!(reclaim(after(2 * WEEK), 0, false), gone);
        assert!(keeper.known("week").is_err());
        let text = keeper.metrics().unwrap();
        assert!(text.contains("diffkeeper_reclaimed_trees_total 2\n"), "{text}");
        assert!(
            text.contains("diffkeeper_reclaimed_histories_total 1\n"),
            "{text}"
        );
        // Nobody's wish, nobody's time.
        lease.release().unwrap();
        let left = ["back", "busy", "kept"].map(|name| format!("ctr/default/{name}"));
        assert_eq!(keeper.names().unwrap(), left);
        // A person removes a live tree that is to be kept: its history stays.
        keeper
            .node()
            .remove(&"ctr/default/kept".parse().unwrap())
            .unwrap();
        assert_eq!(reclaim(after(9 * WEEK), 0, false), ["tree ctr/default/busy"]);
        assert_eq!(
            reclaim(after(9 * WEEK) + Duration::from_secs(1), 0, false),
            ["1 ctr/default/busy"]
        );
        assert!(keeper.known("kept").is_ok());
        // The space comes back.
        keeper.tidy(false, &Progress::default()).unwrap();
        assert_eq!(keeper.store().verify(100, |_| {}).unwrap().problems, []);
    }

    /// A container that is not recorded says how long its history stays, too.
    #[test]
    fn what_the_last_container_wants_counts_without_a_commit() {
        if !crate::tests::root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let keeper = opened(dir.path());
        let noon = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        lived(&keeper, "ctr/default/web", Policy::After(60), noon);
        let state = keeper.node().state(&"ctr/default/web".parse().unwrap());
        let life = Life {
            chosen: true,
            reclaim: Policy::Keep,
            container: "c2",
            roots: &[state.root(&Root::Rootfs).unwrap()],
            image: None,
            exclude: &[],
            capture: Some(0),
        };
        state.attached(&life, noon).unwrap();
        let reclaim = |at: u64| {
            let at = noon + Duration::from_secs(at);
            told(
                &keeper
                    .reclaim(at, Duration::ZERO, false, &Progress::default())
                    .unwrap(),
            )
        };
        assert!(reclaim(1).is_empty());
        state.forget().unwrap();
        assert!(reclaim(WEEK).is_empty());
        assert!(keeper.known("web").unwrap().head.is_some());
    }

    #[test]
    fn a_node_that_stops_without_a_word_takes_nobody_s_time() {
        if !crate::tests::root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let keeper = opened(dir.path());
        let noon = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let after = |seconds| noon + Duration::from_secs(seconds);
        lived(&keeper, "ctr/default/long", Policy::After(3600), noon);
        let mut lease = held(&keeper, "ctr/default/long");
        lease.update(|_| {}).unwrap();
        assert_eq!(keeper.next_reclaim(after(WEEK)).unwrap(), Some(LONGEST));
        keeper.still_held(after(WEEK)).unwrap();
        // The lock is gone, and what says who had it stays.
        drop(lease);
        let reclaim = |at| {
            let none = Duration::ZERO;
            told(&keeper.reclaim(at, none, false, &Progress::default()).unwrap())
        };
        assert!(reclaim(after(WEEK + 3599)).is_empty());
        assert_eq!(reclaim(after(WEEK + 3600)), ["tree ctr/default/long"]);
    }

    #[test]
    fn the_schedule_ends_when_it_is_told() {
        if !crate::tests::root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let keeper = opened(dir.path());
        lived(&keeper, "ctr/default/long-gone", Policy::After(1), UNIX_EPOCH);
        let schedule = Schedule::default();
        std::thread::scope(|scope| {
            scope.spawn(|| schedule.run_after(Duration::ZERO, &keeper));
            let tree = keeper.node().state(&"ctr/default/long-gone".parse().unwrap());
            let since = std::time::Instant::now();
            while tree.exists() {
                assert!(since.elapsed() < Duration::from_secs(60), "it was not removed");
                schedule.wake();
                std::thread::sleep(Duration::from_millis(20));
            }
            schedule.stop();
        });
        assert!(keeper.known("long-gone").unwrap().orphaned.is_some());
    }
}
