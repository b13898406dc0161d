//! The results of a run, and how they are printed: one table for each question.

use super::load::{Errors, Slice};
use super::options::Plan;
use super::statistics::median;
use super::streams::Streams;
use super::subject::Kind;
use super::table::{Table, beside, figure};

/// The results. Unless stated otherwise, a list has one entry for each subject, in the order of `cast`; the baseline is first.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) cast: Vec<Kind>,
    /// Resident memory in KiB, after the start and after all load.
    pub(crate) idle_kib: Vec<f64>,
    pub(crate) loaded_kib: Vec<f64>,
    pub(crate) errors: Vec<Errors>,
    /// One entry for each case.
    pub(crate) turns: Vec<Turns>,
    /// One entry for each subject that has a lock.
    pub(crate) refusals: Vec<(Kind, Vec<Slice>)>,
    pub(crate) streams: Vec<Streams>,
    /// The share of the machine's CPU that other processes used, in per cent.
    pub(crate) others: f64,
    /// What could not be measured, and why.
    pub(crate) problems: Vec<String>,
}

/// A case, and the results of each subject's slices.
#[derive(Debug)]
pub(crate) struct Turns {
    pub(crate) name: String,
    pub(crate) series: Vec<Vec<Slice>>,
    /// The median round trip to Redis in each round, in µs. Empty unless the case has one client.
    pub(crate) round_trips: Vec<f64>,
}

// === impl Findings ===

impl Findings {
    pub(crate) fn of(cast: Vec<Kind>) -> Self {
        Self {
            errors: cast.iter().map(|_| Errors::default()).collect(),
            cast,
            idle_kib: Vec::new(),
            loaded_kib: Vec::new(),
            turns: Vec::new(),
            refusals: Vec::new(),
            streams: Vec::new(),
            others: f64::NAN,
            problems: Vec::new(),
        }
    }

    /// Whether all responses were as expected, and nothing is missing.
    pub(crate) fn sound(&self) -> bool {
        self.problems.is_empty() && self.errors.iter().all(|errors| errors.count == 0)
    }

    pub(crate) fn print(&self, plan: &Plan) {
        let (slices, length) = (plan.slices, plan.slice.as_millis());
        println!(
            "\nMedians of {slices} slices of {length} ms, in turn; × is the multiple of bare."
        );
        println!(
            "Other processes used {:.0} % of the machine meanwhile.",
            self.others
        );
        self.compared("CPU of the proxy per request, µs", |slice| slice.cpu)
            .print();
        self.compared(
            "Requests per second (all processes share the cores)",
            |slice| slice.per_second,
        )
        .print();
        self.latency().print();
        self.added_latency().print();
        self.refused().print();
        self.memory().print();
        self.streamed(plan.streams).print();
        println!();
        for problem in &self.problems {
            println!("INCOMPLETE: {problem}");
        }
        for (kind, errors) in self.cast.iter().zip(&self.errors) {
            if let Some(example) = &errors.example {
                println!("ERRORS: {kind}: {}, such as: {example}", errors.count);
            }
        }
        if self.sound() {
            println!("Every answer had the status it should have.");
        }
    }

    /// Prints one row for each case, with one column for each subject.
    fn by_case(&self, title: &str) -> Table {
        Table::new(
            title,
            std::iter::once("case").chain(self.cast.iter().map(|kind| kind.name())),
        )
    }

    fn compared(&self, title: &str, what: fn(&Slice) -> f64) -> Table {
        let mut table = self.by_case(title);
        for Turns { name, series, .. } in &self.turns {
            let baseline = pick(&series[0], what);
            let others = series[1..]
                .iter()
                .map(|slices| beside(&pick(slices, what), &baseline));
            table.row(
                [name.clone(), figure(median(&baseline))]
                    .into_iter()
                    .chain(others),
            );
        }
        table
    }

    fn latency(&self) -> Table {
        let mut table = self.by_case("Latency p50 / p99, µs");
        for Turns { name, series, .. } in &self.turns {
            let both = series.iter().map(|slices| {
                let p50 = figure(median(&pick(slices, |slice| slice.p50)));
                format!(
                    "{p50} / {:>5}",
                    figure(median(&pick(slices, |slice| slice.p99)))
                )
            });
            table.row(std::iter::once(name.clone()).chain(both));
        }
        table
    }

    /// Prints what the lock adds to the latency of a single client, round by round.
    fn added_latency(&self) -> Table {
        let title = "Added p50 of a lone client over bare, and in round trips to Redis";
        let mut table = Table::new(
            title,
            [
                "case",
                "subject",
                "added µs",
                "round trip µs",
                "round trips",
            ],
        );
        for Turns {
            name,
            series,
            round_trips,
        } in &self.turns
        {
            if round_trips.is_empty() {
                continue;
            }
            for (kind, slices) in self.cast.iter().zip(series).skip(1) {
                let added: Vec<f64> = slices
                    .iter()
                    .zip(&series[0])
                    .map(|(slice, bare)| slice.p50 - bare.p50)
                    .collect();
                let trips: Vec<f64> = added
                    .iter()
                    .zip(round_trips)
                    .map(|(added, trip)| added / trip)
                    .collect();
                let (added, trip) = (figure(median(&added)), figure(median(round_trips)));
                // Without Redis there is nothing to count in round trips.
                let trips = if kind.needs_redis() {
                    figure(median(&trips))
                } else {
                    "-".to_owned()
                };
                table.row([name.clone(), kind.to_string(), added, trip, trips]);
            }
        }
        table
    }

    fn refused(&self) -> Table {
        let title = "Refusals (429), 300B c16, one session that a stream holds";
        let mut table = Table::new(title, ["subject", "CPU µs", "per second", "p50 µs"]);
        for (kind, slices) in &self.refusals {
            let of = |what: fn(&Slice) -> f64| figure(median(&pick(slices, what)));
            table.row([
                kind.to_string(),
                of(|slice| slice.cpu),
                of(|slice| slice.per_second),
                of(|slice| slice.p50),
            ]);
        }
        table
    }

    fn memory(&self) -> Table {
        let mut table = Table::new(
            "Resident memory, MiB",
            ["subject", "idle", "after the load"],
        );
        for ((kind, idle), loaded) in self.cast.iter().zip(&self.idle_kib).zip(&self.loaded_kib) {
            table.row([
                kind.to_string(),
                figure(idle / 1024.0),
                figure(loaded / 1024.0),
            ]);
        }
        table
    }

    fn streamed(&self, held: usize) -> Table {
        let title =
            format!("Streams: memory of {held} idle ones, CPU of 50 with 20 events a second each");
        let mut table = Table::new(&title, ["subject", "KiB per stream", "CPU µs per event"]);
        for Streams {
            kind,
            kib_per_stream,
            cpu_per_event,
        } in &self.streams
        {
            let cpu = beside(cpu_per_event, &self.streams[0].cpu_per_event);
            table.row([kind.to_string(), figure(*kib_per_stream), cpu]);
        }
        table
    }
}

fn pick(slices: &[Slice], what: fn(&Slice) -> f64) -> Vec<f64> {
    slices.iter().map(what).collect()
}
