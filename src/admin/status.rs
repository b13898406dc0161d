//! `GET /status`: this process's state, its counts of the last minutes, and its recent errors.
//!
//! Session ids are shown in full: whoever may read the status may read the locks too.

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use crate::drain::DrainWatch;
use crate::journal::{Journal, JournalEvent, JournalSample, STEP};
use crate::key::SessionKey;
use crate::lock::StoreHealth;
use crate::metrics::Metrics;

/// Where the status of this process is read.
#[derive(Clone, Debug)]
pub struct StatusSource {
    /// The process's metrics.
    pub metrics: Metrics,
    /// The process's recent history.
    pub journal: Journal,
    /// Whether the store answers this process.
    pub health: StoreHealth,
    /// The kind of store: `redis` or `memory`.
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

/// Counts, each for one step of `step_s` seconds.
#[derive(Serialize)]
struct StatusHistory {
    step_s: u64,
    /// Oldest first.
    samples: Vec<HistorySample>,
}

#[derive(Serialize)]
struct HistorySample {
    at: u64,
    turns: u64,
    no_session: u64,
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

// === impl StatusSource ===

impl StatusSource {
    /// The body of `GET /status`.
    pub fn json(&self, instance: &str, drain: &DrainWatch) -> String {
        let totals = self.metrics.totals();
        let (samples, events) = (self.journal.samples(), self.journal.events());
        let body = StatusBody {
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
                samples: samples.iter().map(HistorySample::new).collect(),
            },
            recent: events.iter().map(RecentEvent::new).collect(),
        };
        // Numbers and text can always be written as JSON.
        serde_json::to_string(&body).unwrap_or_default()
    }
}

impl HistorySample {
    fn new(sample: &JournalSample) -> Self {
        let at = sample.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let counts = sample.counts;
        Self {
            at: millis(at),
            turns: counts.turns,
            no_session: counts.no_session,
            refused: counts.refused,
            lost: counts.lost,
            waited: counts.waited,
            wait_ms_max: sample.longest_wait,
            held: counts.held,
            waiting: counts.waiting,
        }
    }
}

impl<'s> RecentEvent<'s> {
    fn new(event: &'s JournalEvent) -> Self {
        Self {
            at: humantime::format_rfc3339_millis(event.at).to_string(),
            outcome: event.outcome.as_str(),
            status: event.status,
            route: event.route.as_deref(),
            key: event.key.as_ref().map(SessionKey::as_str),
            request_id: &event.request_id,
            wait_ms: event.wait.map(millis),
            error: event.error.as_deref(),
        }
    }
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
    async fn the_status_has_the_state_the_counts_and_the_recent_errors() {
        crate::time_limit::limit_this_test();
        let metrics = Metrics::new();
        let status = StatusSource {
            health: StoreHealth::new(false, &metrics),
            metrics,
            journal: Journal::default(),
            store: "redis",
        };
        let (drain, watch) = drain::channel();
        let body = || -> Value { serde_json::from_str(&status.json("pod-1", &watch)).unwrap() };
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
        assert_eq!(body(), expected, "before anything has happened");
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
        let body = body();
        assert_eq!(
            (
                &body["draining"],
                &body["store"]["up"],
                &body["held"],
                &body["waiting"]
            ),
            (&json!(true), &json!(true), &json!(1), &json!(1)),
            "the current state"
        );
        let recent = json!({
            "at": "1970-01-01T00:00:01.500Z", "outcome": "lock_lost", "status": 429, "route": "chat",
            "key": "s2", "request_id": "r-1", "wait_ms": 7, "error": null,
        });
        assert_eq!(body["recent"][0], recent, "the newest comes first");
        assert_eq!(body["recent"][1]["key"], "s1", "then the older ones");
        let sample = &body["history"]["samples"][0];
        assert!(sample["at"].is_u64(), "in ms since 1970: {sample}");
        assert_eq!(
            (&sample["waited"], &sample["held"], &sample["turns"]),
            (&json!(1), &json!(1), &json!(0)),
            "the counts of one step"
        );
    }
}
