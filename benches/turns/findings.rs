//! The results of a run, and the report on them: one table for each question.

use super::load::{Errors, Slice};
use super::options::Plan;
use super::statistics::median;
use super::streams::Streams;
use super::subject::Kind;
use super::table::{Table, beside, figure, ratio};

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
    /// How many streams were open: idle ones, and ones with events.
    pub(crate) open_streams: (usize, usize),
    /// The tables of the parts that make their own.
    pub(crate) tables: Vec<Table>,
    /// Redis's commands per turn of each subject that has a Redis.
    pub(crate) commands: Vec<(Kind, f64)>,
    /// What the reader of the tables should know: the machine, and what was left out.
    pub(crate) notes: Vec<String>,
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
            open_streams: (0, 0),
            tables: Vec::new(),
            commands: Vec::new(),
            notes: Vec::new(),
            others: f64::NAN,
            problems: Vec::new(),
        }
    }

    /// Whether all responses were as expected, and nothing is missing.
    pub(crate) fn sound(&self) -> bool {
        self.problems.is_empty() && self.errors.iter().all(|errors| errors.count == 0)
    }

    /// The whole report, in Markdown.
    pub(crate) fn report(&self, plan: &Plan) -> String {
        let (slices, length) = (plan.slices, plan.slice.as_millis());
        let mut lines = vec!["# The cost of a turn".to_owned()];
        lines.extend(self.notes.iter().cloned());
        lines.push(format!(
            "Other processes used {:.0} % of the machine meanwhile.",
            self.others
        ));
        lines.push(format!(
            "Medians of {slices} slices of {length} ms, in turn; × is the multiple of bare, or of the figure with few."
        ));
        let mut report = lines.join("\n\n") + "\n";
        let own = [
            self.summary(),
            self.compared("CPU of the proxy per request, µs", |slice| slice.cpu),
            self.compared(
                "Requests per second (all processes share the cores)",
                |slice| slice.per_second,
            ),
            self.latency(),
            self.added_latency(),
            self.of_redis(),
            self.refused_own(),
            self.refused(),
            self.memory(),
            self.streamed(),
        ];
        for table in own.iter().chain(&self.tables) {
            report.push_str(&table.markdown());
        }
        report.push('\n');
        for problem in &self.problems {
            report.push_str(&format!("INCOMPLETE: {problem}\n"));
        }
        for (kind, errors) in self.cast.iter().zip(&self.errors) {
            if let Some(example) = &errors.example {
                report.push_str(&format!(
                    "ERRORS: {kind}: {}, such as: {example}\n",
                    errors.count
                ));
            }
        }
        if self.sound() {
            report.push_str("Every answer had the status it should have.\n");
        }
        report
    }

    /// Everything at a glance: one row for each subject.
    fn summary(&self) -> Table {
        let cases = self.turns.iter().map(|turns| turns.name.as_str());
        let columns = ["subject"].into_iter().chain(cases).chain([
            "a refusal, µs",
            "KiB per stream",
            "µs per event",
        ]);
        let mut table = Table::new("CPU per request × bare, and the rest at a glance", columns);
        if self.turns.is_empty() && self.refusals.is_empty() && self.streams.is_empty() {
            return table;
        }
        for (index, kind) in self.cast.iter().enumerate() {
            let mut row = vec![kind.to_string()];
            for Turns { series, .. } in &self.turns {
                let cpu = |slices: &[Slice]| pick(slices, |slice| slice.cpu);
                let (ratio, _) = ratio(&cpu(&series[index]), &cpu(&series[0]));
                row.push(figure(ratio));
            }
            let refusals = self.refusals.iter().find(|(other, _)| other == kind);
            let refusal = refusals.map(|(_, slices)| median(&pick(slices, |slice| slice.cpu)));
            row.push(figure(refusal.unwrap_or(f64::NAN)));
            let streams = self.streams.iter().find(|streams| streams.kind == *kind);
            row.push(figure(streams.map_or(f64::NAN, |it| it.kib_per_stream)));
            row.push(figure(
                streams.map_or(f64::NAN, |it| median(&it.cpu_per_event)),
            ));
            table.row(row);
        }
        table
    }

    /// The commands and the CPU time of Redis.
    fn of_redis(&self) -> Table {
        let mut table = Table::new(
            "Redis per turn",
            ["subject", "case", "CPU of Redis, µs", "commands"],
        );
        for Turns { name, series, .. } in &self.turns {
            for (kind, slices) in self.cast.iter().zip(series) {
                let commands = self.commands.iter().find(|(other, _)| other == kind);
                if let Some((_, commands)) = commands {
                    let cpu = median(&pick(slices, |slice| slice.redis_cpu));
                    table.row([
                        kind.to_string(),
                        name.clone(),
                        figure(cpu),
                        figure(*commands),
                    ]);
                }
            }
        }
        table
    }

    /// What a client meets that sends its next turn as soon as it has read its last.
    fn refused_own(&self) -> Table {
        let mut table =
            self.by_case("Turns of a client that are refused because of its own last turn, %");
        for Turns { name, series, .. } in &self.turns {
            let shares = self.cast.iter().zip(series).map(|(kind, slices)| {
                let share = median(&pick(slices, |slice| slice.refused));
                figure(if kind.locks() { share } else { f64::NAN })
            });
            table.row(std::iter::once(name.clone()).chain(shares));
        }
        table
    }

    /// A table with one row for each case, and one column for each subject.
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
                    "{p50} / {}",
                    figure(median(&pick(slices, |slice| slice.p99)))
                )
            });
            table.row(std::iter::once(name.clone()).chain(both));
        }
        table
    }

    /// What the lock adds to the latency of a single client, round by round.
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

    fn streamed(&self) -> Table {
        let (idle, busy) = self.open_streams;
        let title = format!(
            "Streams: memory of {idle} idle ones, CPU of {busy} with 20 events a second each"
        );
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
