//! The reference of the options agrees with the reader: the same options, the same defaults, and the
//! same options need a restart.

use std::collections::BTreeSet;
use std::path::Path;

use seriatim::config::Config;
use seriatim::config::reference::{Change, DefaultValue, Section, Setting, sections};

use crate::support::process::run;

/// A configuration in pieces: table, key and value of each.
#[derive(Clone)]
struct Text(Vec<(String, String, String)>);

// === impl Text ===

impl Text {
    /// One to which a value of this option may be added: with what belongs beside it, and without
    /// what contradicts it.
    fn around(section: &Section, option: &Setting) -> Self {
        let mut text = Self(Vec::new())
            .with("", "upstream", "\"http://127.0.0.1:1\"")
            .with("store", "url", "\"redis://127.0.0.1:1\"")
            .with("routes", "name", "\"r\"")
            .with("routes", "session_id", "[\"{header:x-session}\"]");
        text = match (section.table, option.key) {
            ("lock", "blocking_timeout" | "interrupt" | "max_waiters") => {
                text.with("lock", "blocking", "true")
            }
            ("lock", "once_for") => text.with("routes", "once", "[\"{header:idempotency-key}\"]"),
            ("lock", "on_repeat") => text.with("lock", "replay", "true").with(
                "routes",
                "once",
                "[\"{header:idempotency-key}\"]",
            ),
            ("routes", "attach" | "attach_ended") => text
                .with(TURNS, "session_id", "[\"{header:x-session}\"]")
                .with(TURNS, "path", "\"/turns\"")
                .with(TURNS, "replay", "true")
                .with("routes", "attach", "true"),
            ("replay", _) => text.with("lock", "replay", "true"),
            ("lock", "stream") => text.with("lock", "keep_alive", "\"15s\""),
            ("lock", "queue_events") => {
                let text = text.with("lock", "keep_alive", "\"15s\"");
                text.with("lock", "blocking", "true")
            }
            ("", "upstream_ca_file") => text.with("", "upstream", "\"https://agent.example\""),
            ("tls", _) => {
                let (cert, key) = (file("tls/cert.pem"), file("tls/key.pem"));
                text.with("tls", "cert_file", &cert)
                    .with("tls", "key_file", &key)
            }
            ("cors", "allow_credentials") => {
                text.with("cors", "allow_origins", "[\"https://app.example.com\"]")
            }
            ("routes", "preset") => text.without("routes", "session_id"),
            ("store", "ca_file" | "server_name") => {
                text.with("store", "url", "\"rediss://127.0.0.1:1\"")
            }
            ("store", "cert_file" | "key_file") => {
                let (cert, key) = (file("tls/cert.pem"), file("tls/key.pem"));
                text.with("store", "url", "\"rediss://127.0.0.1:1\"")
                    .with("store", "cert_file", &cert)
                    .with("store", "key_file", &key)
            }
            ("store", "sentinel_user" | "sentinel_password_file") => text
                .with("store", "url", "\"redis-sentinel://127.0.0.1:1/m\"")
                .with("store", "sentinel_password_file", &file("token")),
            ("tracing", "ca_file") => text.with("tracing", "otlp", "\"https://otlp.example\""),
            ("tracing", "service") => text.with("tracing", "otlp", "\"http://127.0.0.1:1\""),
            ("routes", "prefix") => text
                .without("routes", "session_id")
                .with("routes", "preset", "\"mcp\""),
            _ => text,
        };
        text
    }

    fn with(self, table: &str, key: &str, value: &str) -> Self {
        let mut text = self.without(table, key);
        if (table, key, value) == ("routes", "lock", "false") {
            // One that doesn't lock has no session.
            text = text.without("routes", "session_id");
        }
        text.0.push((table.into(), key.into(), value.into()));
        text
    }

    fn without(mut self, table: &str, key: &str) -> Self {
        self.0.retain(|(t, k, _)| (&**t, &**k) != (table, key));
        self
    }

    fn toml(&self) -> String {
        let mut tables: Vec<_> = self.0.iter().map(|(table, ..)| &**table).collect();
        tables.sort_unstable();
        tables.dedup();
        let mut toml = String::new();
        for table in tables {
            match table {
                "" => {}
                "routes" | TURNS => toml.push_str("[[routes]]\n"),
                table => toml.push_str(&format!("[{table}]\n")),
            }
            for (_, key, value) in self.0.iter().filter(|(t, ..)| t == table) {
                toml.push_str(&format!("{key} = {value}\n"));
            }
        }
        toml
    }

