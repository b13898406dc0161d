//! Every rule of the scanner by name, then what holds for any body at all.

use std::fmt::Write;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;

use super::JsonMember::{Found, Missing};
use super::*;

/// Any ambiguous member. Each reason has its own text, and its row in the test of the texts.
const AMBIGUOUS: JsonMember<'static> = JsonMember::Ambiguous(Ambiguity::MemberTwice);

// === helpers ===

fn any_reason(member: JsonMember<'_>) -> JsonMember<'_> {
    match member {
        JsonMember::Ambiguous(_) => AMBIGUOUS,
        known => known,
    }
}

fn parsed<S: AsRef<str>>(pointers: &[S]) -> Vec<Pointer> {
    let parse = |pointer: &S| Pointer::parse(pointer.as_ref()).expect("the test's own pointer");
    pointers.iter().map(parse).collect()
}

/// What a body that is JSON has at the pointers.
fn picked<'b>(body: &'b str, pointers: &[&str]) -> Vec<JsonMember<'b>> {
    match pick(body.as_bytes(), &parsed(pointers)) {
        Ok(members) => members.into_iter().map(any_reason).collect(),
        Err(problem) => panic!("{body} is JSON, but: {problem}"),
    }
}

fn picked_one<'b>(body: &'b str, pointer: &str) -> JsonMember<'b> {
    picked(body, &[pointer])[0]
}

/// Says what stands at a pointer in a body, and the rule that makes it so.
macro_rules! stands {
    ($body:expr, $pointer:expr => $member:expr, $rule:literal) => {
        assert_eq!(picked_one($body, $pointer), $member, $rule)
    };
}

fn refused(body: impl AsRef<[u8]>) -> JsonError {
    let body = body.as_ref();
    match pick(body, &[]) {
        Ok(_) => panic!("{} must be refused", String::from_utf8_lossy(body)),
        Err(problem) => problem,
    }
}

fn nested(open: &str, inside: &str, close: &str, levels: usize) -> String {
    [&open.repeat(levels), inside, &close.repeat(levels)].concat()
}

// === picking ===

