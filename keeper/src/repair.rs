//! Repairing the store of a node.

use keeper_api::keeper::keeper as api;
use runtime_spec::config::Config;
use store::Rescue;

use crate::{error::Result, keeper::Keeper, keeper::domain_of, progress::Progress};

/// How the catalog of a node's store is made whole; none where it is.
///
/// # Errors
/// A store that is open, most likely in a keeper; a failing disk.
pub fn rescue(config: &Config) -> Result<Option<Rescue>> {
    let share = config.history.share;
    Ok(Rescue::plan(&crate::keeper::store_of(config), |state| {
        domain_of(share, state)
    })?)
}

const READING: &str = "reading what is stored";
const WALKING: &str = "walking trees";

impl Keeper {
    /// Repairs the store, or says what there is to repair.
    ///
    /// # Errors
    /// A full or failing disk, a catalog that cannot be read, a stop before anything was changed.
    pub fn repair(&self, request: &api::RepairRequest, progress: &Progress) -> Result<api::RepairResponse> {
        let mut response = api::RepairResponse::default();
        if request.discard {
            response.nothing = true;
            response.aside = self.store().discard(request.dry_run)?;
            return Ok(response);
        }
        progress.begin(READING);
        let plan = self.store().repair_watched(|done| {
            if done.commits > 0 {
                if progress.read().step == READING {
                    progress.begin(WALKING);
                }
                progress.at(done.commits, 0, 0);
            } else {
                progress.at(done.objects, done.of_objects, 0);
            }
            progress.flow()
        })?;
        response.nothing = plan.is_empty();
        response.packs = plan
            .packs
            .iter()
            .map(|(pack, problem)| format!("pack {pack:08x}: {problem}"))
            .collect();
        response.healed.clone_from(&plan.healed);
        response.rows.clone_from(&plan.rows);
        response.recovered = plan.recovered;
        response.lost = plan
            .lost
            .iter()
            .map(|lost| api::Lost {
                state: lost.state.clone(),
                first_sequence: lost.first.0,
                first: lost.first.1.to_string(),
                last_sequence: lost.last.0,
                last: lost.last.1.to_string(),
                versions: lost.versions,
                paths: lost.paths.clone(),
                ..api::Lost::default()
            })
            .collect();
        if !request.dry_run && !response.nothing {
            // It cannot be ended any more.
            progress.begin("repairing");
            plan.run()?;
        }
        response.aside = self.store().discard(true)?;
        Ok(response)
    }
}
