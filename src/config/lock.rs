//! `[lock]`: how the turns of a route are locked. A route may override each of its options.
//!
//! Invariant: options that contradict each other are reported where the user can change one of them.
//! Taking the lock is left to `crate::lock`.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use super::option::{Options, Setting, options};
use super::reader::ConfigTable;
use super::value_kind::{
    Boolean, DAY, DurationIn, HOUR, IntegerIn, Kind as _, MS, Optional, SECOND, WEEK, Words, text,
    word, words,
};
use crate::key::KeyTemplate;
use crate::lock::{LockOptions, OnLost};

options! {
    impl LockOptions in "lock" {
        /// The lease: how long the store promises the lock. A turn that takes longer is aborted, unless
        /// its lease is extended. Longer than `store.timeout`.
        lock_timeout: Duration = SECOND * 300, DurationIn(SHORTEST_LEASE..=WEEK),
            example "\"10m\"", Live;
        /// The interval at which the lease is extended. At most half of `lock_timeout`.
        extend_lock_interval: Option<Duration> = None, Optional(DurationIn(MS * 50..=WEEK)),
            unset "never", example "100", Live;
        /// Whether a turn whose session is busy waits in the queue. With false, it is refused at once.
        blocking: bool = false, Boolean, example "true", Live;
        /// The longest time in the queue; then the turn is refused as `wait_timeout`. Used with
        /// `blocking`.
        blocking_timeout: Option<Duration> = None, Optional(DurationIn(MS * 10..=WEEK)),
            unset "as long as its client stays", example "30", Live;
        /// Whether the newest turn replaces the running turn and all waiters. Used with `blocking`;
        /// contradicts `on_disconnect = "continue"`.
        interrupt: bool = false, Boolean, example "true", Live;
        /// The most turns that wait for one session; one more is refused as `queue_full`. Used with
        /// `blocking`.
        // Each waiter costs memory, and a longer queue is a mistake.
        max_waiters: u32 = 64, IntegerIn(1..=10_000), example "8", Live;
        /// What happens to a turn whose lock is lost: `abort` aborts the turn; `continue` lets it go on
        /// without a lock.
        on_lost: OnLost = OnLost::Abort, word(), example "\"continue\"", Live;
        /// How long the lock is kept after the end of the response, or after the request was cancelled,
        /// for a backend that saves its state late. The end of the response is delayed by the same time.
        /// Shorter than `lock_timeout`.
        // A process that stops waits for it, too.
        settle: Duration = Duration::ZERO, DurationIn(Duration::ZERO..=SECOND * 60),
            example "\"300ms\"", Live;
        /// How long the lock is kept after the request was cancelled, the turn was interrupted or its
        /// response broke off, for a backend that needs a moment to stop. Delays no complete response. Ends with the lease. Shorter than
        /// `lock_timeout`.
        settle_cancelled: Option<Duration> = None, Optional(DurationIn(Duration::ZERO..=SECOND * 60)),
            unset "the value of `settle`", example "\"100ms\"", Live;
        /// Whether turns of one session are kept apart. With false, no turn waits or is refused, and
        /// overlapping turns are logged.
        enforce: bool = true, Boolean, example "false", Live;
    }
}

