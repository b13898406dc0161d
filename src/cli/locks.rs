//! `seriatim locks`: what an operator does about locks, straight on the store of the configuration.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use clap::{Args, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{OK, cant_start, complain, in_a_runtime, say, tell};
use crate::app;
use crate::config::{Config, StoreAddress};
use crate::lock::Operator;
use crate::lock::operator::{
    ForcedRelease, HolderInfo, INTERRUPT_TIMEOUT, InterruptResult, LockDetail, LockRow, LockTarget,
    OperatorError, OperatorRequest,
};

/// See who holds which session, and free one
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 shown, freed, or free already; 1 not done: the store can't be reached, another turn \
                  holds the lock by now, or there was nobody to stop, or who didn't in time; 2 a wrong call; 78 a \
                  configuration that can't be used. What is done to a lock is told on standard error."
)]
pub(super) struct LocksArgs {
    #[command(subcommand)]
    command: LocksCommand,
}

#[derive(Debug, Subcommand)]
enum LocksCommand {
    /// List the locks that are held
    List {
        /// Only those whose user's or session's id has this in it, in any case
        #[arg(long, value_name = "TEXT")]
        search: Option<String>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one lock, and who waits for it; exit code 0 whether or not it is held
    Show {
        #[command(flatten)]
        which: LockSelector,
        /// As a JSON object, whose `locked` is true or false
        #[arg(long)]
        json: bool,
    },
    /// Free a lock by force: its holder loses it, and stops unless its route says on_lost = "continue"
    Release {
        #[command(flatten)]
        which: LockSelector,
        /// Only if the turn of this request holds it
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
    },
    /// Stop the turn that holds a lock, and wait until it has let go of it
    Interrupt {
        #[command(flatten)]
        which: LockSelector,
        /// Only if the turn of this request holds it
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
    },
}

#[derive(Debug, Args)]
struct LockSelector {
    /// The user's id, as the client sends it
    #[arg(required_unless_present = "key", requires = "session")]
    user: Option<String>,
    /// The session's id, as the client sends it
    session: Option<String>,
    /// The lock's name, instead of the two ids
    #[arg(long, value_name = "KEY", conflicts_with_all = ["user", "session"])]
    key: Option<String>,
}

/// Could not, or nothing was there to be done.
const NOT_DONE: u8 = 1;

/// How many locks are asked for at once.
const PAGE: usize = 1000;

/// The columns of the table.
const COLUMNS: [&str; 8] = [
    "USER", "SESSION", "INSTANCE", "ROUTE", "REQUEST", "AGE", "LEFT", "WAITERS",
];

// === impl Locks ===

impl LocksArgs {
    /// Does it, in the store that the configuration names.
    pub(super) fn run(&self, config: &Config) -> u8 {
        if config.store.url == StoreAddress::Memory {
            complain(self.command.instead(config));
            return NOT_DONE;
        }
        let telemetry = match tell(config) {
            Ok(telemetry) => telemetry,
            Err(error) => return cant_start(error),
        };
        let code = in_a_runtime(async {
            match app::operator(config) {
                Ok(operator) => self.command.run(&operator).await,
                Err(error) => Err(error.to_string()),
            }
            .unwrap_or_else(|why| {
                complain(why);
                NOT_DONE
            })
        });
        drop(telemetry);
        code
    }
}

// === impl Command ===

impl LocksCommand {
    async fn run(&self, operator: &Operator) -> Result<u8, String> {
        let failed = |thwarted: OperatorError| thwarted.to_string();
        match self {
            Self::List { search, json } => {
                list(operator, search.as_deref(), *json).await?;
            }
            Self::Show { which, json } => {
                let showing = operator.show(&which.target()).await.map_err(failed)?;
                if *json {
                    say(serde_json::json!(showing));
                } else {
                    show(&showing);
                }
            }
            Self::Release { which, request_id } => {
                let target = which.target();
                let order = order(&target, request_id.as_deref());
                let ForcedRelease { key, fence } =
                    operator.force_release(&order).await.map_err(failed)?;
                match fence {
                    Some(_) => say(format!("{} is released", plain(key.as_str()))),
                    None => say(format!("{} is not locked", plain(key.as_str()))),
                }
            }
            Self::Interrupt { which, request_id } => {
                let target = which.target();
                let order = order(&target, request_id.as_deref());
                let interrupted = operator.interrupt(&order).await.map_err(failed)?;
                let InterruptResult { key, released } = interrupted;
                let key = plain(key.as_str());
                if !released {
                    return Err(format!(
                        "the turn that holds {key} was told to stop, and has not let go of it within {INTERRUPT_TIMEOUT:?}"
                    ));
                }
                say(format!("the turn that held {key} has let go of it"));
            }
        }
        Ok(OK)
    }

