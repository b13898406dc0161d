//! `seriatim locks`: lists, shows, releases and interrupts locks, and takes waiters out of queues, directly in the
//! configured Redis.
//!
//! It doesn't need a running Seriatim. Locks in `memory:` belong to one process; for these it prints the call
//! to that process's admin interface.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::getuid;
use serde_json::{Value, json};

use super::terminal::{padded, plain, width};
use super::{
    ConfigOption, OK, block_on, cant_start, print, print_error, print_json, start_logging,
    with_config,
};
use crate::app;
use crate::config::admin::on_this_machine;
use crate::config::{Config, StoreAddress};
use crate::lock::Operator;
use crate::lock::operator::{
    HolderInfo, INTERRUPT_TIMEOUT, LockDetail, LockRow, LockTarget, OperatorError, OperatorRequest,
};

/// Options of `seriatim locks`.
#[derive(Debug, Args)]
#[command(
    after_help = "The user of requests that name none is `unknown`, unless `user_id` of their route says otherwise.\n\n\
                  Exit codes: 0 done, also if the lock was free already; 1 not done, because the store can't be \
                  reached, another turn holds the lock now, there is no turn to interrupt, it did not stop in time, \
                  or the request no longer waits; 2 wrong arguments; 78 invalid configuration. Every change is logged on standard \
                  error."
)]
pub(super) struct LocksArgs {
    #[command(flatten)]
    pub(super) config: ConfigOption,
    #[command(subcommand)]
    command: LocksCommand,
}

#[derive(Debug, Subcommand)]
enum LocksCommand {
    /// List all held locks
    List {
        /// Only locks whose user id or session id contains this text, ignoring case
        #[arg(long, value_name = "TEXT")]
        search: Option<String>,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Show one lock and its queue; the exit code is 0 whether or not it is held
    Show {
        #[command(flatten)]
        which: LockSelector,
        /// Print a JSON object, whose `locked` is true or false
        #[arg(long)]
        json: bool,
    },
    /// Force release a lock: its turn is aborted unless its route sets on_lost = "continue"
    Release(LockChange),
    /// Stop the turn that holds a lock, and wait until it has released the lock
    Interrupt(LockChange),
    /// Take a waiting request out of the queue of a lock; a turn that has the lock goes on
    #[command(
        override_usage = "seriatim locks dequeue [OPTIONS] <USER> <SESSION> <REQUEST_ID>\n       \
                          seriatim locks dequeue [OPTIONS] --key <KEY> <REQUEST_ID>"
    )]
    Dequeue(WaiterSelector),
}

#[derive(Debug, Args)]
struct LockChange {
    #[command(flatten)]
    which: LockSelector,
    /// Only if the request with this id holds the lock
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    request_id: Option<String>,
    /// Print a JSON object, as the admin interface returns it
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct LockSelector {
    /// The user id, as the client sends it; `unknown` for requests that name no user, unless `user_id` of the route says
    /// otherwise
    #[arg(
        required_unless_present = "key",
        requires = "session",
        value_parser = NonEmptyStringValueParser::new()
    )]
    user: Option<String>,
    /// The session id, as it is in the lock's key: after the filters of the route, see `locks list`
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    session: Option<String>,
    /// The lock's key, instead of the two ids
    #[arg(
        long,
        value_name = "KEY",
        conflicts_with_all = ["user", "session"],
        value_parser = NonEmptyStringValueParser::new()
    )]
    key: Option<String>,
}

#[derive(Debug, Args)]
struct WaiterSelector {
    /// The user id (`unknown` for requests that name no user), the session id and the request id, which `locks show`
    /// prints; with --key, only the request id
    #[arg(
        required = true,
        num_args = 1..=3,
        value_name = "ID",
        value_parser = NonEmptyStringValueParser::new()
    )]
    ids: Vec<String>,
    /// The lock's key, instead of the user id and the session id
    #[arg(long, value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    key: Option<String>,
    /// Print a JSON object, as the admin interface returns it
    #[arg(long)]
    json: bool,
}

/// Why a command was not done.
struct NotDone {
    /// The reason as a word, for programs.
    reason: &'static str,
    /// The reason in a sentence.
    detail: String,
}

