//! `seriatim drain`: makes the serving process in this container drain, by SIGUSR1.
//!
//! It is for a preStop hook, because the image has neither a shell nor `kill`. A native sidecar of Kubernetes
//! gets its SIGTERM only after the pod's other containers have ended. With this command it drains while the
//! backend is still there. The SIGTERM that follows aborts nothing. The command doesn't wait for the end of
//! draining.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

use super::{OK, print_error};

/// Options of `seriatim drain`.
#[derive(Debug, Args)]
pub(super) struct DrainArgs {
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
        thread::sleep(self.after);
        let sent = serving().and_then(|pid| {
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
}

/// The serving process: process 1 of the container, or, where containers share a process namespace, the only
/// other process that runs this program.
fn serving() -> Result<Pid, String> {
    let own = program("self").map_err(|error| format!("can't read /proc/self/exe: {error}"))?;
    let entries = fs::read_dir("/proc").map_err(|error| format!("can't read /proc: {error}"))?;
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let others = ids
        .filter(|id| *id != std::process::id())
        // The program of another user's process can't be read; this user couldn't signal it either.
        .filter(|id| program(&id.to_string()).is_ok_and(|program| program == own));
    choose(others.collect())
}

fn choose(mut ids: Vec<u32>) -> Result<Pid, String> {
    ids.sort_unstable();
    let id = match &*ids {
        [1, ..] => 1,
        [id] => *id,
        [] => return Err("no other process in this container runs seriatim".to_owned()),
        several => {
            return Err(format!(
                "several processes run seriatim: {several:?}; send SIGUSR1 to the right one"
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
}