options! {
    /// The options of `[lock]`, as a route uses them.
    #[derive(Clone, Debug, PartialEq)]
    pub struct LockConfig in "lock" {
        /// The name of the lock in the store.
        key: KeyTemplate = KeyTemplate::conventional(), text("template", KeyTemplate::parse),
            example "\"agent:{session_id}\"", Live;
        /// What happens to the request at the backend when its client disconnects: `cancel` cancels it;
        /// `continue` reads the response to its end, for a backend that continues anyway. A request without a
        /// lock is always cancelled.
        on_disconnect: Option<OnDisconnect> = None, Optional(word()),
            unset "`cancel`; with `replay`, `continue`", example "\"continue\"", Live;
        /// Whether the answers of turns are kept as `replay` says, for requests that attach to them. The turn goes on
        /// when its client disconnects; contradicts `on_disconnect = "cancel"`.
        replay: bool = false, Boolean, example "true", Live;
        /// What happens to a request without a session id or a user id: `pass` forwards it without a
        /// lock; `reject` refuses it with 400.
        on_missing: OnMissing = OnMissing::Pass, word(), example "\"reject\"", Live;
        /// What happens to a body that should hold the id and can't be read: `pass` forwards it without
        /// a lock; `pass_non_json` forwards a body that clearly isn't JSON, and refuses any other;
        /// `reject` refuses it with 400.
        on_malformed: OnMalformed = OnMalformed::Reject, word(), example "\"pass_non_json\"", Live;
        /// How a call is recognized that the backend of a turn makes to the turn's own session, which is
        /// refused at once as `would_deadlock`: `header` by `x-seriatim-turn`, which the backend passes on;
        /// `traceparent` also by the trace: each turn then begins a trace of its own.
        nested_calls: NestedCalls = NestedCalls::Header, word(), example "\"traceparent\"", Live;
        /// The time without a byte after which a client that reads an event stream gets a comment, while its turn
        /// waits in the queue, and while the backend's event stream is silent. Proxies and load balancers on the way
        /// then keep the connection. Shorter than their limits for idle connections.
        keep_alive: Option<Duration> = None, Optional(DurationIn(MS * 100..=HOUR)),
            unset "never", example "\"15s\"", Live;
        /// Which requests read an event stream: `accept`: those whose `accept` header has `text/event-stream`; `sse`:
        /// all of the route. It matters with `keep_alive`.
        stream: StreamKind = StreamKind::Accept, word(), example "\"sse\"", Live;
        /// The name of the event that tells a waiting client its place, in place of a comment, for a front end of your
        /// own: the clients of OpenAI, AG-UI and the AI SDK break at it. Used with `keep_alive` and `blocking`.
        queue_events: Option<EventName> = None, Optional(text("event name", EventName::parse)),
            unset "a comment", example "\"seriatim.queue\"", Live;
        /// What a repeat of a turn gets that waits or runs: `reject` refuses it with 409 `duplicate_turn`; `attach`
        /// gives it the turn's answer. Used with `once` of a route and `replay`. A repeat of a turn that has ended
        /// gets the answer with `replay` alone, for as long as that is kept.
        on_repeat: OnRepeat = OnRepeat::Reject, word(), example "\"attach\"", Live;
        /// For how long after a turn a repeat of it is recognised. Used with `once` of a route.
        once_for: Duration = SECOND * 600, DurationIn(SECOND..=DAY), example "\"1h\"", Live;
    }
    beside {
        /// How turns take, keep and wait for their locks.
        options: LockOptions = LockOptions::default();
    }
}

impl Words for OnLost {
    const WORDS: &'static [(&'static str, Self)] =
        &[("abort", Self::Abort), ("continue", Self::Continue)];
}

words! {
    /// What happens to the request at the backend when its client disconnects.
    pub enum OnDisconnect {
        /// The request is cancelled.
        Cancel = "cancel",
        /// The response is read to its end.
        Continue = "continue",
    }
}

words! {
    /// What happens to a request without a session id or a user id.
    pub enum OnMissing {
        /// The request is forwarded without a lock.
        Pass = "pass",
        /// The request is refused with 400.
        Reject = "reject",
    }
}

words! {
    /// What happens to a body that should hold the session's id and can't be read.
    pub enum OnMalformed {
        /// The request is forwarded without a lock.
        Pass = "pass",
        /// A body that clearly isn't JSON is forwarded without a lock. A body that begins as JSON, or
        /// that can't be decoded, is refused with 400: a backend could be able to read it.
        PassNonJson = "pass_non_json",
        /// The request is refused with 400.
        Reject = "reject",
    }
}

words! {
    /// How a call is recognized that the backend of a turn makes to the turn's own session.
    pub enum NestedCalls {
        /// By the header `x-seriatim-turn`.
        Header = "header",
        /// By that header, or by the trace id in `traceparent`, which is then the turn's own.
        Traceparent = "traceparent",
    }
}

words! {
    /// Which requests of a route read an event stream (server-sent events).
    pub enum StreamKind {
        /// Those whose `accept` header has `text/event-stream`.
        Accept = "accept",
        /// All of them.
        Sse = "sse",
    }
}

words! {
    /// What a repeat of a turn gets that waits or runs.
    pub enum OnRepeat {
        /// It is refused with 409.
        Reject = "reject",
        /// It gets the turn's answer.
        Attach = "attach",
    }
}

/// What a request of a route does that has a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionAction {
    /// It is a turn: it takes the lock.
    Turn,
    /// It reads the answer of a turn.
    Attach,
    /// It stops the turn that runs.
    Stop,
}

/// The name of an event in an event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventName(Box<str>);

/// Why a text can't be the name of an event.
#[derive(Debug, Error)]
#[error(
    "must have printable characters without spaces, at most 64 of them, and not be `error`, which tells a failure"
)]
pub struct EventNameError;

/// The shortest lease. The margin (see `deadline::margin`) and a slow command would use up a shorter one.
const SHORTEST_LEASE: Duration = Duration::from_millis(200);

/// The option that is used only with `once` and `replay`.
pub(super) const ON_REPEAT: &str = "on_repeat";

