//! The binary under test, as a user runs it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread;

use super::LIMIT;

/// A running `seriatim`, told to log JSON. Killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    addr: SocketAddr,
    admin: SocketAddr,
    events: Mutex<mpsc::Receiver<String>>,
    /// Events that were looked at before the end.
    seen: Mutex<Vec<String>>,
}

/// The command line.
pub(crate) fn seriatim() -> Command {
    Command::new(env!("CARGO_BIN_EXE_seriatim"))
}

/// Runs it to its end with these arguments.
pub(crate) fn run(arguments: &[&str]) -> Output {
    seriatim()
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts")
}

/// Sends a signal, as `TERM` or `STOP`, by the system's own command.
pub(crate) fn signal(id: u32, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &id.to_string()])
        .status();
    assert!(
        sent.expect("kill is everywhere").success(),
        "the process is there to get {name}"
    );
}

// === impl Process ===

impl Process {
    /// Starts it with this file, which must listen on port 0, and waits until it serves.
    pub(crate) fn start(config: &Path) -> Self {
        Self::start_program(Path::new(env!("CARGO_BIN_EXE_seriatim")), config)
    }

    /// Likewise, a copy of the binary.
    pub(crate) fn start_program(program: &Path, config: &Path) -> Self {
        let mut child = Command::new(program)
            .arg("--config")
            .arg(config)
            .env("SERIATIM__LOG__FORMAT", "json")
            .env("SERIATIM__ADMIN__LISTEN", "127.0.0.1:0")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let (told, events) = mpsc::channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // Nobody may listen any more.
                let _ = told.send(line);
            }
        });
        let (addr, admin) = loop {
            let line = events.recv_timeout(LIMIT).expect("it says that it serves");
            let event: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
            if event["message"] == "serving" {
                let [address, admin] = ["address", "admin"].map(|name| {
                    let address = event[name].as_str().expect("its address");
                    address.parse().expect("an address")
                });
                break (address, admin);
            }
        };
        Self {
            child,
            addr,
            admin,
            events: Mutex::new(events),
            seen: Mutex::default(),
        }
    }

    /// Whether it has told an event of this message.
    pub(crate) fn told(&self, message: &str) -> bool {
        self.times_told(message) > 0
    }

    /// How many events of this message it has told.
    pub(crate) fn times_told(&self, message: &str) -> usize {
        let events = self.events.lock().expect("nobody panicked with it");
        let mut seen = self.seen.lock().expect("nobody panicked with it");
        seen.extend(events.try_iter());
        seen.iter().filter(|line| line.contains(message)).count()
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it answers operators.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The most memory that it has had so far, in KiB.
    pub(crate) fn peak_kib(&self) -> u64 {
        self.said_of_it("status", "VmHWM:")
    }

    /// How many threads it has.
    pub(crate) fn threads(&self) -> u64 {
        self.said_of_it("status", "Threads:")
    }

    /// How many files it may have open (the soft limit).
    pub(crate) fn allowed_files(&self) -> u64 {
        self.said_of_it("limits", "Max open files")
    }

    /// The number behind this name in a file that Linux keeps about the process.
    fn said_of_it(&self, file: &str, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id()));
        let text = text.expect("the process is there");
        let said = text.lines().find_map(|line| line.strip_prefix(name));
        let number = said.and_then(|said| said.split_whitespace().next());
        number
            .and_then(|number| number.parse().ok())
            .expect("Linux says so")
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Waits for its end; gives how it ended, and every event that it told since it served.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<serde_json::Value>) {
        let status = self.child.wait().expect("it ends");
        let seen = std::mem::take(self.seen.get_mut().expect("nobody panicked with it"));
        let events = self.events.get_mut().expect("nobody panicked with it");
        let rest = std::iter::from_fn(|| events.recv_timeout(LIMIT).ok());
        let lines = seen.into_iter().chain(rest);
        let events = lines.map(|line| serde_json::from_str(&line).expect("a line of JSON"));
        (status, events.collect())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error is a child that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
