//! Records of live trees: what a power cut or a person left in them.

use live::{Holder, Policy, Record};
use serde::{Serialize, de::DeserializeOwned};

/// A record is refused, or the same again when written and read once more; no other record is taken for it.
pub fn records(data: &[u8]) {
    let holder = again::<Holder>(data);
    let record = again::<Record>(data);
    if let Some(record) = &record
        && let Policy::After(seconds) = record.reclaim
    {
        // Not a number that the writing rounds.
        assert_eq!(
            again::<Policy>(format!("{{\"after\":{seconds}}}").as_bytes()),
            Some(record.reclaim)
        );
    }
    // A state's record has none of the fields that a holder cannot do without, unless somebody put both into one.
    if record.is_some() && holder.is_some() {
        let all: serde_json::Value = serde_json::from_slice(data).unwrap_or_default();
        assert!(all.is_object() && all.get("container_id").is_some() && all.get("format").is_some());
    }
}

fn again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(data: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(data).ok()?;
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&written).ok().as_ref(), Some(&value));
    Some(value)
}
