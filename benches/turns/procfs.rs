//! What the kernel reports about a process: CPU time, resident memory, open files.

use std::fs;
use std::io;
use std::time::Duration;

use crate::Failure;

/// `USER_HZ`: the unit of `/proc/PID/stat`, 100 on every Linux that Rust has a target for.
const TICK: Duration = Duration::from_millis(10);

/// The CPU time that a process has used, read in two ways.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuTime {
    /// In nanoseconds, of the threads that still run.
    threads: Duration,
    /// In ticks, of all threads, also of those that have ended.
    process: Duration,
}

// === impl CpuTime ===

impl CpuTime {
    /// The CPU time of a process and of those that it has started.
    pub(crate) fn of_family(pid: u32) -> Result<Self, Failure> {
        let mut sum = Self {
            threads: Duration::ZERO,
            process: Duration::ZERO,
        };
        for pid in family(pid)? {
            let one = Self::of(pid)?;
            sum.threads += one.threads;
            sum.process += one.process;
        }
        Ok(sum)
    }

    pub(crate) fn of(pid: u32) -> Result<Self, Failure> {
        let gone = |error: io::Error| format!("can't read the CPU time of process {pid}: {error}");
        let mut threads = Duration::ZERO;
        for thread in fs::read_dir(format!("/proc/{pid}/task")).map_err(gone)? {
            // A thread may end between the listing and the reading.
            if let Ok(line) = fs::read_to_string(thread?.path().join("schedstat")) {
                let spent = line
                    .split(' ')
                    .next()
                    .ok_or("an empty schedstat: the kernel lacks CONFIG_SCHED_INFO")?;
                threads += Duration::from_nanos(spent.parse()?);
            }
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(gone)?;
        // The name in the second field may hold spaces and parentheses. utime and stime are fields 14 and 15 of the whole line.
        let (_, fields) = stat.rsplit_once(") ").ok_or("a stat line without a name")?;
        let mut ticks = 0;
        for field in fields.split(' ').skip(11).take(2) {
            ticks += field.parse::<u32>()?;
        }
        Ok(Self {
            threads,
            process: TICK * ticks,
        })
    }

    /// The CPU time used since `earlier`: the exact figure, or the coarse one if threads have ended since.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        let exact = self.threads.saturating_sub(earlier.threads);
        let coarse = self.process.saturating_sub(earlier.process);
        // Rounding makes the coarse figure up to one tick too large; scheduling, two more.
        if coarse > exact + TICK * 3 {
            coarse
        } else {
            exact
        }
    }
}

/// CPU time of the whole machine, and of this process with the children that it has waited for, in ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MachineTime {
    busy: u64,
    idle: u64,
    own: u64,
}

// === impl MachineTime ===

impl MachineTime {
    pub(crate) fn now() -> Result<Self, Failure> {
        let numbers = |fields: &str| {
            fields
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<Vec<u64>, _>>()
        };
        let machine = fs::read_to_string("/proc/stat")?;
        let machine = machine
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("cpu "))
            .ok_or("a /proc/stat without cpu")?;
        // user nice system idle iowait irq softirq steal; what follows is contained in user and nice.
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = numbers(machine)?[..]
        else {
            return Err("a /proc/stat of a kernel before 2.6.11".into());
        };
        let own = fs::read_to_string("/proc/self/stat")?;
        let (_, own) = own.rsplit_once(") ").ok_or("a stat line without a name")?;
        // utime, stime, cutime, cstime: fields 14 to 17 of the whole line.
        let own: Vec<&str> = own.split(' ').skip(11).take(4).collect();
        let own = numbers(&own.join(" "))?.iter().sum();
        Ok(Self {
            busy: user + nice + system + irq + softirq + steal,
            idle: idle + iowait,
            own,
        })
    }

    /// The share of the machine's CPU that other processes, and other guests of its host, used since `earlier`, in per cent.
    pub(crate) fn others_since(self, earlier: Self) -> f64 {
        let busy = self.busy.saturating_sub(earlier.busy);
        let all = busy + self.idle.saturating_sub(earlier.idle);
        let others = busy.saturating_sub(self.own.saturating_sub(earlier.own));
        others as f64 * 100.0 / all as f64
    }
}

/// A process, its children, and theirs.
pub(crate) fn family(pid: u32) -> Result<Vec<u32>, Failure> {
    let mut family = vec![pid];
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let children = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            family.extend(self::family(child.parse()?)?);
        }
    }
    Ok(family)
}

/// Resident memory of a process and of those that it has started, KiB. What they share counts once for each.
pub(crate) fn family_resident_kib(pid: u32) -> Result<f64, Failure> {
    family(pid)?.into_iter().map(resident_kib).sum()
}

/// Resident memory (`VmRSS`), KiB.
pub(crate) fn resident_kib(pid: u32) -> Result<f64, Failure> {
    status_kib(pid, "VmRSS:")
}

/// A field of a process's status, as `VmHWM:` (the most memory it ever had), KiB.
pub(crate) fn status_kib(pid: u32, field: &str) -> Result<f64, Failure> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .ok_or_else(|| format!("a process without {field} has ended"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Raises the limit of open files of this process, and of the children that it will have, as far as the system allows.
pub(crate) fn raise_open_files_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // A limit that stays means fewer streams, and the report says so.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// How many files this process may have open. Each child has the same limit.
pub(crate) fn open_files_limit() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    // "unlimited" doesn't parse.
    line.and_then(|line| line.split_whitespace().next())
        .and_then(|soft| soft.parse().ok())
        .unwrap_or(usize::MAX)
}
