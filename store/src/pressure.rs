//! How much others wait for the processors: whoever opened the store tells it, and less is spent on each chunk meanwhile.

use std::sync::OnceLock;

use delta::Budget;

use crate::store::Store;

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
}
