//! The thread that makes spans and sends them to the collector, in batches.
//!
//! Invariant: nobody waits for it but who stops the process, and that one not for ever. What can't be
//! sent is dropped, and told of now and then.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::collector::{CollectorClient, WITHIN};
use super::spans::spans;
use super::{QUEUE, SpanQueue, TraceRecord, Tracer};
use crate::config::trace::TracingConfig;

/// The thread that sends spans, to be stopped when there are no more.
#[derive(Debug)]
pub struct ExporterHandle {
    stop: oneshot::Sender<oneshot::Sender<()>>,
}

/// What runs on the thread.
struct ExporterTask {
    queue: Arc<SpanQueue>,
    ended: mpsc::Receiver<Box<TraceRecord>>,
    exporter: opentelemetry_otlp::SpanExporter,
    client: CollectorClient,
    scope: InstrumentationScope,
    failing: Option<ExportFailure>,
}

/// Since when spans can't be sent, as far as it was told.
struct ExportFailure {
    told: Instant,
    /// Requests whose spans are gone and were not told of.
    untold: u64,
}

/// Requests whose spans are to be sent. In boxes, as they came: to take them out would be to copy them.
type SpanBatch = Vec<Box<TraceRecord>>;

/// How many requests' spans are sent at once: some hundred kilobytes, which is well within what
/// collectors take.
const BATCH: usize = 256;

/// For how long requests are gathered: short enough to see a turn while looking on, long enough to
/// spare most requests to the collector.
const GATHER: Duration = Duration::from_secs(1);

/// How often it is told that spans are lost.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How long the last spans may take when the process stops: as long as is left of Kubernetes' grace
/// period when turns and locks have had theirs, with something to spare.
const LAST: Duration = Duration::from_secs(3);

// === impl Tracer ===

impl Tracer {
    /// Begins to take records of requests, and to send their spans. `None`: nobody wants any. `instance`
    /// is this process' name.
    ///
    /// # Errors
    /// When there is no thread to be had, or the environment has something for the exporter that it can't
    /// use.
    pub fn start(to: &TracingConfig, instance: &str) -> io::Result<Option<(Self, ExporterHandle)>> {
        let Some(collector) = &to.otlp else {
            return Ok(None);
        };
        let client = CollectorClient::new(collector, to.ca_file.as_ref());
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client.clone())
            .with_endpoint(collector.uri.to_string())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(WITHIN)
            .build()
            .map_err(io::Error::other)?;
        let version = env!("CARGO_PKG_VERSION");
        // Beside what the environment says by OpenTelemetry's own variable for that.
        let resource = Resource::builder()
            .with_attributes([
                KeyValue::new("service.name", to.service.to_string()),
                KeyValue::new("service.version", version),
                KeyValue::new("service.instance.id", instance.to_owned()),
            ])
            .build();
        exporter.set_resource(&resource);
        let (sender, ended) = mpsc::channel(QUEUE);
        let queue = Arc::new(SpanQueue {
            ended: sender,
            dropped: AtomicU64::new(0),
        });
        let export = ExporterTask {
            queue: Arc::clone(&queue),
            ended,
            exporter,
            client,
            scope: InstrumentationScope::builder("seriatim")
                .with_version(version)
                .build(),
            failing: None,
        };
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, stopping) = oneshot::channel();
        thread::Builder::new().name("spans".into()).spawn(move || {
            runtime.block_on(export.run(stopping));
            // Not waiting for what is left on it: name look-ups that block.
            runtime.shutdown_background();
        })?;
        Ok(Some((Self(queue), ExporterHandle { stop })))
    }
}

// === impl Exporting ===

impl ExporterHandle {
    /// Sends what there is, if that doesn't take too long. To be called when no request is under way.
    pub async fn stop(self) {
        let (done, is_done) = oneshot::channel();
        // An error is a thread that has ended.
        if self.stop.send(done).is_ok() && timeout(LAST, is_done).await.is_err() {
            tracing::warn!("the last spans could not be sent in time");
        }
    }
}

// === impl Export ===

impl ExporterTask {
    async fn run(mut self, mut stopping: oneshot::Receiver<oneshot::Sender<()>>) {
        let mut batch = Vec::with_capacity(BATCH);
        let stopped = loop {
            let gathering = gather(&mut self.ended, &mut batch);
            let stopped = tokio::select! {
                biased;
                stopped = &mut stopping => Some(stopped),
                () = gathering => None,
            };
            if let Some(stopped) = stopped {
                break stopped;
            }
            self.export(&mut batch).await;
        };
        loop {
            while batch.len() < BATCH
                && let Ok(record) = self.ended.try_recv()
            {
                batch.push(record);
            }
            if batch.is_empty() {
                break;
            }
            self.export(&mut batch).await;
        }
        self.tell_rest();
        if let Ok(done) = stopped {
            // Nobody waits any more, if it is an error.
            let _ = done.send(());
        }
    }

    async fn export(&mut self, batch: &mut SpanBatch) {
        let requests = batch.len() as u64;
        let scope = &self.scope;
        let made = batch.iter().flat_map(|record| spans(record, scope));
        let made = made.collect();
        batch.clear();
        let sent = self.exporter.export(made).await;
        let dropped = self.queue.dropped.swap(0, Ordering::Relaxed);
        match sent {
            Ok(()) => {
                if self.failing.is_some() && dropped == 0 {
                    self.tell_rest();
                    self.failing = None;
                    tracing::info!("spans are sent again");
                } else if dropped > 0 {
                    self.lost(dropped, "the collector is too slow");
                }
            }
            Err(error) => {
                let why = self.client.failure();
                let why = why.unwrap_or_else(|| error.to_string());
                self.lost(requests + dropped, &why);
            }
        }
    }

    /// Spans of so many requests are gone.
    fn lost(&mut self, requests: u64, why: &str) {
        let now = Instant::now();
        match &mut self.failing {
            Some(failing) if now < failing.told + TELL_EVERY => failing.untold += requests,
            failing => {
                let untold = failing.as_ref().map_or(0, |failing| failing.untold);
                let requests = requests + untold;
                *failing = Some(ExportFailure {
                    told: now,
                    untold: 0,
                });
                tracing::warn!(requests, why, "spans could not be sent, and are dropped");
            }
        }
    }

    /// Tells of what was not told of, for there may be no other occasion.
    fn tell_rest(&mut self) {
        let untold = self.failing.as_ref().map_or(0, |failing| failing.untold);
        let requests = untold + self.queue.dropped.swap(0, Ordering::Relaxed);
        if requests > 0 {
            tracing::warn!(requests, "spans were dropped");
        }
    }
}

/// Waits for a record, and then for others. Loses nothing when it is dropped.
async fn gather(ended: &mut mpsc::Receiver<Box<TraceRecord>>, batch: &mut SpanBatch) {
    if batch.is_empty() {
        ended.recv_many(batch, BATCH).await;
    }
    let until = Instant::now() + GATHER;
    while batch.len() < BATCH {
        let more = ended.recv_many(batch, BATCH - batch.len());
        match timeout_at(until, more).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}
