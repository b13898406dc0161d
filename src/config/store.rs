//! Reading of `[store]`.

use std::time::Duration;

use http::uri::Authority;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::reader::ConfigTable;
use super::{HOUR, MS, OnError, StoreAddress, StoreConfig};
use crate::secret;

/// With a shorter one, little or nothing would be left of an instance's time behind its margin (see
/// `lock::margin`), and its turns would wait for a beat that lasts.
const SHORTEST_RECOVERY: Duration = Duration::from_millis(200);

// === impl Store ===

impl StoreConfig {
    pub(super) fn read(table: &mut ConfigTable<'_>) -> Self {
        let timeout = table.or("timeout", Duration::from_secs(1), |entry| {
            entry.duration(MS..=Duration::from_secs(60))
        });
        let password = table.take("password_file").and_then(|entry| {
            entry.parsed(|path| {
                let bytes = secret::read_file(path.as_ref()).map_err(|error| error.to_string())?;
                let text = String::from_utf8(bytes);
                let text = text.map_err(|_| format!("{path} is not UTF-8"))?;
                // An editor ends a file with a line break; a password has none at its end.
                Ok::<_, String>(text.trim_end_matches(['\r', '\n']).to_owned())
            })
        });
        let on_error = table.or("on_error", OnError::Reject, |entry| {
            entry.one_of(&[
                ("reject", OnError::Reject),
                ("allow", OnError::Allow),
                ("local", OnError::Local),
            ])
        });
        const RECOVERY: Duration = Duration::from_secs(30);
        let crash_recovery = table.or("crash_recovery", RECOVERY, |entry| {
            entry.duration(Duration::ZERO..=HOUR)
        });
        let instance = table
            .take("instance")
            .and_then(|entry| entry.parsed(instance_name));
        let place = match table.take("url") {
            // A URL may hold a password: what is wrong with it is said without showing it.
            Some(entry) => entry.parsed_secret(|url| match url {
                "memory:" if password.is_some() => {
                    Err("\"memory:\" takes no password: leave password_file out".to_owned())
                }
                "memory:" => Ok(StoreAddress::Memory),
                url => StoreAddress::redis(url, password.as_deref()),
            }),
            None => {
                if password.is_some() {
                    let why =
                        "without url it is of no use: write url = \"redis://host:6379/0\" too";
                    table.note("password_file", why);
                }
                Some(StoreAddress::Memory)
            }
        };
        // What suits the place can only be said of one that is known.
        match place {
            Some(StoreAddress::Memory) => {
                const WHY: &str = "locks in this process' memory are always there and end with it: leave this out, or set store.url";
                if on_error != OnError::Reject {
                    table.note("on_error", WHY);
                }
                if crash_recovery != RECOVERY {
                    table.note("crash_recovery", WHY);
                }
            }
            Some(StoreAddress::Redis(_))
                if !crash_recovery.is_zero() && crash_recovery < timeout * 3 =>
            {
                table.note(
                    "crash_recovery",
                    format!(
                        "must be at least three times store.timeout, which is {timeout:?}, or 0: \
                         an instance's key is extended every third of it, and a command may take that long"
                    ),
                );
            }
            Some(StoreAddress::Redis(_))
                if !crash_recovery.is_zero() && crash_recovery < SHORTEST_RECOVERY =>
            {
                let why = format!(
                    "must be at least {SHORTEST_RECOVERY:?}, or 0: an instance counts itself as gone a little earlier"
                );
                table.note("crash_recovery", why);
            }
            Some(StoreAddress::Redis(_)) | None => {}
        }
        Self {
            place: place.unwrap_or(StoreAddress::Memory),
            timeout,
            on_error,
            crash_recovery: (!crash_recovery.is_zero()).then_some(crash_recovery),
            instance,
        }
    }
}

/// A name that can stand in a key and in a channel, as a Kubernetes object's can.
fn instance_name(name: &str) -> Result<Box<str>, &'static str> {
    let fits = (1..=253).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if fits {
        Ok(name.into())
    } else {
        Err("write a name of letters, digits, `-`, `.` and `_`, at most 253 of them, as a pod's")
    }
}

impl StoreAddress {
    fn redis(url: &str, password: Option<&str>) -> Result<Self, String> {
        const WANTED: &str =
            "write \"memory:\", or \"redis://host:6379/0\"; other stores are not built yet";
        let rest = url.strip_prefix("redis://").ok_or(WANTED)?;
        let (credentials, address) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (host, database) = address.split_once('/').unwrap_or((address, ""));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let host_is_one = host
            .parse::<Authority>()
            .is_ok_and(|host| !host.host().is_empty());
        let port = host.rsplit_once(':').map(|(_, port)| port);
        let port_is_one =
            port.is_none_or(|port| port.ends_with(']') || port.parse::<u16>().is_ok());
        if !host_is_one || !port_is_one || !is_number(database) {
            return Err(WANTED.into());
        }
        let Some(password) = password else {
            return Ok(Self::Redis(url.into()));
        };
        if credentials.contains(':') {
            return Err(
                "the password stands in the URL and in password_file: leave one out".into(),
            );
        }
        let password = utf8_percent_encode(password, NON_ALPHANUMERIC);
        Ok(Self::Redis(format!(
            "redis://{credentials}:{password}@{address}"
        )))
    }
}

impl std::fmt::Debug for StoreAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.masked())
    }
}
