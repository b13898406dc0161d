//! Filters of templates, through the whole proxy: all spellings that a backend takes for one session
//! share one lock; a value that does not fit the filter, or that has white space at an end, is refused.

use crate::support::bench::Bench;
use crate::support::client::Request;

const ROUTES: &str = r#"
[limits]
max_id_bytes = 64

[[routes]]
name = "uuid"
path = "/uuid"
session_id = ["{uuid:body:/id|/other}", "{uuid:header:x-id}", "{uuid:cookie:sid}", "{uuid:query:s}"]
[[routes]]
name = "uuid in a path"
path = "/uuid/{thread}/run"
session_id = ["{uuid:path:thread}"]
[[routes]]
name = "form"
path = "/form"
session_id = ["{uuid:form:id}"]
user_id = ["{int:form:user}", "unknown"]
[[routes]]
name = "int"
path = "/int"
session_id = ["{int:body:/id}", "{int:query:s}"]
on_missing = "reject"
[[routes]]
name = "lower"
path = "/lower"
session_id = ["{lower:query:s}"]
[[routes]]
name = "several"
path = "/several/{app}"
session_id = ["{lower:path:app}/{uuid:query:s}", "h-{hash:uuid:header:x-id}", "h-{hash:lower:query:mail}", "{header:x-id}"]

[[routes]]
name = "text"
path = "/text"
session_id = ["{body:/id}", "{header:x-id}", "{cookie:sid}", "{query:s}", "h-{hash:body:/input}"]
user_id = ["{query:u}", "unknown"]
[[routes]]
name = "text in a path"
path = "/text/{app}/{thread}"
session_id = ["{path:app}/{path:thread}"]
[[routes]]
name = "text in a form"
path = "/text-form"
session_id = ["{form:id}", "h-{hash:form:input}"]
"#;

const UUID: &str = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";

fn json(path: &str, body: &str) -> Request {
    Request::post(path).json(body)
}

fn form(path: &str, body: &str) -> Request {
    Request::post(path)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(body)
}

fn get(target: &str) -> Request {
    Request::get(target)
}

fn unknown(session: &str) -> Option<String> {
    Some(format!("lock:session:unknown:{session}"))
}

