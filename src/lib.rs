//! x
#![allow(missing_docs)]
pub mod deadline;
pub mod drain;
pub mod key;
pub mod listen;
pub mod lock;
pub mod wire;
