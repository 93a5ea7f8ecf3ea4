//! zstd frames: alone, with a base as their prefix, or by a dictionary. Without checksum and without content size: the hash names the
//! content, the record its length.

use std::{
    cell::Cell,
    io::{self, Cursor},
};

use zstd::zstd_safe::{CCtx, CDict, CParameter, DCtx, DDict, SafeResult, compress_bound, get_error_name};

use super::Error;

/// Beyond this much of base and content the fast levels no longer reach to where the base begins.
const FAR: usize = 512 << 10;
/// zstd's limit on machines of 64 bits.
const WIDEST: u32 = 31;

thread_local! {
    // A context costs more than a small chunk's compression.
    static WRITER: Cell<Option<CCtx<'static>>> = const { Cell::new(None) };
    static READER: Cell<Option<DCtx<'static>>> = const { Cell::new(None) };
}

/// Appends one frame of `bytes` to `to`, which may refer to `prefix` as if that stood before them.
pub(super) fn write(level: i32, bytes: &[u8], prefix: &[u8], to: &mut Vec<u8>) -> Result<(), Error> {
    let mut writer = writer()?;
    let all = bytes.len().saturating_add(prefix.len());
    let far = !prefix.is_empty() && all > FAR;
    // Zero is what the level brings along.
    let window = if far {
        usize::BITS.saturating_sub(all.leading_zeros()).min(WIDEST)
    } else {
        0
    };
    checked(writer.set_parameter(CParameter::CompressionLevel(level)))?;
    checked(writer.set_parameter(CParameter::WindowLog(window)))?;
    checked(writer.set_parameter(CParameter::EnableLongDistanceMatching(far)))?;
    // SAFETY: the reference ends with this call. zstd forgets a prefix when the frame begins that it was given for; a
    // context whose frame failed is dropped, not kept.
    let prefix = unsafe { std::mem::transmute::<&[u8], &'static [u8]>(prefix) };
    checked(writer.ref_prefix(prefix))?;
    append(&mut writer, bytes, to)?;
    WRITER.set(Some(writer));
    Ok(())
}

/// Appends one frame of `bytes` to `to`, by a dictionary and at its level.
pub(super) fn write_with(dictionary: &CDict<'static>, bytes: &[u8], to: &mut Vec<u8>) -> Result<(), Error> {
    let mut writer = writer()?;
    // What the last frame may have been given.
    checked(writer.set_parameter(CParameter::WindowLog(0)))?;
    checked(writer.set_parameter(CParameter::EnableLongDistanceMatching(false)))?;
    checked(writer.ref_cdict(dictionary))?;
    append(&mut writer, bytes, to)?;
    // Unlike a prefix it would stay.
    checked(writer.disable_dictionary())?;
    WRITER.set(Some(writer));
    Ok(())
}

fn append(writer: &mut CCtx<'_>, bytes: &[u8], to: &mut Vec<u8>) -> Result<(), Error> {
    let most = compress_bound(bytes.len());
    to.try_reserve(most).map_err(|_| Error::Memory(most))?;
    let begin = to.len() as u64;
    let mut end = Cursor::new(to);
    end.set_position(begin);
    checked(writer.compress2(&mut end, bytes)).map(drop)
}

/// Reads what [`write`] wrote: at most `length` bytes.
pub(super) fn read(written: &[u8], prefix: &[u8], length: usize) -> Result<Vec<u8>, Error> {
    let mut reader = reader()?;
    // SAFETY: as in `write`.
    let prefix = unsafe { std::mem::transmute::<&[u8], &'static [u8]>(prefix) };
    checked(reader.ref_prefix(prefix))?;
    let mut bytes = super::room(length)?;
    checked(reader.decompress(&mut bytes, written))?;
    READER.set(Some(reader));
    Ok(bytes)
}

/// Reads what [`write_with`] wrote: at most `length` bytes.
pub(super) fn read_with(
    written: &[u8],
    dictionary: &DDict<'static>,
    length: usize,
) -> Result<Vec<u8>, Error> {
    let mut reader = reader()?;
    let mut bytes = super::room(length)?;
    checked(reader.decompress_using_ddict(&mut bytes, written, dictionary))?;
    READER.set(Some(reader));
    Ok(bytes)
}

fn reader() -> Result<DCtx<'static>, Error> {
    let reader = READER.take().or_else(DCtx::try_create);
    reader.ok_or_else(|| Error::Zstd(io::ErrorKind::OutOfMemory.into()))
}

fn writer() -> Result<CCtx<'static>, Error> {
    if let Some(ready) = WRITER.take() {
        return Ok(ready);
    }
    let mut writer = CCtx::try_create().ok_or_else(|| Error::Zstd(io::ErrorKind::OutOfMemory.into()))?;
    checked(writer.set_parameter(CParameter::ChecksumFlag(false)))?;
    checked(writer.set_parameter(CParameter::ContentSizeFlag(false)))?;
    checked(writer.set_parameter(CParameter::DictIdFlag(false)))?;
    Ok(writer)
}

fn checked(result: SafeResult) -> Result<usize, Error> {
    result.map_err(|code| Error::Zstd(io::Error::other(get_error_name(code))))
}
