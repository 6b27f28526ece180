//! Damage for the tests of whatever is stored. Promises: every case, each differing from the whole.

/// The bytes with each one bit flipped.
pub fn flips(whole: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..whole.len() * 8).map(|bit| {
        let mut flipped = whole.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    })
}

/// The bytes cut to each shorter length.
pub fn cuts(whole: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..whole.len()).map(|length| whole[..length].to_vec())
}
