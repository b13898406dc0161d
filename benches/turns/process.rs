//! Child processes. Each has one guard, which ends the child when it is dropped, also when the run fails.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::Failure;

/// How long a group may take to end by itself.
const GROUP_PATIENCE: Duration = Duration::from_secs(1);

/// The text before the address on the first line that a role prints.
const ADDRESS_MARK: &str = "listening ";

/// A running child. Dropping this kills the child, and waits for its end so that no zombie is left.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    /// Whether the child leads a process group, which ends with it.
    leads_group: bool,
}

// === impl Process ===

impl Process {
    pub(crate) fn spawn(name: &str, command: &mut Command) -> Result<Self, Failure> {
        let child = command.spawn().map_err(|error| {
            format!("{name}: {:?} did not start: {error}", command.get_program())
        })?;
        Ok(Self {
            name: name.to_owned(),
            child,
            leads_group: false,
        })
    }

    /// Starts a program that starts processes of its own: dropping the guard kills these, too.
    pub(crate) fn spawn_group(name: &str, command: &mut Command) -> Result<Self, Failure> {
        let mut process = Self::spawn(name, command.process_group(0))?;
        process.leads_group = true;
        Ok(process)
    }

    /// Starts this binary again in a role, and waits until it has printed its address.
    pub(crate) fn role(
        name: &str,
        under: &[String],
        arguments: &[&str],
    ) -> Result<(Self, SocketAddr), Failure> {
        let this = std::env::current_exe()?;
        let mut command = command(under, &this);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Self::spawn(name, &mut command)?;
        let output = process
            .child
            .stdout
            .take()
            .ok_or("a child's standard output is piped, but isn't there")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let addr = line
            .trim()
            .strip_prefix(ADDRESS_MARK)
            .ok_or_else(|| format!("{name} ended before it listened"))?;
        Ok((process, addr.parse()?))
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status; `None`: the child still runs.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        Ok(self.child.try_wait()?)
    }

    /// Ends the child with a SIGTERM, so that valgrind writes its counts. Kills it after `patience`.
    pub(crate) async fn terminate(mut self, patience: Duration) -> Result<(), Failure> {
        // Through kill(1): the standard library knows SIGKILL only, and unsafe code is forbidden here.
        Command::new("kill")
            .args(["-TERM", &self.id().to_string()])
            .status()?;
        let begun = Instant::now();
        while self.ended()?.is_none() {
            if begun.elapsed() > patience {
                return Err(
                    format!("{} did not end within {patience:?} of a SIGTERM", self.name).into(),
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Process {
    /// Ends the group: its leader first, which waits for its children, so that their CPU time counts as this run's own. What is
    /// left is killed, because a worker of nginx outlives a master that is killed.
    fn end_group(&mut self) {
        let leader = Pid::from_child(&self.child);
        let _ = kill_process(leader, Signal::TERM);
        let begun = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if begun.elapsed() > GROUP_PATIENCE {
                let _ = kill_process_group(leader, Signal::KILL);
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.leads_group {
            self.end_group();
        }
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `program`, as an argument of the command `under` when there is one (`valgrind --tool=callgrind`, ...).
pub(crate) fn command(under: &[String], program: &std::path::Path) -> Command {
    match under.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

/// A port that was free a moment ago, for programs that can't report the port they were given.
pub(crate) fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Prints the address of this role for the parent.
pub(crate) fn print_address(addr: SocketAddr) {
    println!("{ADDRESS_MARK}{addr}");
}

/// Ends this role when the parent has ended, because that closes the parent's end of the pipe.
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
}