/// The lock was not changed or shown.
const NOT_DONE: u8 = 1;

/// Wrong arguments, as clap exits.
const USAGE: u8 = 2;

/// How many locks are read from the store at once.
const PAGE: usize = 1000;

/// The columns of the table.
const COLUMNS: [&str; 8] = [
    "USER", "SESSION", "INSTANCE", "ROUTE", "REQUEST", "AGE", "TTL", "WAITERS",
];

// === impl LocksArgs ===

impl LocksArgs {
    /// Runs the command on the configured store, and returns the exit code.
    pub(super) fn run(&self) -> u8 {
        with_config(&self.config, |config, _, _| self.run_on(&config))
    }

    fn run_on(&self, config: &Config) -> u8 {
        if let LocksCommand::Dequeue(which) = &self.command
            && which.target().is_none()
        {
            print_error(
                "write USER SESSION REQUEST_ID, or --key KEY REQUEST_ID; see seriatim locks dequeue --help",
            );
            return USAGE;
        }
        if config.store.url == StoreAddress::Memory {
            let detail = self.command.memory_store_help(config);
            return self.command.not_done(NotDone::new("memory_store", detail));
        }
        let logging = match start_logging(config) {
            Ok(logging) => logging,
            Err(error) => return cant_start(error),
        };
        let code = block_on(async {
            match app::operator(config) {
                Ok(operator) => self.command.run(&operator).await,
                Err(error) => Err(NotDone::new("store_unavailable", error.to_string())),
            }
            .unwrap_or_else(|not_done| self.command.not_done(not_done))
        });
        drop(logging);
        code
    }
}

// === impl LocksCommand ===

impl LocksCommand {
    async fn run(&self, operator: &Operator) -> Result<u8, NotDone> {
        let failed = NotDone::from;
        let by = caller();
        match self {
            Self::List { search, json } => {
                list(operator, search.as_deref(), *json).await?;
            }
            Self::Show { which, json } => {
                let detail = operator.show(&which.target()).await.map_err(failed)?;
                if *json {
                    print_json(&json!(detail));
                } else {
                    show(&detail);
                }
            }
            Self::Release(change) => {
                let target = change.which.target();
                let request = change.request(&target, &by);
                let released = operator.force_release(&request).await.map_err(failed)?;
                if change.json {
                    print_json(&json!(released));
                } else {
                    let state = released.fence.map_or("not locked", |_| "released");
                    print(format!("{} is {state}", plain(released.key.as_str())));
                }
            }
            Self::Interrupt(change) => {
                let target = change.which.target();
                let request = change.request(&target, &by);
                let interrupted = operator.interrupt(&request).await.map_err(failed)?;
                let key = plain(interrupted.key.as_str());
                if change.json {
                    print_json(&json!(interrupted));
                }
                if !interrupted.released {
                    print_error(format!(
                        "the turn that holds {key} was asked to stop, but still holds the lock after {INTERRUPT_TIMEOUT:?}"
                    ));
                    return Ok(NOT_DONE);
                }
                if !change.json {
                    print(format!(
                        "the turn that held {key} has stopped and released it"
                    ));
                }
            }
            Self::Dequeue(which) => {
                // Checked when the command began.
                let Some((target, request)) = which.target() else {
                    return Ok(USAGE);
                };
                let dequeued = operator.dequeue(&target, request, &by).await;
                let dequeued = dequeued.map_err(failed)?;
                if which.json {
                    print_json(&json!(dequeued));
                } else {
                    let key = plain(dequeued.key.as_str());
                    print(format!(
                        "took request {} out of the queue of {key}",
                        plain(request)
                    ));
                }
            }
        }
        Ok(OK)
    }

    /// Says why the command was not done: for people, and with `--json` for programs. Returns the exit code.
    fn not_done(&self, not_done: NotDone) -> u8 {
        if let Some(mut object) = self.failed_object() {
            object["reason"] = not_done.reason.into();
            object["detail"] = not_done.detail.clone().into();
            print_json(&object);
        }
        print_error(not_done.detail);
        NOT_DONE
    }

