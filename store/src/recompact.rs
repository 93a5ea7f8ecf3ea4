//! Writing smaller what was written while there was no time.
//!
//! A commit writes a chunk against what it follows, at a price that a running container does not notice. Here all versions
//! are known: each is written against a neighbour, before or behind it, in the shortest of all encodings, and few are whole
//! ([`plan`]). What each chunk follows, the trees of a state tell ([`lines`]).
//!
//! What each is to stand on depends on no encoding, so that several threads can encode at a time; whether it may stand there
//! is decided in order. A few versions at a time are encoded while commits go on; then, for the moment in which those wait,
//! it is looked whether all is as it was, and one batch of the catalog changes over. Nothing may come to stand as high as what stands on it: what
//! somebody else has come to stand on is written whole, or stays. The old bytes are gc's.

mod lines;
mod plan;

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{PoisonError, atomic::Ordering},
    thread,
    time::Duration,
};

use crate::{
    base::Encoded,
    catalog::{Base, Place},
    error::{Context, Error, Result},
    fault,
    history::Known,
    id::Id,
    pack::{Object, RECORD},
    relatives,
    spent::Meter,
    store::Store,
    told::{Answer, heed},
};
use delta::{Budget, Encoding};
pub(crate) use lines::Lines;
use plan::{MOST, STEPS};
use rayon::prelude::*;

/// So much is encoded before the catalog changes over.
const BATCH: u64 = 4 << 20;
/// So much content is encoded by each thread before what came of it is looked at, and before a gc is given way to.
const AHEAD: u64 = 1 << 20;
/// And so many chunks before that is told, and looked whether a gc waits.
const AT_A_TIME: usize = 4;
/// While a gc waits to begin, that is looked at so often.
const NAP: Duration = Duration::from_millis(20);
/// What saves less than one in so many bytes is not written again.
const WORTH: u64 = 16;

/// What a recompaction has done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recompacted {
    /// Chunks that were looked at.
    pub chunks: u64,
    /// Of so many.
    pub of_chunks: u64,
    /// Chunks that were written again.
    pub written: u64,
    /// Bytes that those took.
    pub before: u64,
    /// Bytes that they take now.
    pub after: u64,
}

/// A chunk as it is stored, and as it is to be; none where it stays as it is.
struct Member {
    id: Id,
    place: Place,
    encoded: Option<Encoded>,
}

impl Member {
    fn base(&self) -> Option<Base> {
        match &self.encoded {
            Some(encoded) => encoded.base.map(|id| Base {
                id,
                depth: encoded.record.depth,
            }),
            None => self.place.base,
        }
    }

    fn stored(&self) -> u64 {
        let encoded = self.encoded.as_ref().map(|encoded| encoded.record.stored);
        encoded.unwrap_or(self.place.stored).into()
    }
}

/// A chunk, and what it is to stand on.
struct Planned {
    id: Id,
    base: Option<Base>,
}

/// Chunks that are written again together or not at all, bases first.
struct Group {
    /// What they hang on, if that is another's: it stays as it is.
    on: Option<Id>,
    planned: Vec<Planned>,
}

impl Group {
    fn first(&self) -> Option<Id> {
        self.planned.first().map(|one| one.id)
    }
}

/// What chunks are to become: nothing where one cannot become shorter.
type Forms = HashMap<Id, Form>;
type Form = Result<Option<Encoded>>;

/// Who stands on a chunk, and how deep.
type Standing = HashMap<Id, HashMap<Id, u8>>;

impl Store {
    /// How many commits of a state were made since it was recompacted last.
    ///
    /// # Errors
    /// A failing disk.
    pub fn uncompacted(&self, state: &Known) -> Result<u64> {
        let sequence = state.head.map_or(0, |(_, sequence)| sequence);
        Ok(sequence.saturating_sub(self.catalog.recompacted(state.number)?))
    }

    /// Whether a gc waits for a recompaction to give way.
    #[must_use]
    pub fn gc_waits(&self) -> bool {
        self.awaited.load(Ordering::Relaxed) > 0
    }

