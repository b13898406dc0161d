//! `seriatim drain`: tells the process that serves in this container to drain.
//!
//! For a preStop hook, in an image without a shell and without a `kill`. A native sidecar of Kubernetes
//! gets its SIGTERM only when the pod's other containers have ended; told by this, it drains while the
//! backend that its turns run on is still there. The signal is SIGUSR1, which is not one of those of
//! which a second aborts the turns: the SIGTERM that may follow changes nothing.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

use super::{OK, complain};

/// Options of `seriatim drain`.
#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// Wait first, as "5s": for those who send requests here to hear that this one stops
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    after: Duration,
}

/// It could not be told.
const UNTOLD: u8 = 1;

// === impl Drain ===

impl DrainArgs {
    /// Waits, tells, and gives the exit code; doesn't wait for the draining.
    pub(super) fn tell(&self) -> u8 {
        thread::sleep(self.after);
        let told = serving().and_then(|pid| {
            kill_process(pid, Signal::USR1)
                .map_err(|error| format!("can't signal process {}: {error}", pid.as_raw_nonzero()))
        });
        match told {
            Ok(()) => OK,
            Err(why) => {
                complain(why);
                UNTOLD
            }
        }
    }
}

/// The process that serves: the container's first one, or, where containers share their processes, the
/// only other one that runs this program.
fn serving() -> Result<Pid, String> {
    let own = program("self").map_err(|error| format!("can't read /proc/self/exe: {error}"))?;
    let entries = fs::read_dir("/proc").map_err(|error| format!("can't read /proc: {error}"))?;
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let others = ids
        .filter(|id| *id != std::process::id())
        // Others' processes can't be looked at, and are none of this user's to signal.
        .filter(|id| program(&id.to_string()).is_ok_and(|program| program == own));
    one_of(others.collect())
}

fn one_of(mut ids: Vec<u32>) -> Result<Pid, String> {
    ids.sort_unstable();
    let id = match &*ids {
        [1, ..] => 1,
        [id] => *id,
        [] => return Err("no other process runs this program".to_owned()),
        several => {
            return Err(format!(
                "several processes run this program: {several:?}; send SIGUSR1 to the one that is meant"
            ));
        }
    };
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| format!("{id} is no process"))
}

/// What tells a program's file from all others.
fn program(process: &str) -> io::Result<(u64, u64)> {
    let file = fs::metadata(format!("/proc/{process}/exe"))?;
    Ok((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_first_process_is_meant_or_the_only_one() {
        let chosen = |ids: &[u32]| one_of(ids.to_vec()).map(Pid::as_raw_pid).ok();
        assert_eq!(chosen(&[30, 1, 7]), Some(1), "the first of a container");
        assert_eq!(chosen(&[7]), Some(7), "the only one");
        assert_eq!(chosen(&[7, 30]), None, "nobody is told by chance");
        assert_eq!(chosen(&[]), None, "nobody is there");
    }
}