    /// The members that say in the command's JSON that nothing was done; `None`: it prints no object in any case.
    fn failed_object(&self) -> Option<Value> {
        let (is_wanted, object) = match self {
            // One object per lock: none is a result, too.
            Self::List { .. } => return None,
            Self::Show { json, .. } => (json, json!({"locked": null})),
            Self::Release(change) => (&change.json, json!({"released": false})),
            Self::Interrupt(change) => (
                &change.json,
                json!({"interrupted": false, "released": false}),
            ),
            Self::Dequeue(which) => (&which.json, json!({"dequeued": false})),
        };
        is_wanted.then_some(object)
    }

    /// The message for a store in memory: which call to the admin interface does the same.
    fn memory_store_help(&self, config: &Config) -> String {
        let mut curl = String::from("curl");
        if let Some(file) = &config.admin.token_file {
            let file = file.path().display();
            curl += &format!(" -H \"authorization: Bearer $(cat {file})\"");
        }
        curl += match self {
            Self::Release(_) | Self::Dequeue(_) => " -X DELETE",
            Self::Interrupt(_) => " -X POST",
            Self::List { .. } | Self::Show { .. } => "",
        };
        let address = on_this_machine(config.admin.listen)[0];
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut query = Vec::new();
        let mut path = String::new();
        match self {
            Self::List { search, .. } => {
                query.extend(
                    search
                        .as_ref()
                        .map(|text| format!("search={}", encode(text))),
                );
            }
            Self::Show { which, .. }
            | Self::Release(LockChange { which, .. })
            | Self::Interrupt(LockChange { which, .. }) => {
                let id = |id: &Option<String>| id.as_deref().map_or("-".into(), encode);
                path = format!("/{}/{}", id(&which.user), id(&which.session));
                query.extend(which.key.as_ref().map(|key| format!("key={}", encode(key))));
            }
            Self::Dequeue(which) => {
                let (ids, request) = match &*which.ids {
                    [user, session, request] => {
                        (format!("{}/{}", encode(user), encode(session)), request)
                    }
                    [request, ..] => ("-/-".into(), request),
                    [] => return String::new(),
                };
                path = format!("/{ids}/queue/{}", encode(request));
                query.extend(which.key.as_ref().map(|key| format!("key={}", encode(key))));
            }
        }
        if let Self::Interrupt(_) = self {
            path += "/interrupt";
        }
        if let Self::Release(change) | Self::Interrupt(change) = self {
            let id = change.request_id.as_ref();
            query.extend(id.map(|id| format!("request_id={}", encode(id))));
        }
        let separator = if query.is_empty() { "" } else { "?" };
        let query = query.join("&");
        format!(
            "store.url is \"memory:\": the locks are in the memory of the running process. Use its admin interface:\n  \
             {curl} 'http://{address}/locks{path}{separator}{query}'"
        )
    }
}

// === impl NotDone ===

impl NotDone {
    fn new(reason: &'static str, detail: String) -> Self {
        Self { reason, detail }
    }
}

impl From<OperatorError> for NotDone {
    fn from(error: OperatorError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

// === impl LockSelector ===

impl LockSelector {
    fn target(&self) -> LockTarget {
        match &self.key {
            Some(key) => LockTarget::Key(key.clone()),
            // clap requires both ids when there is no key.
            None => LockTarget::Session {
                user: self.user.clone().unwrap_or_default(),
                session: self.session.clone().unwrap_or_default(),
            },
        }
    }
}

impl WaiterSelector {
    /// The lock, and the id of the request; `None`: the arguments are too many or too few.
    fn target(&self) -> Option<(LockTarget, &str)> {
        match (&self.key, &*self.ids) {
            (None, [user, session, request]) => {
                let (user, session) = (user.clone(), session.clone());
                Some((LockTarget::Session { user, session }, request))
            }
            (Some(key), [request]) => Some((LockTarget::Key(key.clone()), request)),
            _ => None,
        }
    }
}

impl LockChange {
    fn request<'o>(&'o self, target: &'o LockTarget, by: &'o str) -> OperatorRequest<'o> {
        OperatorRequest {
            target,
            request: self.request_id.as_deref(),
            by,
        }
    }
}

