//! Every rule about forms by name.

use super::Field::Missing;
use super::*;

/// Any ambiguous field. Each reason has its own text, and its row in the test of the texts.
const AMBIGUOUS: Field<'static> = Field::Ambiguous(Ambiguity::FieldTwice);

const BOUNDARY: &[u8] = b"b";

fn found(value: &str) -> Field<'static> {
    Field::Found(Cow::Owned(value.as_bytes().to_vec()))
}

fn owned(field: &Field<'_>) -> Field<'static> {
    match field {
        Field::Found(value) => Field::Found(Cow::Owned(value.to_vec())),
        Field::Ambiguous(_) => AMBIGUOUS,
        Missing => Missing,
    }
}

fn urlencoded(text: impl AsRef<[u8]>) -> Field<'static> {
    let text = text.as_ref();
    let all = in_urlencoded(text, &[WantedName::Field("s")]);
    if let Ok(query) = str::from_utf8(text) {
        let same = in_query(query, WantedName::Field("s"));
        assert_eq!(all, [same], "a query is read as a form is: {query}");
    }
    owned(&all[0])
}

fn divided_by(boundary: &[u8], body: impl AsRef<[u8]>) -> Result<Field<'static>, &'static str> {
    let all = in_multipart(body.as_ref(), boundary, &[WantedName::Field("s")])?;
    Ok(owned(&all[0]))
}

/// A body whose parts have these heads and contents.
fn parts(parts: &[(&str, &str)]) -> String {
    let part = |(head, content): &(&str, &str)| format!("--b\r\n{head}\r\n\r\n{content}\r\n");
    parts.iter().map(part).collect::<String>() + "--b--\r\n"
}

fn multipart(all: &[(&str, &str)]) -> Result<Field<'static>, &'static str> {
    divided_by(BOUNDARY, parts(all))
}

const S: &str = "Content-Disposition: form-data; name=\"s\"";

// === urlencoded ===

#[test]
fn a_urlencoded_field_is_decoded_once() {
    for (body, expected) in [
        ("s=a", found("a")),
        ("x=1&s=a+b%2Bc%2520&y", found("a b+c%20")),
        ("%73=%E7%94%A8", found("用")),
        ("s=a=b", found("a=b")),
        ("&&s=a&", found("a")),
        ("s", found("")),
        ("x=s=1", Missing),
        ("ss=1&s2=1&x[s]=1", Missing),
        ("", Missing),
        ("s=a%0d%0ab", found("a\r\nb")),
    ] {
        assert_eq!(urlencoded(body), expected, "{body}");
    }
}

#[test]
fn a_urlencoded_field_that_readers_find_in_different_ways_is_ambiguous() {
    for body in [
        "s=a&s=b",
        "s=a&s=a",
        "s=a&s=%61",
        "s&s",
        "s=&s=b",
        "s=a;b",
        "s=a;x=b",
        "x=a;s=b",
        "x;s",
        "s[]=a",
        "s[x]=a",
        "s%5B%5D=a",
        "[s]=a&x",
        "[[s=a",
        "s]=a",
        "S=a",
        "s=a&S=a",
        "+s=a",
        "%20s=a",
        "s%00x=a",
        "s=%",
        "s=%a",
        "s=%zz",
        "s=%u0073",
        "s=用",
        // To qs, a name reaches to `]=`.
        "s=a]=b",
        "?s=a",
        "s.x=a",
        "s=a&s[0]=a",
    ] {
        assert_eq!(urlencoded(body), AMBIGUOUS, "{body}");
    }
    for body in [
        "x=%zz&s=a",
        "x=用&s=a",
        "x=1;y=2&s=a",
        "x[]=1&x[]=2&s=a",
        "X=1&s=a",
    ] {
        assert_eq!(
            urlencoded(body),
            found("a"),
            "{body}: oddities elsewhere are nobody's"
        );
    }
    let names = [WantedName::Field("a_b"), WantedName::Field("u[id]")];
    let pick = |body: &'static str| {
        let fields = in_urlencoded(body.as_bytes(), &names);
        fields.iter().map(owned).collect::<Vec<_>>()
    };
    let both = [found("1"), found("2")];
    assert_eq!(
        pick("a.b=1&u[name]=2"),
        [AMBIGUOUS, Missing],
        "PHP has _ for a dot"
    );
    assert_eq!(pick("a_b=1&u[id]=2"), both, "a name may have brackets");
    assert_eq!(
        pick("U[ID]=2"),
        [Missing, AMBIGUOUS],
        "and is still compared"
    );
}

// === multipart ===

