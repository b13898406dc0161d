//! What `GET /status` says of this process: how it is, how much there was of everything lately, and
//! what was refused and lost.
//!
//! It names sessions as they are: whoever may ask for it may ask for the locks, too.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::drain::DrainWatch;
use crate::journal::{Journal, JournalEvent, JournalSample, STEP};
use crate::key::SessionKey;
use crate::lock::StoreHealth;
use crate::metrics::Metrics;

/// What there is to tell of this process.
#[derive(Clone, Debug)]
pub struct StatusSource {
    /// What is counted.
    pub metrics: Metrics,
    /// What has happened lately.
    pub journal: Journal,
    /// Whether the store answers this process.
    pub health: StoreHealth,
    /// Where locks live, in a word: `redis` or `memory`.
    pub store: &'static str,
}

#[derive(Serialize)]
struct StatusBody<'s> {
    instance: &'s str,
    version: &'static str,
    draining: bool,
    store: StoreStatus,
    held: i64,
    waiting: i64,
    history: StatusHistory,
    recent: Vec<RecentEvent<'s>>,
}

#[derive(Serialize)]
struct StoreStatus {
    kind: &'static str,
    up: bool,
}

/// Counts are per step.
#[derive(Serialize)]
struct StatusHistory {
    step_s: u64,
    /// The oldest first.
    samples: Vec<HistorySample>,
}

#[derive(Serialize)]
struct HistorySample {
    at: u64,
    turns: u64,
    refused: u64,
    lost: u64,
    waited: u64,
    wait_ms_max: u64,
    held: i64,
    waiting: i64,
}

#[derive(Serialize)]
struct RecentEvent<'s> {
    at: String,
    outcome: &'static str,
    status: Option<u16>,
    route: Option<&'s str>,
    key: Option<&'s str>,
    request_id: &'s str,
    wait_ms: Option<u64>,
    error: Option<&'s str>,
}

// === impl Status ===

impl StatusSource {
    /// All of it, as JSON.
    pub fn json(&self, instance: &str, drain: &DrainWatch) -> String {
        let totals = self.metrics.totals();
        let notable = self.journal.events();
        let said = StatusBody {
            instance,
            version: env!("CARGO_PKG_VERSION"),
            draining: drain.is_draining(),
            store: StoreStatus {
                kind: self.store,
                up: self.health.is_up(),
            },
            held: totals.held,
            waiting: totals.waiting,
            history: StatusHistory {
                step_s: STEP.as_secs(),
                samples: self
                    .journal
                    .samples()
                    .iter()
                    .map(HistorySample::of)
                    .collect(),
            },
            recent: notable.iter().map(RecentEvent::of).collect(),
        };
        // Numbers and text, which JSON has words for.
        serde_json::to_string(&said).unwrap_or_default()
    }
}

impl HistorySample {
    fn of(sample: &JournalSample) -> Self {
        let at = sample.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            at: millis(at),
            turns: sample.turns,
            refused: sample.refused,
            lost: sample.lost,
            waited: sample.waited,
            wait_ms_max: sample.longest_wait,
            held: sample.held,
            waiting: sample.waiting,
        }
    }
}

impl<'s> RecentEvent<'s> {
    fn of(notable: &'s JournalEvent) -> Self {
        Self {
            at: rfc3339(notable.at),
            outcome: notable.outcome.as_str(),
            status: notable.status,
            route: notable.route.as_deref(),
            key: notable.key.as_ref().map(SessionKey::as_str),
            request_id: &notable.request_id,
            wait_ms: notable.wait.map(millis),
            error: notable.error.as_deref(),
        }
    }
}

fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain;
    use crate::outcome::Outcome;
    use serde_json::{Value, json};

    #[tokio::test(start_paused = true)]
    async fn a_process_tells_how_it_is_and_what_it_refused() {
        let metrics = Metrics::new();
        let status = StatusSource {
            health: StoreHealth::new(false, &metrics),
            metrics,
            journal: Journal::default(),
            store: "redis",
        };
        let (drain, watch) = drain::channel();
        let said = || -> Value { serde_json::from_str(&status.json("pod-1", &watch)).unwrap() };
        let expected = json!({
            "instance": "pod-1",
            "version": env!("CARGO_PKG_VERSION"),
            "draining": false,
            "store": {"kind": "redis", "up": false},
            "held": 0,
            "waiting": 0,
            "history": {"step_s": 10, "samples": []},
            "recent": [],
        });
        assert_eq!(said(), expected, "before anything has happened");
        let keeping = status.journal.clone().keep(status.metrics.clone());
        let keeping = tokio::spawn(keeping);
        tokio::task::yield_now().await;
        status.health.set(true);
        let (_held, _waiting) = (status.metrics.holding(), status.metrics.waiting());
        let at = UNIX_EPOCH + Duration::from_millis(1_500);
        for (outcome, session) in [(Outcome::SessionBusy, "s1"), (Outcome::LockLost, "s2")] {
            status.journal.note(JournalEvent {
                at,
                outcome,
                status: Some(429),
                route: Some("chat".into()),
                key: Some(SessionKey::literal(session)),
                request_id: "r-1".into(),
                wait: Some(Duration::from_millis(7)),
                error: None,
            });
        }
        drain.begin();
        tokio::time::sleep(STEP + STEP / 2).await;
        keeping.abort();
        let said = said();
        assert_eq!(
            (
                &said["draining"],
                &said["store"]["up"],
                &said["held"],
                &said["waiting"]
            ),
            (&json!(true), &json!(true), &json!(1), &json!(1)),
            "how it is now"
        );
        let recent = json!({
            "at": "1970-01-01T00:00:01.500Z", "outcome": "lock_lost", "status": 429, "route": "chat",
            "key": "s2", "request_id": "r-1", "wait_ms": 7, "error": null,
        });
        assert_eq!(said["recent"][0], recent, "the newest comes first");
        assert_eq!(said["recent"][1]["key"], "s1", "and then the others");
        let sample = &said["history"]["samples"][0];
        assert!(sample["at"].is_u64(), "in ms since 1970: {sample}");
        assert_eq!(
            (&sample["waited"], &sample["held"], &sample["turns"]),
            (&json!(1), &json!(1), &json!(0)),
            "how much there was in a step"
        );
    }
}
