//! Why a text is not the URL of a Redis, and what to write instead.
//!
//! Invariant: a message contains nothing of the text but one character, so it can't contain the password.

use thiserror::Error;

/// Why a text is not the URL of a Redis. The message contains nothing of the text but one character. A `&str` in it
/// is an example of the form to write.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RedisUrlError {
    /// The text is neither `memory:` nor the URL of a Redis.
    #[error(
        "write \"memory:\", \"redis://host:6379/0\", \"redis-sentinel://host:26379/MASTER\", \
         \"redis-cluster://host:6379\", one of these with \"rediss\" in place of \"redis\" for TLS, or \
         \"unix:///run/redis.sock\"; other stores are not supported"
    )]
    Invalid,
    /// The text has a scheme of another program, which stands for the form in the example.
    #[error("has a scheme that Seriatim does not know: write this Redis as \"{0}\"")]
    Scheme(&'static str),
    /// What follows the user and the password is not a host.
    #[error(
        "has no valid host: write a name or an address, as \"{0}\", and an IPv6 address in \
         brackets"
    )]
    Host(&'static str),
    /// One of several hosts is not valid, or empty.
    #[error(
        "has a host that is not valid, or none: write names or addresses with one comma between them and \
         without spaces, as \"{0}\", and an IPv6 address in brackets"
    )]
    Hosts(&'static str),
    /// The URL of a single server has several hosts.
    #[error(
        "names several servers, which are Sentinels or nodes of a cluster: write \"{sentinel}\" with the name of the \
         master, or \"{cluster}\""
    )]
    SeveralHosts {
        /// An example of Sentinels.
        sentinel: &'static str,
        /// An example of a cluster.
        cluster: &'static str,
    },
    /// There is a login before each host, or the login has a character that separates hosts.
    #[error(
        "the user and the password must be written once, before the first host: write `%40` for an `@` and `%2C` for \
         a `,` in them, or leave the password out and set password_file"
    )]
    SeveralLogins,
    /// What follows the host is not a port.
    #[error("the port must be a number from 0 to 65535: write it after the host, as \"{0}\"")]
    Port(&'static str),
    /// What has to be the database is not a number.
    #[error("the database must be a number without a sign: write it at the end, as \"{0}\"")]
    Database(&'static str),
    /// A database behind a cluster.
    #[error("a cluster has only database 0: write the hosts and nothing behind them, as \"{0}\"")]
    ClusterDatabase(&'static str),
    /// Sentinels without the name of a master.
    #[error(
        "does not name the master: write the name that the Sentinels have for it after the hosts, as \"{0}\"; a \
         database can follow it"
    )]
    NoMaster(&'static str),
    /// The name of the master is one that Sentinels refuse.
    #[error(
        "the name of the master has a character that Sentinels refuse: write it as the Sentinels have it, with \
         letters, digits, `.`, `-` and `_`, as \"{0}\""
    )]
    Master(&'static str),
    /// There are options behind the database.
    #[error(
        "can't have options: write the URL without the `{character}` and what follows, as \"{example}\""
    )]
    Options {
        /// An example of the form.
        example: &'static str,
        /// The character at which the options begin.
        character: char,
    },
    /// A `unix://` URL has no absolute path.
    #[error("write the absolute path of a socket, as \"unix:///run/redis.sock\"")]
    SocketPath,
    /// The path is longer than the address of a socket.
    #[error("the path of a socket has at most 107 bytes: write a shorter one")]
    LongPath,
    /// What follows the path of a Unix socket is not the number of a database.
    #[error(
        "only the database may follow the path of a socket, as \"unix:///run/redis.sock?db=1\"; write the \
         user and the password before it, as \"unix://user:password@/run/redis.sock\""
    )]
    SocketOptions,
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
