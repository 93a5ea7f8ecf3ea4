//! Getting back the space of what no commit needs.
//!
//! First what is needed is found, while commits go on; whatever they touch meanwhile is spared. Then one pack after the
//! other is replaced: what is still needed of it goes to a new pack, that is synced, the catalog changes over in one
//! batch, the old file goes. Only that step, for one pack, keeps commits waiting. Whatever ends the process in between
//! leaves a file that no row names (removed at the next opening) or an old pack that is still whole.
//!
//! What a needed object stands on is kept with it; where something is to be erased, the object is written anew before.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::{AddAssign, ControlFlow},
    sync::{PoisonError, atomic::Ordering},
};

use crate::{
    catalog::{PackRow, Place},
    error::{Error, Result, damaged},
    fault,
    id::Id,
    pack::{self, FULL, HEADER, Object, RECORD},
    reach::Reached,
    store::Store,
    sys,
    told::{Answer, heed},
};

/// So many times a store is gone through for one erasure.
const ERASINGS: usize = 4;

/// How thorough a gc is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thorough {
    /// Only packs of which a quarter is not needed: the rest would cost more writing than it gives back.
    Worthwhile,
    /// Every pack with anything that is not needed: what was erased must not be found in the store's bytes.
    Erase,
}

/// What a gc has done, or would do.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Collected {
    /// Objects that no commit needs.
    pub objects: u64,
    /// Bytes of packs that came back to the disk.
    pub freed: u64,
    /// Bytes that were copied for it.
    pub copied: u64,
    /// Packs that were replaced or removed.
    pub packs: u64,
    /// Where all was to go: objects that nobody had needed when it began, and that stay, because somebody came to need them
    /// meanwhile, or what stands on them.
    pub left: u64,
    /// Packs that were looked at.
    pub looked_at: u64,
    /// Of so many.
    pub of_packs: u64,
}

impl AddAssign for Collected {
    /// What the later one says of where it came to, and has left, is what counts; it counts again what the earlier one left.
    fn add_assign(&mut self, later: Collected) {
        *self = Collected {
            objects: self.objects.max(later.objects),
            freed: self.freed + later.freed,
            copied: self.copied + later.copied,
            packs: self.packs + later.packs,
            ..later
        };
    }
}