#[test]
fn a_part_without_a_file_is_a_field() {
    for head in [
        "Content-Disposition: form-data; name=\"s\"",
        "content-disposition:form-data;name=s",
        "CONTENT-DISPOSITION: Form-Data ; NAME=\"s\" ;",
        "Content-Disposition: form-data; name=\"s\"\r\nContent-Type: text/plain; charset=UTF-8",
        "Content-Disposition: form-data; name=\"s\"\r\nContent-Type: text/plain; charset=ISO-8859-1\r\nContent-Transfer-Encoding: 8bit",
        "X-Other: a: b\r\nContent-Disposition: form-data; name=\"s\"",
    ] {
        assert_eq!(
            multipart(&[(head, "a+b%20")]),
            Ok(found("a+b%20")),
            "{head}"
        );
    }
    let file = "Content-Disposition: form-data; name=\"file\"; filename=\"C:\\x\\\"y.txt\"\r\nContent-Type: image/png";
    let large = "\r\n-\r\n--\r\n--a\r\nb--".repeat(50_000);
    for (value, why) in [
        ("", "an empty field"),
        ("a\r\n\r\nb\n", "of any lines"),
        ("用", "in UTF-8"),
    ] {
        assert_eq!(multipart(&[(S, value)]), Ok(found(value)), "{why}");
    }
    let behind_file = multipart(&[(file, &large), (S, "a")]);
    assert_eq!(
        behind_file,
        Ok(found("a")),
        "a field may come after a large file"
    );
    let nameless = multipart(&[("X: y", "s=a"), ("X: name=s", "a")]);
    assert_eq!(nameless, Ok(Missing), "without a name");
    assert_eq!(
        divided_by(BOUNDARY, "--b--"),
        Ok(Missing),
        "a form without fields"
    );
    assert_eq!(
        divided_by(BOUNDARY, "to be skipped\r\n--b\r\n\r\nno head\r\n--b--\r\n"),
        Ok(Missing),
        "text before the first boundary is skipped"
    );
    assert_eq!(
        divided_by(b"a b", format!("--a b\r\n{S}\r\n\r\nx\r\n--a b--")),
        Ok(found("x")),
        "a boundary may have a space"
    );
}

#[test]
fn what_some_reader_takes_off_a_part_or_finds_in_its_head_is_none_of_it() {
    let marked = multipart(&[(S, "\u{feff}a")]);
    assert_eq!(marked, Ok(AMBIGUOUS), "a byte order mark before the value");
    for line in [
        "MContent-Disposition: form-data; name=\"s\"",
        "X: content-disposition: form-data; name=\"s\"",
    ] {
        let refused = multipart(&[(line, "a")]);
        assert!(refused.is_err(), "Rack finds a field by it: {line}");
    }
}

#[test]
fn a_part_that_readers_take_for_different_things_is_ambiguous() {
    let more = |more: &str| format!("{S}{more}");
    for head in [
        more("; filename=\"x\""),
        more("; filename=\"\""),
        more("; filename*=utf-8''x"),
        more("\r\nContent-Type: application/octet-stream"),
        more("\r\nContent-Type: application/json"),
        more("\r\nContent-Type: text/plain; charset=utf-16"),
        more("\r\nContent-Type: text/plain; charset=\"x"),
        more("\r\nContent-Transfer-Encoding: base64"),
        more("\r\nContent-Transfer-Encoding: quoted-printable"),
        "Content-Disposition: form-data; name=\"S\"".into(),
        "Content-Disposition: form-data; name=\"s[]\"".into(),
        "Content-Disposition: form-data; name=\"[s]\"".into(),
        "Content-Disposition: form-data; name=\" s\"".into(),
    ] {
        assert_eq!(multipart(&[(&head, "a")]), Ok(AMBIGUOUS), "{head}");
        let two = multipart(&[(&head, "a"), (S, "a")]);
        assert_eq!(two, Ok(AMBIGUOUS), "{head}, and another");
    }
    let latin = more("\r\nContent-Type: text/plain; charset=iso-8859-1");
    for (parts, why) in [
        (&[(&*latin, "é")][..], "not ASCII in another charset"),
        (&[(S, "a"), (S, "b")], "two values"),
        (
            &[(S, "a"), (S, "a")],
            "even equal ones: some readers make a list of them",
        ),
        (&[(S, ""), (S, "b")], "one of them empty"),
    ] {
        assert_eq!(multipart(parts), Ok(AMBIGUOUS), "{why}");
    }
}