    fn read(&self) -> Config {
        match Config::read("test", &self.toml(), &Vec::new()) {
            Ok(config) => config,
            Err(problems) => panic!("{problems}\n{}", self.toml()),
        }
    }

    /// What is said of it, which is something.
    fn problems(&self) -> String {
        match Config::read("test", &self.toml(), &Vec::new()) {
            Ok(config) => panic!("nothing is wrong with {}\n{config}", self.toml()),
            Err(problems) => problems.to_string(),
        }
    }
}

/// A table beside others: a route that keeps the answers of its turns.
const TURNS: &str = "other routes";

fn file(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    format!("{:?}", root.join(path).display().to_string())
}

/// What is written for an option as another value than its default. The files of the reference's
/// examples are on the reader's machine.
fn example(section: &Section, option: &Setting) -> String {
    match (section.table, option.key) {
        ("", "upstream_ca_file") | ("store" | "tracing", "ca_file") => file("ca.pem"),
        ("store", "password_file" | "sentinel_password_file") => file("password"),
        ("admin", "token_file") => file("token"),
        ("replay", "key_file") => file("answers-key"),
        ("store" | "tls", "cert_file" | "key_file") => {
            // Beside its pair, another one: only the path differs.
            let name = option.key.trim_end_matches("_file");
            file(&format!("tls/../tls/{name}.pem"))
        }
        _ => option.example.into(),
    }
}

fn options() -> impl Iterator<Item = (Section, Setting)> {
    let with_section = |section: Section| {
        let options = section.options.clone().into_iter();
        options.map(move |option| (section.clone(), option))
    };
    sections().into_iter().flat_map(with_section)
}

