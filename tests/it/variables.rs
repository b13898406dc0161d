//! Environment variables whose names or values are not quite an option's.

use seriatim::config::{Config, StoreAddress, reference};
use seriatim::lock::RedisUrl;

const UPSTREAM: &str = "upstream = \"http://127.0.0.1:8000\"\n";

fn read(set: &[(&str, &str)]) -> Result<Config, String> {
    let set = set.iter();
    let set = set.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let set = set.collect();
    Config::read("the file", UPSTREAM, &set).map_err(|problems| problems.to_string())
}

#[test]
fn a_variable_with_wrong_underscores_is_told_with_the_right_name() {
    for (name, right) in [
        ("SERIATIM_STORE_URL", "SERIATIM__STORE__URL"),
        ("SERIATIM_STORE__URL", "SERIATIM__STORE__URL"),
        (
            "SERIATIM_store_password_file",
            "SERIATIM__STORE__PASSWORD_FILE",
        ),
        ("SERIATIM_LISTEN", "SERIATIM__LISTEN"),
        ("SERIATIM_UPSTREAM_CA_FILE", "SERIATIM__UPSTREAM_CA_FILE"),
    ] {
        let problems = read(&[(name, "geheim")]).expect_err(name);
        let line = format!(
            "  environment variable {name}: sets no option: write {right}, with two underscores before each key\n"
        );
        assert_eq!(problems, format!("the file: 1 problem\n{line}"));
    }
    for (name, key) in [
        ("SERIATIM__LOCK_BLOCKING", "lock_blocking"),
        ("SERIATIM__LOCK__BLOCK_ING", "lock.block_ing"),
        ("SERIATIM___LOCK_BLOCKING", "_lock_blocking"),
        ("SERIATIM__STORE_PASSWORD_FILE", "store_password_file"),
        ("SERIATIM__STORE__PASSWORD__FILE", "store.password"),
    ] {
        let problems = read(&[(name, "geheim")]).expect_err(name);
        let right = match key.contains("lock") {
            true => "SERIATIM__LOCK__BLOCKING",
            false => "SERIATIM__STORE__PASSWORD_FILE",
        };
        let hint = match name {
            // It isn't a matter of underscores between keys.
            "SERIATIM__LOCK__BLOCK_ING" => "`blocking`",
            _ => right,
        };
        let line =
            format!("  {key} (environment variable {name}): unknown key; did you mean {hint}?\n");
        assert_eq!(problems, format!("the file: 1 problem\n{line}"));
    }
}

#[test]
fn a_variable_that_is_no_options_changes_nothing() {
    let plain = read(&[]).expect("a configuration").to_string();
    for name in [
        "SERIATIM_SERVICE_HOST",
        "SERIATIM_SERVICE_PORT",
        "SERIATIM_SERVICE_PORT_ADMIN",
        "SERIATIM_PORT",
        "SERIATIM_PORT_8080_TCP",
        "SERIATIM_PORT_8080_TCP_ADDR",
        "SERIATIM_STORE_SERVICE_HOST",
        "SERIATIM_STORE_PORT",
        "SERIATIM_TEST_PANICS",
        "SERIATIM_",
        "SERIATIM",
    ] {
        let config = read(&[(name, "tcp://10.0.0.1:8080")]).expect(name);
        assert_eq!(config.to_string(), plain, "{name}");
    }
    let both = [
        ("SERIATIM_LISTEN", "127.0.0.1:1"),
        ("SERIATIM__LISTEN", "127.0.0.1:1"),
    ];
    read(&both).expect("a script may make the one from the other");
}

#[test]
fn no_option_has_a_name_that_kubernetes_sets() {
    // For a service named `seriatim`, or `seriatim-` and something (Kubernetes, "Service environment
    // variables").
    for section in reference::sections() {
        for option in &section.options {
            let name = section.path(option).replace('.', "_");
            let is_linked = name == "port" || name.ends_with("_port") || name.contains("port_");
            assert!(
                !is_linked && !name.contains("service_"),
                "{name} could be set by Kubernetes"
            );
        }
    }
}

#[test]
fn a_line_break_at_the_end_of_a_variable_is_not_part_of_the_value() {
    // `kubectl create secret --from-file` keeps the one that an editor adds.
    for end in ["\n", "\r\n"] {
        let url = format!("redis://:geheim@127.0.0.1:6379{end}");
        let listen = format!("127.0.0.1:1{end}");
        let config = read(&[
            ("SERIATIM__STORE__URL", &url),
            ("SERIATIM__LISTEN", &listen),
        ]);
        let config = config.expect("a configuration");
        let url = RedisUrl::parse("redis://:geheim@127.0.0.1:6379").expect("a URL");
        assert_eq!(config.store.url, StoreAddress::Redis(url));
        assert_eq!(config.listen.to_string(), "127.0.0.1:1");
    }
    let problems = read(&[("SERIATIM__STORE__URL", "redis://:geheim@h\n:6379")]);
    let problems = problems.expect_err("a line break in the middle");
    assert!(
        problems.contains("has a line break") && !problems.contains("geheim"),
        "{problems}"
    );
}
