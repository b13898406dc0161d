//! The state of one claim: asked to try again, superseded, holding until a deadline, lost.
//!
//! Invariant: the state exists before the first command about the claim is sent, so every message
//! about the claim finds it, even an interruption between the grant and the start of the turn. The
//! task that serves the turn checks the state before each step; whoever changes the state wakes it.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use crate::deadline::{AtomicInstant, ByteClock, Deadline, margin};
use crate::outcome::LockLoss;

/// The state of one claim, shared by its turn and by whoever receives messages about it.
#[derive(Debug)]
pub(super) struct ClaimState {
    /// When the lock may belong to another turn: at the end of the lease, or when the instance may
    /// count as dead, whichever is earlier.
    lease_end: Deadline,
    /// When a turn stops that goes on without its lock: only when it is interrupted. `None`: the turn
    /// stops at the end of the lease.
    interrupt_deadline: Option<Deadline>,
    flags: AtomicU16,
    waker: AtomicWaker,
    /// When the command was sent that got the lock; not set before that.
    held_since: AtomicInstant,
    /// Knows when a byte of the turn last moved; not set before the turn begins.
    bytes: OnceLock<Arc<dyn ByteClock>>,
    /// The state of the claim whose deadline the turn follows, if it isn't this one; not set otherwise.
    leading: OnceLock<Arc<ClaimState>>,
}

/// How long an interrupted turn may still send. The turn keeps the lock until its connections are
/// closed, so the head of a response, or the 409, that is on its way arrives. Two periods of a CPU quota
/// (cgroups: 100 ms each), in which a container may not run at all.
pub const INTERRUPT_GRACE: Duration = Duration::from_millis(200);

/// The lock may be free or offered to the claim: the turn has to ask again.
const RETRY: u16 = 1;
/// A newer turn has replaced the claim in the queue.
const SUPERSEDED: u16 = 2;
/// The turn has to stop.
const INTERRUPTED: u16 = 4;
/// The store says that the claim doesn't hold the lock.
const TAKEN: u16 = 8;
/// The turn is over, and keeps its lock only until it is released, after `lock.settle`.
const SETTLING: u16 = 16;
/// An operator has taken the lock away.
const FORCE_RELEASED: u16 = 32;
/// The turn hasn't begun: it needs this replica's own lock, too.
const NEEDS_LOCAL: u16 = 64;
/// Another process has taken the name of the claim's instance.
const NAME_TAKEN: u16 = 128;
/// An operator has taken the claim out of the queue.
const DEQUEUED: u16 = 256;
/// The turn is only observed, so nothing stops it.
const OBSERVED: u16 = 512;
/// The turn stops because a client asked for that.
const STOPPED: u16 = 1024;

// === impl ClaimState ===

impl ClaimState {
    /// The state of a new claim. `instance_deadline` is when its instance may count as dead; `None`:
    /// never.
    pub(super) fn new(instance_deadline: Option<&Deadline>, stop_when_lost: bool) -> Self {
        Self {
            lease_end: Deadline::within(instance_deadline),
            interrupt_deadline: (!stop_when_lost).then(|| Deadline::within(None)),
            flags: AtomicU16::new(0),
            waker: AtomicWaker::new(),
            held_since: AtomicInstant::unset(),
            bytes: OnceLock::new(),
            leading: OnceLock::new(),
        }
    }

    /// Notes whether the turn begins only when it has this replica's own lock, too.
    #[must_use]
    pub(super) fn with_local_lock(mut self, is_needed: bool) -> Self {
        *self.flags.get_mut() |= if is_needed { NEEDS_LOCAL } else { 0 };
        self
    }

    /// Notes whether the turn is only observed.
    #[must_use]
    pub(super) fn observed(mut self, is_observed: bool) -> Self {
        *self.flags.get_mut() |= if is_observed { OBSERVED } else { 0 };
        self
    }

    /// The moment after which the turn may send nothing.
    pub(super) fn deadline(&self) -> &Deadline {
        self.interrupt_deadline.as_ref().unwrap_or(&self.lease_end)
    }

    /// The moment after which the lock may belong to another turn.
    pub(super) fn lease_end(&self) -> &Deadline {
        &self.lease_end
    }

    /// Whether the turn stops when it loses its lock.
    pub(super) fn stops_when_lost(&self) -> bool {
        self.interrupt_deadline.is_none()
    }

