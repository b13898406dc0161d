//! What the errors of the redis crate mean: for the caller of a command, and for the connection.
//!
//! Invariant: an error text contains no argument of a command, and no key while ids are hidden.

use std::sync::Arc;

use redis::{RedisError, Value};

use crate::lock::StoreError;
use crate::redact;

/// The error that Redis sent, in one line; `None` for an error of the connection. For a pipeline, the
/// error of its first command that failed. While ids are hidden, only the kind of error is given if the
/// rest may contain a key.
pub(super) fn server_error(error: &RedisError) -> Option<String> {
    let errors = error.clone().into_server_errors();
    let first = errors.iter().flat_map(|errors| errors.iter()).next();
    let (code, detail) = match first {
        Some((_, first)) => (first.code(), first.details()),
        None => (error.code()?, error.detail()),
    };
    let (code, detail) = match detail.and_then(script_error) {
        Some((code, detail)) => (code, Some(detail)),
        None => (code, detail),
    };
    let detail = detail.map(without_context);
    let is_shown = |detail: &str| !redact::is_enabled() || names_no_key(detail);
    Some(match detail {
        Some(detail) if is_shown(detail) => format!("{code} {detail}"),
        _ => code.to_owned(),
    })
}

/// The code and the text of an error that ended a script. Before Redis 7, both are at the end of the text of
/// another error, behind the position in the script.
fn script_error(detail: &str) -> Option<(&str, &str)> {
    let (_, error) = detail.rsplit_once("@user_script:")?;
    if let Some((_, error)) = error.split_once(": -") {
        let (code, text) = error.split_once(' ')?;
        if code.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Some((code, text));
        }
    }
    // A command that the user may not run has no code.
    let begin = error.find("The user ")?;
    Some(("NOPERM", &error[begin..]))
}

/// The part of an error text that says what is wrong. Cuts the position in a script, and the command's
/// arguments, one of which may be a password.
fn without_context(detail: &str) -> &str {
    const ENDS: [&str; 4] = [" script: ", ", with args beginning with", "\r", "\n"];
    let end = ENDS.iter().filter_map(|end| detail.find(end)).min();
    &detail[..end.unwrap_or(detail.len())]
}

/// Whether an error text without its context names a command only.
fn names_no_key(detail: &str) -> bool {
    const BEGINNINGS: [&str; 2] = ["wrong number of arguments for ", "unknown command "];
    let mut beginnings = BEGINNINGS.iter();
    beginnings.any(|beginning| detail.starts_with(beginning))
}

/// The error for a command that was not executed because of `error`.
pub(super) fn not_executed(store: &Arc<str>, error: &RedisError) -> StoreError {
    match server_error(error) {
        Some(reason) => StoreError::Refused {
            store: Arc::clone(store),
            reason: reason.into(),
        },
        None => not_sent(store, &error.to_string()),
    }
}

/// The error for a command that was not sent, or not executed because it was late.
pub(super) fn not_sent(store: &Arc<str>, reason: &str) -> StoreError {
    StoreError::NotSent {
        store: Arc::clone(store),
        reason: reason.into(),
    }
}

/// The error for a lock that was granted, but that replicas did not confirm.
pub(super) fn unconfirmed(store: &Arc<str>, reason: &str) -> StoreError {
    StoreError::Unconfirmed {
        store: Arc::clone(store),
        reason: reason.into(),
    }
}

/// The error for a reply that can't be parsed. Logs the reply, unless ids are hidden.
pub(super) fn unreadable(store: &Arc<str>, reply: &Value) -> StoreError {
    if !redact::is_enabled() {
        tracing::debug!(?reply, "reply from the store can't be parsed");
    }
    StoreError::Unreadable {
        store: Arc::clone(store),
    }
}

/// The error of one server of several, as part of a sentence about all of them.
pub(super) fn of_server(error: &StoreError) -> String {
    match error {
        StoreError::NotSent { store, reason } | StoreError::Unreachable { store, reason } => {
            format!("{store}: {reason}")
        }
        StoreError::Refused { store, reason } => format!("{store} answered: {reason}"),
        error => error.to_string(),
    }
}