/// Who runs this command, as `user@host`. A user without a name is shown by its number.
fn caller() -> String {
    let uid = getuid().as_raw().to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then_some(name)
    });
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}@{}", name.unwrap_or(&uid), host.trim())
}

// === output ===

async fn list(operator: &Operator, search: Option<&str>, json: bool) -> Result<(), NotDone> {
    let (mut locks, mut seen, mut cursor) = (Vec::new(), HashSet::new(), None);
    loop {
        let page = operator.list(cursor, PAGE, search).await;
        let page = page.map_err(OperatorError::from)?;
        for lock in page.locks {
            if !seen.insert(lock.key.clone()) {
                // Redis's SCAN may return a key twice.
            } else if json {
                print_json(&json!(lock));
            } else {
                locks.push(lock);
            }
        }
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    if json {
        return Ok(());
    }
    // Oldest first: a lock that is stuck is the oldest.
    locks.sort_by_key(|lock| std::cmp::Reverse(lock.age_ms));
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(locks.iter().map(row));
    let widest = |column: usize| rows.iter().map(|row| width(&row[column])).max();
    let widths: [usize; COLUMNS.len()] = std::array::from_fn(|column| widest(column).unwrap_or(0));
    for row in &rows {
        let cells = row.iter().zip(widths);
        let line: Vec<_> = cells.map(|(cell, width)| padded(cell, width)).collect();
        print(line.join("  ").trim_end());
    }
    Ok(())
}

fn row(lock: &LockRow) -> [String; COLUMNS.len()] {
    let text = |text: &Option<String>| text.as_deref().map_or("-".into(), plain);
    let age = lock.age_ms.map_or("-".into(), rounded);
    let session = lock.session_id.as_ref().unwrap_or(&lock.key);
    [
        text(&lock.user_id),
        plain(session),
        match lock.holder {
            "seriatim" => text(&lock.who.instance),
            other => format!("({other})"),
        },
        text(&lock.who.route),
        text(&lock.who.request_id),
        age,
        lock.ttl_ms.map_or("none".into(), rounded),
        lock.waiters.to_string(),
    ]
}

fn show(detail: &LockDetail) {
    let (lock, queue) = match detail {
        LockDetail::Free { key, waiters, .. } => {
            let waiting = match waiters {
                0 => String::new(),
                count => format!("; waiters: {count}"),
            };
            return print(format!("{} is not locked{waiting}", plain(key)));
        }
        LockDetail::Locked { lock, queue } => (lock, queue),
    };
    print(format!("{} is locked", plain(&lock.key)));
    match lock.holder {
        "seriatim" => print(format!("  by {}", described(&lock.who))),
        _ => print("  by a client other than Seriatim"),
    }
    let age = lock.age_ms.map(|age| format!("for {}; ", rounded(age)));
    let ttl = match lock.ttl_ms {
        Some(ttl) => format!("expires in {} unless extended", rounded(ttl)),
        None => "never expires".into(),
    };
    let fence = lock.fence.map(|fence| format!("; fence {fence}"));
    let (age, fence) = (age.unwrap_or_default(), fence.unwrap_or_default());
    print(format!("  {age}{ttl}{fence}"));
    print(format!("  waiters: {}", lock.waiters));
    for (place, waiter) in queue.iter().enumerate() {
        print(format!("    {}. {}", place + 1, described(waiter)));
    }
}

fn described(who: &HolderInfo) -> String {
    let text = |text: &Option<String>| text.as_deref().map_or("-".into(), plain);
    format!(
        "instance {}, route {}, request {}, since {}",
        text(&who.instance),
        text(&who.route),
        text(&who.request_id),
        text(&who.since)
    )
}

/// A duration for people: in whole seconds, or in milliseconds below one second.
fn rounded(ms: u64) -> String {
    let exact = Duration::from_millis(ms);
    let shown = match exact.as_secs() {
        0 => exact,
        seconds => Duration::from_secs(seconds),
    };
    humantime::format_duration(shown).to_string()
}
