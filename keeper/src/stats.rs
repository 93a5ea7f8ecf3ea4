//! What the store holds, and how it is stored.

use keeper_api::keeper::keeper as api;

use crate::{error::Result, keeper::Keeper};

impl Keeper {
    /// What the store holds, and how the chunks of a state are stored, or all where `state` is empty.
    ///
    /// # Errors
    /// A state that is not there, a damaged tree, a failing disk.
    pub fn stats(&self, state: &str) -> Result<api::StatsResponse> {
        let usage = self.store().usage()?;
        let forms = match state {
            "" => usage.forms,
            state => self.store().forms(&self.known(state)?)?,
        };
        let states = self.store().states()?;
        Ok(api::StatsResponse {
            packs: usage.packs,
            pack_bytes: usage.bytes,
            objects: usage.objects,
            chunks: usage.chunks,
            content_bytes: usage.content,
            stored_bytes: usage.stored,
            states: states.len() as u64,
            commits: states.iter().filter_map(|state| state.head).map(|(_, n)| n).sum(),
            free_bytes: self.free()?,
            metrics: self.metrics()?,
            forms: forms.into_iter().map(form).collect(),
            ..api::StatsResponse::default()
        })
    }
}

fn form(form: store::Form) -> api::Form {
    api::Form {
        encoding: form.encoding,
        chunks: form.chunks,
        content_bytes: form.content,
        stored_bytes: form.stored,
        steps: form.steps,
        spent_ns: u64::try_from(form.spent.as_nanos()).unwrap_or(u64::MAX),
        ..api::Form::default()
    }
}
