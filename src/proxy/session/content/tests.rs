//! Which readers a body has to reckon with, by what it is declared as.

use http::Request;

use super::*;
use crate::key::Template;

/// What is wanted by these templates.
fn wanted(templates: &[&str]) -> TemplateFields {
    let parse = |text: &&str| Template::parse(text).expect("a template");
    TemplateFields::from_templates(&templates.iter().map(parse).collect::<Vec<_>>())
}

fn kind(content_type: &str) -> BodyKind {
    let request = Request::post("/");
    let request = match content_type {
        "" => request,
        given => request.header("content-type", given),
    };
    BodyKind::new(&request.body(()).expect("a request").into_parts().0)
}

/// A loaded body. It lives as long as the process, so that what is picked from it can be returned.
fn loaded(content_type: &str, body: &str, is_encoded: bool) -> &'static BodyContent {
    Box::leak(Box::new(BodyContent::Loaded(LoadedBody {
        text: Bytes::copy_from_slice(body.as_bytes()),
        kind: kind(content_type),
        is_encoded,
    })))
}

const URLENCODED: &str = "application/x-www-form-urlencoded";
const MULTIPART: &str = "multipart/form-data; boundary=b";
const JSON: &str = "application/json";

/// What a route for `{body:/s}` finds, as JSON and in its place.
fn member(
    content_type: &str,
    body: &'static str,
) -> Result<(JsonMember<'static>, bool), SessionError> {
    let wanted = wanted(&["{body:/s}"]);
    let picked = loaded(content_type, body, false).pick(&wanted)?;
    let member = picked.members.and_then(|all| all.first().copied());
    let other = picked.in_place_of_members.first();
    Ok((
        member.unwrap_or(JsonMember::Missing),
        other.is_some_and(|other| *other != Field::Missing),
    ))
}

