//! `[admin]`: where operators connect, and which token they need.
//!
//! Also finds the addresses at which a running process answers ([`addresses`]), whose file may have
//! become wrong since it started. What the admin interface answers is left to `crate::admin`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::option::{Options, options};
use super::problem::Problems;
use super::reader::{self, ConfigValue};
use super::value_kind::{Optional, Text, text};
use crate::secret::SecretFile;

options! {
    /// The admin interface: where operators connect, and which token they need.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct AdminConfig in "admin" {
        /// The address where operators and monitoring connect.
        listen: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901),
            text("address and port", address), example "\"0.0.0.0:9901\"", Restart;
        /// A file with the token that opens everything that names sessions. Clients send it as
        /// `authorization: Bearer`. Without a token, only a loopback address answers such requests. A
        /// new token in the file takes effect at once.
        token_file: Option<SecretFile> = None, Optional(SECRET_FILE),
            unset "loopback only", example "\"/run/secrets/seriatim-token\"", Restart;
    }
}

/// A path of a file that holds a secret.
const SECRET_FILE: Text<SecretFile, String> = Text {
    what: "path",
    parse: readable_secret,
    show: |file| file.path().display().to_string(),
};

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    const WANTED: &str = "write an address and a port, as \"0.0.0.0:8080\" or \"[::]:8080\"";
    text.parse().map_err(|_| WANTED)
}

/// A secret's file that can be read now. Its content may change at any time.
fn readable_secret(path: &str) -> Result<SecretFile, String> {
    let file = SecretFile::new(path);
    file.read().map_err(|error| error.to_string())?;
    Ok(file)
}

/// The addresses at which a process with this configuration answers on its own machine, the most
/// likely one first. The file is read as [`listen_address`] reads it.
///
/// # Errors
/// When `admin.listen` itself can't be used.
pub fn addresses(path: &Path) -> Result<Vec<SocketAddr>, Problems> {
    listen_address(path).map(on_this_machine)
}

/// Like [`listen_address`], for a command that acts on the process of this file and on no other.
///
/// # Errors
/// When the file can't be read or is not valid TOML, or `admin.listen` itself can't be used.
pub fn written_listen_address(path: &Path) -> Result<SocketAddr, String> {
    let file = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| format!("{file}: {error}"))?;
    let parsed = reader::parse(&file, &text, &reader::environment());
    let address = parsed.and_then(|_| listen_address(path));
    address.map_err(|problems| problems.to_string())
}

/// The address on which the admin interface of a process with this configuration listens.
///
/// A file that can't be read counts as empty, and problems of other options are ignored: a running
/// process keeps its configuration when its file becomes wrong, and must not be found dead for that.
///
/// # Errors
/// When `admin.listen` itself can't be used.
pub fn listen_address(path: &Path) -> Result<SocketAddr, Problems> {
    let file = path.display().to_string();
    let text = fs::read_to_string(path).unwrap_or_default();
    let variables = reader::environment();
    let parsed = reader::parse(&file, &text, &variables);
    let (report, entries) = parsed.or_else(|_| reader::parse(&file, "", &variables))?;
    let known_port = |entry: ConfigValue<'_>| {
        entry.parsed(|text| match address(text) {
            Ok(address) if address.port() == 0 => {
                Err("the system chooses this port: write the port that it has chosen")
            }
            parsed => parsed,
        })
    };
    let entry = report
        .root(entries)
        .table(AdminConfig::TABLE)
        .take("listen");
    let listen = entry.map_or(Some(AdminConfig::default().listen), known_port);
    // A value that can't be used has a problem.
    let listen = listen.unwrap_or(AdminConfig::default().listen);
    report.finish()?;
    Ok(listen)
}

/// Where a listener can be reached from its own machine. One on all interfaces is reached over the
/// loopback, where no other machine can answer.
pub fn on_this_machine(listen: SocketAddr) -> Vec<SocketAddr> {
    let port = listen.port();
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match listen {
        SocketAddr::V4(listen) if listen.ip().is_unspecified() => vec![v4],
        // A container may have no ::1, and a listener on `[::]` accepts IPv4 too.
        SocketAddr::V6(listen) if listen.ip().is_unspecified() => {
            vec![SocketAddr::from((Ipv6Addr::LOCALHOST, port)), v4]
        }
        one => vec![one],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_interfaces_is_reached_over_the_loopback() {
        let texts = |listen: &str| {
            let reached = on_this_machine(listen.parse().expect("an address"));
            reached.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(texts("0.0.0.0:1"), ["127.0.0.1:1"], "IPv4");
        assert_eq!(texts("[::]:1"), ["[::1]:1", "127.0.0.1:1"], "both");
        assert_eq!(texts("10.0.0.7:1"), ["10.0.0.7:1"], "one address");
    }
}