    /// How to ask the process that has the locks in its memory.
    fn instead(&self, config: &Config) -> String {
        let mut curl = String::from("curl");
        if let Some(file) = &config.admin.token_file {
            let file = file.path().display();
            curl += &format!(" -H \"authorization: Bearer $(cat {file})\"");
        }
        curl += match self {
            Self::Release { .. } => " -X DELETE",
            Self::Interrupt { .. } => " -X POST",
            Self::List { .. } | Self::Show { .. } => "",
        };
        let mut address = config.admin.listen;
        // The address of all interfaces is nobody's to call.
        match address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
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
            | Self::Release { which, .. }
            | Self::Interrupt { which, .. } => {
                let id = |id: &Option<String>| id.as_deref().map_or("-".into(), encode);
                path = format!("/{}/{}", id(&which.user), id(&which.session));
                query.extend(which.key.as_ref().map(|key| format!("key={}", encode(key))));
            }
        }
        if let Self::Interrupt { .. } = self {
            path += "/interrupt";
        }
        if let Self::Release { request_id, .. } | Self::Interrupt { request_id, .. } = self {
            let id = request_id.as_ref();
            query.extend(id.map(|id| format!("request_id={}", encode(id))));
        }
        let question = if query.is_empty() { "" } else { "?" };
        let query = query.join("&");
        format!(
            "store.url is \"memory:\", so the locks are in the running process; ask it:\n  \
             {curl} 'http://{address}/locks{path}{question}{query}'"
        )
    }
}

// === impl Which ===

impl LockSelector {
    fn target(&self) -> LockTarget {
        match &self.key {
            Some(key) => LockTarget::Key(key.clone()),
            // Both are there where the key isn't: see their requirements above.
            None => LockTarget::Session {
                user: self.user.clone().unwrap_or_default(),
                session: self.session.clone().unwrap_or_default(),
            },
        }
    }
}

fn order<'o>(target: &'o LockTarget, request: Option<&'o str>) -> OperatorRequest<'o> {
    OperatorRequest {
        target,
        request,
        by: "command line",
    }
}

// === what is printed ===

async fn list(operator: &Operator, search: Option<&str>, json: bool) -> Result<(), String> {
    let (mut locks, mut seen, mut cursor) = (Vec::new(), HashSet::new(), None);
    loop {
        let page = operator.list(cursor, PAGE, search).await;
        let page = page.map_err(|error| error.to_string())?;
        for lock in page.locks {
            if !seen.insert(lock.key.clone()) {
                // A lock may come twice.
            } else if json {
                say(serde_json::json!(lock));
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
    // The oldest one first: it is the one that is looked for.
    locks.sort_by_key(|lock| std::cmp::Reverse(lock.age_ms));
    let rows = locks.iter().map(row);
    let rows: Vec<_> = [COLUMNS.map(str::to_owned)]
        .into_iter()
        .chain(rows)
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; COLUMNS.len()] = std::array::from_fn(|column| width(column).unwrap_or(0));
    for row in &rows {
        let cells = row.iter().zip(widths);
        let line: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        say(line.join("  ").trim_end());
    }
    Ok(())
}

fn row(lock: &LockRow) -> [String; COLUMNS.len()] {
    let text = |text: &Option<String>| text.as_deref().map_or("-".into(), plain);
    let whole = |ms: Option<u64>| ms.map_or("-".into(), rounded);
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
        whole(lock.age_ms),
        lock.ttl_ms.map_or("no end".into(), rounded),
        lock.waiters.to_string(),
    ]
}

fn show(showing: &LockDetail) {
    let (lock, line) = match showing {
        LockDetail::Free { key, waiters, .. } => {
            let waiting = match waiters {
                0 => String::new(),
                count => format!("; {count} wait for it"),
            };
            return say(format!("{} is not locked{waiting}", plain(key)));
        }
        LockDetail::Locked { lock, queue } => (lock, queue),
    };
    say(format!("{} is locked", plain(&lock.key)));
    match lock.holder {
        "seriatim" => say(format!("  by {}", described(&lock.who))),
        _ => say("  by somebody who isn't Seriatim"),
    }
    let age = lock.age_ms.map(|age| format!("for {}; ", rounded(age)));
    let left = match lock.ttl_ms {
        Some(left) => format!("the store promises it for {} yet", rounded(left)),
        None => "it has no end".into(),
    };
    let fence = lock.fence.map(|fence| format!("; fence {fence}"));
    let (age, fence) = (age.unwrap_or_default(), fence.unwrap_or_default());
    say(format!("  {age}{left}{fence}"));
    say(format!("  waiters: {}", lock.waiters));
    for (place, waiter) in line.iter().enumerate() {
        say(format!("    {}. {}", place + 1, described(waiter)));
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

/// A duration for a person: whole seconds where there are any.
fn rounded(ms: u64) -> String {
    let exact = Duration::from_millis(ms);
    let shown = match exact.as_secs() {
        0 => exact,
        seconds => Duration::from_secs(seconds),
    };
    humantime::format_duration(shown).to_string()
}

/// Text that clients have sent, so that it can't do anything to a terminal, nor turn a line around.
fn plain(text: &str) -> String {
    let is_harmless = |c: &char| {
        !c.is_control() && !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match is_harmless(&character) {
            true => shown.push(character),
            false => shown.extend(character.escape_unicode()),
        }
    }
    shown
}