#[test]
fn a_pointer_finds_the_raw_text_of_its_member_without_white_space_around() {
    let body =
        " {\n\"a\" : \"x\\n\" ,\t\"b\": -1.50e+3 ,\"c\":[ 1 , {} ] , \"d\":{ \"e\" : null } }\r\n";
    for (pointer, text) in [
        ("/a", r#""x\n""#),
        ("/b", "-1.50e+3"),
        ("/c", "[ 1 , {} ]"),
        ("/c/0", "1"),
        ("/c/1", "{}"),
        ("/d", r#"{ "e" : null }"#),
        ("/d/e", "null"),
    ] {
        stands!(body, pointer => Found(text), "{pointer} names the text as it stands");
    }
}

#[test]
fn the_answers_stand_in_the_order_of_the_pointers() {
    let members = picked(
        r#"{"b":2,"c":{"d":3},"a":1}"#,
        &["/a", "/x", "/c/d", "/b", "/c", "/a"],
    );
    let expected = [
        Found("1"),
        Missing,
        Found("3"),
        Found("2"),
        Found(r#"{"d":3}"#),
        Found("1"),
    ];
    assert_eq!(members, expected, "each pointer's answer is in its place");
}

#[test]
fn no_pointers_have_no_answers() {
    assert_eq!(
        picked("{}", &[]),
        [],
        "the body is checked, and nothing is picked"
    );
}

#[test]
fn sixty_four_pointers_are_followed() {
    let names: Vec<String> = (0..64).map(|i| format!("/n{i}")).collect();
    let members: Vec<_> = (0..64).map(|i| format!("\"n{i}\":{i}")).collect();
    let body = format!("{{{}}}", members.join(","));
    let answers = pick(body.as_bytes(), &parsed(&names)).expect("the body is JSON");
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(*answer, Found(&i.to_string()), "pointer {i} has its answer");
    }
}

#[test]
#[cfg(not(debug_assertions))]
fn a_pointer_past_the_sixty_fourth_is_ambiguous_and_not_missing() {
    let names: Vec<String> = (0..65).map(|i| format!("/n{i}")).collect();
    let answers = pick(b"{}", &parsed(&names)).expect("the body is JSON");
    assert_eq!(answers[63], Missing, "the 64th pointer is followed");
    assert_eq!(
        any_reason(answers[64]),
        AMBIGUOUS,
        "the 65th is not, and that must not look like a missing id"
    );
}

#[test]
fn a_name_is_compared_after_its_escapes_are_undone() {
    for body in [
        r#"{"session\u005fid":1}"#,
        r#"{"session\u005Fid":1}"#,
        r#"{"\u0073\u0065\u0073\u0073\u0069\u006f\u006e\u005f\u0069\u0064":1}"#,
    ] {
        stands!(body, "/session_id" => Found("1"), "{body} has a session_id");
    }
    stands!(r#"{"a\/b\\\"\n":1}"#, "/a~1b\\\"\n" => Found("1"), "short escapes are undone as well");
    stands!(r#"{"\ud83d\ude00":1}"#, "/😀" => Found("1"), "a surrogate pair is one character");
    stands!(r#"{"a\\u0062":1}"#, "/ab" => Missing, "an escaped backslash escapes nothing after it");
}

#[test]
fn a_name_must_match_to_its_end() {
    for body in [
        r#"{"session":1}"#,
        r#"{"session_idx":1}"#,
        r#"{"session\u005fidx":1}"#,
        r#"{"session-id":1}"#,
        r#"{"":1}"#,
    ] {
        stands!(body, "/session_id" => Missing, "{body} has no session_id");
    }
    stands!(r#"{"":1}"#, "/" => Found("1"), "the empty token is the empty name");
    stands!(r#"{"a":1}"#, "/" => Missing, "the empty token is no other name");
}

#[test]
fn a_name_may_hold_any_script() {
    let body = r#"{"会话":{"ключ":1}}"#;
    stands!(body, "/会话/ключ" => Found("1"), "names are not bound to ASCII");
    stands!(body, "/会话/Ключ" => AMBIGUOUS, "nor is case");
}

#[test]
fn a_scalar_on_the_path_means_missing() {
    for value in ["1", "\"b\"", "null", "true", "\"\\u0062\""] {
        let body = format!("{{\"a\":{value}}}");
        stands!(&body, "/a/b" => Missing, "nothing stands inside {value}");
    }
    stands!("7", "/a" => Missing, "nothing stands inside a document that is a scalar");
}

#[test]
fn a_pointer_may_end_where_another_goes_on() {
    let members = picked(r#"{"a":{"b":[5]}}"#, &["/a", "/a/b", "/a/b/0", "/a/b/0/c"]);
    let expected = [Found(r#"{"b":[5]}"#), Found("[5]"), Found("5"), Missing];
    assert_eq!(members, expected, "each of them has its own answer");
}

// === arrays ===

#[test]
fn an_index_selects_an_element() {
    let body = r#"[10,[20,21],{"a":30},"x",4,5,6,7,8,9,100]"#;
    for (pointer, member) in [
        ("/0", Found("10")),
        ("/1/1", Found("21")),
        ("/2/a", Found("30")),
        ("/10", Found("100")),
        ("/11", Missing),
        ("/1/2", Missing),
    ] {
        stands!(body, pointer => member, "{pointer} counts from zero");
    }
    let members = picked(body, &["/10", "/0", "/1", "/1/0", "/0"]);
    let expected = ["100", "10", "[20,21]", "20", "10"].map(Found);
    assert_eq!(
        members, expected,
        "several pointers may go through one array, in any order"
    );
}

#[test]
fn a_token_that_is_no_index_means_missing_in_an_array() {
    for token in [
        "00",
        "01",
        "-",
        "+1",
        "1.0",
        "1e0",
        " 1",
        "",
        "a",
        "１",
        "18446744073709551616",
        "99999999999999999999999999",
    ] {
        stands!("[7,8]", &format!("/{token}") => Missing, "{token:?} is no index");
    }
    stands!("[]", "/0" => Missing, "an empty array has no first element");
}

#[test]
fn minus_one_is_the_last_element_of_an_array() {
    let body = r#"{"m":[{"id":"a","id":"b"}, [1,[2 , {"x":3}]], {"id":"c","l":[4,5]} ],"e":[],"o":{"-1":6}}"#;
    for (pointer, member) in [
        ("/m/-1/id", Found("\"c\"")),
        ("/m/-1/l/-1", Found("5")),
        ("/m/1/-1/-1/x", Found("3")),
        ("/m/1/0", Found("1")),
        ("/m/-1", Found(r#"{"id":"c","l":[4,5]}"#)),
        ("/m/2/id", Found("\"c\"")),
        ("/m/0/id", AMBIGUOUS),
        ("/m/-1/x", Missing),
        ("/e/-1", Missing),
        ("/e/-1/id", Missing),
        ("/o/-1", Found("6")),
    ] {
        stands!(body, pointer => member, "{pointer} of {body}");
    }
    let members = picked(body, &["/m/-1/id", "/m/2/id", "/m/2", "/o/-1", "/e/0"]);
    let c = Found("\"c\"");
    let last = Found(r#"{"id":"c","l":[4,5]}"#);
    assert_eq!(
        members,
        [c, c, last, Found("6"), Missing],
        "an element that is named in two ways is found in both"
    );
    stands!(r#"{"m":[{"id":1},{"id":2,"id":3}]}"#, "/m/-1/id" => AMBIGUOUS, "a name that is there twice");
    stands!(r#"{"m":[{"id":1},{"ID":2}]}"#, "/m/-1/id" => AMBIGUOUS, "a name in another case");
    stands!(r#"{"m":[{"id":1}],"m":[{"id":1}]}"#, "/m/-1/id" => AMBIGUOUS, "two arrays");
    stands!(r#"[{"id":1,"id":2},{"id":3}]"#, "/-1/id" => Found("3"), "a list as the body has a last element");
    stands!(r#"[{"-1":1},{"id":3}]"#, "/-1/id" => Found("3"), "which isn't a member of its requests");
    assert!(
        pick(br#"{"m":[1,{"a":}]}"#, &parsed(&["/m/-1"])).is_err(),
        "no JSON"
    );
    assert!(
        pick(br#"{"m":[1] 2}"#, &parsed(&["/m/-1/a"])).is_err(),
        "no JSON behind the array"
    );
}

#[test]
fn a_member_of_a_request_in_a_batch_is_ambiguous() {
    for body in [
        r#"[{"a":1}]"#,
        r#"[7,[{"b":1}], {"b":{"a":1},"A":1}]"#,
        r#"[{"b":1},{"b":1,"\u0061":{}}]"#,
    ] {
        stands!(body, "/a" => AMBIGUOUS, "one of several requests may be the one that is meant");
        stands!(body, "/a/b" => AMBIGUOUS, "and all in it");
        stands!(body, "/c" => Missing, "what none of them has is missing");
    }
    stands!(r#"[[{"a":1}],{"b":{"a":1}},{}]"#, "/a" => Missing, "a request is an object of the list");
    let both = picked(r#"[{"a":1},{"a":2}]"#, &["/1/a", "/a", "/0"]);
    assert_eq!(
        both,
        [Found("2"), AMBIGUOUS, Found(r#"{"a":1}"#)],
        "an index says which"
    );
    let cut = pick(br#"[{"a":1,}]"#, &parsed(&["/a"]));
    assert!(cut.is_err(), "a batch is checked as strictly as the rest");
}

#[test]
fn a_scalar_is_compared_by_its_value() {
    for (text, expected) in [
        ("true", Some("true")),
        ("false", Some("false")),
        ("0", Some("0")),
        ("-0", Some("0")),
        ("1.0", Some("1")),
        ("1e3", Some("1000")),
        ("-2.0", Some("-2")),
        ("1.5", Some("1.5")),
        ("123456789012345678901", Some("123456789012345678901")),
        (r#""a\u0062""#, Some("ab")),
        (r#""1.0""#, Some("1.0")),
        ("null", None),
        (r#""""#, None),
    ] {
        let expected = expected.map_or(JsonId::Missing, |text| JsonId::Text(Cow::Borrowed(text)));
        assert_eq!(scalar(text), expected, "{text} in a condition");
    }
    for text in ["{}", "[]", r#""\ud800""#] {
        assert!(
            matches!(scalar(text), JsonId::Unfit(_)),
            "{text} is no value to compare with"
        );
    }
}

#[test]
fn an_index_is_a_name_like_any_other_in_an_object() {
    stands!(r#"{"0":1,"01":2}"#, "/0" => Found("1"), "an object has a member named 0");
    stands!(r#"{"0":1,"01":2}"#, "/01" => Found("2"), "an object has a member named 01");
}

// === ambiguity ===

#[test]
fn a_name_that_stands_twice_makes_the_pointer_ambiguous() {
    for body in [
        r#"{"id":"a","id":"b"}"#,
        r#"{"id":"a","id":"a"}"#,
        r#"{"id":"a","x":{},"\u0069d":"b"}"#,
        r#"{"id":1,"id":null}"#,
        r#"{"id":1,"id":2,"id":3}"#,
    ] {
        stands!(body, "/id" => AMBIGUOUS, "{body}: one reader takes the first, another the last");
    }
}

#[test]
fn a_name_that_differs_in_case_only_makes_the_pointer_ambiguous() {
    for body in [
        r#"{"session_id":1,"Session_ID":2}"#,
        r#"{"SESSION_ID":2,"session_id":1}"#,
        r#"{"\u0053ession_id":2,"session_id":1}"#,
    ] {
        stands!(body, "/session_id" => AMBIGUOUS, "{body}: a variant beside the name");
    }
    for body in [r#"{"Session_id":1}"#, r#"{"session_i\u0044":1}"#] {
        stands!(body, "/session_id" => AMBIGUOUS, "{body}: a variant instead of the name");
    }
    stands!(r#"{"session_id":1}"#, "/Session_ID" => AMBIGUOUS,
        "the pointer may be the one with capitals");
}

#[test]
fn case_is_folded_as_go_folds_it() {
    let orbits = "kK\u{212A} sSſ ßẞ åÅ\u{212B} σςΣ θϑϴΘ µμΜ ωΩ\u{2126} ǆǅǄ ᾳᾼ ꭰᎠ 𐐨𐐀";
    for orbit in orbits.split(' ') {
        for a in orbit.chars() {
            for b in orbit.chars() {
                let expected = if a == b { Found("1") } else { AMBIGUOUS };
                let raw = format!("{{\"x{a}y\":1}}");
                let mut units = [0; 2];
                let escaped =
                    b.encode_utf16(&mut units)
                        .iter()
                        .fold(String::new(), |mut text, unit| {
                            write!(text, "\\u{unit:04x}").expect("a String takes all");
                            text
                        });
                stands!(&raw, &format!("/x{b}y") => expected, "{a} and {b} are one letter");
                let escaped = format!("{{\"x{escaped}y\":1}}");
                stands!(&escaped, &format!("/x{a}y") => expected,
                    "{a} and {b} are one letter, escaped too");
            }
        }
    }
    stands!(r#"{"ſe\u017fſion_id":1}"#, "/session_id" => AMBIGUOUS, "Go takes the long s for an s");
    stands!("{\"to\u{212A}en\":1}", "/token" => AMBIGUOUS, "Go takes the Kelvin sign for a k");
    stands!(r#"{"strasse":1}"#, "/straße" => Missing, "folding keeps the number of characters");
    for (a, b) in [
        ("[", "{"),
        ("@", "`"),
        ("_", "\u{7f}"),
        ("é", "e"),
        ("1", "!"),
    ] {
        let body = format!("{{\"{a}\":1}}");
        stands!(&body, &format!("/{b}") => Missing, "{a} and {b} are no two cases of a letter");
    }
}

#[test]
fn a_lone_surrogate_in_a_name_may_be_a_replacement_character_to_some_reader() {
    stands!(r#"{"a\ud800":1}"#, "/a\u{FFFD}" => AMBIGUOUS,
        "Go reads U+FFFD there, Python does not");
    stands!(r#"{"\udc00\udc00":1}"#, "/\u{FFFD}\u{FFFD}" => AMBIGUOUS, "each of two has its own");
    stands!(r#"{"a\ud800":1}"#, "/a" => Missing, "no reader drops it");
    stands!("{\"a\u{FFFD}\":1}", "/a\u{FFFD}" => Found("1"),
        "U+FFFD itself is a name like any other");
}

#[test]
fn pointers_that_differ_in_case_only_are_both_ambiguous_when_one_of_the_names_is_there() {
    let pointers = ["/threadId", "/threadid", "/other"];
    for body in [
        r#"{"threadId":1,"other":2}"#,
        r#"{"other":2,"threadid":1}"#,
        r#"{"THREADID":1,"other":2}"#,
    ] {
        assert_eq!(
            picked(body, &pointers),
            [AMBIGUOUS, AMBIGUOUS, Found("2")],
            "{body}: each sees the other's name as a variant"
        );
    }
    assert_eq!(
        picked(r#"{"other":2}"#, &pointers),
        [Missing, Missing, Found("2")],
        "with neither name there, both are missing"
    );
}

#[test]
fn ambiguity_reaches_every_pointer_that_goes_through_the_name_and_no_other() {
    let pointers = ["/a", "/a/b", "/a/b/c", "/a/x", "/d"];
    for (body, expected) in [
        (
            r#"{"a":{"b":{"c":1}},"a":{},"d":2}"#,
            [false, false, false, false, true],
        ),
        (
            r#"{"A":{"b":{"c":1}},"d":2}"#,
            [false, false, false, false, true],
        ),
        (
            r#"{"a":{"b":{"c":1},"b":0,"x":0},"d":2}"#,
            [true, false, false, true, true],
        ),
        (
            r#"{"a":{"B":{"c":1},"x":0},"d":2}"#,
            [true, false, false, true, true],
        ),
    ] {
        for ((pointer, member), found) in pointers.iter().zip(picked(body, &pointers)).zip(expected)
        {
            assert_eq!(
                matches!(member, Found(_)),
                found,
                "{body}: {pointer} is found only beside the doubtful name"
            );
            assert_eq!(
                member == AMBIGUOUS,
                !found,
                "{body}: {pointer} is ambiguous only through the doubtful name"
            );
        }
    }
}

#[test]
fn a_missing_end_does_not_hide_a_doubtful_name_on_the_way() {
    stands!(r#"{"A":5}"#, "/a/b" => AMBIGUOUS, "the variant might have led on for some reader");
    stands!(r#"{"a":5,"a":{}}"#, "/a/b" => AMBIGUOUS, "so might the second of two");
    stands!(r#"[{"a":1},{"A":1}]"#, "/1/a" => AMBIGUOUS, "so it is inside arrays");
}

#[test]
fn objects_off_the_path_may_repeat_names() {
    for body in [
        r#"{"x":{"id":1,"id":2,"ID":3},"id":7}"#,
        r#"{"x":1,"x":2,"X":3,"id":7}"#,
        r#"{"id":7,"x":[{"id":1},{"id":2,"iD":2}]}"#,
    ] {
        stands!(body, "/id" => Found("7"), "{body}: the names off the path are nobody's");
    }
    let body = r#"{"id":{"a":1,"a":2,"A":3}}"#;
    stands!(body, "/id" => Found(r#"{"a":1,"a":2,"A":3}"#),
        "nor are those inside the member itself");
    stands!(r#"[{"a":1,"A":1},{"a":2}]"#, "/1/a" => Found("2"), "nor those of other elements");
}

// === what is JSON ===

#[test]
fn what_the_grammar_allows_is_accepted() {
    let values = r#"
        null true false 0 -0 10 1.0 -0.5e-10 1E5 1e+5 123456789012345678901234567890 1e999
        "" "a" "\"\\\/\b\f\n\r\t\u00e9\uD83D\ude00" [] [1] [1,2] [[],{}] {} {"":{}} {"a":1,"a":2}
    "#;
    let spaced = [
        "[ ]",
        "[ 1 , 2 ]",
        "{ }",
        "{ \"a\" : 1 , \"b\" : [ ] }",
        " \t\r\n1 \t\r\n",
    ];
    let odd = ["\"\u{7f}\u{80}\u{2028}\u{FEFF}\u{10FFFF}\""];
    for body in values.split_whitespace().chain(spaced).chain(odd) {
        stands!(body, "/0/none" => Missing, "{body} is JSON, looked into");
        assert_eq!(picked(body, &[]), [], "{body} is JSON, skipped");
    }
}

#[test]
fn what_the_grammar_does_not_allow_is_refused() {
    let values = r#"
        nul nulll NULL True tru fals falsee NaN Infinity -Infinity undefined
        +1 - -- --1 01 -01 00 1. .5 1.e5 1e 1e+ 1ee5 1e5.0 0x10 1_000 1a
        'a' " "a "\" "\x" "\U0041" "\'" "\ "\u" "\u12" "\u123" "\u123g" "\u+123" "\u{41}"
        "\ud83d\u12" "a""b"
        [ ] [1 [1, [1,] [,1] [,] [1,,2] [1} [1]] ["a":1] [1;2]
        { } {"a" {"a": {"a":1 {"a":1, {"a":1,} {,} {,"a":1} {"a"} {"a":} {"a":1] {a:1} {1:1}
        {'a':1} {null:1} {"a":1,,"b":2} {"a"::1} {"a\x":1} {[]:1} /**/1 //
    "#;
    let spaced = [
        "",
        " ",
        "1 2",
        "[1 2]",
        "\"\\u 123\"",
        "{\"a\" 1}",
        "{\"a\":1 \"b\":2}",
        "1 // c",
    ];
    let control = [
        "\"\n\"",
        "\"\t\"",
        "\"\0\"",
        "\"\u{1f}\"",
        "{\"a\n\":1}",
        "1\u{b}",
        "\u{c}1",
        "1\0",
    ];
    let unicode = ["\u{FEFF}1", "\u{A0}1", "1\u{2028}"];
    let wraps = [
        "_",
        "[_]",
        "[0,_]",
        "{\"a\":_}",
        "{\"b\":1,\"a\":_}",
        "{\"c\":[{\"d\":_}]}",
    ];
    let values = values.split_whitespace().chain(spaced);
    for value in values.chain(control).chain(unicode) {
        for wrap in wraps {
            let body = wrap.replace('_', value);
            // `][` and the like make sense between other brackets.
            if serde_json::from_str::<Value>(&body).is_ok() {
                continue;
            }
            for pointers in [vec![], vec!["/a/0"], vec!["/0", "/1"], vec!["/c/0/d", "/c"]] {
                let outcome = pick(body.as_bytes(), &parsed(&pointers));
                assert!(
                    outcome.is_err(),
                    "{body:?} is no JSON, whatever {pointers:?} ask for"
                );
            }
        }
    }
}

#[test]
fn a_refusal_names_the_place_and_what_should_stand_there() {
    for (body, at, expected) in [
        ("\u{FEFF}{}", 0, "a value, not a byte order mark"),
        ("{\"a\":nul}", 5, "the word null"),
        ("{\"a\":1,}", 7, "a member's name in double quotes"),
        ("{\"a\" 1}", 5, "a colon"),
        ("{\"a\":01}", 6, "a comma or }"),
        ("[1 2]", 3, "a comma or ]"),
        ("[1,]", 3, "a value"),
        ("{} x", 3, "the end of the body"),
        ("[-x]", 2, "a digit"),
        (
            "[\"a\\x\"]",
            4,
            "one of \" \\ / b f n r t u after the backslash",
        ),
        ("[\"\\u12g4\"]", 4, "four hexadecimal digits"),
        ("[\"a\nb\"]", 3, "no control character but as an escape"),
    ] {
        let error = JsonError::Syntax { at, expected };
        assert_eq!(refused(body), error, "{body:?} goes wrong at {at}");
    }
    for (body, expected) in [
        ("", "a value"),
        ("[1,", "a value"),
        ("[1", "a comma or ]"),
        ("{", "a member's name in double quotes"),
        ("{\"a", "the closing quote of a string"),
        ("{\"a\"", "a colon"),
        ("1.", "a digit"),
    ] {
        let at = body.len();
        assert_eq!(
            refused(body),
            JsonError::Cut { at, expected },
            "{body:?} ends too early"
        );
    }
    let messages = [
        (
            refused("[1 2]"),
            "the body isn't JSON: byte 3 should be a comma or ]",
        ),
        (
            refused("[1"),
            "the body isn't JSON: it ends after 2 bytes, where a comma or ] should follow",
        ),
        (refused(b"[\"\xFF\"]"), "the body isn't UTF-8 at byte 2"),
        (
            refused("[".repeat(129)),
            "the body nests arrays and objects more than 128 deep at byte 128",
        ),
    ];
    for (problem, message) in messages {
        assert_eq!(
            problem.to_string(),
            message,
            "a user can find the place by it"
        );
    }
}

#[test]
fn one_byte_that_ends_a_string_is_found_at_every_place() {
    // Past a word, a block and their remainders, so that each of the loops is the one to find it.
    for length in 0..200 {
        for filler in ["a", "é", "会"] {
            let text = filler.repeat(length);
            let good = format!("[\"{text}\",\"{text}\\n{text}\"]");
            stands!(&good, "/0" => Found(&format!("\"{text}\"")), "the string ends at its quote");
            let at = 2 + text.len();
            for control in ['\0', '\n', '\u{1f}'] {
                let outcome = refused(format!("[\"{text}{control}{text}\"]"));
                assert!(
                    matches!(outcome, JsonError::Syntax { at: place, .. } if place == at),
                    "{control:?} is refused at {at}"
                );
            }
            let bad = format!("[\"{text}\\q{text}\"]");
            assert!(
                matches!(refused(bad), JsonError::Syntax { at: place, .. } if place == at + 1),
                "a bad escape is refused at {at}"
            );
        }
    }
}

#[test]
fn what_is_escaped_is_neither_an_end_nor_an_escape_at_any_place() {
    const ESCAPES: [&str; 7] = [
        r#"\""#,
        r"\\",
        r"\n",
        r"\u0022",
        r#"\\\""#,
        r#"\"\""#,
        r"\u5c5c\u005C",
    ];
    // Past two blocks, so that each escape is at their ends, too.
    for (length, escape) in (0..150).flat_map(|length| ESCAPES.map(|escape| (length, escape))) {
        let text = format!("{}{escape}", "x".repeat(length));
        for behind in ["", "y", "0123456789", &"z".repeat(70)] {
            let body = format!("{{\"{text}{behind}\":1,\"a\":\"{text}{behind}\"}}");
            stands!(&body, "/a" => Found(&format!("\"{text}{behind}\"")), "the string goes on");
        }
        for cut in 1..=escape.len() {
            let cut = format!("[\"{}", &text[..text.len() - cut]);
            let outcome = refused(&cut);
            assert!(
                !matches!(outcome, JsonError::Syntax { at, .. } if at < cut.len() - 4),
                "{cut} ends within its string: {outcome}"
            );
        }
    }
}

#[test]
fn surrogate_escapes_may_stand_alone_where_nobody_reads_them() {
    for text in [
        r"\ud800",
        r"\udc00",
        r"\ud800\ud800",
        r"\udc00\ud800",
        r"a\ud83dA",
        r"\ud83d\n",
        r"\uD83D\\ude00",
    ] {
        let body = format!("{{\"{text}\":\"{text}\",\"a\":1}}");
        stands!(&body, "/a" => Found("1"), "{text} passes in a name and in a skipped string");
    }
}

// === depth ===

#[test]
fn one_hundred_and_twenty_eight_levels_are_accepted_and_one_more_is_not() {
    for (open, close) in [
        ("[", "]"),
        ("{\"a\":", "}"),
        ("[{\"a\":", "}]"),
        (" [ ", " ] "),
        ("[0,", ",0]"),
    ] {
        let levels = if open == "[{\"a\":" { 64 } else { 128 };
        let deepest = nested(open, "0", close, levels);
        for pointers in [vec![], vec!["/a/a/a", "/0/a/0/a"]] {
            let pointers = parsed(&pointers);
            assert!(
                pick(deepest.as_bytes(), &pointers).is_ok(),
                "128 levels of {open} are accepted"
            );
            for more in ["[]", "{}", "[0]", "{\"a\":0}"] {
                let outcome = pick(nested(open, more, close, levels).as_bytes(), &pointers).err();
                let at = open.len() * levels;
                assert_eq!(
                    outcome,
                    Some(JsonError::TooDeep { at }),
                    "{more} in 128 levels of {open} is one too many"
                );
            }
        }
    }
}

#[test]
fn a_member_beside_the_path_is_as_deep_as_one_on_it() {
    for (open, close) in [("{\"a\":{\"x\":", "}}"), ("{\"a\":[0,", "]}")] {
        for (levels, accepted) in [(126, true), (127, false)] {
            let body = [open, &nested("[", "", "]", levels), close].concat();
            let outcome = pick(body.as_bytes(), &parsed(&["/a/b", "/a/0"]));
            assert_eq!(outcome.is_ok(), accepted, "{levels} levels more in {open}");
        }
    }
}

#[test]
fn depth_counts_what_is_open_and_not_what_has_been() {
    let body = format!("[{}]", vec![nested("[", "", "]", 127); 300].join(","));
    stands!(&body, "/299/0/0/x" => Missing, "arrays side by side are not deeper than one");
}

#[test]
fn a_pointer_longer_than_the_deepest_body_is_followed_as_far_as_it_goes() {
    let pointer = "/a".repeat(1000);
    let body = nested("{\"a\":", "0", "}", 128);
    stands!(&body, &pointer => Missing, "it ends at a scalar");
    stands!(&body, &pointer[..256] => Found("0"), "one of 128 tokens gets to the end");
    let deeper = nested("{\"a\":", "0", "}", 100_000);
    let outcome = pick(deeper.as_bytes(), &parsed(&[&pointer])).err();
    let error = JsonError::TooDeep { at: 128 * 5 };
    assert_eq!(outcome, Some(error), "the limit holds on the path too");
}

#[test]
fn endless_nesting_is_refused_without_a_stack_to_overflow() {
    for open in ["[", "{\"a\":", "[{\"a\":"] {
        let body = open.repeat(1_000_000);
        assert!(
            matches!(refused(&body), JsonError::TooDeep { .. }),
            "a million of {open} are too deep"
        );
    }
}

// === UTF-8 ===

#[test]
fn bytes_that_are_not_utf8_are_refused_wherever_they_stand() {
    for bad in [
        &b"\xFF"[..],
        b"\x80",
        b"\xC0\x80",
        b"\xE0\x80\x80",
        b"\xED\xA0\x80",
        b"\xF4\x90\x80\x80",
        b"\xC3",
        b"\xE4\xBD",
    ] {
        for (before, after) in [
            ("", ""),
            ("[\"", "\"]"),
            ("{\"", "\":1}"),
            ("{\"a\":{\"b\":\"", "\"}}"),
            ("[1]", ""),
        ] {
            let body = [before.as_bytes(), bad, after.as_bytes()].concat();
            let error = JsonError::NotUtf8 { at: before.len() };
            assert_eq!(refused(&body), error, "{bad:x?} after {before}");
        }
    }
}

// === ids ===

fn text(text: &str) -> JsonId<'_> {
    JsonId::Text(Cow::Borrowed(text))
}

#[test]
fn a_string_is_an_id_by_its_characters() {
    let short = r#""\"\\\/\b\f\n\r\t""#;
    let pairs = r#""\ud83d\ude00\u4f1a会\uD83D\uDE00""#;
    for (json, characters, rule) in [
        (r#""s-1""#, "s-1", "the quotes are no part of it"),
        (r#""\u0073-\u0031""#, "s-1", "escaped, it is the same id"),
        (
            short,
            "\"\\/\u{8}\u{c}\n\r\t",
            "every short escape is undone",
        ),
        (pairs, "😀会会😀", "a surrogate pair is one character"),
        (
            r#""\\u0041""#,
            "\\u0041",
            "an escaped backslash escapes nothing",
        ),
        (r#"" ""#, " ", "white space is an id like any other"),
        (r#""0""#, "0", "the text 0 is not the number 0"),
        (r#""null""#, "null", "the text null is not the word"),
        (r#""\u0000""#, "\0", "the character U+0000 is a character"),
    ] {
        assert_eq!(id(json), text(characters), "{rule}");
    }
}

#[test]
fn a_string_without_escapes_is_borrowed() {
    assert!(
        matches!(id("\"会话\""), JsonId::Text(Cow::Borrowed("会话"))),
        "nothing is copied without need"
    );
    assert!(
        matches!(id(r#""\u4f1a""#), JsonId::Text(Cow::Owned(_))),
        "escapes need a copy"
    );
}

#[test]
fn an_integer_is_an_id_by_its_digits_as_written() {
    for digits in [
        "1",
        "42",
        "-7",
        "9007199254740993",
        "123456789012345678901234567890",
        "-123456789012345678901234567890",
    ] {
        assert_eq!(id(digits), text(digits), "{digits} is kept to the digit");
    }
}

#[test]
fn an_empty_value_is_a_missing_id() {
    for empty in ["null", "false", "\"\"", "0", "-0"] {
        assert_eq!(
            id(empty),
            JsonId::Missing,
            "{empty} says that there is no id"
        );
        assert!(is_missing(empty), "{empty} says that there is nothing");
    }
    for other in [
        "true",
        "1",
        "-1",
        "\"0\"",
        "\" \"",
        "\"null\"",
        r#""\u0000""#,
        "0.0",
        "-0.0",
        "0e0",
        "0E5",
        "[]",
        "{}",
        "10",
    ] {
        assert_ne!(id(other), JsonId::Missing, "{other} is something");
        assert!(!is_missing(other), "{other} is something");
    }
}

#[test]
fn what_is_neither_a_string_nor_an_integer_is_unfit_with_the_reason_in_words() {
    for (value, reason) in [
        ("true", "true"),
        ("1.0", "a fraction"),
        ("0.0", "a fraction"),
        ("-1.5e3", "a fraction"),
        ("1e3", "a number with an exponent"),
        ("0E0", "a number with an exponent"),
        ("{}", "an object"),
        (r#"{"a":"b"}"#, "an object"),
        ("[]", "an array"),
        (r#"["a"]"#, "an array"),
    ] {
        assert_eq!(id(value), JsonId::Unfit(reason), "{value} is no id");
    }
}

#[test]
fn an_id_with_a_lone_surrogate_is_unfit() {
    for value in [
        r"\ud800",
        r"\udfff",
        r"a\ud83d",
        r"\ud83da",
        r"\ud83d\n",
        r"\ud83d\u0041",
        r"\ud83d\ud83d",
        r"\ude00\ud83d",
        r"\ud83d\\ude00",
        r"\ud83d\ud83d\ude00",
        r"\ud83d\ude00\ude00",
    ] {
        assert_eq!(
            id(&format!("\"{value}\"")),
            JsonId::Unfit("a lone surrogate"),
            "{value} has no characters to be an id"
        );
    }
}

// === any body at all ===

/// JSON text: every kind of value, escape and white space, lone surrogates and huge exponents
/// too. At most five levels deep, far from serde_json's limit.
fn json() -> impl Strategy<Value = String> {
    let number = "-?(0|[1-9][0-9]{0,22})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,3})?";
    let string = concat!(
        r#""([ -!#-\[\]-~]{1,9}|[é会ก😀\x7f]"#,
        r#"|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}|\\ud83d\\ude00){0,8}""#,
    );
    let word = prop::sample::select(vec!["null", "true", "false"]).prop_map(str::to_owned);
    let leaf = prop_oneof![word, number, string];
    let spaced = |strategy: BoxedStrategy<String>| {
        ("[ \n\r\t]{0,2}", strategy, "[ \n\r\t]{0,2}")
            .prop_map(|(before, text, after)| before + &text + &after)
            .boxed()
    };
    let value = leaf.prop_recursive(5, 40, 6, move |inner| {
        let inner = spaced(inner.boxed());
        let name = spaced(string.boxed());
        let member = (name, inner.clone()).prop_map(|(name, value)| format!("{name}:{value}"));
        prop_oneof![
            prop::collection::vec(inner, 0..6)
                .prop_map(|elements| format!("[{}]", elements.join(","))),
            prop::collection::vec(member, 0..6)
                .prop_map(|members| format!("{{{}}}", members.join(","))),
        ]
    });
    spaced(value.boxed())
}

/// What a mutation puts somewhere in place of some bytes.
fn graft() -> impl Strategy<Value = Vec<u8>> {
    let significant = [
        "", "\"", "\\", "\\u", "\\ud800", "\\udc00", "\\x", "{", "}", "[", "]", ",", ":", " ",
        "\n", "\0", "\u{1f}", "0", "1", "-", ".", "e", "E5", "+", "null", "\"a\":1", "\u{FEFF}",
        "会", "/", "1e400",
    ];
    let broken = [
        &b"\xFF"[..],
        b"\xC3",
        b"\xE4\xBD",
        b"\xED\xA0\x80",
        b"\xF0\x9F\x98",
    ];
    let all = significant.map(str::as_bytes).into_iter().chain(broken);
    prop::sample::select(all.map(<[u8]>::to_vec).collect::<Vec<_>>())
}

fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let mutation = (any::<Index>(), 0..3usize, graft());
    (json(), prop::collection::vec(mutation, 1..4)).prop_map(|(text, mutations)| {
        let mut body = text.into_bytes();
        for (place, removed, graft) in mutations {
            let start = place.index(body.len() + 1);
            let end = body.len().min(start + removed);
            body.splice(start..end, graft);
        }
        body
    })
}

/// Compares with serde_json. What serde_json reads must be accepted. What it refuses must be
/// refused, but for three reasons of its own that have nothing to do with the grammar: a lone
/// surrogate ("lone leading surrogate", or "unexpected end of hex escape" where the second half
/// of a pair is not there), a number too large for an f64, and nesting of 128 levels and more.
fn agrees_with_serde_json(body: &[u8]) -> Result<(), TestCaseError> {
    let ours = pick(body, &[]);
    let theirs = serde_json::from_slice::<Value>(body);
    let shown = String::from_utf8_lossy(body);
    match (ours, theirs) {
        (Ok(_), Ok(_)) | (Err(_), Err(_)) => {}
        (Err(ours), Ok(_)) => prop_assert!(false, "{shown:?} is JSON, but: {ours}"),
        (Ok(_), Err(theirs)) => {
            let own_reasons = [
                "lone leading surrogate",
                "unexpected end of hex escape",
                "number out of range",
                "recursion limit exceeded",
            ];
            let theirs = theirs.to_string();
            prop_assert!(
                own_reasons.iter().any(|reason| theirs.starts_with(reason)),
                "{shown:?} is no JSON: {theirs}"
            );
        }
    }
    Ok(())
}

/// A value whose names collide often, and whose text is made only when it is needed.
#[derive(Debug, Clone)]
enum Tree {
    Leaf(u8),
    Array(Vec<Tree>),
    /// Names, whether they are written all in escapes, and values.
    Object(Vec<(&'static str, bool, Tree)>),
}

/// Names that are hard to tell apart, and array indices. Compared by [`plain_fold`].
const NAMES: [&str; 13] = [
    "a", "A", "b", "s", "ſ", "as", "AS", "aſ", "", "0", "1", "-1", "a/b",
];

fn plain_fold(name: &str) -> String {
    name.to_ascii_lowercase().replace('ſ', "s")
}

fn tree() -> impl Strategy<Value = Tree> {
    any::<u8>()
        .prop_map(Tree::Leaf)
        .prop_recursive(4, 30, 4, |inner| {
            let member = (
                prop::sample::select(NAMES.to_vec()),
                any::<bool>(),
                inner.clone(),
            );
            prop_oneof![
                1 => prop::collection::vec(inner, 0..4).prop_map(Tree::Array),
                3 => prop::collection::vec(member, 0..4).prop_map(Tree::Object),
            ]
        })
}

fn pointers() -> impl Strategy<Value = Vec<Vec<&'static str>>> {
    let tokens = prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..5);
    prop::collection::vec(tokens, 1..6)
}

impl Tree {
    fn write(&self, text: &mut String) {
        match self {
            Tree::Leaf(number) => write!(text, "{number}").expect("a String takes all"),
            Tree::Array(elements) => {
                text.push('[');
                for (i, element) in elements.iter().enumerate() {
                    text.push_str(if i == 0 { " " } else { " ,\n" });
                    element.write(text);
                }
                text.push(']');
            }
            Tree::Object(members) => {
                text.push('{');
                for (i, (name, escaped, value)) in members.iter().enumerate() {
                    text.push_str(if i == 0 { "\"" } else { ", \"" });
                    for c in name.chars() {
                        match escaped {
                            true => {
                                write!(text, "\\u{:04x}", u32::from(c)).expect("a String takes all")
                            }
                            false => text.push(c),
                        }
                    }
                    text.push_str("\" :\t");
                    value.write(text);
                }
                text.push('}');
            }
        }
    }

    /// What a pointer finds in this as a body, which may be a batch of requests.
    fn find_from_top(&self, tokens: &[&str], others: &[&[&str]]) -> Option<Option<&Tree>> {
        let token = tokens[0];
        let is_index = token == "-1" || token.parse().is_ok_and(|i: usize| i.to_string() == token);
        let has_it = |request: &Tree| match request {
            Tree::Object(members) => members
                .iter()
                .any(|(name, ..)| plain_fold(name) == plain_fold(token)),
            _ => false,
        };
        match self {
            Tree::Array(all) if !is_index && all.iter().any(has_it) => None,
            _ => self.find(tokens, others),
        }
    }

    /// The rules said once more, as plainly as can be: what one pointer finds beside the others.
    /// `None` is ambiguous, `Some(None)` missing.
    fn find(&self, tokens: &[&str], others: &[&[&str]]) -> Option<Option<&Tree>> {
        let Some((token, rest)) = tokens.split_first() else {
            return Some(Some(self));
        };
        let next = match self {
            Tree::Leaf(_) => return Some(None),
            Tree::Array(elements) if *token == "-1" => elements.last(),
            Tree::Array(elements) => {
                let index = token
                    .parse()
                    .ok()
                    .filter(|i: &usize| i.to_string() == *token);
                index.and_then(|i| elements.get(i))
            }
            Tree::Object(members) => {
                let alike: Vec<_> = members
                    .iter()
                    .filter(|(name, ..)| plain_fold(name) == plain_fold(token))
                    .collect();
                let contested = others.iter().any(|other| {
                    other.first().is_some_and(|other| {
                        other != token && plain_fold(other) == plain_fold(token)
                    })
                });
                match alike[..] {
                    [] => None,
                    [(name, _, value)] if name == token && !contested => Some(value),
                    _ => return None,
                }
            }
        };
        let beside: Vec<&[&str]> = others
            .iter()
            .filter(|other| other.first() == Some(token))
            .map(|other| &other[1..])
            .collect();
        match next {
            Some(next) => next.find(rest, &beside),
            None => Some(None),
        }
    }
}

fn spelled(tokens: &[&str]) -> String {
    tokens
        .iter()
        .map(|token| format!("/{}", token.replace('~', "~0").replace('/', "~1")))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn json_is_accepted_as_serde_json_accepts_it(text in json()) {
        prop_assert!(pick(text.as_bytes(), &[]).is_ok(), "what the grammar makes is JSON: {text}");
        agrees_with_serde_json(text.as_bytes())?;
    }

    #[test]
    fn mutated_json_is_refused_as_serde_json_refuses_it(body in mutated()) {
        agrees_with_serde_json(&body)?;
    }

    #[test]
    fn what_pointers_ask_for_does_not_change_what_is_json(
        body in mutated(),
        pointers in pointers(),
    ) {
        let pointers: Vec<String> = pointers.iter().map(|tokens| spelled(tokens)).collect();
        let looked_into = pick(&body, &parsed(&pointers)).err();
        let skipped = pick(&body, &[]).err();
        prop_assert_eq!(looked_into, skipped, "refused for the same on the path and off it");
    }

    #[test]
    fn what_is_picked_is_what_stands_there(tree in tree(), pointers in pointers()) {
        let mut body = String::new();
        tree.write(&mut body);
        let value: Value = serde_json::from_str(&body).expect("the test's own JSON");
        let all: Vec<&[&str]> = pointers.iter().map(Vec::as_slice).collect();
        let spellings: Vec<String> = pointers.iter().map(|tokens| spelled(tokens)).collect();
        let members = pick(body.as_bytes(), &parsed(&spellings)).expect("the test's own JSON");
        for ((tokens, spelling), member) in pointers.iter().zip(&spellings).zip(members) {
            match (tree.find_from_top(tokens, &all), member) {
                (None, member) => {
                    prop_assert_eq!(any_reason(member), AMBIGUOUS, "{} is ambiguous in {}", spelling, body);
                }
                (Some(None), member) => {
                    prop_assert_eq!(member, Missing, "{} is missing in {}", spelling, body);
                }
                (Some(Some(there)), Found(text)) => {
                    let mut expected = String::new();
                    there.write(&mut expected);
                    prop_assert_eq!(text, &expected, "{} is the very text in {}", spelling, body);
                    let picked: Value = serde_json::from_str(text).expect("a member is JSON");
                    // For serde_json, `-1` is a name and never an element.
                    if !tokens.contains(&"-1") {
                        let theirs = value.pointer(spelling);
                        prop_assert_eq!(Some(&picked), theirs, "{} as serde_json has it", spelling);
                    }
                }
                (Some(Some(_)), member) => {
                    prop_assert!(false, "{spelling} is there, not {member:?}, in {body}");
                }
            }
        }
    }

    #[test]
    fn an_id_has_the_characters_that_serde_json_reads(text in json()) {
        let expected = serde_json::from_str::<Value>(&text);
        let body = format!("[{text}]");
        if let (Ok(Value::String(expected)), Found(text)) = (expected, picked_one(&body, "/0")) {
            let expected = match &*expected {
                "" => JsonId::Missing,
                characters => JsonId::Text(Cow::Borrowed(characters)),
            };
            prop_assert_eq!(id(text), expected, "a string is read the same way");
        }
    }

    #[test]
    fn random_bytes_never_panic(
        noise in prop::collection::vec(any::<u8>(), 0..400),
        brackets in "[\\[\\]{}:,\"\\\\u01aAnule. -]{0,60}",
        pointers in pointers(),
    ) {
        let pointers: Vec<String> = pointers.iter().map(|tokens| spelled(tokens)).collect();
        for body in [&noise[..], brackets.as_bytes()] {
            if let Ok(members) = pick(body, &parsed(&pointers)) {
                for member in members {
                    if let Found(text) = member {
                        let missing = id(text) == JsonId::Missing;
                        prop_assert_eq!(missing, is_missing(text), "both know what is empty");
                    }
                }
            }
        }
        // Not texts that pick() finds, but id() has to live with any.
        let _ = id(&brackets);
        let _ = id(&String::from_utf8_lossy(&noise));
    }
}
