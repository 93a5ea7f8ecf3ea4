//! What the kernel says of a container's names.

use keeper::watcher::{Handle, index::Index, record::events as read};

/// Events are refused whole or read; what they name is below the directory that was known.
pub fn events(data: &[u8]) {
    const STATE: u64 = 1;
    let Some(events) = read(data) else {
        return;
    };
    let mut index = Index::default();
    index.begin(STATE);
    let known = events.first().and_then(|event| event.dir.clone());
    let known = known.unwrap_or_else(|| Handle::new(1, b"handle"));
    index.learned(STATE, vec![(known, b"rootfs".to_vec())], &mut |_, _| {
        Ok(Vec::new())
    });
    for event in events {
        index.apply(event, &mut |state, key| {
            assert_eq!(state, STATE);
            assert!(key.starts_with(b"rootfs\0"));
            Ok(Vec::new())
        });
    }
    if let Some(hints) = index.take(STATE) {
        assert!(
            hints
                .0
                .keys()
                .all(|key| key.starts_with(b"rootfs") && hints.covers(key))
        );
    }
}