/// The option that is used only with `once`, which isn't an option of `[lock]`.
pub(super) const ONCE_FOR: &str = "once_for";

/// The options that are used only with `blocking = true`.
const FOR_WAITERS: [&str; 3] = ["blocking_timeout", "interrupt", "max_waiters"];

/// The options of `[lock]` that say which session a request is for. They are used whatever the request does.
const FOR_ALL_ACTIONS: [&str; 3] = ["key", "on_malformed", "on_missing"];

impl EventName {
    /// Reads a name. A line break would end the event's line, and a space at its beginning is not part of it (WHATWG
    /// HTML, "Parsing an event stream").
    ///
    /// # Errors
    /// When the text has other characters, or too many.
    pub fn parse(text: &str) -> Result<Self, EventNameError> {
        let is_name = (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic())
            && text != "error";
        is_name.then(|| Self(text.into())).ok_or(EventNameError)
    }
}

impl fmt::Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SessionAction {
    /// Whether such a request uses this option of `[lock]`.
    pub(super) fn uses(self, key: &str) -> bool {
        match self {
            Self::Turn => true,
            Self::Attach => FOR_ALL_ACTIONS.contains(&key) || key == "keep_alive",
            Self::Stop => FOR_ALL_ACTIONS.contains(&key),
        }
    }
}

impl OnMissing {
    /// What happens to the request, and the outcome under which it is found.
    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::Pass => {
                "a request that names no session or no user passes without a lock, as no_session"
            }
            Self::Reject => {
                "a request that names no session or no user is refused as missing_session"
            }
        }
    }
}

impl LockConfig {
    /// The descriptions of all options of `[lock]`.
    pub(super) fn all_settings() -> Vec<Setting> {
        let (mut own, options) = (Self::settings(), LockOptions::settings());
        own.splice(1..1, options);
        own
    }