/// The keys that a table of the file may have, by what is said of one that it doesn't.
fn asked(text: &str) -> BTreeSet<String> {
    let said = match Config::read("test", text, &Vec::new()) {
        Ok(config) => panic!("an unknown key is a problem: {config}"),
        Err(problems) => problems.to_string(),
    };
    let known = said.lines().find_map(|line| {
        line.split_once("QQ")
            .and_then(|(_, rest)| rest.split_once("the keys here are "))
    });
    let (_, known) = known.unwrap_or_else(|| panic!("the known keys are named: {said}"));
    known.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_reference_has_every_option_that_is_read_and_no_other() {
    let sections = sections();
    let of = |table: &str| {
        let section = sections.iter().find(|section| section.table == table);
        let options = section.expect("there is this table").options.iter();
        options
            .map(|one| one.key.to_owned())
            .collect::<BTreeSet<_>>()
    };
    let tables = sections.iter().map(|section| section.table);
    let mut expected = of("");
    expected.extend(
        tables
            .clone()
            .filter(|table| !table.is_empty())
            .map(str::to_owned),
    );
    assert_eq!(asked("QQ = 1"), expected, "what stands at the top level");
    for table in tables.filter(|table| !matches!(*table, "" | "routes")) {
        assert_eq!(
            asked(&format!("[{table}]\nQQ = 1")),
            of(table),
            "what stands in [{table}]"
        );
    }
    let mut expected = of("routes");
    expected.extend(of("lock"));
    // A route's key `lock` is its own, and not the table.
    assert_eq!(
        asked("[[routes]]\nQQ = 1"),
        expected,
        "what a route may say"
    );
    assert_eq!(
        asked("[[routes]]\nbusy = { QQ = 1 }"),
        of("busy"),
        "and of its refusals"
    );
}

#[test]
fn the_defaults_of_the_reference_are_those_that_are_used() {
    for (section, option) in &options().collect::<Vec<_>>() {
        let path = section.path(option);
        let around = Text::around(section, option);
        let plain = around.clone().without(section.table, option.key);
        let written = around
            .clone()
            .with(section.table, option.key, &example(section, option));
        let differs = written.read().to_string();
        match &option.default {
            DefaultValue::Toml(default) => {
                let told = around.with(section.table, option.key, default);
                // What belongs to Redis isn't said of memory.
                let plain = match &*path {
                    "store.url" => plain.with("store", "timeout", "\"1s\""),
                    _ => plain,
                };
                assert_eq!(
                    told.read().to_string(),
                    plain.read().to_string(),
                    "{path}: nothing is as {default}"
                );
                assert_ne!(
                    told.read().to_string(),
                    differs,
                    "{path}: and not as {}",
                    option.example
                );
            }
            DefaultValue::Text("required" | "required with a lock") => {
                let said = plain.problems();
                assert!(said.contains("missing"), "{path} is required: {said}");
            }
            DefaultValue::Text(_) if matches!(option.key, "cert_file" | "key_file") => {
                let table = section.table;
                let none = plain.without(table, "cert_file").without(table, "key_file");
                assert_ne!(none.read().to_string(), differs, "{path} is shown");
            }
            DefaultValue::Text(_) if option.key == "preset" => {
                let said = plain.problems();
                assert!(
                    said.contains("missing"),
                    "{path} gives what is missing: {said}"
                );
            }
            DefaultValue::Text(_) => {
                assert_ne!(
                    plain.read().to_string(),
                    differs,
                    "{path} makes a difference"
                );
            }
        }
    }
}

#[test]
fn an_option_refuses_a_value_that_the_reference_does_not_allow() {
    for (section, option) in &options().collect::<Vec<_>>() {
        let path = section.path(option);
        let (kind, range) = option.value.split_once(", ").unwrap_or((&option.value, ""));
        let range = range.replace(" to ", " and ");
        let (wrong, expected) = match kind {
            "duration" => ("\"9000days\"", "write a duration from"),
            "number" => ("-1", "write a whole number from"),
            "size" if range.is_empty() => ("0", "write a number of bytes"),
            "size" => ("-1", "write a number of bytes"),
            "true" => ("\"QQ\"", "write true or false"),
            word if word.starts_with('"') => ("\"QQ\"", "write \""),
            list if list.starts_with("list of") => ("{}", ""),
            table if table.starts_with("table of") => ("1", "write a table"),
            _ => ("1", "write"),
        };
        let said = Text::around(section, option)
            .with(section.table, option.key, wrong)
            .problems();
        assert!(said.contains(expected), "{path}: {expected}: {said}");
        for bound in range
            .split(" and ")
            .filter(|_| kind == "duration" || kind == "number")
        {
            assert!(
                said.contains(bound),
                "{path}: the error names the bound {bound}: {said}"
            );
        }
    }
}

#[test]
fn the_reference_says_what_takes_a_restart() {
    for (section, option) in &options().collect::<Vec<_>>() {
        let around = Text::around(section, option);
        let mut before = around.clone().without(section.table, option.key);
        if section.table == "tls" || matches!(&option.default, DefaultValue::Text(_)) {
            // Another value than the example's, where none at all would be a problem.
            before = match option.key {
                "upstream" | "session_id" | "cert_file" | "key_file" => around.clone(),
                "preset" => before.with("routes", "session_id", "[\"x\"]"),
                _ => before,
            };
        }
        let after = around.with(section.table, option.key, &example(section, option));
        let is_fixed = !before.read().fixed(&after.read()).is_empty();
        let expected = option.change == Change::Restart;
        let path = section.path(option);
        assert_eq!(is_fixed, expected, "whether {path} takes a restart");
    }
}

#[test]
fn the_reference_in_the_docs_is_what_the_program_prints() {
    let output = run(&["options", "--markdown"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let committed = std::fs::read_to_string(path).expect("the reference is there");
    assert!(
        committed == printed,
        "docs/configuration.md is out of date: cargo run -- options --markdown > docs/configuration.md"
    );
}

#[test]
fn the_example_names_every_option() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.toml");
    let example = std::fs::read_to_string(path).expect("the example is there");
    for (section, option) in &options().collect::<Vec<_>>() {
        assert!(
            example.contains(option.key),
            "config.toml says something of {}",
            section.path(option)
        );
    }
}

#[test]
fn options_are_found_by_the_beginning_of_their_names() {
    let names = |arguments: &[&str]| {
        let output = run(&[&["options"], arguments].concat());
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let names = text
            .lines()
            .filter(|line| !line.starts_with(' ') && !line.is_empty());
        (
            output.status.code(),
            names.map(str::to_owned).collect::<Vec<_>>(),
        )
    };
    let all: Vec<_> = options()
        .map(|(section, option)| section.path(&option))
        .collect();
    assert_eq!(names(&[]), (Some(0), all), "all of them");
    let blocking = ["lock.blocking", "lock.blocking_timeout"].map(str::to_owned);
    assert_eq!(
        names(&["lock.block"]),
        (Some(0), blocking.to_vec()),
        "those that begin so"
    );
    assert_eq!(
        names(&["blocking"]),
        (Some(0), blocking.to_vec()),
        "those that have it in them"
    );
    assert_eq!(names(&["QQ"]), (Some(1), vec![]), "and none");
}