    /// Starts a new lease, because a command that was sent at `sent` has succeeded. A claim that
    /// was taken or interrupted gets no new lease.
    pub(super) fn extend(&self, sent: Instant, lease: Duration) {
        self.held_since.store_first(sent);
        if self.has(TAKEN) || self.ends_early() {
            return;
        }
        // The store counts the lease from a later moment.
        self.lease_end
            .move_to(sent + lease.saturating_sub(margin(lease)));
        // A write, so that it is ordered with the writes of `lose` and `interrupt`: whichever comes after
        // it moves the deadline after it, too.
        self.flags.fetch_or(0, Ordering::AcqRel);
        if self.has(TAKEN) {
            self.lease_end.move_to(Instant::now());
        } else if self.ends_early() {
            self.lease_end
                .bring_forward(Instant::now() + INTERRUPT_GRACE);
        }
    }

    /// When the lock was acquired; `None`: not yet.
    pub(super) fn held_since(&self) -> Option<Instant> {
        self.held_since.load()
    }

    /// Notes who knows when a byte of the turn last moved.
    pub(super) fn follow(&self, bytes: Arc<dyn ByteClock>) {
        // The first one stays: a claim has one turn.
        let _ = self.bytes.set(bytes);
    }

    /// When a byte of the turn last moved; `None`: not known.
    pub(super) fn last_byte_at(&self) -> Option<Instant> {
        self.bytes.get()?.last_byte_at()
    }

    /// Whether an interruption has ended the lease: that of a turn that goes on without its lock stays.
    fn ends_early(&self) -> bool {
        self.is_interrupted() && self.stops_when_lost()
    }

    /// Makes the waiting turn ask the store again.
    pub(super) fn request_retry(&self) {
        self.set(RETRY);
    }

    /// Notes that a newer turn has replaced the claim in the queue.
    pub(super) fn supersede(&self) {
        self.set(SUPERSEDED);
    }

    /// Notes that an operator has taken the claim out of the queue.
    pub(super) fn dequeue(&self) {
        self.set(DEQUEUED);
    }

    /// Notes that the store no longer has the lock for this claim.
    pub(super) fn lose(&self) {
        self.flags.fetch_or(TAKEN, Ordering::AcqRel);
        self.lease_end.move_to(Instant::now());
        self.waker.wake();
    }

    /// Notes that the lock is lost because another process has taken the instance's name.
    pub(super) fn lose_name(&self) {
        self.flags.fetch_or(NAME_TAKEN, Ordering::AcqRel);
        self.lose();
    }

    /// Notes that an operator has taken the lock away.
    pub(super) fn force_release(&self) {
        self.flags.fetch_or(FORCE_RELEASED, Ordering::AcqRel);
        self.lose();
    }

    /// Notes that the turn follows the deadline of its claim `leading`, so that an interruption of this claim
    /// has to reach that one.
    pub(super) fn follow_claim(&self, leading: &Arc<Self>) {
        let leading = self.leading.get_or_init(|| Arc::clone(leading));
        if self.is_interrupted() {
            leading.interrupt();
        }
    }

    /// Makes the turn stop, unless it is already over.
    pub(super) fn interrupt(&self) {
        let flags = self.flags.fetch_or(INTERRUPTED, Ordering::AcqRel);
        // Also when this claim is interrupted again: the turn may have begun to follow the other one since.
        if let Some(leading) = self.leading.get() {
            leading.interrupt();
        }
        if flags & (SETTLING | INTERRUPTED) != 0 {
            return;
        }
        // The deadline stops the turn even if nobody polls its task, because the client reads nothing.
        self.deadline()
            .bring_forward(Instant::now() + INTERRUPT_GRACE);
        // Last: the waker wakes once, and the task must find all of this.
        self.waker.wake();
    }

