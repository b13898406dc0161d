//! How a claim stands: called to the front of the line, sent away, holding until a deadline, lost.
//!
//! It exists before the first command is sent, so that whatever is said about a claim finds it: also
//! an interruption that arrives between a grant and its start. Whoever serves the turn looks at it
//! before each step; whoever tells it something wakes that task.

use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::margin;
use crate::deadline::Deadline;
use crate::outcome::LockLoss;

/// How one claim stands.
#[derive(Debug)]
pub(super) struct ClaimState {
    /// When its lock may be somebody else's: at its lease's end, or its instance's if that is
    /// earlier.
    lease: Deadline,
    /// When its holder has to stop, if that isn't the same: one that may go on without its lock
    /// stops when it is to make way, and only then.
    stop: Option<Deadline>,
    flags: AtomicU8,
    waker: AtomicWaker,
}

/// How long the connection of an interrupted turn may still take: its lock is held until it is over,
/// so that nothing is lost by what is on its way, such as the head of an answer, or the 409.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// It may be its turn: it has to ask.
const CALLED: u8 = 1;
/// A newer turn has replaced it in the line.
const SUPERSEDED: u8 = 2;
/// It is to make way.
const INTERRUPTED: u8 = 4;
/// The store says that the lock isn't the claim's.
const TAKEN: u8 = 8;
/// The turn is over, and its lock only held on to.
const SETTLING: u8 = 16;
/// An operator has taken the lock away.
const FORCED: u8 = 32;

// === impl Standing ===

impl ClaimState {
    /// Of a new claim, whose instance counts as alive until `pulse`.
    pub(super) fn new(pulse: Option<&Deadline>, stop_when_lost: bool) -> Self {
        Self {
            lease: Deadline::within(pulse),
            stop: (!stop_when_lost).then(|| Deadline::within(None)),
            flags: AtomicU8::new(0),
            waker: AtomicWaker::new(),
        }
    }

    /// The moment after which its holder may move nothing.
    pub(super) fn deadline(&self) -> &Deadline {
        self.stop.as_ref().unwrap_or(&self.lease)
    }

    /// The moment after which its lock may be somebody else's.
    pub(super) fn lease(&self) -> &Deadline {
        &self.lease
    }

    /// Whether its holder stops when its lock is lost.
    pub(super) fn stops_when_lost(&self) -> bool {
        self.stop.is_none()
    }

    /// Counts the lease from `sent` on: a command sent then has succeeded. What was taken away, or is
    /// to make way, stays past its deadline all the same.
    pub(super) fn extend(&self, sent: Instant, lease: Duration) {
        // The store counts from later than that.
        self.lease
            .move_to(sent + lease.saturating_sub(margin(lease)));
        // Whoever says so after this moves the deadline after this, too: it is a write that both share.
        let flags = self.flags.fetch_or(0, Ordering::AcqRel);
        let makes_way = flags & (INTERRUPTED | SETTLING) == INTERRUPTED && self.stops_when_lost();
        if flags & TAKEN != 0 || makes_way {
            self.lease.move_to(Instant::now());
        }
    }

    /// It may be its turn.
    pub(super) fn call(&self) {
        self.set(CALLED);
    }

    /// A newer turn has replaced it.
    pub(super) fn supersede(&self) {
        self.set(SUPERSEDED);
    }

    /// The store says that the lock is no longer the holder's.
    pub(super) fn lose(&self) {
        self.flags.fetch_or(TAKEN, Ordering::AcqRel);
        self.lease.move_to(Instant::now());
        self.waker.wake();
    }

    /// An operator has taken the lock away.
    pub(super) fn lose_by_force(&self) {
        self.flags.fetch_or(FORCED, Ordering::AcqRel);
        self.lose();
    }

    /// It is to make way.
    pub(super) fn interrupt(&self) {
        let flags = self.flags.fetch_or(INTERRUPTED, Ordering::AcqRel);
        if flags & (SETTLING | INTERRUPTED) != 0 {
            return;
        }
        // Not only the task is told: its client may be taking nothing, and it be asked for nothing.
        self.deadline().move_to(Instant::now() + LAST_WORDS);
        // Last, because a waker wakes once: whoever is woken must find all of this.
        self.waker.wake();
    }

    /// The turn is over: from now on it can't be interrupted any more.
    pub(super) fn settle(&self) {
        self.set(SETTLING);
    }

    /// Whether it was called since this was asked last.
    pub(super) fn take_call(&self) -> bool {
        self.flags.fetch_and(!CALLED, Ordering::AcqRel) & CALLED != 0
    }

    pub(super) fn is_superseded(&self) -> bool {
        self.has(SUPERSEDED)
    }

    /// Whether the store says so, or the instance was taken for dead.
    pub(super) fn is_lost(&self) -> bool {
        self.has(TAKEN)
    }

    /// Whether an operator has taken its lock away.
    pub(super) fn is_forced(&self) -> bool {
        self.has(FORCED)
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.has(INTERRUPTED) && !self.has(SETTLING)
    }

    /// Why a holder has to stop at `now`.
    pub(super) fn loss(&self, now: Instant) -> Option<LockLoss> {
        if self.is_interrupted() {
            Some(LockLoss::Interrupted)
        } else if self.has(TAKEN) {
            Some(LockLoss::Taken)
        } else {
            self.lease.passed(now).then_some(LockLoss::Expired)
        }
    }

    /// Has this task woken when something is said of the claim.
    pub(super) fn wake(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    fn set(&self, flag: u8) {
        self.flags.fetch_or(flag, Ordering::AcqRel);
        self.waker.wake();
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Acquire) & flag != 0
    }
}