/// Whether Redis says that it accepts no writes. Before Redis 7, an error inside a script is in the text of
/// another error.
pub(super) fn is_not_writable(error: &RedisError) -> bool {
    const WORDS: [&str; 3] = ["READONLY", "LOADING", "MASTERDOWN"];
    let text = error.detail().unwrap_or_default();
    WORDS
        .iter()
        .any(|word| error.code() == Some(word) || text.contains(word))
}

/// Where a cluster has the slot of a command that a node did not execute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Redirection {
    /// On another node, from now on.
    Moved(RedirectedTo),
    /// On another node, for this command only, which has to follow `ASKING` there.
    Ask(RedirectedTo),
    /// Nowhere for the moment: the slot is on its way to another node, or the cluster is failing over.
    Later,
}

/// The node that a redirection names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RedirectedTo {
    /// Empty: the host of the node that answered.
    pub(super) host: String,
    pub(super) port: u16,
}

/// The redirection in an error (Redis Cluster specification, "Redirection and resharding"); `None`: it is another
/// error.
pub(super) fn redirection(error: &RedisError) -> Option<Redirection> {
    redirection_of(error.code()?, error.detail().unwrap_or_default())
}

fn redirection_of(code: &str, detail: &str) -> Option<Redirection> {
    let to = || {
        // `3999 127.0.0.1:6381`
        let (_, address) = detail.split_once(' ')?;
        let (host, port) = address.rsplit_once(':')?;
        Some(RedirectedTo {
            host: host.to_owned(),
            port: port.parse().ok()?,
        })
    };
    match code {
        "MOVED" => to().map(Redirection::Moved),
        "ASK" => to().map(Redirection::Ask),
        "TRYAGAIN" | "CLUSTERDOWN" => Some(Redirection::Later),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirection_names_its_node() {
        let to = |host: &str, port| RedirectedTo {
            host: host.into(),
            port,
        };
        for (code, detail, expected) in [
            (
                "MOVED",
                "3999 10.0.0.1:6381",
                Some(Redirection::Moved(to("10.0.0.1", 6381))),
            ),
            (
                "MOVED",
                "3999 :6381",
                Some(Redirection::Moved(to("", 6381))),
            ),
            (
                "ASK",
                "3999 ::1:6381",
                Some(Redirection::Ask(to("::1", 6381))),
            ),
            ("MOVED", "3999", None),
            (
                "TRYAGAIN",
                "Multiple keys request during rehashing of slot",
                Some(Redirection::Later),
            ),
            (
                "CLUSTERDOWN",
                "The cluster is down",
                Some(Redirection::Later),
            ),
            (
                "READONLY",
                "You can't write against a read only replica.",
                None,
            ),
        ] {
            assert_eq!(redirection_of(code, detail), expected, "{code} {detail}");
        }
    }

    #[test]
    fn an_error_in_a_script_is_found_in_the_text_of_redis_6() {
        let prefix = "Error running script (call to f_4465f3): @user_script:160: ";
        for (text, error) in [
            (
                "@user_script: 160: -OOM command not allowed when used memory > 'maxmemory'.",
                Some(("OOM", "command not allowed when used memory > 'maxmemory'.")),
            ),
            (
                "@user_script: 40: -READONLY You can't write against a read only replica.",
                Some(("READONLY", "You can't write against a read only replica.")),
            ),
            (
                "=[C]: -1: The user executing the script can't run this command or subcommand",
                Some((
                    "NOPERM",
                    "The user executing the script can't run this command or subcommand",
                )),
            ),
            (
                "@user_script: 160: The user executing the script can't run this command",
                Some((
                    "NOPERM",
                    "The user executing the script can't run this command",
                )),
            ),
            ("attempt to index a nil value", None),
        ] {
            let detail = format!("{prefix}{text}");
            assert_eq!(script_error(&detail), error, "{detail}");
        }
        assert_eq!(script_error("no such key"), None, "another error");
    }
}
