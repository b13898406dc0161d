//! How the reader of an error response finds what its code means: `seriatim errors`, and the documentation.

use std::collections::BTreeMap;

use seriatim::outcome::ErrorCode;

use crate::support::process::run;

// === the command ===

#[test]
fn errors_lists_every_code_with_its_status() {
    let output = run(&["errors"]);
    assert_eq!(output.status.code(), Some(0), "it is listed");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), ErrorCode::all().count(), "a line each: {text}");
    for expected in [
        "session_busy                 429  Another turn of the session runs, and this one doesn't wait.",
        "lock_lost                    503  The lock was lost, before the response began or in the middle of it.",
    ] {
        assert!(lines.contains(&expected), "{expected:?} is one: {text}");
    }
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("upstream_error               -    ")),
        "a code without a status of its own: {text}"
    );
}

#[test]
fn errors_explains_one_code_by_the_documentation() {
    let page = include_str!("../../docs/troubleshooting.md");
    let output = run(&["errors", "session_busy"]);
    assert_eq!(output.status.code(), Some(0), "it is explained");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let (heading, section) = text.split_once("\n\n").expect("a heading and a text");
    assert_eq!(heading, "session_busy", "its heading");
    assert!(
        section.len() > 50 && page.contains(section.trim_end()) && !section.contains("\n#"),
        "its section and no other: {section}"
    );

    let one = run(&["errors", "session_busy", "--json"]);
    let one: serde_json::Value = serde_json::from_slice(&one.stdout).expect("one JSON object");
    assert_eq!(
        (&one["code"], &one["status"], &one["help"]),
        (
            &"session_busy".into(),
            &429.into(),
            &section.trim_end().into()
        ),
        "the same as JSON"
    );
    let all = run(&["errors", "--json"]);
    let all = String::from_utf8(all.stdout).expect("UTF-8");
    let line = all.lines().find(|line| line.contains("\"upstream_error\""));
    let line: serde_json::Value =
        serde_json::from_str(line.expect("one line per code")).expect("JSON");
    assert_eq!(line["status"], serde_json::Value::Null, "no status: {line}");
}

#[test]
fn an_unknown_code_exits_with_2_and_names_the_one_that_was_meant() {
    let output = run(&["errors", "sesion_busy"]);
    assert_eq!(output.status.code(), Some(2), "wrong arguments");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("'session_busy'"), "did you mean: {text}");
}

// === the documentation ===

#[test]
fn the_reference_has_every_code_with_its_status() {
    let page = include_str!("../../docs/error-responses.md");
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        Some((cells.next()?.strip_suffix('`')?, cells.next()?))
    });
    let rows: BTreeMap<_, _> = rows.collect();
    for code in ErrorCode::all() {
        // Those that occur inside event streams alone are named in the text.
        let Some(status) = rows.get(code.word) else {
            let named = format!("`{}`", code.word);
            assert!(page.contains(&named), "{named} is in the reference");
            continue;
        };
        let status = match *status {
            "as `session_busy`" => rows["session_busy"],
            status => status,
        };
        let expected = code.status.map(|status| status.as_str().to_owned());
        assert_eq!(
            Some(&status[..3]),
            expected.as_deref(),
            "the status of {}",
            code.word
        );
    }
}
