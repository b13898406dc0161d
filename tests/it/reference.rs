//! The reference of options, checked against the reader: it has every option that is read, with the
//! reader's values, bounds and defaults, and marks correctly which options need a restart.

use std::collections::BTreeSet;
use std::path::Path;

use seriatim::config::Config;
use seriatim::config::reference::{Change, Kind, SECTIONS, Section, Setting, Unwritten};

use crate::support::process::run;

/// A configuration as a list of table, key and value.
#[derive(Clone)]
struct Text(Vec<(String, String, String)>);

// === impl Text ===

impl Text {
    /// A configuration in which `option` may be set: with the options it needs, and without those
    /// it excludes.
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
            ("", "upstream_ca_file") => text.with("", "upstream", "\"https://agent.example\""),
            ("tls", _) => {
                let (cert, key) = (file("tls/cert.pem"), file("tls/key.pem"));
                text.with("tls", "cert_file", &cert)
                    .with("tls", "key_file", &key)
            }
            ("routes", "preset") => text.without("routes", "session_id"),
            ("tracing", "ca_file") => text.with("telemetry", "otlp", "\"https://otlp.example\""),
            ("tracing", "service") => text.with("telemetry", "otlp", "\"http://127.0.0.1:1\""),
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
            // A route that doesn't lock has no session.
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
                "routes" => toml.push_str("[[routes]]\n"),
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

    /// The problems of this configuration; panics if it has none.
    fn problems(&self) -> String {
        match Config::read("test", &self.toml(), &Vec::new()) {
            Ok(config) => panic!(
                "the configuration has no problem: {}\n{config}",
                self.toml()
            ),
            Err(problems) => problems.to_string(),
        }
    }
}

fn file(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    format!("{:?}", root.join(path).display().to_string())
}

/// A value of the option other than its default. Files in the reference's examples exist only on the
/// user's machine.
fn example(section: &Section, option: &Setting) -> String {
    match (section.table, option.key) {
        ("", "upstream_ca_file") | ("tracing", "ca_file") => file("ca.pem"),
        ("store", "password_file") => file("password"),
        ("admin", "token_file") => file("token"),
        ("tls", "cert_file" | "key_file") => {
            // Another path to the same pair.
            let name = option.key.trim_end_matches("_file");
            file(&format!("tls/../tls/{name}.pem"))
        }
        _ => option.example.into(),
    }
}

fn options() -> impl Iterator<Item = (&'static Section, &'static Setting)> {
    let with_section =
        |section: &'static Section| section.options.iter().map(move |one| (section, one));
    SECTIONS.iter().flat_map(with_section)
}

