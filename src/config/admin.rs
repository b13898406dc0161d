//! `[admin]`: where operators ask, and what opens more than the probes to them. Also for whoever asks a
//! running process how it does, whose file may be wrong by now.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::problem::Problems;
use super::reader::{self, ConfigTable, ConfigValue};
use crate::secret::SecretFile;

/// What operators ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where.
    pub listen: SocketAddr,
    /// The token that opens more than the probes; `None`: being on this machine does.
    pub token_file: Option<SecretFile>,
}

/// Where, unless it is said: where nobody else can ask.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);

// === impl Admin ===

impl AdminConfig {
    pub(super) fn read(table: &mut ConfigTable<'_>) -> Self {
        Self {
            listen: table.or("listen", LISTEN, |entry| entry.parsed(address)),
            token_file: table
                .take("token_file")
                .and_then(|entry| entry.parsed(readable_secret)),
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    const WANTED: &str = "write an address and a port, as \"0.0.0.0:8080\" or \"[::]:8080\"";
    text.parse().map_err(|_| WANTED)
}

/// A secret's file, which can be read now. What is in it may change at any time.
fn readable_secret(path: &str) -> Result<SecretFile, String> {
    let file = SecretFile::new(path);
    match file.read() {
        Ok(_) => Ok(file),
        Err(error) => Err(error.to_string()),
    }
}

/// The addresses at which a process with this configuration answers on its own machine, the likeliest
/// first. A file that isn't there or can't be read is an empty one, and nothing else in it is complained
/// of: a process keeps the configuration it has when its file is replaced by one that is wrong, and must
/// not be found dead for that.
///
/// # Errors
/// When `admin.listen` itself can't be used.
pub fn addresses(path: &Path) -> Result<Vec<SocketAddr>, Problems> {
    let file = path.display().to_string();
    let text = fs::read_to_string(path).unwrap_or_default();
    let variables = reader::environment();
    let parsed = reader::parse(&file, &text, &variables);
    let (report, entries) = parsed.or_else(|_| reader::parse(&file, "", &variables))?;
    let known = |entry: ConfigValue<'_>| {
        entry.parsed(|text| match address(text) {
            Ok(address) if address.port() == 0 => {
                Err("the system chooses this port: nobody can know it")
            }
            parsed => parsed,
        })
    };
    let listen = report
        .root(entries)
        .table("admin")
        .or("listen", LISTEN, known);
    match report.problems() {
        Some(problems) => Err(problems),
        None => Ok(own(listen)),
    }
}

/// What listens everywhere is asked over the loopback, which nobody else can answer on.
fn own(listen: SocketAddr) -> Vec<SocketAddr> {
    let port = listen.port();
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match listen {
        SocketAddr::V4(listen) if listen.ip().is_unspecified() => vec![v4],
        // A container may have no ::1, and `[::]` takes IPv4, too.
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
    fn who_listens_everywhere_is_asked_over_the_loopback() {
        let texts = |listen: &str| -> Vec<_> {
            let listen = listen.parse().expect("an address");
            own(listen).iter().map(ToString::to_string).collect()
        };
        assert_eq!(texts("0.0.0.0:1"), ["127.0.0.1:1"], "IPv4");
        assert_eq!(texts("[::]:1"), ["[::1]:1", "127.0.0.1:1"], "both");
        assert_eq!(texts("10.0.0.7:1"), ["10.0.0.7:1"], "one address");
    }
}
