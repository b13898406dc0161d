//! The URL of a Redis: `redis://[user[:password]@]host[:port][/database]`.
//!
//! Invariant: there is one reading of such a URL. `seriatim check` and every connection use this one. Neither
//! an error nor `Debug` nor `Display` shows the password.

use std::fmt;
use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;
use thiserror::Error;

/// Where Redis is, and who logs in.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// The URL as written.
    text: String,
    /// A name or an address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) database: i64,
    /// `None`: the user `default`.
    pub(super) user: Option<String>,
    /// `None`: no password, or one that is elsewhere.
    pub(super) password: Option<String>,
}

/// Why a text is not the URL of a Redis. The message contains nothing of the text but one character.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RedisUrlError {
    /// The text is neither `memory:` nor a `redis://` URL.
    #[error("write \"memory:\" or \"redis://host:6379/0\"; other stores are not supported")]
    Invalid,
    /// What follows the user and the password is not a host.
    #[error(
        "has no valid host: write a name or an address, as \"redis://host:6379/0\", and an IPv6 address in \
         brackets"
    )]
    Host,
    /// What follows the host is not a port.
    #[error(
        "the port must be a number from 0 to 65535: write it after the host, as \"redis://host:6379/0\""
    )]
    Port,
    /// What follows the slash is not the number of a database.
    #[error(
        "the database must be a number without a sign: write it after the slash, as \"redis://host:6379/0\""
    )]
    Database,
    /// There are options behind the database.
    #[error(
        "can't have options: write the URL without the `{0}` and what follows, as \"redis://host:6379/0\""
    )]
    Options(char),
    /// It has a control character, such as a line break.
    #[error("has a line break or another control character: write the URL in one line, without it")]
    Control,
    /// The user or the password has a character that would end the host in a URL (RFC 3986 §3.2).
    #[error(
        "the user or the password has the character `{character}`: write `{encoded}` in its place, or leave \
         the password out and set password_file"
    )]
    Reserved {
        /// The character.
        character: char,
        /// How to write it.
        encoded: &'static str,
    },
    /// The user or the password has percent-encoded bytes that are no text.
    #[error(
        "the user or the password is not UTF-8 when its percent-encoding is decoded: write it in UTF-8"
    )]
    NotText,
}

/// The port of a URL that names none.
const PORT: u16 = 6379;

/// The characters that end the host of a URL, and their percent-encoding.
const RESERVED: [(char, &str); 3] = [('/', "%2F"), ('?', "%3F"), ('#', "%23")];

// === impl RedisUrl ===

impl RedisUrl {
    /// Reads a URL. Everything before the last `@` is the user and the password, which may be
    /// percent-encoded.
    ///
    /// # Errors
    /// When the text can't be read as a `redis://` URL. The error doesn't contain the password.
    pub fn parse(text: &str) -> Result<Self, RedisUrlError> {
        if text.contains(char::is_control) {
            return Err(RedisUrlError::Control);
        }
        let rest = text.strip_prefix("redis://");
        let rest = rest.ok_or(RedisUrlError::Invalid)?;
        let (credentials, address) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        if let Some(options) = address.chars().find(|c| matches!(c, '?' | '#')) {
            return Err(RedisUrlError::Options(options));
        }
        let (authority, database) = address.split_once('/').unwrap_or((address, ""));
        let (host, port) = host_and_port(authority)?;
        Ok(Self {
            text: text.into(),
            host,
            port,
            database: match database {
                "" => 0,
                number => digits(number).ok_or(RedisUrlError::Database)?,
            },
            user: decoded(user)?,
            password: decoded(password)?,
        })
    }

    /// Whether the URL has a password.
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }
}

/// `None` for an empty text.
fn decoded(text: &str) -> Result<Option<String>, RedisUrlError> {
    let mut reserved = RESERVED.into_iter();
    if let Some((character, encoded)) = reserved.find(|(character, _)| text.contains(*character)) {
        return Err(RedisUrlError::Reserved { character, encoded });
    }
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| RedisUrlError::NotText)?;
    Ok((!decoded.is_empty()).then(|| decoded.into_owned()))
}