    /// Writes the chunks of a state's versions again, where that makes them smaller; those of commits that were there the
    /// last time only beside newer ones. Gives way to a gc, and goes on behind it. `told` gets what was done so far, and may end it: what is done stays.
    ///
    /// # Errors
    /// A damaged tree, a full or failing disk.
    pub fn recompact<A: Answer>(
        &self,
        state: &Known,
        told: impl FnMut(&Recompacted) -> A,
    ) -> Result<Recompacted> {
        self.recompact_on(state, 1, told)
    }

    /// As [`Store::recompact`], by so many threads at most; by one while others wait for the processors.
    ///
    /// # Errors
    /// As [`Store::recompact`].
    pub fn recompact_on<A: Answer>(
        &self,
        state: &Known,
        most: usize,
        mut told: impl FnMut(&Recompacted) -> A,
    ) -> Result<Recompacted> {
        let mut done = Recompacted::default();
        if self.uncompacted(state)? == 0 {
            return Ok(done);
        }
        let mut through = HashSet::new();
        while !self.recompact_some(state, most, &mut through, &mut done, &mut told)? {
            // Not at once, or the gc would find it there again.
            while self.gc_waits() {
                heed(told(&done))?;
                thread::sleep(NAP);
            }
        }
        Ok(done)
    }

    /// Goes on until all is done, which it answers, or a gc waits; `through` are the first of those that need not be gone
    /// through again.
    fn recompact_some<A: Answer>(
        &self,
        state: &Known,
        most: usize,
        through: &mut HashSet<Id>,
        done: &mut Recompacted,
        told: &mut impl FnMut(&Recompacted) -> A,
    ) -> Result<bool> {
        // What is touched from now on is noted, as gc has it.
        let _alone = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let _nobody = self.alone();
            // What a session added that came to nothing stands on others too.
            self.publish(|_| Ok(()))?;
            *self.spared.lock().unwrap_or_else(PoisonError::into_inner) = Some(HashSet::new());
        }
        let finished = self.recompact_alone(state, most, through, done, told);
        *self.spared.lock().unwrap_or_else(PoisonError::into_inner) = None;
        finished
    }

    fn recompact_alone<A: Answer>(
        &self,
        state: &Known,
        most: usize,
        through: &mut HashSet<Id>,
        done: &mut Recompacted,
        told: &mut impl FnMut(&Recompacted) -> A,
    ) -> Result<bool> {
        let until = state.head.map_or(0, |(_, sequence)| sequence);
        let from = self.catalog.recompacted(state.number)?;
        // How many there are, nobody knows before that.
        let so_far = Recompacted {
            chunks: 0,
            of_chunks: 0,
            ..*done
        };
        let lines = Lines::of(self, state, &mut || heed(told(&so_far)))?;
        let mut work = Work {
            store: self,
            domain: state.domain,
            standing: self.standing_chunks(state.domain)?,
            ready: Vec::new(),
            bytes: 0,
            state: state.number,
            meter: Meter::default(),
        };
        (done.chunks, done.of_chunks) = (0, lines.len() as u64);
        // From the newest on: what is newer stands on what is older, as it was written.
        let all = lines.all();
        let mut next = all
            .iter()
            .flat_map(|line| line.chunks(MOST).rev())
            .flat_map(|versions| grouped(versions, &lines));
        let threads = || if self.budget() == Budget::Busy { 1 } else { most };
        let (mut groups, mut ahead, mut by) = (Vec::new(), 0, threads());
        loop {
            let next = next.next();
            let ended = next.is_none();
            if let Some(group) = next {
                let old = group.planned.iter().all(|one| lines.came(one.id) <= from);
                if old || group.first().is_some_and(|id| through.contains(&id)) {
                    done.chunks += group.planned.len() as u64;
                } else {
                    for one in &group.planned {
                        let place = self.place(state.domain, Object::Chunk, one.id)?;
                        ahead += place.map_or(0, |place| u64::from(place.length));
                    }
                    groups.push(group);
                }
            }
            if !ended && ahead < AHEAD.saturating_mul(by as u64) {
                continue;
            }
            let mut go_on = || {
                heed(told(done))?;
                Ok(!self.gc_waits())
            };
            let Some(mut forms) = work.forms(&groups, by, &mut go_on)? else {
                return work.change_over(done).map(|()| false);
            };
            (ahead, by) = (0, threads());
            for group in groups.drain(..) {
                done.chunks += group.planned.len() as u64;
                if group.on.is_some_and(|on| work.is_moving(on)) {
                    work.change_over(done)?;
                }
                work.settle(&group, &mut forms)?;
                through.extend(group.first());
                if work.bytes >= BATCH {
                    work.change_over(done)?;
                }
                heed(told(done))?;
                if self.gc_waits() {
                    return work.change_over(done).map(|()| false);
                }
            }
            if ended {
                break;
            }
        }
        work.change_over(done)?;
        // Commits count what they took as well.
        let _one = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = self.catalog.batch();
        batch.spent(state.number, &work.meter.take(self.catalog.spent(state.number)?));
        batch.recompacted(state.number, until);
        self.catalog.write(batch).map(|()| true)
    }

    fn standing_chunks(&self, domain: u32) -> Result<Standing> {
        let mut standing = Standing::new();
        self.catalog.objects(domain, |object, id, place| {
            if let Some(base) = place.base.filter(|_| object == Object::Chunk) {
                standing.entry(base.id).or_default().insert(id, base.depth);
            }
            Ok(())
        })?;
        Ok(standing)
    }
}