#[test]
fn json_is_read_whatever_it_is_declared_as_and_what_a_form_would_have_is_seen() {
    let plain = r#"{"s":"1","x":"&t=2"}"#;
    let both = r#"{"s":"1","x":"&s=2&"}"#;
    for content_type in ["", JSON, URLENCODED, MULTIPART, "text/plain"] {
        let found = member(content_type, plain);
        let expected = Ok((JsonMember::Found("\"1\""), false));
        assert_eq!(found, expected, "{content_type:?}: no form has it");
        let is_seen = content_type != JSON && content_type != MULTIPART;
        let expected = Ok((JsonMember::Found("\"1\""), is_seen));
        let found = member(content_type, both);
        assert_eq!(
            found, expected,
            "{content_type:?}: as who reads forms sees it"
        );
    }
    for hidden in [
        r#"{"s":"1","x":"&s[]=2"}"#,
        r#"{"s":"1","x":";S=2"}"#,
        r#"{"x":"&%73=2"}"#,
        r#"{"x":"&[[s&"}"#,
    ] {
        let seen = member(URLENCODED, hidden).map(|(_, other)| other);
        assert_eq!(seen, Ok(true), "{hidden}");
    }
    for (body, why) in [
        (r#"{"s":"1","x":"--b"}"#, "its boundary stands in it"),
        ("s=1", "it is no JSON"),
    ] {
        let found = member(MULTIPART, body);
        assert!(
            matches!(found, Err(SessionError::Malformed { .. })),
            "{why}"
        );
    }
}

#[test]
fn a_field_is_read_of_whatever_does_not_begin_as_json() {
    let wanted = wanted(&["{form:f}", "{header:x}"]);
    let fields = |content_type: &str, body: &'static str| {
        let picked = loaded(content_type, body, false).pick(&wanted)?;
        let members = picked.members.unwrap_or_default();
        let mut fields = picked.fields.unwrap_or_default();
        let field = fields.pop().unwrap_or(Field::Missing);
        Ok::<_, SessionError>((field, members.first().copied()))
    };
    let found = |text: &'static str| Field::Found(text.as_bytes().into());
    for content_type in ["", JSON, URLENCODED, "text/plain"] {
        let urlencoded = fields(content_type, "f=1");
        assert_eq!(urlencoded, Ok((found("1"), None)), "{content_type:?}");
        let json = fields(content_type, r#"{"f":"1"}"#);
        let member = Some(JsonMember::Found("\"1\""));
        let expected = Ok((Field::Missing, member));
        assert_eq!(json, expected, "{content_type:?}: who reads JSON finds it");
        let both = fields(content_type, r#"{"x":"&f=1"}"#);
        let expected = Ok((
            Field::Ambiguous(Ambiguity::FieldInJson),
            Some(JsonMember::Missing),
        ));
        assert_eq!(both, expected, "{content_type:?}: in the middle of JSON");
        let broken = fields(content_type, "{f=1");
        assert!(broken.is_err(), "{content_type:?}: neither of the two");
    }
    let part = "--b\r\ncontent-disposition: form-data; name=f\r\n\r\n1\r\n--b--\r\n";
    assert_eq!(fields(MULTIPART, part), Ok((found("1"), None)), "in a part");
    for body in ["f=1", r#"{"f":"1"} --b--"#] {
        assert!(fields(MULTIPART, body).is_err(), "{body} has no parts");
    }
    for content_type in [URLENCODED, MULTIPART] {
        let behind_mark = format!("\u{feff}{part}");
        let picked = loaded(content_type, &behind_mark, false).pick(&wanted);
        assert!(
            picked.is_err(),
            "some take a byte order mark off: {content_type}"
        );
    }
}

#[test]
fn who_reads_forms_may_find_a_member_in_one() {
    let wanted = wanted(&["{body:/s|/a/b}", "{form:f}"]);
    for (body, expected) in [
        ("f=1", [false, false]),
        ("f=1&s=2", [true, false]),
        ("a[b]=1", [false, true]),
        ("a.b=1&S=1", [true, true]),
    ] {
        for content_type in ["", URLENCODED] {
            let picked = loaded(content_type, body, false).pick(&wanted);
            let picked = picked.expect("a form can be read");
            let there = picked.in_place_of_members.iter();
            let there: Vec<_> = there.map(|field| *field != Field::Missing).collect();
            assert_eq!(there, expected, "{body} as {content_type:?}");
        }
    }
}

#[test]
fn an_encoded_body_is_json_as_it_came_only_if_a_value_stands_at_its_start() {
    let long = [br#"["s", ""#.to_vec(), vec![b'x'; 1 << 20]].concat();
    let deep = vec![b'['; 1000];
    for body in [
        br#" {"s":"1"}"#.as_slice(),
        b"{\"s\":\"\xff\"}\xff",
        b"[1]\0",
        &long,
        &deep,
    ] {
        assert!(is_json_encoded(body), "{:?}", body.escape_ascii().take(20));
    }
    for body in [
        &b"[C\r\x23\x8a"[..],
        b"[",
        b"[\xff1]",
        b"[]C",
        b"{}",
        b"1",
        b"\x1f\x8b",
        b"",
    ] {
        assert!(!is_json_encoded(body), "{}", body.escape_ascii());
    }
}

#[test]
fn an_encoded_body_is_read_as_json_alone() {
    let wanted = wanted(&["{body:/s}", "{form:f}"]);
    for (content_type, body, is_read) in [
        (JSON, r#"{"s":"1"}"#, true),
        ("", r#"{"s":"1"}"#, true),
        (URLENCODED, r#"{"s":"1"}"#, false),
        (URLENCODED, "f=1", false),
        ("", "f=1", false),
    ] {
        let picked = loaded(content_type, body, true).pick(&wanted);
        match is_read {
            true => assert!(picked.is_ok(), "{content_type:?}: {body}"),
            false => assert!(
                matches!(picked, Err(SessionError::EncodedForm)),
                "{content_type:?}: {body}: who doesn't decode finds other fields"
            ),
        }
    }
}
