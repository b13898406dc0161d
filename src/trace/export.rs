//! The thread that makes spans and sends them to the collector, in batches.
//!
//! Invariant: only the end of the process waits for this thread, for a limited time. Spans that can't be
//! sent are dropped, and the log says so now and then.

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

/// Stops the thread that sends spans.
#[derive(Debug)]
pub struct ExporterHandle {
    stop: oneshot::Sender<oneshot::Sender<()>>,
}

/// The loop of the thread that sends spans.
struct ExporterTask {
    queue: Arc<SpanQueue>,
    ended: mpsc::Receiver<Box<TraceRecord>>,
    exporter: opentelemetry_otlp::SpanExporter,
    client: CollectorClient,
    scope: InstrumentationScope,
    /// The failure that lasts; `None`: spans are sent.
    failing: Option<ExportFailure>,
}

/// A failure that lasts.
struct ExportFailure {
    /// When it was last logged.
    logged: Instant,
    /// How many requests lost their spans since then.
    unlogged: u64,
}

/// Requests whose spans are sent together. They stay boxed, because unboxing would copy them.
type SpanBatch = Vec<Box<TraceRecord>>;

/// How many requests' spans are sent at once: some hundred kilobytes, less than collectors accept.
const BATCH: usize = 256;

/// For how long requests are gathered for one batch: short enough for a person who waits to see a turn, long
/// enough for few requests to the collector.
const GATHER: Duration = Duration::from_secs(1);

/// How often dropped spans are logged.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// How long sending the last spans may take when the process stops: less than what is left of Kubernetes'
/// grace period after turns and locks had their time.
const LAST: Duration = Duration::from_secs(3);

// === impl Tracer ===

impl Tracer {
    /// Starts the thread that sends spans; `None`: tracing is not configured. `instance` is the name of
    /// this process.
    ///
    /// # Errors
    /// When the thread can't be started, or an environment variable of the exporter is invalid.
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
        // In addition to `OTEL_RESOURCE_ATTRIBUTES` in the environment.
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

// === impl ExporterHandle ===

impl ExporterHandle {
    /// Sends the last spans, for a limited time. Call this when all requests are over.
    pub async fn stop(self) {
        let (done, is_done) = oneshot::channel();
        // An error means that the thread has ended.
        if self.stop.send(done).is_ok() && timeout(LAST, is_done).await.is_err() {
            tracing::warn!("the last spans were not sent in time");
        }
    }
}

// === impl ExporterTask ===

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
        self.log_rest();
        if let Ok(done) = stopped {
            // An error means that nobody waits any more.
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
                    self.log_rest();
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

    /// Logs that requests have lost their spans, or counts them for the next time.
    fn lost(&mut self, requests: u64, why: &str) {
        let now = Instant::now();
        match &mut self.failing {
            Some(failing) if now < failing.logged + LOG_EVERY => failing.unlogged += requests,
            failing => {
                let unlogged = failing.as_ref().map_or(0, |failing| failing.unlogged);
                let requests = requests + unlogged;
                *failing = Some(ExportFailure {
                    logged: now,
                    unlogged: 0,
                });
                tracing::warn!(requests, why, "spans not sent and dropped");
            }
        }
    }

    /// Logs the requests that `lost` has only counted.
    fn log_rest(&mut self) {
        let unlogged = self.failing.as_ref().map_or(0, |failing| failing.unlogged);
        let requests = unlogged + self.queue.dropped.swap(0, Ordering::Relaxed);
        if requests > 0 {
            tracing::warn!(requests, "spans dropped");
        }
    }
}

/// Waits for a record, and then for more. Cancel-safe.
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