#[tokio::test]
async fn a_uuid_is_one_session_in_any_spelling_and_from_any_source() {
    let bench = Bench::start(ROUTES).await;
    let plain = UUID.replace('-', "");
    for spelling in [
        UUID,
        &UUID.to_uppercase(),
        &plain,
        &format!("{{{UUID}}}"),
        &format!("urn:uuid:{UUID}"),
        // This spelling is longer than an id may be, but the UUID in it is not.
        &plain.replace('8', "--8--").replace('a', "----a----"),
    ] {
        let in_path = spelling.replace('{', "%7b").replace('}', "%7d");
        for request in [
            json("/uuid", &format!(r#"{{"id":"{spelling}"}}"#)),
            json("/uuid", &format!(r#"{{"id":null,"other":"{spelling}"}}"#)),
            get("/uuid").header("x-id", spelling),
            get("/uuid").header("cookie", &format!("sid={spelling}")),
            get(&format!("/uuid?s={in_path}")),
            get(&format!("/uuid/{in_path}/run")),
            form("/form", &format!("id={in_path}")),
        ] {
            assert_eq!(
                bench.key(&request).await,
                unknown(UUID),
                "{spelling} is this session: {request:?}"
            );
        }
    }
    let escaped = json("/uuid", &format!(r#"{{"id":"\u0030{}"}}"#, &UUID[1..]));
    assert_eq!(
        bench.key(&escaped).await,
        unknown(UUID),
        "escapes in JSON are decoded"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_value_that_is_not_a_uuid_is_refused_and_not_missing() {
    let bench = Bench::start(ROUTES).await;
    for other in ["t1", "0", "7", &UUID[1..], &format!("{UUID}0"), "a-1-1-1-1"] {
        for request in [
            json("/uuid", &format!(r#"{{"id":"{other}"}}"#)).header("x-id", UUID),
            get(&format!("/uuid?s={other}")),
            get(&format!("/uuid/{other}/run")),
            form("/form", &format!("id={other}")),
        ] {
            bench.refused(other, &request, 400, "bad_session_id").await;
        }
    }
    for body in [
        r#"{"id":7}"#.to_owned(),
        r#"{"id":true}"#.to_owned(),
        format!(r#"{{"id":["{UUID}"]}}"#),
        format!(r#"{{"id":"{UUID} "}}"#),
        format!(r#"{{"id":"\n{UUID}"}}"#),
    ] {
        let request = json("/uuid", &body);
        bench.refused(&body, &request, 400, "bad_session_id").await;
    }
    for (case, request, key) in [
        ("null", json("/uuid", r#"{"id":null}"#), None),
        ("empty", json("/uuid", r#"{"id":""}"#), None),
        ("no body", get("/uuid"), None),
        (
            "the next template",
            json("/uuid", r#"{"id":""}"#).header("x-id", UUID),
            unknown(UUID),
        ),
    ] {
        assert_eq!(
            bench.key(&request).await,
            key,
            "{case}: a filter does not change what counts as missing"
        );
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_number_is_one_session_with_any_padding() {
    let bench = Bench::start(ROUTES).await;
    for (request, id) in [
        (json("/int", r#"{"id":5}"#), "5"),
        (json("/int", r#"{"id":"5"}"#), "5"),
        (json("/int", r#"{"id":"05"}"#), "5"),
        (json("/int", r#"{"id":"+5"}"#), "5"),
        (json("/int", r#"{"id":-5}"#), "-5"),
        (json("/int", r#"{"id":"-005"}"#), "-5"),
        (get("/int?s=005"), "5"),
        (get("/int?s=%2B5"), "5"),
        (get("/int?s=0"), "0"),
        (get("/int?s=000"), "0"),
        (get("/int?s=-0"), "0"),
        (json("/int", r#"{"id":"00"}"#), "0"),
        (
            json("/int", r#"{"id":9223372036854775807}"#),
            "9223372036854775807",
        ),
    ] {
        assert_eq!(bench.key(&request).await, unknown(id), "{request:?}");
    }
    let user = form("/form", &format!("id={UUID}&user=007"));
    assert_eq!(
        bench.key(&user).await,
        Some(format!("lock:session:7:{UUID}")),
        "filters apply to user ids, too"
    );
    for (case, request, reason) in [
        ("a space before", get("/int?s=+5"), "bad_session_id"),
        ("a space after", get("/int?s=5%20"), "bad_session_id"),
        ("an underscore", get("/int?s=1_000"), "bad_session_id"),
        ("other digits", get("/int?s=%d9%a5"), "bad_session_id"),
        (
            "a fraction",
            json("/int", r#"{"id":"5.0"}"#),
            "bad_session_id",
        ),
        ("text", json("/int", r#"{"id":"s1"}"#), "bad_session_id"),
        (
            "more than 64 bits",
            json("/int", r#"{"id":9223372036854775808}"#),
            "bad_session_id",
        ),
        (
            "too long",
            get(&format!("/int?s={}", "9".repeat(65))),
            "bad_session_id",
        ),
        (
            "0, which Python's `or` takes for missing",
            json("/int", r#"{"id":0}"#),
            "missing_session",
        ),
        ("an empty value", get("/int?s="), "missing_session"),
    ] {
        bench.refused(case, &request, 400, reason).await;
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn an_id_is_one_session_in_any_letter_case() {
    let bench = Bench::start(ROUTES).await;
    for (target, id) in [
        ("/lower?s=Anna", "anna"),
        ("/lower?s=ANNA", "anna"),
        ("/lower?s=anna", "anna"),
        ("/lower?s=%C3%84b", "äb"),
        ("/lower?s=%E7%94%A8", "用"),
    ] {
        assert_eq!(bench.key(&get(target)).await, unknown(id), "{target}");
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn each_source_of_a_template_has_its_own_filters() {
    let bench = Bench::start(ROUTES).await;
    let several = get(&format!("/several/APP?s={}", UUID.to_uppercase()));
    assert_eq!(
        bench.key(&several).await,
        unknown(&format!("app/{UUID}")),
        "each filter applies to its own source"
    );
    for spelling in [UUID, &UUID.to_uppercase(), &UUID.replace('-', "")] {
        assert_eq!(
            bench.key(&get("/several/a").header("x-id", spelling)).await,
            // printf %s 0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9 | sha256sum | cut -c1-32
            unknown("h-a93f0ce95a6f5278da2a46e7b2b80304"),
            "the hash is of the canonical spelling: {spelling}"
        );
    }
    for mail in ["Anna@Example.com", "anna@example.com"] {
        assert_eq!(
            bench.key(&get(&format!("/several/a?mail={mail}"))).await,
            // printf %s anna@example.com | sha256sum | cut -c1-32
            unknown("h-f7d54c22dda5b1780276601cd005909b"),
            "{mail}"
        );
    }
    for (case, request) in [
        ("one of two ids is not a UUID", get("/several/a?s=s1")),
        (
            "an id to be hashed is not a UUID",
            get("/several/a").header("x-id", "s1"),
        ),
        (
            "an id to be hashed has a space at its end",
            get("/several/a?mail=a%20"),
        ),
    ] {
        bench.refused(case, &request, 400, "bad_session_id").await;
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn white_space_and_control_characters_at_an_end_are_refused() {
    let bench = Bench::start(ROUTES).await;
    for (trimmed, escape) in [
        ("%20", "\\u0020"),
        ("%09", "\\t"),
        ("%0A", "\\n"),
        ("%00", "\\u0000"),
        ("%1F", "\\u001f"),
        ("%7F", "\\u007f"),
        ("%C2%85", "\\u0085"),
        ("%C2%A0", "\\u00a0"),
        ("%E1%A0%8E", "\\u180e"),
        ("%E2%80%83", "\\u2003"),
        ("%E2%80%8B", "\\u200b"),
        ("%E2%80%A8", "\\u2028"),
        ("%E3%80%80", "\\u3000"),
        ("%EF%BB%BF", "\\ufeff"),
    ] {
        for id in [
            format!("{trimmed}s1"),
            format!("s1{trimmed}"),
            trimmed.to_owned(),
        ] {
            for request in [
                get(&format!("/text?s={id}")),
                get(&format!("/text?s=s1&u={id}")),
                form("/text-form", &format!("id={id}")),
            ] {
                bench.refused(&id, &request, 400, "bad_session_id").await;
            }
        }
        for id in [format!("{escape}s1"), format!("s1{escape}")] {
            let request = json("/text", &format!(r#"{{"id":"{id}"}}"#));
            bench.refused(&id, &request, 400, "bad_session_id").await;
        }
    }
    for (case, request) in [
        (
            "after a header's value",
            get("/text").header("x-id", "s1\u{a0}"),
        ),
        ("in a path", get("/text/a/%C2%A0s1")),
        ("in the middle of an id", get("/text/a%C2%A0/s1")),
        ("a control character in the middle", get("/text?s=a%00b")),
        (
            "a control character in JSON",
            json("/text", r#"{"id":"a\u0085b"}"#),
        ),
        (
            "after a cookie's value",
            get("/text").header("cookie", "sid=s1%0A"),
        ),
    ] {
        bench.refused(case, &request, 400, "bad_session_id").await;
    }
    for (case, request, key) in [
        (
            "in the middle of an id",
            get("/text?s=a%20%E3%80%80b"),
            "a%20\u{3000}b",
        ),
        // White space around a header's value is not part of it (RFC 9110 §5.5).
        (
            "around a header's value",
            get("/text").header("x-id", " \ts1 "),
            "s1",
        ),
        (
            "at the end of a hashed value: a message, by `sha256sum`",
            json("/text", r#"{"input":"hi\n"}"#),
            "h-4226692214dc34aefb8b424a08faed7b",
        ),
        (
            "at the end of a hashed form field",
            form("/text-form", "input=hi%0A"),
            "h-98ea6e4f216f2fb4b69fff9b3a44842c",
        ),
    ] {
        assert_eq!(bench.key(&request).await, unknown(key), "{case}");
    }
    bench.assert_still_serves().await;
}
