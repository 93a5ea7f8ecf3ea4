//! What a store holds, what it takes, and how it is stored.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use delta::Encoding;

use crate::{
    base::steps,
    catalog::{Place, Spent},
    content::Pieces,
    error::{Error, Result},
    format::Entry,
    history::Known,
    id::Id,
    pack::Object,
    reach::Reached,
    store::Store,
};

/// How much a store holds.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Packs.
    pub packs: u64,
    /// Bytes in packs.
    pub bytes: u64,
    /// Objects of all kinds.
    pub objects: u64,
    /// Chunks of content.
    pub chunks: u64,
    /// Bytes of different content.
    pub content: u64,
    /// Bytes that it takes.
    pub stored: u64,
    /// The chunks, by how they are stored.
    pub forms: Vec<Form>,
}

/// Chunks that are stored alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// How: `raw`, `zstd`, `prefix`...
    pub encoding: String,
    /// How many.
    pub chunks: u64,
    /// Their content, in bytes.
    pub content: u64,
    /// What it takes.
    pub stored: u64,
    /// How many others have to be read before one of them, all added up.
    pub steps: u64,
    /// How long processors worked for what was stored so, with all that was tried; also where it has given way to another form since.
    pub spent: Duration,
}

/// How an encoding is called.
fn name(encoding: Encoding) -> String {
    format!("{encoding:?}").to_ascii_lowercase()
}

#[derive(Default)]
struct Forms(BTreeMap<u8, Form>);

impl Forms {
    fn of(&mut self, encoding: Encoding) -> &mut Form {
        self.0.entry(encoding as u8).or_insert_with(|| Form {
            encoding: name(encoding),
            chunks: 0,
            content: 0,
            stored: 0,
            steps: 0,
            spent: Duration::ZERO,
        })
    }

    fn spent(&mut self, spent: &Spent) {
        for (number, spent) in (0..).zip(spent) {
            if *spent > 0
                && let Ok(encoding) = Encoding::try_from(number)
            {
                self.of(encoding).spent += Duration::from_nanos(*spent);
            }
        }
    }

    fn add(&mut self, place: &Place) {
        let form = self.of(place.encoding);
        form.chunks += 1;
        form.content += u64::from(place.length);
        form.stored += u64::from(place.stored);
        form.steps += u64::from(steps(place.depth()));
    }

    fn all(self) -> Vec<Form> {
        self.0.into_values().collect()
    }
}

/// A part of a file's content, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where it begins in the file.
    pub at: u64,
    /// How long it is.
    pub length: u64,
    /// Its chunk; none of a hole.
    pub chunk: Option<Stored>,
}

/// How a chunk is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub id: Id,
    /// How: `raw`, `zstd`, `prefix`...
    pub encoding: String,
    /// What it takes, in bytes.
    pub bytes: u64,
    /// The chunk that it stands on.
    pub base: Option<Id>,
    /// How many others have to be read before it.
    pub steps: u8,
}

impl Store {
    /// How an entry's content is stored, from the part on in which `from` lies; nothing of one that is so short that it
    /// stands in its entry.
    ///
    /// # Errors
    /// A missing chunk, a damaged list, and what `each` says.
    pub fn parts(
        &self,
        domain: u32,
        entry: &Entry,
        from: u64,
        mut each: impl FnMut(Part) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let Some(mut pieces) = Pieces::new(self, domain, entry)? else {
            return Ok(());
        };
        while let Some((at, piece)) = pieces.next_piece()? {
            if at.saturating_add(piece.length) <= from {
                continue;
            }
            let stored = |id: Id| {
                let place = self
                    .place(domain, Object::Chunk, id)?
                    .ok_or_else(|| Error::Missing(format!("Chunk {id}")))?;
                Ok(Stored {
                    id,
                    encoding: name(place.encoding),
                    bytes: place.stored.into(),
                    base: place.base.map(|base| base.id),
                    steps: steps(place.depth()),
                })
            };
            let chunk = Id::from_slice(&piece.chunk).map(stored).transpose()?;
            let part = Part {
                at,
                length: piece.length,
                chunk,
            };
            if each(part)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// How many objects and bytes the store has, and in how many packs.
    ///
    /// # Errors
    /// A failing disk.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        let mut forms = Forms::default();
        for (_, row) in self.catalog.packs()? {
            usage.packs += 1;
            usage.bytes += u64::from(row.length);
        }
        for (_, domain) in self.catalog.domains()? {
            self.catalog.objects(domain, |object, _, place| {
                usage.objects += 1;
                if object == Object::Chunk {
                    usage.chunks += 1;
                    usage.content += u64::from(place.length);
                    usage.stored += u64::from(place.stored);
                    forms.add(&place);
                }
                Ok(())
            })?;
        }
        for state in self.states()? {
            forms.spent(&self.catalog.spent(state.number)?);
        }
        usage.forms = forms.all();
        Ok(usage)
    }

    /// How the chunks are stored that the versions of a state need; what they stand on besides is not counted.
    ///
    /// # Errors
    /// A failing disk, a damaged tree.
    pub fn forms(&self, state: &Known) -> Result<Vec<Form>> {
        let mut reached = Reached::new();
        for (id, commit) in self.live_commits(state.domain)? {
            if commit.state == state.name {
                self.reach(state.domain, id, &commit, &mut reached)?;
            }
        }
        let mut forms = Forms::default();
        for (object, id) in reached {
            if object == Object::Chunk
                && let Some(place) = self.place(state.domain, object, id)?
            {
                forms.add(&place);
            }
        }
        forms.spent(&self.catalog.spent(state.number)?);
        Ok(forms.all())
    }
}
