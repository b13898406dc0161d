//! Maps by numbers that this process counts up itself.
//!
//! Invariant: nobody outside the process chooses a number that is inserted. So the hash needs no key, and costs a
//! tenth of the standard library's.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::ClaimId;

/// A map by numbers that nobody outside the process chooses.
pub(super) type NumberMap<T> = HashMap<u64, T, BuildHasherDefault<NumberHasher>>;

/// A map by claim ids. The epoch and the number in an id both come from this process.
pub(super) type ClaimMap<T> = HashMap<ClaimId, T, BuildHasherDefault<NumberHasher>>;

/// Spreads consecutive numbers, or every sixteenth, over the whole hash.
#[derive(Debug, Default)]
pub(super) struct NumberHasher(u64);

/// 2^64 divided by the golden ratio, as in Knuth's multiplicative hash.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for NumberHasher {
    fn write_u64(&mut self, number: u64) {
        // Rotated, because the map takes its place from the low bits, which are the weakest of a product.
        self.0 = (self.0 ^ number).wrapping_mul(GOLDEN).rotate_left(32);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::{BuildHasher, BuildHasherDefault};

    use super::*;

    #[test]
    fn numbers_of_one_shard_are_spread_over_the_places_of_a_map() {
        let hasher = BuildHasherDefault::<NumberHasher>::default();
        for step in [1_u64, 16] {
            let places: HashSet<_> = (0..256)
                .map(|number| hasher.hash_one(number * step) % 256)
                .collect();
            // Random ones would have 162.
            assert!(places.len() > 150, "{} places, step {step}", places.len());
        }
    }
}