#[test]
fn a_head_that_can_be_read_in_two_ways_is_refused_whosever_it_is() {
    for head in [
        "Content-Disposition: form-data; name=\"x\"; name=\"s\"",
        "Content-Disposition: form-data; name=\"x\"; NAME=s",
        "Content-Disposition: form-data; name*=utf-8''s",
        "Content-Disposition: form-data; name*0=s",
        "Content-Disposition: form-data; name=\"x\"\r\nContent-Disposition: form-data; name=\"s\"",
        "Content-Disposition: form-data; name=\"x\"\nContent-Disposition: form-data; name=\"s\"",
        "Content-Disposition: form-data;\r\n name=\"s\"",
        "Content-Disposition : form-data; name=\"s\"",
        " Content-Disposition: form-data; name=\"s\"",
        "Content-Disposition: form-data name=\"s\"",
        "Content-Disposition: form-data; name=\"s",
        "Content-Disposition: form-data; name=\"\\s\"",
        "Content-Disposition: form-data; name='s'",
        "Content-Disposition: form-data; name=\"=?utf-8?B?cw==?=\"",
        "Content-Disposition: form-data; name = \"s\"",
        "Content-Disposition: form-data; name=\"s\" x",
        "Content-Disposition: form-data; name=\"x\"; filename=\"\\\"; name=s; z=\\\"\"",
        "Content-Disposition: form-data; name=\"x\"; filename=\"a\"; filename=\"b\"",
        "Content-Disposition: attachment; name=\"s\"",
        "Content-Disposition: form-data; name=\"x\"\r\nContent-Type: multipart/mixed; boundary=c",
        "Content-Disposition: form-data; name=\"x\"\r\nContent-Type: text/plain\r\nContent-Type: text/html",
        "Content-Disposition: form-data; name=\"x\0\"",
        "no colon",
        ": no name",
    ] {
        let said = multipart(&[(head, "a")]);
        assert!(said.is_err(), "{head:?}: {said:?}");
    }
}

#[test]
fn boundaries_that_readers_see_in_different_places_are_refused() {
    let head = format!("{S}\r\n\r\n");
    for body in [
        String::new(),
        "--b".into(),
        "--b\r\n".into(),
        format!("--b\r\n{head}a"),
        format!("--b\r\n{head}a\r\n"),
        format!("--b\r\n{head}a\r\n--b"),
        format!("--b\r\n{head}a\r\n--b-"),
        format!("--b\r\n{head}a\r\n--b\r\n"),
        format!("--b\r\n{head}a--b--"),
        format!("--b\r\n{head}a\n--b--\r\n"),
        format!("--b\r\n{head}a\n--b\n{head}b\r\n--b--"),
        format!("--b\n{head}a\r\n--b--"),
        format!("--b \r\n{head}a\r\n--b--"),
        format!("--bb\r\n{head}a\r\n--b--"),
        format!("--b\r\n{head}a\r\n--b--x"),
        format!("--b\r\n{head}a\r\n--b--\r\n--b\r\n{head}c\r\n--b--"),
        format!("--b\r\n{head}a --b c\r\n--b--"),
        format!("x--b\r\n{head}a\r\n--b--"),
        format!("--b\r\n--b\r\n{head}a\r\n--b--"),
        format!("--b\r\n{S}\r\n--b--"),
        format!("--b\r\n{S}\n\na\r\n--b--"),
        "s=a".into(),
        r#"{"s":"a"}"#.into(),
    ] {
        let said = divided_by(BOUNDARY, &body);
        assert!(said.is_err(), "{body:?}: {said:?}");
    }
}

// === how much of it ===

#[test]
fn more_fields_than_most_readers_take_are_refused() {
    let pairs = |count: usize| "a=1&".repeat(count - 1) + "s=1";
    let divided = "s=1".to_owned() + &";".repeat(MAX_FIELDS);
    for (form, is_refused, case) in [
        (pairs(MAX_FIELDS), false, "so many pass"),
        (pairs(MAX_FIELDS + 1), true, "PHP would ignore the last one"),
        (divided, true, "what divides for some readers counts, too"),
    ] {
        assert_eq!(has_too_many(form.as_bytes()), is_refused, "{case}");
    }
    let other = "Content-Disposition: form-data; name=\"a\"";
    let mut all = vec![(other, "1"); MAX_FIELDS - 1];
    all.push((S, "1"));
    assert_eq!(multipart(&all), Ok(found("1")), "so many parts pass");
    all.push((other, "1"));
    assert_eq!(multipart(&all), Err(TOO_MANY), "and no more");
}

#[test]
fn the_head_of_a_part_is_short() {
    let head = |length: usize| format!("{S}; x={}", "y".repeat(length - S.len() - 4));
    let longest = (8 << 10) - 4;
    let passes = multipart(&[(&*head(longest), "1")]);
    assert_eq!(
        passes,
        Ok(found("1")),
        "8 KiB with the empty line behind it"
    );
    let refused = multipart(&[(&*head(longest + 1), "1")]);
    assert!(
        refused.is_err(),
        "reading it takes bounded work: {refused:?}"
    );
}
