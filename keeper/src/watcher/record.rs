//! What the kernel says when a fanotify group is read: `struct fanotify_event_metadata`, each with records of the
//! directory, the name and the file that it is about (fanotify(7), "Reading fanotify events").
//!
//! In the machine's own byte order:
//!
//! | event | bytes | record | bytes |
//! |---|---|---|---|
//! | length of it all | 4 | type | 1 |
//! | version | 1 | padding | 1 |
//! | reserved | 1 | length of it all | 2 |
//! | length of this | 2 | file system's id | 8 |
//! | what happened | 8 | length of the handle | 4 |
//! | descriptor | 4 | type of the handle | 4 |
//! | pid | 4 | handle, then a name and a zero | ... |

use libc::{FAN_EVENT_INFO_TYPE_DFID, FAN_EVENT_INFO_TYPE_DFID_NAME, FAN_EVENT_INFO_TYPE_FID};

/// By what name the kernel knows a file, whatever becomes of its path: `struct file_handle`, the type before the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(Box<[u8]>);

impl Handle {
    /// Of a handle's type and bytes.
    #[must_use]
    pub fn new(kind: i32, bytes: &[u8]) -> Handle {
        Handle([&kind.to_ne_bytes(), bytes].concat().into())
    }

    /// Its type, and its bytes.
    #[must_use]
    pub fn parts(&self) -> (i32, &[u8]) {
        match self.0.split_first_chunk() {
            Some((kind, bytes)) => (i32::from_ne_bytes(*kind), bytes),
            None => (0, &[]),
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened: libc's `FAN_` bits. Several in one that nobody had read yet, in any order.
    pub mask: u64,
    /// The directory it happened in; of a directory itself where it has no name.
    pub dir: Option<Handle>,
    /// The name there; none for the directory itself.
    pub name: Vec<u8>,
    /// What has or had that name.
    pub itself: Option<Handle>,
}

/// A part of the buffer, by place.
fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn handle(record: &[u8]) -> Option<(Handle, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(part(record, 12)?)).ok()?;
    let kind = i32::from_ne_bytes(part(record, 16)?);
    let (handle, rest) = record.get(20..)?.split_at_checked(length)?;
    Some((Handle::new(kind, handle), rest))
}

fn event(bytes: &[u8]) -> Option<(Event, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(part(bytes, 0)?)).ok()?;
    let version = *bytes.get(4)?;
    let header = usize::from(u16::from_ne_bytes(part(bytes, 6)?));
    if version != libc::FANOTIFY_METADATA_VERSION || header > length || header < 24 {
        return None;
    }
    let mut event = Event {
        mask: u64::from_ne_bytes(part(bytes, 8)?),
        dir: None,
        name: Vec::new(),
        itself: None,
    };
    let (this, rest) = bytes.split_at_checked(length)?;
    let mut records = this.get(header..)?;
    while let Some((kind, length)) = records.first().copied().zip(part(records, 2)) {
        let length = usize::from(u16::from_ne_bytes(length));
        if length < 4 {
            return None;
        }
        let (record, more) = records.split_at_checked(length)?;
        match kind {
            FAN_EVENT_INFO_TYPE_FID => event.itself = Some(handle(record)?.0),
            FAN_EVENT_INFO_TYPE_DFID => event.dir = Some(handle(record)?.0),
            FAN_EVENT_INFO_TYPE_DFID_NAME => {
                let (dir, name) = handle(record)?;
                let end = name.iter().position(|b| *b == 0)?;
                let name = name.get(..end)?;
                event.dir = Some(dir);
                if name != b"." {
                    event.name = name.to_vec();
                }
            }
            _ => {}
        }
        records = more;
    }
    Some((event, rest))
}

/// The events in what was read; none where it is not what it should be, and anything may have happened.
#[must_use]
pub fn events(mut bytes: &[u8]) -> Option<Vec<Event>> {
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let (event, rest) = event(bytes)?;
        events.push(event);
        bytes = rest;
    }
    Some(events)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(kind: u8, handle: &Handle, name: Option<&[u8]>) -> Vec<u8> {
        let (of, bytes) = handle.parts();
        let mut body = vec![7; 8];
        body.extend(u32::try_from(bytes.len()).unwrap().to_ne_bytes());
        body.extend(of.to_ne_bytes());
        body.extend(bytes);
        if let Some(name) = name {
            body.extend(name);
            body.push(0);
        }
        // The kernel pads to four bytes.
        body.resize(body.len().next_multiple_of(4), 0);
        let length = u16::try_from(body.len() + 4).unwrap();
        [&[kind, 0][..], &length.to_ne_bytes(), &body].concat()
    }

    fn write(event: &Event) -> Vec<u8> {
        let mut records = Vec::new();
        if let Some(dir) = &event.dir {
            let name = if event.name.is_empty() {
                b"."
            } else {
                event.name.as_slice()
            };
            records.extend(record(FAN_EVENT_INFO_TYPE_DFID_NAME, dir, Some(name)));
        }
        if let Some(itself) = &event.itself {
            records.extend(record(FAN_EVENT_INFO_TYPE_FID, itself, None));
        }
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(24 + records.len()).unwrap().to_ne_bytes());
        bytes.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
        bytes.extend(24u16.to_ne_bytes());
        bytes.extend(event.mask.to_ne_bytes());
        bytes.extend((-1i32).to_ne_bytes());
        bytes.extend(1i32.to_ne_bytes());
        [bytes, records].concat()
    }

    fn a_handle() -> impl Strategy<Value = Handle> {
        (any::<i32>(), proptest::collection::vec(any::<u8>(), 0..24))
            .prop_map(|(kind, bytes)| Handle::new(kind, &bytes))
    }

    fn an_event() -> impl Strategy<Value = Event> {
        let name = proptest::collection::vec(1..=255u8, 0..12).prop_filter("a name", |name| name != b".");
        let at = proptest::option::of((a_handle(), name));
        (any::<u64>(), at, proptest::option::of(a_handle())).prop_map(|(mask, at, itself)| {
            let (dir, name) = at.map_or((None, Vec::new()), |(dir, name)| (Some(dir), name));
            Event {
                mask,
                dir,
                name,
                itself,
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(told in proptest::collection::vec(an_event(), 0..8)) {
            let bytes: Vec<u8> = told.iter().flat_map(write).collect();
            prop_assert_eq!(events(&bytes), Some(told));
        }

        #[test]
        fn what_is_cut_short_is_no_event(told in an_event(), cut in any::<prop::sample::Index>()) {
            let bytes = write(&told);
            let end = cut.index(bytes.len() - 1) + 1;
            prop_assert_eq!(events(&bytes[..end]), None);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = events(&bytes);
        }
    }
}