    /// Makes the turn stop, unless it is over or only observed. Gives whether it stops because of this call, or of an
    /// earlier one.
    pub(super) fn stop(&self) -> bool {
        let stopped = self
            .flags
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |flags| {
                let goes_on = flags & (OBSERVED | SETTLING | TAKEN) != 0;
                (flags & STOPPED != 0 || !goes_on).then_some(flags | STOPPED)
            });
        if stopped.is_ok() {
            self.interrupt();
        }
        stopped.is_ok()
    }

    /// Notes that the turn is over, so that it can no longer be interrupted.
    pub(super) fn start_settling(&self) {
        // Wakes nobody: whoever serves the turn knows that it is over.
        self.flags.fetch_or(SETTLING, Ordering::AcqRel);
    }

    /// Whether the turn is over.
    pub(super) fn is_settling(&self) -> bool {
        self.has(SETTLING)
    }

    /// Notes that the turn has this replica's own lock, and begins.
    pub(super) fn begin(&self) {
        self.flags.fetch_and(!NEEDS_LOCAL, Ordering::AcqRel);
    }

    /// Whether the turn still needs this replica's own lock, so that it hasn't begun, even if the store has
    /// granted its lock.
    pub(super) fn waits_locally(&self) -> bool {
        self.has(NEEDS_LOCAL)
    }

    /// Whether a retry was requested since the last call.
    pub(super) fn take_retry(&self) -> bool {
        self.flags.fetch_and(!RETRY, Ordering::AcqRel) & RETRY != 0
    }

    /// Whether a newer turn has replaced the claim in the queue.
    pub(super) fn is_superseded(&self) -> bool {
        self.has(SUPERSEDED)
    }

    /// Whether an operator has taken the claim out of the queue.
    pub(super) fn is_dequeued(&self) -> bool {
        self.has(DEQUEUED)
    }

    /// Whether the store no longer has the lock for this claim, or the instance counted as dead.
    pub(super) fn is_lost(&self) -> bool {
        self.has(TAKEN)
    }

    /// Whether another process has taken the name of the claim's instance.
    pub(super) fn is_name_taken(&self) -> bool {
        self.has(NAME_TAKEN)
    }

    /// Whether an operator has taken the lock away.
    pub(super) fn is_force_released(&self) -> bool {
        self.has(FORCE_RELEASED)
    }

    /// Whether the turn has to stop for a newer turn or an operator.
    pub(super) fn is_interrupted(&self) -> bool {
        self.has(INTERRUPTED) && !self.has(SETTLING)
    }

    /// How the claim lost its lock; `None` if it still holds the lock at `now`.
    pub(super) fn loss(&self, now: Instant) -> Option<LockLoss> {
        let flags = self.flags.load(Ordering::Acquire);
        if flags & (INTERRUPTED | SETTLING) == INTERRUPTED {
            return Some(LockLoss::Interrupted);
        }
        if flags & NAME_TAKEN != 0 {
            return Some(LockLoss::NameTaken);
        }
        if flags & TAKEN != 0 {
            return Some(LockLoss::Taken);
        }
        if !self.lease_end.passed(now) {
            return None;
        }
        Some(match self.lease_end.ends_with_outer() {
            true => LockLoss::NoHeartbeat,
            false => LockLoss::Expired,
        })
    }

    /// Wakes this task at the next change of the state. Only the last task that registered is woken.
    pub(super) fn register_waker(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    fn set(&self, flag: u16) {
        self.flags.fetch_or(flag, Ordering::AcqRel);
        self.waker.wake();
    }

    fn has(&self, flag: u16) -> bool {
        self.flags.load(Ordering::Acquire) & flag != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_the_sending_of_its_command_and_ends_a_margin_early() {
        let state = ClaimState::new(None, true);
        let (lease, begin) = (Duration::from_secs(30), Instant::now());
        for sent in [0, 10, 25].map(Duration::from_secs) {
            state.extend(begin + sent, lease);
            let end = begin + sent + lease - Duration::from_millis(310);
            assert_eq!(state.lease_end().get(), Some(end), "sent after {sent:?}");
            assert_eq!(state.deadline().get(), Some(end), "the turn stops then");
        }
    }

    #[test]
    fn an_interrupted_turn_has_its_grace_within_its_lease_and_no_extension_changes_that() {
        let begin = Instant::now();
        let state = ClaimState::new(None, true);
        state.extend(begin, Duration::from_secs(30));
        state.interrupt();
        let end = state.deadline().get().expect("a lease");
        assert!(end >= begin + INTERRUPT_GRACE, "the head may go out");
        assert!(end < begin + Duration::from_secs(29), "the turn ends soon");
        state.extend(Instant::now(), Duration::from_secs(30));
        assert_eq!(state.deadline().get(), Some(end), "extended or not");

        let state = ClaimState::new(None, true);
        state.extend(begin, Duration::from_millis(200));
        let lease_end = state.deadline().get();
        state.interrupt();
        assert_eq!(
            state.deadline().get(),
            lease_end,
            "a lease that ends sooner"
        );
    }
}
