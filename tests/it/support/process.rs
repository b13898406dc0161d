//! The binary under test, as a user runs it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread;

use super::LIMIT;

/// A running `seriatim` that logs JSON. Killed when dropped.
pub(crate) struct Process {
    child: Child,
    addr: SocketAddr,
    admin: SocketAddr,
    /// Log lines from before it served.
    starting: Vec<String>,
    events: Mutex<mpsc::Receiver<String>>,
    /// Log lines that were read before the end.
    seen: Mutex<Vec<String>>,
}

/// The binary's command line.
pub(crate) fn seriatim() -> Command {
    Command::new(env!("CARGO_BIN_EXE_seriatim"))
}

/// Runs the binary to its end with these arguments.
pub(crate) fn run(arguments: &[&str]) -> Output {
    seriatim()
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts")
}

/// Sends a signal, such as `TERM` or `STOP`, with the `kill` command.
pub(crate) fn signal(id: u32, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &id.to_string()])
        .status();
    assert!(
        sent.expect("`kill` exists").success(),
        "the process runs and can get {name}"
    );
}

// === impl Process ===

impl Process {
    /// Starts the binary with this file, which must listen on port 0, and waits until it serves.
    pub(crate) fn start(config: &Path) -> Self {
        Self::start_program(Path::new(env!("CARGO_BIN_EXE_seriatim")), config)
    }

    /// Starts a copy of the binary with this file, and waits until it serves.
    pub(crate) fn start_program(program: &Path, config: &Path) -> Self {
        let mut child = Command::new(program)
            .arg("--config")
            .arg(config)
            .env("SERIATIM__LOG__FORMAT", "json")
            .env("SERIATIM__ADMIN__LISTEN", "127.0.0.1:0")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let (log, events) = mpsc::channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // The test may have ended.
                let _ = log.send(line);
            }
        });
        let mut starting = Vec::new();
        let (addr, admin) = loop {
            let line = events
                .recv_timeout(LIMIT)
                .expect("the process logs that it serves");
            starting.push(line.clone());
            let event: serde_json::Value = serde_json::from_str(&line).expect("a log line is JSON");
            if event["message"] == "serving" {
                let [address, admin] = ["address", "admin"].map(|name| {
                    let address = event[name].as_str().expect("the event has the address");
                    address.parse().expect("the address is valid")
                });
                break (address, admin);
            }
        };
        Self {
            child,
            addr,
            admin,
            starting,
            events: Mutex::new(events),
            seen: Mutex::default(),
        }
    }

    /// The log up to the line that says that it serves.
    pub(crate) fn logged_while_starting(&self) -> &[String] {
        &self.starting
    }

    /// Whether the log has a line that contains this text.
    pub(crate) fn has_logged(&self, message: &str) -> bool {
        self.times_logged(message) > 0
    }

    /// How many log lines contain this text.
    pub(crate) fn times_logged(&self, message: &str) -> usize {
        let events = self.events.lock().expect("no panic with the lock held");
        let mut seen = self.seen.lock().expect("no panic with the lock held");
        seen.extend(events.try_iter());
        seen.iter().filter(|line| line.contains(message)).count()
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address of the admin listener.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The peak memory so far (VmHWM), in KiB.
    pub(crate) fn peak_kib(&self) -> u64 {
        self.proc_number("status", "VmHWM:")
    }

    /// The number of threads.
    pub(crate) fn threads(&self) -> u64 {
        self.proc_number("status", "Threads:")
    }

    /// The soft limit of open files.
    pub(crate) fn allowed_files(&self) -> u64 {
        self.proc_number("limits", "Max open files")
    }

    /// The number after this name in a file of `/proc/PID`.
    fn proc_number(&self, file: &str, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id()));
        let text = text.expect("the process runs");
        let found = text.lines().find_map(|line| line.strip_prefix(name));
        let number = found.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|number| number.parse().ok())
            .expect("the file has the number")
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Waits for the end of the process. Gives its exit status, and every log event since it served.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<serde_json::Value>) {
        let status = self.child.wait().expect("the process can be waited for");
        let seen = std::mem::take(self.seen.get_mut().expect("no panic with the lock held"));
        let events = self.events.get_mut().expect("no panic with the lock held");
        let rest = std::iter::from_fn(|| events.recv_timeout(LIMIT).ok());
        let lines = seen.into_iter().chain(rest);
        let events = lines.map(|line| serde_json::from_str(&line).expect("a log line is JSON"));
        (status, events.collect())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that the child has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