/// The versions of one state that are being written again.
struct Work<'s> {
    store: &'s Store,
    domain: u32,
    standing: Standing,
    /// Encoded, and not in the catalog yet: versions that go together.
    ready: Vec<Vec<Member>>,
    bytes: u64,
    /// The state's number, and what encoding took.
    state: u64,
    meter: Meter,
}

impl Work<'_> {
    /// Encodes what these are to become, by so many threads; nothing where it is not to go on.
    fn forms(
        &self,
        groups: &[Group],
        threads: usize,
        go_on: &mut impl FnMut() -> Result<bool>,
    ) -> Result<Option<Forms>> {
        let (store, domain) = (self.store, self.domain);
        let form = |one: &Planned| (one.id, shortest(store, domain, one.id, one.base, &self.meter));
        // Of their own: those that commits use are not to be kept waiting.
        let pool = (threads > 1).then(|| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|_| "recompact".into())
                .build()
                .map_err(io::Error::other)
                .on("start threads for", store.dir())
        });
        let pool = pool.transpose()?;
        let all: Vec<&Planned> = groups.iter().flat_map(|group| &group.planned).collect();
        let mut forms = Forms::new();
        for some in all.chunks(threads.max(1) * AT_A_TIME) {
            if !go_on()? {
                return Ok(None);
            }
            match &pool {
                Some(pool) => {
                    let some: Vec<(Id, Form)> =
                        pool.install(|| some.par_iter().map(|one| form(one)).collect());
                    forms.extend(some);
                }
                None => forms.extend(some.iter().map(|one| form(one))),
            }
        }
        Ok(Some(forms))
    }

    /// Whether it is about to become another.
    fn is_moving(&self, id: Id) -> bool {
        let ready = self.ready.iter().flatten();
        ready
            .filter(|member| member.encoded.is_some())
            .any(|member| member.id == id)
    }

    /// Decides whether versions that go together become what they may.
    fn settle(&mut self, group: &Group, forms: &mut Forms) -> Result<()> {
        let mut depths: HashMap<Id, u8> = HashMap::new();
        let mut members = Vec::new();
        if let Some(id) = group.on {
            let Some(place) = self.store.place(self.domain, Object::Chunk, id)? else {
                return Ok(());
            };
            depths.insert(id, place.depth());
            let encoded = None;
            members.push(Member { id, place, encoded });
        }
        let together: HashSet<Id> = group.planned.iter().map(|one| one.id).collect();
        for Planned { id, base: planned } in &group.planned {
            let id = *id;
            let Some(place) = self.store.place(self.domain, Object::Chunk, id)? else {
                return Ok(());
            };
            let depth = planned
                .and_then(|base| depths.get(&base.id))
                .map(|depth| depth + 1);
            let highest = self.highest(id, &together).min(STEPS);
            let base = planned.zip(depth).filter(|(_, depth)| *depth <= highest);
            let base = base.map(|(base, depth)| Base { depth, ..base });
            let form = match forms.remove(&id) {
                Some(form) if base.is_some() == planned.is_some() => form,
                _ => shortest(self.store, self.domain, id, base, &self.meter),
            };
            let mut encoded = match form {
                Ok(encoded) => encoded,
                // What is damaged stays as it is, and so does what goes with it.
                Err(error) if error.is_damage() => {
                    tracing::warn!(%error, "it cannot be recompacted");
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            if let Some(encoded) = encoded.as_mut().filter(|encoded| encoded.base.is_some()) {
                encoded.record.depth = base.map_or(0, |base| base.depth);
            }
            let as_it_is = |encoded: &Encoded| {
                place.base.map(|base| base.id) == encoded.base
                    && place.depth() == encoded.record.depth
                    && place.stored <= encoded.record.stored
            };
            let encoded = encoded.filter(|encoded| !as_it_is(encoded));
            let member = Member { id, place, encoded };
            depths.insert(id, member.base().map_or(0, |base| base.depth));
            members.push(member);
        }
        let before: u64 = members.iter().map(|member| u64::from(member.place.stored)).sum();
        let after: u64 = members.iter().map(Member::stored).sum();
        if after + before / WORTH < before {
            // Short ones, of which there may be many, keep sessions waiting as well.
            self.bytes += after + (RECORD * members.len()) as u64;
            for member in &members {
                self.moved(member.id, member.place.base, member.base());
            }
            self.ready.push(members);
        }
        Ok(())
    }

    /// A chunk stands on another than before.
    fn moved(&mut self, id: Id, from: Option<Base>, to: Option<Base>) {
        if let Some(above) = from.and_then(|base| self.standing.get_mut(&base.id)) {
            above.remove(&id);
        }
        if let Some(base) = to {
            self.standing.entry(base.id).or_default().insert(id, base.depth);
        }
    }

    /// How deep a chunk may come to stand: less than what stands on it.
    fn highest(&self, id: Id, but: &HashSet<Id>) -> u8 {
        let above = self.standing.get(&id).into_iter().flatten();
        let above = above.filter(|(id, _)| !but.contains(*id));
        above
            .map(|(_, depth)| depth.saturating_sub(1))
            .min()
            .unwrap_or(u8::MAX)
    }

    /// Puts what is ready in the place of what is there.
    fn change_over(&mut self, done: &mut Recompacted) -> Result<()> {
        if self.ready.is_empty() {
            return Ok(());
        }
        let _nobody = self.store.alone();
        self.notice()?;
        let session = self.store.session_alone(self.domain);
        for members in std::mem::take(&mut self.ready) {
            let together: HashSet<Id> = members.iter().map(|member| member.id).collect();
            let mut fits = true;
            for member in &members {
                let place = self.store.place(self.domain, Object::Chunk, member.id)?;
                let depth = member.base().map_or(0, |base| base.depth);
                fits &= place == Some(member.place) && depth <= self.highest(member.id, &together);
            }
            if !fits {
                for member in &members {
                    self.moved(member.id, member.base(), member.place.base);
                }
                continue;
            }
            for (member, encoded) in members
                .iter()
                .filter_map(|member| Some((member, member.encoded.as_ref()?)))
            {
                done.written += 1;
                done.before += u64::from(member.place.stored) + RECORD as u64;
                done.after += member.stored() + RECORD as u64;
                // What came while others waited was looked for by nobody, and is not noted.
                if let Some(features) = &encoded.features
                    && session.relative(features)?.is_none()
                {
                    session.note_features(member.id, features);
                }
            }
            session.exchange(members.into_iter().filter_map(|member| member.encoded))?;
        }
        self.bytes = 0;
        fault::point("recompact-written");
        let spent = self.store.catalog.spent(self.state)?;
        session.publish(|batch| {
            batch.spent(self.state, &self.meter.take(spent));
            Ok(())
        })?;
        fault::point("recompact-switched");
        Ok(())
    }

    /// What commits have put on others meanwhile.
    fn notice(&mut self) -> Result<()> {
        let touched = {
            let mut spared = self.store.spared.lock().unwrap_or_else(PoisonError::into_inner);
            spared.replace(HashSet::new()).unwrap_or_default()
        };
        // What is ready stands where it is going to.
        let ready: HashSet<Id> = self.ready.iter().flatten().map(|member| member.id).collect();
        for (domain, object, id) in touched {
            if domain == self.domain
                && object == Object::Chunk
                && !ready.contains(&id)
                && let Some(base) = self.store.place(domain, object, id)?.and_then(|place| place.base)
            {
                self.standing.entry(base.id).or_default().insert(id, base.depth);
            }
        }
        Ok(())
    }
}

/// Versions that follow each other, and what hangs on them, each with what it is to stand on: every base comes before what
/// stands on it. What hangs on them goes with them; where that is much, as what finds a relative may be, by itself and in parts.
fn grouped(versions: &[Id], lines: &Lines) -> Vec<Group> {
    let mut group = Group {
        on: None,
        planned: Vec::new(),
    };
    let mut bases: HashMap<Id, Option<Base>> = HashMap::new();
    let above = |bases: &HashMap<Id, Option<Base>>, id: Id| {
        let below = *bases.get(&id)?;
        Some(match below {
            // What hangs on the last that may be stood on stands beside it.
            Some(below) if below.depth >= STEPS => below,
            below => Base {
                id,
                depth: below.map_or(0, |below| below.depth) + 1,
            },
        })
    };
    for (at, base) in plan::plan(versions.len()) {
        if let Some(id) = versions.get(at) {
            let base = base.and_then(|base| above(&bases, *versions.get(base)?));
            bases.insert(*id, base);
            group.planned.push(Planned { id: *id, base });
        }
    }
    let hanging: Vec<(Id, Option<Base>)> = versions
        .iter()
        .flat_map(|id| {
            let base = above(&bases, *id);
            lines.beside(*id).map(move |next| (next, base))
        })
        .collect();
    let planned = |some: &[(Id, Option<Base>)]| {
        some.iter()
            .map(|(id, base)| Planned { id: *id, base: *base })
            .collect::<Vec<_>>()
    };
    if hanging.len() <= MOST {
        group.planned.extend(planned(&hanging));
        return vec![group];
    }
    let mut found = vec![group];
    for of_one in hanging.chunk_by(|(_, one), (_, other)| one == other) {
        found.extend(of_one.chunks(MOST).map(|some| Group {
            on: some.first().and_then(|(_, base)| base.map(|base| base.id)),
            planned: planned(some),
        }));
    }
    found
}

/// What every chunk is to stand on, bases first.
pub(crate) fn planned(lines: &Lines) -> Vec<(Id, Option<Base>)> {
    let all = lines.all();
    let groups = all
        .iter()
        .flat_map(|line| line.chunks(MOST))
        .flat_map(|versions| grouped(versions, lines));
    groups
        .flat_map(|group| group.planned)
        .map(|one| (one.id, one.base))
        .collect()
}

/// The shortest form of a chunk, on its base or alone; none where it cannot become shorter.
fn shortest(
    store: &Store,
    domain: u32,
    id: Id,
    base: Option<Base>,
    meter: &Meter,
) -> Result<Option<Encoded>> {
    let name = || Error::Missing(format!("Chunk {id}"));
    let place = store.place(domain, Object::Chunk, id)?.ok_or_else(name)?;
    let bytes = store.object(domain, Object::Chunk, id)?;
    // What was written while others waited is raw too where only its frequencies would have made it shorter.
    if base.is_none() && place.encoding == Encoding::Raw && delta::incompressible(&bytes) {
        return Ok(None);
    }
    let under = match base {
        Some(base) => Some((base, store.object(domain, Object::Chunk, base.id)?)),
        None => None,
    };
    let under = under.as_ref().map(|(base, bytes)| (*base, bytes.as_slice()));
    let mut encoded = meter.of(|| Encoded::shortest(Object::Chunk, id, &bytes, under))?;
    if encoded.base.is_none() && encoded.record.encoding != Encoding::Raw {
        encoded.features = relatives::features(Object::Chunk, &bytes);
    }
    Ok(Some(encoded))
}

#[cfg(test)]
mod tests;
