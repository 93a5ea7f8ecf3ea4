//! Chunks that were written against others.

use ::delta::{Dictionary, Encoding, decode, encode_as};

/// With whatever base: a chunk is refused or of the length that was recorded, and what is encoded comes back.
/// The input is the encoding, the length and the base's length in two bytes each, the base, the chunk as it was written.
pub fn deltas(data: &[u8]) {
    let Some(([number, a, b, c, d], rest)) = data.split_first_chunk() else {
        return;
    };
    let Ok(encoding) = Encoding::try_from(*number) else {
        return;
    };
    let length = usize::from(u16::from_le_bytes([*a, *b]));
    let base = usize::from(u16::from_le_bytes([*c, *d]));
    let (base, written) = rest.split_at(base.min(rest.len()));
    let read = decode(encoding, written, Some(base), length);
    if let Ok(bytes) = &read {
        assert_eq!(bytes.len(), length);
    }
    if encoding == Encoding::Dictionary {
        let shared = Dictionary::new(base.to_vec()).decode(written, length);
        assert_eq!(shared.ok(), read.ok());
    }
    assert!(!encoding.needs_base() || decode(encoding, written, None, length).is_err());
    // That one takes milliseconds, and is somebody else's.
    if encoding == Encoding::Bsdiff && written.len() % 16 != 0 {
        return;
    }
    let mut to = Vec::new();
    encode_as(encoding, 1, written, Some(base), &mut to).unwrap();
    assert_eq!(decode(encoding, &to, Some(base), written.len()).unwrap(), written);
}