    /// The keys of all options of `[lock]`.
    pub(super) fn keys() -> Vec<&'static str> {
        let settings = Self::all_settings();
        settings.iter().map(|setting| setting.key).collect()
    }

    /// What happens to the request of a turn when its client disconnects.
    pub fn on_disconnect(&self) -> OnDisconnect {
        let default = match self.replay {
            true => OnDisconnect::Continue,
            false => OnDisconnect::Cancel,
        };
        self.on_disconnect.unwrap_or(default)
    }

    /// These options, overridden by those of `table`.
    pub(super) fn overlaid(mut self, table: &mut ConfigTable<'_>) -> Self {
        self.read(table);
        self.options.read(table);
        self
    }

    /// The options and their values as TOML, without those that have no use.
    pub(super) fn show_used(&self) -> Vec<(&'static str, String)> {
        let (mut shown, mut options) = (self.show(), self.options.show());
        options.retain(|(key, _)| self.options.blocking || !FOR_WAITERS.contains(key));
        shown.retain(|(key, _)| match *key {
            "stream" => self.keep_alive.is_some(),
            "queue_events" => self.keeps_waiting_clients(),
            _ => true,
        });
        if self.on_disconnect.is_none() {
            let used = word().show(&self.on_disconnect());
            let place = shown.iter().position(|(key, _)| *key == "replay");
            let used = used.map(|used| ("on_disconnect", used));
            shown.splice(place.map_or(0..0, |place| place..place), used);
        }
        shown.splice(1..1, options);
        shown
    }

    /// Reports options of `table` for waiters where no turn waits, unless they have their defaults.
    pub(super) fn check_waiting(&self, table: &ConfigTable<'_>) {
        for key in FOR_WAITERS {
            if table.wrote(key) && self.options.differs_from_default(key) {
                let why =
                    "is used only with blocking = true: write blocking = true too, or leave it out";
                table.note(key, why);
            }
        }
    }

    /// Reports `on_repeat` of `table` where no turn joins another, unless it has its default.
    pub(super) fn check_on_repeat(&self, table: &ConfigTable<'_>) {
        // A preset's user can't edit the preset's.
        let is_own = table.wrote(ON_REPEAT) && table.blamed(ON_REPEAT, &[]) == ON_REPEAT;
        if is_own && self.differs_from_default(ON_REPEAT) {
            let why = "is used only with once of a route and replay = true: write both too, or leave it out";
            table.note(ON_REPEAT, why);
        }
    }

    /// Whether a turn may wait for long enough that its client gets comments, or events in their place. A turn that is
    /// only observed will, once `enforce` is true.
    pub fn keeps_waiting_clients(&self) -> bool {
        let longest = self.options.blocking_timeout.unwrap_or(Duration::MAX);
        self.options.blocking && self.keep_alive.is_some_and(|interval| interval < longest)
    }

    /// Reports `queue_events` of `table` where no client is kept while its turn waits. `stream` is not reported: it says
    /// what clients read, kept or not, and presets have it.
    pub(super) fn check_queue_events(&self, table: &ConfigTable<'_>) {
        const KEY: &str = "queue_events";
        if !table.wrote(KEY) || self.queue_events.is_none() || self.keeps_waiting_clients() {
            return;
        }
        let why = match self.keep_alive {
            None => "is used only with keep_alive: write keep_alive = \"15s\" too, or leave it out",
            Some(_) => {
                "is used only where a turn waits for longer than keep_alive: write blocking = true, and a \
                 keep_alive below blocking_timeout, or leave it out"
            }
        };
        table.note(KEY, why);
    }

    /// Reports `once_for` of `table` where no turn has a once id, unless it has its default.
    pub(super) fn check_once_for(&self, table: &ConfigTable<'_>) {
        if table.wrote(ONCE_FOR) && self.differs_from_default(ONCE_FOR) {
            let why = "is used only with once of a route: write once = [\"{header:idempotency-key}\"] there too, or \
                       leave it out";
            table.note(ONCE_FOR, why);
        }
    }

    /// Reports options that contradict each other.
    pub(super) fn check(&self, table: &ConfigTable<'_>, store_timeout: Duration) {
        let lease = self.options.lock_timeout;
        let interval = self.options.extend_lock_interval;
        if interval.is_some_and(|interval| interval > lease / 2) {
            let why = format!(
                "must be at most half of lock_timeout, which is {lease:?}: an extension that fails is \
                 tried again"
            );
            table.note("extend_lock_interval", why);
        }
        if store_timeout >= lease {
            let why = format!(
                "must be longer than store.timeout, which is {store_timeout:?}: otherwise a lock could \
                 expire before the reply to its command"
            );
            table.note("lock_timeout", why);
        }
        self.check_settling(table);
        self.check_interrupting(table);
        if self.replay && self.on_disconnect == Some(OnDisconnect::Cancel) {
            const KEY: &str = "on_disconnect";
            let (key, cause) = match table.wrote(KEY) {
                true => match table.blamed(KEY, &["replay"]) {
                    KEY => (KEY, "replay = true"),
                    key => (key, "on_disconnect = \"cancel\" of the preset"),
                },
                false => ("replay", "on_disconnect = \"cancel\" of [lock]"),
            };
            let why = format!(
                "contradicts {cause}: an answer is kept for clients that come back; leave one of them out"
            );
            table.note(key, why);
        }
    }

    fn check_settling(&self, table: &ConfigTable<'_>) {
        let (lease, options) = (self.options.lock_timeout, &self.options);
        for (name, settle) in [
            ("settle", options.settle),
            (
                "settle_cancelled",
                options.settle_cancelled.unwrap_or_default(),
            ),
        ] {
            if settle < lease {
                continue;
            }
            let key = table.blamed(name, &["lock_timeout"]);
            let why = if key == name {
                format!(
                    "must be shorter than lock_timeout, which is {lease:?}: otherwise the lock expires"
                )
            } else {
                format!(
                    "lock_timeout must be longer than {name} of the preset, which is {settle:?}: \
                     otherwise the lock expires"
                )
            };
            table.note(key, why);
        }
    }

    fn check_interrupting(&self, table: &ConfigTable<'_>) {
        const KEY: &str = "on_disconnect";
        let interrupts = self.options.blocking && self.options.interrupt;
        // A turn whose answer is kept continues without its client, and can be cancelled.
        if !interrupts || self.on_disconnect != Some(OnDisconnect::Continue) {
            return;
        }
        let (key, why) = match table.blamed(KEY, &["interrupt", "blocking"]) {
            KEY => (
                KEY,
                "contradicts interrupt = true: an interrupted turn would continue at the backend, \
                 together with the next one; leave one of them out",
            ),
            // "cancel" would contradict `replay`, which needs no "continue" of the preset.
            key if self.replay => (
                key,
                "contradicts on_disconnect = \"continue\" of the preset, which is for a backend that continues when \
                 its client leaves: write interrupt = false; if your backend stops, replace this entry by the \
                 routes that `seriatim presets` prints, and leave on_disconnect out there, or write \
                 preset = \"vercel-ai-resume\" in place of \"vercel-ai\"",
            ),
            key => (
                key,
                "contradicts on_disconnect = \"continue\" of the preset: an interrupted turn would \
                 continue at the backend, together with the next one; write interrupt = false, or \
                 on_disconnect = \"cancel\" for a backend that stops when its client leaves",
            ),
        };
        table.note(key, why);
    }
}
