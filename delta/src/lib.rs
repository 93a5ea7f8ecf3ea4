//! Content, cut into chunks and encoded: pure functions of bytes.
//!
//! Cutting is content-defined ([`cut`]): where a boundary falls depends on the bytes before it alone, so that
//! what was inserted or removed changes the chunks around it and no others. Encoding ([`encode`]) keeps the
//! shorter of the bytes themselves and their zstd form.

mod codec;
mod cut;

pub use codec::{Encoding, Error, LEVEL, decode, encode};
pub use cut::{AVERAGE, LONGEST, SHORTEST, cut};
