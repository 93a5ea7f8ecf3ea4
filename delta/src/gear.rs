//! The gear hash: one shift, one look-up and one addition for each byte, and what was shifted out is forgotten, so that
//! it rolls by itself (Xia et al., "Ddelta: A Deduplication-Inspired Fast Delta Compression Approach", 2014).

/// A random number for each byte, the same for ever: features of chunks are kept.
static TABLE: [u64; 256] = table();

const fn table() -> [u64; 256] {
    let mut numbers = [0; 256];
    let mut n = 0;
    while n < 256 {
        // splitmix64 of the byte.
        let mut x = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        numbers[n] = x ^ (x >> 31);
        n += 1;
    }
    numbers
}

/// The next byte's hash: of the last 64 bytes.
#[inline]
pub(crate) fn roll(hash: u64, byte: u8) -> u64 {
    (hash << 1).wrapping_add(TABLE[usize::from(byte)])
}
