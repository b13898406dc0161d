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

// === impl ClaimId ===

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
