//! Reads the output of callgrind and strace: what one process has counted from its start to its end.
//!
//! callgrind knows how often a function was called. The compiler can copy a function into its callers, and then there is no call to
//! count. This can't happen to the functions that are counted here: they belong to libc, or are called through a pointer.

use std::collections::{BTreeMap, HashMap};

/// What is counted. The tables show it in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Counted {
    /// Instructions in user space, of all threads.
    Instructions,
    /// Calls that allocate or resize memory on the heap.
    Allocations,
    Frees,
    /// Calls that copy memory. The compiler copies a few bytes without a call; these aren't counted.
    Copies,
    ClockReads,
    /// Polls of tokio's tasks. They need the symbols of the program: without, there are none.
    TaskPolls,
    SystemCalls,
}

/// The totals of one process.
pub(crate) type Totals = BTreeMap<Counted, u64>;

// === impl Counted ===

impl Counted {
    pub(crate) const ALL: [Self; 7] = [
        Self::Instructions,
        Self::Allocations,
        Self::Frees,
        Self::Copies,
        Self::ClockReads,
        Self::TaskPolls,
        Self::SystemCalls,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Instructions => "instructions",
            Self::Allocations => "allocations",
            Self::Frees => "frees",
            Self::Copies => "copies",
            Self::ClockReads => "clock reads",
            Self::TaskPolls => "task polls",
            Self::SystemCalls => "system calls",
        }
    }

    /// What a call of this function adds to.
    fn called(function: &str) -> Option<Self> {
        // A call within a call of the same function has another name, such as "malloc'2".
        let (name, _) = function.split_once('\'').unwrap_or((function, ""));
        // libc's names may have a version: "clock_gettime@@GLIBC_2.17", and "memcpy@GLIBC_2.2.5" for an old one.
        let (name, _) = name.split_once('@').unwrap_or((name, ""));
        match name {
            "malloc" | "calloc" | "realloc" | "aligned_alloc" | "posix_memalign" => {
                Some(Self::Allocations)
            }
            "free" => Some(Self::Frees),
            "clock_gettime" => Some(Self::ClockReads),
            "tokio::runtime::task::raw::poll" => Some(Self::TaskPolls),
            "memcpy" | "memmove" => Some(Self::Copies),
            // Those of one kind of processor, such as __memcpy_avx_unaligned_erms.
            _ if name.starts_with("__memcpy_") || name.starts_with("__memmove_") => {
                Some(Self::Copies)
            }
            _ => None,
        }
    }
}

/// The totals in callgrind's output; `None`: the output isn't complete.
pub(crate) fn read_callgrind(text: &str) -> Option<Totals> {
    let mut totals = Totals::new();
    // A name is written once, with a number: "fn=(12) malloc". From then on the number stands for it: "cfn=(12)".
    let mut named = HashMap::new();
    let mut callee = None;
    for line in text.lines() {
        if let Some(function) = line.strip_prefix("cfn=") {
            callee = resolve(&mut named, function);
        } else if let Some(function) = line.strip_prefix("fn=") {
            resolve(&mut named, function);
        } else if let Some(calls) = line.strip_prefix("calls=") {
            // The number of calls, then where the called function is.
            if let Some(counted) = callee.take() {
                let (calls, _) = calls.split_once(' ')?;
                *totals.entry(counted).or_default() += calls.parse::<u64>().ok()?;
            }
        } else if let Some(instructions) = line.strip_prefix("totals:") {
            totals.insert(Counted::Instructions, instructions.trim().parse().ok()?);
        }
    }
    totals
        .contains_key(&Counted::Instructions)
        .then_some(totals)
}

/// What a call of a function adds to, from "(12) name" or "(12)".
fn resolve<'a>(
    named: &mut HashMap<&'a str, Option<Counted>>,
    function: &'a str,
) -> Option<Counted> {
    match function.split_once(' ') {
        Some((number, name)) => *named
            .entry(number)
            .or_insert_with(|| Counted::called(name.trim())),
        None => named.get(function).copied().flatten(),
    }
}

/// The totals in the table of `strace -c`; `None`: the table isn't complete.
pub(crate) fn read_strace(text: &str) -> Option<Totals> {
    // % time, seconds, usecs/call, calls, errors, "total"
    let total = text.lines().find(|line| line.ends_with(" total"))?;
    let calls = total.split_whitespace().nth(3)?.parse().ok()?;
    Some(Totals::from([(Counted::SystemCalls, calls)]))
}
