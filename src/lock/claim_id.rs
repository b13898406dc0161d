//! The short id of a claim, and the epoch of its process, as messages and values in the store have them.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The short id of a claim, which messages use. Unique among all claims of all instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClaimId {
    /// The epoch of the process that made the claim.
    pub epoch: Epoch,
    /// The claim's number in that process.
    pub number: u64,
}

/// A random number that distinguishes a process from every other, even from one with the same
/// instance name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

/// A text that no instance of Seriatim wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not written by an instance of Seriatim")]
pub struct ForeignText;

/// The text of a [`ClaimId`], which needs no allocation.
pub(super) struct ClaimIdText {
    bytes: [u8; MOST_DIGITS * 2 + 1],
    length: usize,
}

/// How many hex digits a number of 64 bits has at most.
const MOST_DIGITS: usize = 16;

// === impl ClaimId ===

impl ClaimId {
    /// The id's text. By hand, because every turn needs it: formatting takes several times as long.
    pub(super) fn text(self) -> ClaimIdText {
        let digits = (u64::BITS - self.number.leading_zeros()).div_ceil(4).max(1) as usize;
        let mut text = ClaimIdText {
            bytes: [b'-'; MOST_DIGITS * 2 + 1],
            length: MOST_DIGITS + 1 + digits,
        };
        let (epoch, number) = text.bytes[..MOST_DIGITS + 1 + digits].split_at_mut(MOST_DIGITS);
        put_hex(self.epoch.0, epoch);
        put_hex(self.number, &mut number[1..]);
        text
    }
}

/// Writes the last digits of a number, as many as there is room for.
fn put_hex(mut number: u64, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 0xf) as usize];
        number >>= 4;
    }
}

// === impl ClaimIdText ===

impl ClaimIdText {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The claim's number in hex digits.
    pub(super) fn number(&self) -> &str {
        str::from_utf8(&self.as_bytes()[MOST_DIGITS + 1..]).unwrap_or_default()
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.epoch, self.number)
    }
}

impl FromStr for ClaimId {
    type Err = ForeignText;

    fn from_str(text: &str) -> Result<Self, ForeignText> {
        let (epoch, number) = text.split_once('-').ok_or(ForeignText)?;
        let number = u64::from_str_radix(number, 16).map_err(|_| ForeignText)?;
        Ok(Self {
            epoch: epoch.parse()?,
            number,
        })
    }
}

// === impl Epoch ===

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Epoch {
    type Err = ForeignText;

    fn from_str(text: &str) -> Result<Self, ForeignText> {
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| ForeignText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_an_id_is_the_same_by_hand() {
        for epoch in [0, 0xabc, u64::MAX] {
            for number in [0, 1, 0xf, 0x10, 0xdead_beef, 1 << 60, u64::MAX] {
                let epoch = Epoch(epoch);
                let id = ClaimId { epoch, number };
                assert_eq!(id.text().as_bytes(), id.to_string().as_bytes(), "{id:?}");
                assert_eq!(id.text().number(), format!("{number:x}"), "{id:?}");
            }
        }
    }
}
