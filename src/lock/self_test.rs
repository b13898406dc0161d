//! The self-test: does with a lock that nobody else uses what turns do with theirs.
//!
//! A store may answer heartbeats and refuse every turn, because its user may use some keys and commands
//! and not others. The self-test finds that out before the first turn does. It runs the real commands
//! with a key that the configured template makes. Invariant: no turn can have that key, whose id is
//! random, and no key is left, whatever fails: all of them expire.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::claim_state::ClaimState;
use super::instance::Instance;
use super::{
    AcquireReply, AcquireRequest, Claim, Message, QueueOptions, StoreError, StoreFuture,
    WatchedQueue,
};
use crate::key::{KeyTemplate, SessionKey};

/// Why a self-test failed.
#[derive(Debug, Error)]
pub enum SelfTestError {
    /// The instance has no heartbeat, so no lock was tested.
    #[error(transparent)]
    NotAlive(StoreError),
    /// The store refused a command about the test lock, or did not answer it. The text is the same each time
    /// for the same cause.
    #[error("{error} (when a test lock was {step}: {key})")]
    Store {
        /// What was done with the test lock.
        step: &'static str,
        /// The test lock's key, with `*` in place of its random part.
        key: Box<str>,
        /// The store's error.
        error: StoreError,
    },
    /// The store answered, but not as if the test lock were there.
    #[error("the store lost a test lock (when it was {step}: {key})")]
    Lost {
        /// What was done with the test lock.
        step: &'static str,
        /// The test lock's key, with `*` in place of its random part.
        key: Box<str>,
    },
}

/// The beginning of the session's id in the key of a test lock.
const NAME: &str = "seriatim-self-test";

/// The user's id in the key of a test lock. Requests without a user's id have it, so a Redis user who may
/// use the keys of one user only may use this one.
const USER: &str = "unknown";

/// The lease of a test lock: long enough for all commands of a slow store.
const LEASE: Duration = Duration::from_secs(10);

/// A lock that only this self-test uses.
struct TestLock<'i> {
    instance: &'i Instance,
    key: SessionKey,
    /// The key as errors name it, with `*` in place of its random part.
    shown_key: SessionKey,
    /// Takes the lock first.
    holder: Arc<Claim>,
    /// Waits for the lock, and gets it.
    waiter: Arc<Claim>,
}

// === impl Instance ===

impl Instance {
    /// Takes a test lock whose key is made by `template`, extends it, hands it over and releases it. `keeps_answers`: also
    /// tests whether answers can be kept.
    ///
    /// Cancel-safe: what is left in the store then expires.
    ///
    /// # Errors
    /// When the instance has no heartbeat, or a step fails. The error names the step and the key.
    pub async fn self_test(
        &self,
        template: &KeyTemplate,
        keeps_answers: bool,
    ) -> Result<(), SelfTestError> {
        // Keyed by the system's random numbers, so nobody can guess it.
        let random = RandomState::new().build_hasher().finish();
        let key = template.fill(USER, &format!("{NAME}-{random:016x}"));
        let claim = || {
            // Without a route, it isn't listed for operators.
            let claim = self.issuer.issue(key.clone(), "", NAME, LEASE);
            // A message about the claim finds it, as if it had a turn.
            let state = Arc::new(ClaimState::new(None, true));
            let registration = self.registry.register(claim.id, &claim.key, &state);
            (Arc::new(claim), registration)
        };
        let ((holder, _held), (waiter, _waiting)) = (claim(), claim());
        let test = TestLock {
            instance: self,
            key: key.clone(),
            shown_key: template.fill(USER, &format!("{NAME}-*")),
            holder,
            waiter,
        };
        test.check_access(keeps_answers).await?;
        let result = test.run().await;
        if result.is_err() {
            for claim in [&test.waiter, &test.holder] {
                // What can't be removed expires.
                let _ = self.store.withdraw(claim).await;
            }
        }
        result
    }
}

// === impl TestLock ===

impl TestLock<'_> {
    /// What precedes the first command that leaves something in the store.
    async fn check_access(&self, keeps_answers: bool) -> Result<(), SelfTestError> {
        // First: without one of these rights there may be no heartbeat.
        let checked = self.instance.store.check_access(&self.key);
        self.step("looked for", checked, |()| true).await?;
        if keeps_answers {
            let checked = self.instance.store.check_answer_access(&self.key);
            self.step("looked for", checked, |()| true).await?;
        }
        let alive = self.instance.wait_until_alive().await;
        alive.map_err(SelfTestError::NotAlive)
    }

    async fn run(&self) -> Result<(), SelfTestError> {
        let (store, holder, waiter) = (&self.instance.store, &self.holder, &self.waiter);
        let mut request = AcquireRequest::default();
        let granted = |reply: &AcquireReply| matches!(reply, AcquireReply::Granted(_));
        self.step("taken", store.acquire(holder, &request), granted)
            .await?;
        let extended = store.extend(std::slice::from_ref(holder));
        self.step("extended", extended, |kept| **kept == [Some(true)])
            .await?;
        let mut queue = QueueOptions {
            ticket: None,
            max_waiters: 1,
            interrupts: false,
        };
        request.queue = Some(queue);
        let waits = |reply: &AcquireReply| matches!(reply, AcquireReply::Waiting(..));
        let asked = store.acquire(waiter, &request);
        if let AcquireReply::Waiting(ticket, _) = self.step("waited for", asked, waits).await? {
            queue.ticket = Some(ticket);
        }
        let watched = WatchedQueue {
            key: self.key.clone(),
            take_over: None,
            waiters: vec![waiter.id],
            wants_places: false,
        };
        let name = self.instance.name();
        let watched = store.watch(name, &[watched]);
        self.step(
            "waited for",
            watched,
            |states| matches!(&**states, [Some(state)] if state.missing.is_empty() && state.holder.is_some()),
        )
        .await?;
        let sent = store.send_message(name, Message::Granted(waiter.id));
        self.step("offered on the instance's channel", sent, |_| true)
            .await?;
        self.step("handed over", store.release(holder), |freed| *freed)
            .await?;
        request.queue = Some(queue);
        self.step("taken over", store.acquire(waiter, &request), granted)
            .await?;
        self.step("released", store.release(waiter), |freed| *freed)
            .await?;
        let alive = store.liveness(name);
        self.step("asked about", alive, |_| true).await?;
        Ok(())
    }

    async fn step<T>(
        &self,
        step: &'static str,
        reply: StoreFuture<T>,
        is_expected: impl Fn(&T) -> bool,
    ) -> Result<T, SelfTestError> {
        let key = || self.shown_key.as_str().into();
        match reply.await {
            Ok(reply) if is_expected(&reply) => Ok(reply),
            Ok(_) => Err(SelfTestError::Lost { step, key: key() }),
            Err(error) => Err(SelfTestError::Store {
                step,
                key: key(),
                error: self.without_random_part(error),
            }),
        }
    }

    /// An error that names the key as [`TestLock::shown_key`].
    fn without_random_part(&self, error: StoreError) -> StoreError {
        let StoreError::Refused { store, reason } = error else {
            return error;
        };
        let reason = reason.replace(self.key.as_str(), self.shown_key.as_str());
        StoreError::Refused {
            store,
            reason: reason.into(),
        }
    }
}

// === impl SelfTestError ===

impl SelfTestError {
    /// Whether the store answered, so that an operator has to change something.
    pub fn was_answered(&self) -> bool {
        match self {
            Self::NotAlive(error) | Self::Store { error, .. } => error.was_answered(),
            Self::Lost { .. } => true,
        }
    }
}
