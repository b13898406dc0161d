//! `seriatim drain`: makes a serving process drain, by SIGUSR1.
//!
//! It is for a preStop hook, because the image has neither a shell nor `kill`. A native sidecar of Kubernetes
//! gets its SIGTERM only after the pod's other containers have ended. With this command it drains while the
//! backend is still there. The SIGTERM that follows aborts nothing. The command doesn't wait for the end of
//! draining.
//!
//! Invariant: the signal goes to one process that runs this program, and never to one chosen by chance. With
//! `--config`, it is the process whose admin interface listens where the file says.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

use super::{BAD_CONFIGURATION, ConfigOption, OK, print_error};
use crate::config::admin;

/// Options of `seriatim drain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 the process was told; 1 no process was found, or several, or it can't be \
                  signalled; 2 wrong arguments; 78 the file can't be read, or its admin.listen is wrong.",
    mut_arg("config_file", |arg| arg.help("The configuration file of the process, if several run here"))
)]
pub(super) struct DrainArgs {
    #[command(flatten)]
    pub(super) config: ConfigOption,
    /// How long to wait first, such as "5s", until load balancers send no more requests here
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    after: Duration,
}

/// The signal could not be sent.
const NOT_SENT: u8 = 1;

// === impl DrainArgs ===

impl DrainArgs {
    /// Waits, sends the signal, and returns the exit code.
    pub(super) fn run(&self) -> u8 {
        let address = match self.address() {
            Ok(address) => address,
            Err(error) => {
                print_error(error.trim_end());
                return BAD_CONFIGURATION;
            }
        };
        thread::sleep(self.after);
        let sent = serving(address).and_then(|pid| {
            kill_process(pid, Signal::USR1)
                .map_err(|error| format!("can't signal process {}: {error}", pid.as_raw_nonzero()))
        });
        match sent {
            Ok(()) => OK,
            Err(error) => {
                print_error(error);
                NOT_SENT
            }
        }
    }

    /// Where the admin interface of the wanted process listens; `None` without `--config`.
    fn address(&self) -> Result<Option<SocketAddr>, String> {
        let Some(file) = &self.config.file else {
            return Ok(None);
        };
        // The defaults, in place of what can't be read, may be those of another process.
        let address = admin::written_listen_address(file)?;
        Ok(Some(address))
    }
}

/// The process to signal: one that runs this program and whose admin interface listens at `address`.
fn serving(address: Option<SocketAddr>) -> Result<Pid, String> {
    let own = program("self").map_err(|error| format!("can't read /proc/self/exe: {error}"))?;
    let entries = fs::read_dir("/proc").map_err(|error| format!("can't read /proc: {error}"))?;
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let others = ids
        .filter(|id| *id != std::process::id())
        // The program of another user's process can't be read; this user couldn't signal it either.
        .filter(|id| program(&id.to_string()).is_ok_and(|program| program == own));
    let Some(address) = address else {
        return choose(others.collect());
    };
    let listening: Vec<_> = others.filter(|id| listens_at(*id, address)).collect();
    match &*listening {
        [] => Err(format!(
            "no process of this user that runs seriatim has admin.listen = \"{address}\""
        )),
        _ => choose(listening),
    }
}

fn choose(mut ids: Vec<u32>) -> Result<Pid, String> {
    ids.sort_unstable();
    let id = match &*ids {
        [1, ..] => 1,
        [id] => *id,
        [] => return Err("no other process in this container runs seriatim".to_owned()),
        several => {
            return Err(format!(
                "several processes run seriatim: {several:?}; name the configuration of one with --config, or \
                 send SIGUSR1 to it"
            ));
        }
    };
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| format!("{id} is not a process id"))
}

/// The device and inode of a process's program file, which identify the file.
fn program(process: &str) -> io::Result<(u64, u64)> {
    let file = fs::metadata(format!("/proc/{process}/exe"))?;
    Ok((file.dev(), file.ino()))
}

// === listening sockets ===

/// Whether a process has a socket that listens at this address.
fn listens_at(process: u32, address: SocketAddr) -> bool {
    let table = match address {
        SocketAddr::V4(_) => "tcp",
        SocketAddr::V6(_) => "tcp6",
    };
    // The table is that of the process's network namespace, and has the sockets of all processes in it.
    let table = fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap_or_default();
    let sockets: Vec<_> = listening_sockets(&table, address).collect();
    let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return false;
    };
    let mut targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == &**socket))
}

/// The sockets of a table of `/proc/net` that listen at this address, as links of `/proc/PID/fd` name them.
fn listening_sockets(table: &str, address: SocketAddr) -> impl Iterator<Item = String> {
    /// `TCP_LISTEN` in the kernel's `tcp_states.h`.
    const LISTEN: &str = "0A";
    table.lines().filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let (local, state) = (fields.nth(1)?, fields.nth(1)?);
        let inode = fields.nth(5)?;
        let is_it = state == LISTEN && socket_address(local)? == address;
        is_it.then(|| format!("socket:[{inode}]"))
    })
}

/// An address as `/proc/net` has it: the address's bytes in words of four, each in the machine's order, and the port.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip: IpAddr = match ip.len() {
        8 => word(0)?.into(),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            bytes.into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_the_containers_first_or_the_only_one() {
        let chosen = |ids: &[u32]| choose(ids.to_vec()).map(Pid::as_raw_pid).ok();
        assert_eq!(chosen(&[30, 1, 7]), Some(1), "process 1 of a container");
        assert_eq!(chosen(&[7]), Some(7), "the only one");
        assert_eq!(chosen(&[7, 30]), None, "no process is chosen by chance");
        assert_eq!(chosen(&[]), None, "there is no process");
    }

    #[test]
    fn the_socket_is_the_one_that_listens_at_this_address() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:26AD 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0
   1: 00000000:26AD 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 0 100 0 0 10 0
   2: 0100007F:26AD 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 333 1 0 20 4 30 10 -1
   3: 00000000000000000000000001000000:26AD 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 444 1
";
        let found = |address: &str| {
            let address = address.parse().expect("an address");
            listening_sockets(table, address).collect::<Vec<_>>()
        };
        if cfg!(target_endian = "little") {
            assert_eq!(found("127.0.0.1:9901"), ["socket:[111]"], "IPv4");
            assert_eq!(found("[::1]:9901"), ["socket:[444]"], "IPv6");
        }
        assert_eq!(found("0.0.0.0:9901"), ["socket:[222]"], "all interfaces");
        assert_eq!(found("127.0.0.1:9902"), [""; 0], "another port");
    }
}
