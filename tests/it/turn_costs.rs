//! What `.ci/cost` reads and how it decides: the parts of the benchmark `turns` that can be wrong without anybody's notice.

use turns::budget::{Budget, Verdict, short};
use turns::totals::{Counted, Totals, read_callgrind, read_strace};

/// The parts of `benches/turns/` that are tested.
// A benchmark has no tests of its own: it has no test harness.
#[path = "../../benches/turns"]
mod turns {
    pub(super) mod budget;
    pub(super) mod totals;
}

/// Part of an output of callgrind: names are written once, in a line of the caller or of the called function.
const CALLGRIND: &str = "\
# callgrind format
events: Ir
summary: 2000

fn=(1) malloc
100 30
cfn=(2) _int_malloc
calls=7 200
100 70

fn=(3) seriatim::proxy::serve
10 5
cob=(4) /usr/lib/libc.so.6
cfi=(5) ./malloc/malloc.c
cfn=(1)
calls=7 100
11 100
cfn=(6) realloc
calls=2 100
12 20
cfn=(7) free
calls=8 100
13 8
cfn=(8) __memcpy_avx_unaligned_erms
calls=30 100
14 90
cfn=(9) clock_gettime@@GLIBC_2.17
calls=4 100
15 40

fn=(10) tokio::runtime::scheduler::run
20 5
cfn=(11) tokio::runtime::task::raw::poll
calls=6 10
21 500
cfn=(3)
calls=6 10
22 500
cfn=(1)
calls=3 100
23 60
cfn=(12) tokio::runtime::task::raw::poll'2
calls=5 10
24 300
cfn=(13) memcpy@GLIBC_2.2.5
calls=1 100
25 3

totals: 1999
";

#[test]
fn calls_are_added_up_over_all_callers() {
    let expected = Totals::from([
        (Counted::Instructions, 1999),
        (Counted::Allocations, 7 + 2 + 3),
        (Counted::Frees, 8),
        (Counted::Copies, 30 + 1),
        (Counted::ClockReads, 4),
        (Counted::TaskPolls, 6 + 5),
    ]);
    assert_eq!(
        read_callgrind(CALLGRIND),
        Some(expected),
        "only calls of the counted functions count, not those of functions that they call"
    );
}

#[test]
fn an_output_that_is_still_being_written_has_no_totals() {
    let half = CALLGRIND.split("totals:").next().expect("a first part");
    assert_eq!(
        read_callgrind(half),
        None,
        "callgrind writes its totals last"
    );
    assert_eq!(
        read_strace("% time     seconds  usecs/call     calls    errors syscall\n"),
        None
    );
}

#[test]
fn strace_sums_up_its_table_in_the_last_line() {
    let table = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000060           1        40           sendto
 40.00    0.000040           1        30        10 recvfrom
------ ----------- ----------- --------- --------- ----------------
100.00    0.000100           1        70        10 total
";
    assert_eq!(
        read_strace(table),
        Some(Totals::from([(Counted::SystemCalls, 70)]))
    );
}

#[test]
fn the_budget_of_the_repository_limits_instructions_and_allocations_with_both_stores() {
    let budgets = Budget::read_all(include_str!("../../benches/budget.toml")).expect("a budget");
    let subjects: Vec<_> = budgets
        .iter()
        .map(|budget| budget.subject.as_str())
        .collect();
    assert_eq!(subjects, ["memory", "redis"]);
    for budget in &budgets {
        for counted in [Counted::Instructions, Counted::Allocations] {
            assert!(
                budget.figure(counted).is_some(),
                "{} has a figure of its {}",
                budget.subject,
                counted.name()
            );
        }
    }
}

#[test]
fn a_budget_with_a_mistake_is_refused() {
    for (text, mistake) in [
        (
            "[memory]\ninstruction = 1",
            "nothing counts \"instruction\"",
        ),
        ("[memory]\ninstructions = 0", "no positive number"),
        ("[memory]\ninstructions = \"1\"", "no positive number"),
        ("memory = 1", "no table"),
        ("[memory", "TOML parse error"),
    ] {
        let error = Budget::read_all(text).expect_err(text);
        assert!(
            error.contains(mistake),
            "{text:?} is refused with {error:?}"
        );
    }
}

#[test]
fn only_a_count_that_is_clearly_above_its_figure_or_missing_fails() {
    for (count, verdict, passes) in [
        (103.1, Verdict::Above, false),
        (102.9, Verdict::Within, true),
        (97.1, Verdict::Within, true),
        (96.9, Verdict::Below, true),
        (0.0, Verdict::Missing, false),
    ] {
        let given = Verdict::new(count, 100.0);
        assert_eq!(given, verdict, "{count} beside a figure of 100");
        assert_eq!(given.passes(), passes, "{verdict:?}");
        assert_eq!(
            given.advice("budget.toml").is_none(),
            verdict == Verdict::Within,
            "every other verdict says what to do"
        );
    }
}

#[test]
fn counts_are_short_in_sentences() {
    assert_eq!(short(104_949.9), "104.9 k");
    assert_eq!(short(41.04), "41.0");
}
