//! Files of a version, for those who ask.

use std::ops::ControlFlow;

use keeper_api::keeper::keeper as api;
use protobuf::MessageField;
use store::format::{Entry, Kind};

use crate::{
    error::{Error, Result},
    keeper::Keeper,
    service::said,
};

/// The most parts in one answer.
const MOST: usize = 4096;

/// A file of a version; of several names of one the first has everything.
pub(crate) fn file(
    keeper: &Keeper,
    version: &MessageField<api::Version>,
    path: &[u8],
) -> Result<(u32, Entry)> {
    let (state, version) = said(version);
    let (known, recorded) = keeper.version(&state, &version)?;
    let recorded = keeper.store().with_content(recorded.id)?;
    let tree = recorded.commit.tree_id()?;
    let key = keeper.key_of(known.domain, &recorded, path)?;
    let of = |key: &[u8]| {
        let found = keeper.store().entry(known.domain, tree, key)?;
        found.ok_or_else(|| Error::NotFound(format!("nothing is at {}", path.escape_ascii())))
    };
    let mut found = of(&key)?;
    if !found.link.is_empty() {
        found = of(&found.link)?;
    }
    if found.what() != Kind::File {
        return Err(Error::Refused(format!("{} is not a file", path.escape_ascii())));
    }
    Ok((known.domain, found))
}

/// How a file's content is stored.
pub(crate) fn parts(keeper: &Keeper, request: &api::PartsRequest) -> Result<api::PartsResponse> {
    let (domain, found) = file(keeper, &request.version, &request.path)?;
    let mut response = api::PartsResponse::default();
    keeper.store().parts(domain, &found, request.offset, |part| {
        if response.parts.len() >= MOST {
            response.more = true;
            return Ok(ControlFlow::Break(()));
        }
        let mut told = api::Part {
            offset: part.at,
            length: part.length,
            ..api::Part::default()
        };
        if let Some(chunk) = part.chunk {
            told.chunk = chunk.id.to_string();
            told.encoding = chunk.encoding;
            told.stored = chunk.bytes;
            told.base = chunk.base.map(|base| base.to_string()).unwrap_or_default();
            told.steps = chunk.steps.into();
        }
        response.parts.push(told);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(response)
}
