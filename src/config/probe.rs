//! Where a running process is asked how it does, read from a configuration that may be wrong by now.
//!
//! A process keeps the configuration it has when its file is replaced by one that is wrong. Whoever
//! asks after it must not find it dead for that: of the file only `admin.listen` is read, and nothing
//! else is complained of.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::problem::Problems;
use super::{ADDRESS_WANTED, ADMIN, raw};

/// The addresses at which a process with this configuration answers on its own machine, the likeliest
/// first. A file that isn't there or can't be read is an empty one.
///
/// # Errors
/// When `admin.listen` itself can't be used.
pub fn admin_addresses(path: &Path) -> Result<Vec<SocketAddr>, Problems> {
    let file = path.display().to_string();
    let text = fs::read_to_string(path).unwrap_or_default();
    let variables = raw::environment();
    let parsed = raw::parse(&file, &text, &variables);
    let (report, entries) = parsed.or_else(|_| raw::parse(&file, "", &variables))?;
    let listen = report
        .root(entries)
        .table("admin")
        .or("listen", ADMIN, |entry| {
            entry.parsed(|text| match text.parse::<SocketAddr>() {
                Ok(address) if address.port() == 0 => {
                    Err("the system chooses this port: nobody can know it".to_owned())
                }
                Ok(address) => Ok(address),
                Err(_) => Err(ADDRESS_WANTED.to_owned()),
            })
        });
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