/// The keys that a table of the file may have, according to the error about an unknown key.
fn known_keys(text: &str) -> BTreeSet<String> {
    let problems = match Config::read("test", text, &Vec::new()) {
        Ok(config) => panic!("an unknown key is a problem: {config}"),
        Err(problems) => problems.to_string(),
    };
    let known = problems.lines().find_map(|line| {
        line.split_once("QQ")
            .and_then(|(_, rest)| rest.split_once("here stand "))
    });
    let (_, known) = known.unwrap_or_else(|| panic!("the error names the known keys: {problems}"));
    known.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_reference_has_every_option_that_is_read_and_no_other() {
    let keys = |table: &str| {
        let section = SECTIONS.iter().find(|section| section.table == table);
        let options = section.expect("the table exists").options.iter();
        options
            .map(|one| one.key.to_owned())
            .collect::<BTreeSet<_>>()
    };
    let tables = SECTIONS.iter().map(|section| section.table);
    let mut expected = keys("");
    expected.extend(
        tables
            .clone()
            .filter(|table| !table.is_empty())
            .map(str::to_owned),
    );
    assert_eq!(
        known_keys("QQ = 1"),
        expected,
        "the reference has the keys of the top level"
    );
    for table in tables.filter(|table| !matches!(*table, "" | "routes")) {
        assert_eq!(
            known_keys(&format!("[{table}]\nQQ = 1")),
            keys(table),
            "the reference has the keys of [{table}]"
        );
    }
    let mut expected = keys("routes");
    expected.extend(keys("lock"));
    // The key `lock` of a route is an option of the route, and not the table.
    assert_eq!(
        known_keys("[[routes]]\nQQ = 1"),
        expected,
        "the reference has the keys of a route"
    );
    assert_eq!(
        known_keys("[[routes]]\nbusy = { QQ = 1 }"),
        keys("busy"),
        "the reference has the keys of [busy]"
    );
}

#[test]
fn the_defaults_in_the_reference_are_the_actual_ones() {
    for (section, option) in options() {
        let path = section.path(option);
        let around = Text::around(section, option);
        let plain = around.clone().without(section.table, option.key);
        let written = around
            .clone()
            .with(section.table, option.key, &example(section, option));
        let differs = written.read().to_string();
        match option.default {
            Unwritten::As(default) => {
                let explicit = around.with(section.table, option.key, default);
                // Options of Redis aren't shown for the memory store.
                let plain = match &*path {
                    "store.url" => plain.with("store", "timeout", "\"1s\""),
                    _ => plain,
                };
                assert_eq!(
                    explicit.read().to_string(),
                    plain.read().to_string(),
                    "{path}: an omitted option means {default}"
                );
                assert_ne!(
                    explicit.read().to_string(),
                    differs,
                    "{path}: the default differs from {}",
                    option.example
                );
            }
            Unwritten::Otherwise("required" | "required where it locks") => {
                let problems = plain.problems();
                assert!(
                    problems.contains("missing"),
                    "{path} is required: {problems}"
                );
            }
            Unwritten::Otherwise(_) if section.table == "tls" => {
                let none = plain.without("tls", "cert_file").without("tls", "key_file");
                assert_ne!(none.read().to_string(), differs, "{path} is shown");
            }
            Unwritten::Otherwise(_) if option.key == "preset" => {
                let problems = plain.problems();
                assert!(
                    problems.contains("missing"),
                    "{path} provides required options: {problems}"
                );
            }
            Unwritten::Otherwise(_) => {
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
fn the_bounds_and_values_in_the_reference_are_the_actual_ones() {
    for (section, option) in options() {
        let path = section.path(option);
        let quoted = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
            words.join(" or ")
        };
        let (wrong, expected) = match option.value {
            Kind::Words(words) => ("\"QQ\"", format!("write {}", quoted(words))),
            Kind::Boolean => ("\"QQ\"", "write true or false".into()),
            Kind::Duration(least, most) if least.is_zero() => (
                "\"9000days\"",
                format!("write a duration from 0s to {most:?}"),
            ),
            Kind::Duration(least, most) => {
                let expected = format!("write a duration from {least:?} to {most:?}");
                ("\"9000days\"", expected)
            }
            Kind::Integer(least, most) => {
                let expected = format!("write a whole number from {least} to {most}");
                ("-1", expected)
            }
            Kind::Size => ("0", "write a number of bytes".into()),
            Kind::SizeOrZero => ("-1", "write a number of bytes".into()),
            Kind::List(_) => ("{}", String::new()),
            Kind::Table(_) => ("1", "write a table".into()),
            Kind::Text(_) => ("1", "write".into()),
        };
        let problems = Text::around(section, option)
            .with(section.table, option.key, wrong)
            .problems();
        assert!(
            problems.contains(&expected),
            "{path}: the error says {expected}: {problems}"
        );
    }
}

#[test]
fn the_reference_marks_options_that_need_a_restart() {
    for (section, option) in options() {
        let around = Text::around(section, option);
        let mut before = around.clone().without(section.table, option.key);
        if section.table == "tls" || matches!(option.default, Unwritten::Otherwise(_)) {
            // A value other than the example's, where omitting the option is a problem.
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
        assert_eq!(
            is_fixed, expected,
            "the reference says whether {path} needs a restart"
        );
    }
}

#[test]
fn the_reference_in_the_docs_is_up_to_date() {
    let output = run(&["options", "--markdown"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let committed = std::fs::read_to_string(path).expect("docs/configuration.md exists");
    assert!(
        committed == printed,
        "docs/configuration.md is out of date: cargo run -- options --markdown > docs/configuration.md"
    );
}

#[test]
fn config_toml_names_every_option() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.toml");
    let example = std::fs::read_to_string(path).expect("config.toml exists");
    for (section, option) in options() {
        assert!(
            example.contains(option.key),
            "config.toml names {}",
            section.path(option)
        );
    }
}

#[test]
fn options_are_found_by_a_part_of_their_names() {
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
        .map(|(section, option)| section.path(option))
        .collect();
    assert_eq!(
        names(&[]),
        (Some(0), all),
        "without a filter all options are listed"
    );
    let blocking = ["lock.blocking", "lock.blocking_timeout"].map(str::to_owned);
    assert_eq!(
        names(&["lock.block"]),
        (Some(0), blocking.to_vec()),
        "a filter finds names that begin with it"
    );
    assert_eq!(
        names(&["blocking"]),
        (Some(0), blocking.to_vec()),
        "a filter finds names that contain it"
    );
    assert_eq!(
        names(&["QQ"]),
        (Some(1), vec![]),
        "a filter without a match exits with 1"
    );
}