fn host_and_port(authority: &str) -> Result<(String, u16), RedisUrlError> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let (host, port, is_host) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(RedisUrlError::Host)?;
            (host, port, host.parse::<Ipv6Addr>().is_ok())
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            let (host, port) = authority.split_at(end);
            (host, port, !host.is_empty() && host.bytes().all(is_name))
        }
    };
    if !is_host {
        return Err(RedisUrlError::Host);
    }
    let port = match port {
        "" => PORT,
        port => {
            let number = port.strip_prefix(':').and_then(digits);
            number.ok_or(RedisUrlError::Port)?
        }
    };
    Ok((host.into(), port))
}

/// A number without a sign.
fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

impl fmt::Display for RedisUrl {
    /// The URL, with `***` in place of its password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let masked = self.text.rsplit_once('@').and_then(|(start, address)| {
            let (user, _) = start.strip_prefix("redis://")?.split_once(':')?;
            Some(format!("redis://{user}:***@{address}"))
        });
        f.write_str(masked.as_deref().unwrap_or(&self.text))
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Host, port, database, user and password.
    fn read(url: &str) -> (String, u16, i64, Option<String>, Option<String>) {
        let url = RedisUrl::parse(url).expect("a URL");
        (url.host, url.port, url.database, url.user, url.password)
    }

    #[test]
    fn a_url_is_read_as_it_is_documented() {
        for (url, host, port, database, user, password) in [
            ("redis://h", "h", 6379, 0, "", ""),
            ("redis://h/", "h", 6379, 0, "", ""),
            (
                "redis://my_redis.svc-1:1/15",
                "my_redis.svc-1",
                1,
                15,
                "",
                "",
            ),
            ("redis://[::1]:7/1", "::1", 7, 1, "", ""),
            ("redis://[::1]", "::1", 6379, 0, "", ""),
            ("redis://agent@h", "h", 6379, 0, "agent", ""),
            ("redis://agent:@h", "h", 6379, 0, "agent", ""),
            ("redis://:p@h", "h", 6379, 0, "", "p"),
            ("redis://:p@s:s%@h", "h", 6379, 0, "", "p@s:s%"),
            (
                "redis://a%40b:%2F%3f%23%E4%B8%AD@h",
                "h",
                6379,
                0,
                "a@b",
                "/?#中",
            ),
            ("redis://:中 文@h", "h", 6379, 0, "", "中 文"),
        ] {
            let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let expected = (host.into(), port, database, text(user), text(password));
            assert_eq!(read(url), expected, "{url}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_with_its_reason_and_without_the_password() {
        use RedisUrlError::{Control, Database, Host, Invalid, NotText, Options, Port};
        let reserved = |character, encoded| RedisUrlError::Reserved { character, encoded };
        for (url, why) in [
            ("rediss://h", Invalid),
            ("redis://", Host),
            ("redis://:geheim@/0", Host),
            ("redis://:geheim/0", Host),
            ("redis://h:x", Port),
            ("redis://h:", Port),
            ("redis://h:+1", Port),
            ("redis://h:65536", Port),
            ("redis://h/16a", Database),
            ("redis://h/-1", Database),
            ("redis://h/99999999999999999999", Database),
            ("redis://h/0?protocol=resp3", Options('?')),
            ("redis://h?db=1", Options('?')),
            ("redis://h/0#x", Options('#')),
            ("redis://a b", Host),
            ("redis://[::1", Host),
            ("redis://[h]", Host),
            ("redis://:geheim@h\n", Control),
            ("redis://:ge\theim@h", Control),
            ("redis://:geheim%ff@h", NotText),
            ("redis://:geheim#1@h", reserved('#', "%23")),
            ("redis://:geheim?1@h", reserved('?', "%3F")),
            ("redis://:geheim/1@h", reserved('/', "%2F")),
            ("redis://us/er:geheim@h", reserved('/', "%2F")),
        ] {
            let error = RedisUrl::parse(url).expect_err(url);
            assert_eq!(error, why, "{url}");
            assert!(!error.to_string().contains("geh"), "{error}");
        }
    }

    #[test]
    fn a_url_prints_without_its_password() {
        for (url, printed) in [
            ("redis://:ge@heim@h/1", "redis://:***@h/1"),
            ("redis://agent:geheim@h", "redis://agent:***@h"),
            ("redis://agent@h", "redis://agent@h"),
        ] {
            let url = RedisUrl::parse(url).expect("a URL");
            assert_eq!(format!("{url} {url:?}"), format!("{printed} {printed}"));
        }
    }
}