/// The damage that something met; what else kept it from its end is an error.
fn of_damage(done: Result<()>) -> Result<Option<Error>> {
    match done {
        Ok(()) => Ok(None),
        Err(error) if error.is_damage() => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

impl Store {
    /// Collects the garbage of every domain; with `dry` only says what it would do. `told` gets what was done so far, and
    /// may end it after any pack.
    ///
    /// # Errors
    /// A damaged tree (then nothing of its domain can be said to be garbage), damage in a pack (which stays as it is): what
    /// is not damaged is collected before. A full or failing disk.
    pub fn gc<A: Answer>(
        &self,
        thorough: Thorough,
        dry: bool,
        told: impl FnMut(&Collected) -> A,
    ) -> Result<Collected> {
        let (done, damage) = self.collect(thorough, dry, told)?;
        damage.map_or(Ok(done), Err)
    }

    /// As [`Store::gc`]; the first damage that it met is beside what it has done.
    fn collect<A: Answer>(
        &self,
        thorough: Thorough,
        dry: bool,
        mut told: impl FnMut(&Collected) -> A,
    ) -> Result<(Collected, Option<Error>)> {
        // What is touched while one looks is noted once.
        self.awaited.fetch_add(1, Ordering::Relaxed);
        let _alone = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        self.awaited.fetch_sub(1, Ordering::Relaxed);
        let mut sum = Collected::default();
        let mut damage = None;
        for (_, domain) in self.catalog.domains()? {
            let done = self.gc_domain(domain, thorough, dry, &mut sum, &mut told);
            *self.spared.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.dictionaries.erasing(false);
            // What is damaged of one is no reason to keep what the others hold.
            damage = damage.or(of_damage(done)?);
        }
        Ok((sum, damage))
    }

    /// Takes what no commit needs out of the store's bytes. While a gc looks, commits go on, and one may come to need what
    /// was about to go, and with it what that stands on; the next gc writes it anew without. `told` gets what each gc has
    /// done so far. Where others are always quicker, some is [left](Collected::left).
    ///
    /// # Errors
    /// As [`Store::gc`]: all else is erased, but nothing of a domain that has a damaged tree.
    pub fn erase<A: Answer>(&self, mut told: impl FnMut(&Collected) -> A) -> Result<Collected> {
        let mut sum = Collected::default();
        let mut damage = None;
        for _ in 0..ERASINGS {
            let (done, damaged) = self.collect(Thorough::Erase, false, &mut told)?;
            sum += done;
            damage = damaged;
            if done.left == 0 {
                break;
            }
        }
        damage.map_or(Ok(sum), Err)
    }

    fn gc_domain<A: Answer>(
        &self,
        domain: u32,
        thorough: Thorough,
        dry: bool,
        sum: &mut Collected,
        told: &mut impl FnMut(&Collected) -> A,
    ) -> Result<()> {
        let newer = {
            // Whoever adds objects now is waited for: from here on all that is touched is noted.
            let _nobody = self.alone();
            if !dry {
                self.close_packs(domain)?;
            }
            *self.spared.lock().unwrap_or_else(PoisonError::into_inner) = Some(HashSet::new());
            self.dictionaries.erasing(thorough == Thorough::Erase && !dry);
            self.next_pack()
        };
        let mut reached = Reached::new();
        for (id, commit) in self.live_commits(domain)? {
            self.reach(domain, id, &commit, &mut reached)?;
        }
        // Commits stay whatever became of their content: histories can be found again without the catalog.
        for state in self.states()?.iter().filter(|state| state.domain == domain) {
            self.log(state, u64::MAX, |recorded| {
                reached.insert((Object::Commit, recorded.id));
                Ok(ControlFlow::Continue(()))
            })?;
        }
        let mut failed = None;
        match thorough {
            Thorough::Worthwhile => self.hold(domain, &mut reached)?,
            Thorough::Erase if dry => {}
            Thorough::Erase => {
                self.give_dictionaries_up(domain, &mut reached)?;
                let (written, damage) = self.lift(domain, &mut reached)?;
                sum.copied += written;
                failed = damage;
            }
        }
        if !dry {
            self.forget_lost(domain, &reached)?;
            let mut batch = self.catalog.batch();
            let touched = self.touched(domain)?;
            self.forget_relatives(domain, [&reached, &touched], &mut batch)?;
            for dictionary in self.catalog.dictionaries(domain)? {
                let chunk = (Object::Chunk, dictionary.id);
                if !reached.contains(&chunk) && !touched.contains(&chunk) {
                    batch.forget_dictionary(domain, &dictionary);
                }
            }
            if !batch.is_empty() {
                self.catalog.write(batch)?;
            }
        }
        // By pack: how many bytes are not needed, and of how many.
        let mut waste: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        self.catalog.objects(domain, |object, id, place| {
            let (dead, all) = waste.entry(place.pack).or_default();
            let bytes = RECORD as u64 + u64::from(place.stored);
            *all += bytes;
            if !reached.contains(&(object, id)) {
                *dead += bytes;
                sum.objects += 1;
            }
            Ok(())
        })?;
        // What the catalog does not name: it was written twice, or its batch never came.
        for (number, row) in self.catalog.packs()? {
            if row.domain == domain {
                let (dead, all) = waste.entry(number).or_default();
                let unnamed = u64::from(row.length).saturating_sub(HEADER as u64 + *all);
                *dead += unnamed;
                *all += unnamed;
                if *all == 0 {
                    // An empty pack is no use either.
                    *dead = 1;
                }
            }
        }
        let open = self.open_packs();
        sum.of_packs += waste.len() as u64;
        for (number, (dead, all)) in waste {
            sum.looked_at += 1;
            let worth = match thorough {
                Thorough::Worthwhile => dead * 4 >= all.max(1),
                Thorough::Erase => true,
            };
            if dead == 0 || !worth || open.contains(&number) {
                continue;
            }
            if dry {
                sum.freed += dead;
                sum.copied += all - dead.min(all);
                sum.packs += 1;
            } else {
                let mut left = 0;
                // A pack with damage stays as it is; it is no reason to keep what the others hold.
                let damage = of_damage(self.replace(domain, number, &reached, sum).map(|n| left = n))?;
                failed = failed.or(damage);
                // What newer ones hold was added since it began.
                if thorough == Thorough::Erase && number < newer {
                    sum.left += left;
                }
            }
            heed(told(sum))?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Forgets what is nowhere, and nobody asks for any more.
    fn forget_lost(&self, domain: u32, reached: &Reached) -> Result<()> {
        if self.catalog.lost(domain)?.is_empty() {
            return Ok(());
        }
        // Whoever adds one of them again gives it the row that it has then.
        let _nobody = self.alone();
        let touched = self.touched(domain)?;
        let mut batch = self.catalog.batch();
        for (object, id) in self.catalog.lost(domain)? {
            if !reached.contains(&(object, id)) && !touched.contains(&(object, id)) {
                batch.forget_object(domain, object, id);
            }
        }
        self.catalog.write(batch)
    }

    /// What stands on what.
    fn standing(&self, domain: u32) -> Result<HashMap<(Object, Id), Id>> {
        let mut found = HashMap::new();
        self.catalog.objects(domain, |object, id, place| {
            found.extend(place.base.map(|base| ((object, id), base.id)));
            Ok(())
        })?;
        Ok(found)
    }

    /// Adds to `reached` all that it stands on.
    fn hold(&self, domain: u32, reached: &mut Reached) -> Result<()> {
        let standing = self.standing(domain)?;
        for (object, id) in standing.keys() {
            if !reached.contains(&(*object, *id)) {
                continue;
            }
            let mut id = id;
            while let Some(base) = standing.get(&(*object, *id))
                && reached.insert((*object, *base))
            {
                id = base;
            }
        }
        Ok(())
    }

    /// Writes anew what is needed and stands on what is not, so that this can go; answers with how many bytes that took. What
    /// is damaged cannot be: what it stands on is reached with it, and the first damage is told.
    fn lift(&self, domain: u32, reached: &mut Reached) -> Result<(u64, Option<Error>)> {
        let standing = self.standing(domain)?;
        let session = self.session(domain);
        let (mut written, mut flushed) = (0, 0);
        let mut damage = None;
        for ((object, id), base) in &standing {
            if !reached.contains(&(*object, *id)) || reached.contains(&(*object, *base)) {
                continue;
            }
            let Some(place) = self.place(domain, *object, *id)? else {
                continue;
            };
            let bytes = match self.object(domain, *object, *id) {
                Ok(bytes) => bytes,
                Err(error) => {
                    damage = damage.or(of_damage(Err(error))?);
                    let mut below = Some(base);
                    while let Some(base) = below
                        && reached.insert((*object, *base))
                    {
                        below = standing.get(&(*object, *base));
                    }
                    continue;
                }
            };
            let mut below = Some(base);
            while let Some(base) = below
                && !reached.contains(&(*object, *base))
            {
                below = standing.get(&(*object, *base));
            }
            let encoded = session.encoded(*object, *id, &bytes, below.copied(), "")?;
            // What stands on it must go on standing higher.
            if encoded.record.depth <= place.depth() {
                session.add(&encoded, true)?;
            } else {
                session.put_again(*object, *id, &bytes)?;
            }
            written = session.written();
            if written - flushed > FULL {
                session.flush()?;
                flushed = written;
            }
        }
        session.flush()?;
        Ok((written, damage))
    }

    /// What was touched since gc began, and all that it stands on now.
    fn touched(&self, domain: u32) -> Result<Reached> {
        let mut touched = Reached::new();
        let spared = self.spared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (of, object, id) in spared.unwrap_or_default() {
            let mut next = (of == domain).then_some(id);
            while let Some(id) = next
                && touched.insert((object, id))
            {
                let place = self.place(domain, object, id)?;
                next = place.and_then(|place| place.base).map(|base| base.id);
            }
        }
        Ok(touched)
    }

    /// Replaces one pack by what is needed of it; answers with how much of that was not when gc began.
    fn replace(&self, domain: u32, number: u32, reached: &Reached, sum: &mut Collected) -> Result<u64> {
        let _nobody = self.alone();
        let dir = self.packs_dir();
        let path = pack::path(&dir, number);
        let rows = self.catalog.packs()?;
        let Some((_, row)) = rows.iter().find(|(pack, _)| *pack == number) else {
            return Ok(0);
        };
        let (mut keep, mut dead) = (Vec::new(), Vec::new());
        let (mut elsewhere, mut left) = (Vec::new(), 0);
        let touched = self.touched(domain)?;
        self.catalog.objects(domain, |object, id, place| {
            let needed = reached.contains(&(object, id)) || touched.contains(&(object, id));
            match (needed, place.pack == number) {
                (true, true) => {
                    left += u64::from(!reached.contains(&(object, id)));
                    keep.push((object, id, place));
                }
                (false, true) => dead.push((object, id)),
                (false, false) => elsewhere.extend(place.base.map(|base| (object, id, base))),
                (true, false) => {}
            }
            Ok(())
        })?;
        // What nobody needs of other packs, and stands on what goes, could not be read again if somebody did.
        elsewhere.sort_by_key(|(.., base)| base.depth);
        let mut going: Reached = dead.iter().copied().collect();
        for (object, id, base) in elsewhere {
            if going.contains(&(object, base.id)) {
                going.insert((object, id));
                dead.push((object, id));
            }
        }
        keep.sort_by_key(|(.., place)| place.at);
        let mut batch = self.catalog.batch();
        let mut kept = 0;
        if !keep.is_empty() {
            let (_, header) = pack::open(&dir, number)?;
            if header.domain != domain {
                return Err(damaged(path.display(), "it is of another domain"));
            }
            let mut writer = self.begin_pack(domain, row.class)?;
            let mut copied = keep.iter().try_for_each(|(object, id, place)| {
                // Checked as it is read: what is damaged is not carried on under a name that it has not.
                let written = self.as_written(domain, *object, *id, *place)?;
                let at = writer.append(&written.record, &written.bytes)?;
                let moved = Place::of(&written.record, written.base, writer.header.pack, at);
                batch.place(domain, *object, *id, &moved);
                Ok(())
            });
            if copied.is_ok() {
                copied = writer.sync();
            }
            if let Err(error) = copied {
                writer.abandon();
                return Err(error);
            }
            kept = writer.length;
            sum.copied += kept;
            let length = u32::try_from(writer.length).map_err(|_| damaged("a new pack", "it is too long"))?;
            batch.pack(writer.header.pack, &PackRow { length, ..*row });
            self.counted(&mut batch);
        }
        fault::point("gc-copied");
        for (object, id) in dead {
            batch.forget_object(domain, object, id);
        }
        batch.forget_pack(number);
        self.catalog.write(batch)?;
        fault::point("gc-switched");
        self.dropped(number);
        sys::remove(&path)?;
        sys::sync_dir(&dir)?;
        fault::point("gc-removed");
        sum.freed += u64::from(row.length).saturating_sub(kept);
        sum.packs += 1;
        Ok(left)
    }
}
