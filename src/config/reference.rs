//! Every option of the configuration, for `seriatim options` and `docs/configuration.md`.
//!
//! Invariant: the descriptions come from the definitions that also read the options; this file only
//! puts the sections in order.

use super::Config;
use super::admin::AdminConfig;
use super::busy::BusyConfig;
use super::cors::CorsConfig;
use super::errors::ErrorsConfig;
use super::limits::{Limits, Timeouts};
use super::listen::TlsFiles;
use super::lock::LockConfig;
use super::log::LogConfig;
use super::option::Options;
pub use super::option::{Change, DefaultValue, Setting};
use super::problem::path_in;
use super::reader::variable_of;
use super::replay::ReplayConfig;
use super::routes::{self, Route};
use super::store::StoreConfig;
use super::trace::TracingConfig;

/// A table of the file.
#[derive(Clone, Debug)]
pub struct Section {
    /// The name of the table; empty for the top level.
    pub table: &'static str,
    /// What the table is for.
    pub about: &'static str,
    /// The options of the table.
    pub options: Vec<Setting>,
}

/// All tables, in the order in which they are best read.
pub fn sections() -> Vec<Section> {
    vec![
        Section::new::<Config>(
            "Where clients connect, and where their requests go. Keys of the top level come before the \
             first table.",
        ),
        Section::new::<StoreConfig>(
            "Where locks live. Without this table they are in the memory of the process, and protect one \
             replica only.",
        ),
        Section {
            options: LockConfig::all_settings(),
            ..Section::new::<LockConfig>(
                "How turns are locked. These are the defaults of all routes; each route may override \
                 each of these options.",
            )
        },
        Section {
            options: routes::settings(),
            ..Section::new::<Route>(
                "A request is taken by the first route whose conditions (`host`, `methods`, `path`, \
                 `headers`, `when`) all match. A route may also have each option of `lock`.",
            )
        },
        Section::new::<BusyConfig>(
            "The response to a request whose session is busy. Each route may override it.",
        ),
        Section::new::<ErrorsConfig>("Error responses, whatever their reason."),
        Section::new::<CorsConfig>(
            "Which pages of other origins may read error responses. Without this table, those that the \
             backend allows.",
        ),
        Section::new::<Limits>("How much Seriatim takes from clients."),
        Section::new::<Timeouts>("How long Seriatim waits for clients and backends."),
        Section::new::<ReplayConfig>(
            "How much of the answers of turns is kept, for requests that read them later. Used with \
             `replay = true` on a route.",
        ),
        Section::new::<TlsFiles>(
            "The certificate that Seriatim presents to clients. With this table, clients have to use TLS. \
             New connections use a renewed pair of files within seconds.",
        ),
        Section::new::<AdminConfig>(
            "The admin interface, for operators and monitoring. It has its own listener.",
        ),
        Section::new::<LogConfig>("What Seriatim logs on standard error."),
        Section::new::<TracingConfig>(
            "Where spans are sent: each request, its time in the queue, its lock and its backend. Spans \
             are joined to the caller's `traceparent`.",
        ),
    ]
}

/// The paths of all options that stand in one place of the file, as `store.url`: all but those of routes.
pub(super) fn paths() -> Vec<String> {
    let sections = sections().into_iter();
    let single = sections.filter(|section| section.table != Route::TABLE);
    let paths = single.flat_map(|section| {
        let paths = section.options.iter().map(|option| section.path(option));
        paths.collect::<Vec<_>>()
    });
    paths.collect()
}

// === impl Section ===

impl Section {
    fn new<T: Options>(about: &'static str) -> Self {
        Self {
            table: T::TABLE,
            about,
            options: T::settings(),
        }
    }

    /// The path of an option of this table, as `store.url`.
    pub fn path(&self, option: &Setting) -> String {
        path_in(self.table, option.key)
    }

    /// The environment variable that sets an option of this table; `None` for an option of a route.
    pub fn variable(&self, option: &Setting) -> Option<String> {
        (self.table != Route::TABLE).then(|| variable_of(&self.path(option)))
    }
}
