//! Templates and keys, by their rules.

use super::*;
use proptest::prelude::*;

fn key(user: &str, session: &str) -> String {
    let template = KeyTemplate::parse("lock:session:{user_id}:{session_id}").unwrap();
    template.fill(user, session).as_str().to_owned()
}

#[test]
fn a_plain_id_gives_the_key_that_python_writes() {
    assert_eq!(
        key("用户-1", "session_123"),
        "lock:session:用户-1:session_123",
        "every id without special bytes stands in the key as it is"
    );
}

#[test]
fn bytes_with_a_meaning_in_keys_are_percent_encoded() {
    assert_eq!(
        key("a:b", "{c}% \r\n\u{7f}"),
        "lock:session:a%3Ab:%7Bc%7D%25%20%0D%0A%7F",
        "`:` `{{` `}}` `%`, spaces and control characters are encoded"
    );
}

proptest! {
    #[test]
    fn different_ids_never_share_a_key(a in ".*", b in ".*", c in ".*", d in ".*") {
        prop_assert_eq!(key(&a, &b) == key(&c, &d), (&a, &b) == (&c, &d), "a key is one pair of ids");
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in ".*") {
        let _ = Template::parse(&text);
        let _ = KeyTemplate::parse(&text);
    }

    #[test]
    fn a_pointer_is_written_as_it_was_read(text in "(/([a-z~/]|~0|~1)*){1,3}") {
        if let Ok(pointer) = Pointer::parse(&text) {
            prop_assert_eq!(pointer.to_string(), text, "Display is the inverse of parse");
        }
    }
}

#[test]
fn a_template_is_literal_text_and_sources() {
    let template = Template::parse("session_{hash:body:/in~1put}").unwrap();
    let pointer = Pointer::to_member("in/put");
    assert_eq!(
        template.parts(),
        [
            TemplatePart::Literal("session_".into()),
            TemplatePart::Placeholder(Placeholder {
                source: Source::Body([pointer].into()),
                filter: None,
                is_hashed: true,
            }),
        ],
        "text stands for itself, braces hold a source"
    );
    assert_eq!(
        template.to_string(),
        "session_{hash:body:/in~1put}",
        "and it prints as written"
    );
}

#[test]
fn the_spellings_of_one_member_stand_side_by_side() {
    let template = Template::parse("{body:/a/b|/c~1d|/e}-{hash:body:/a/b|/f}{form:a}").unwrap();
    assert_eq!(
        template.to_string(),
        "{body:/a/b|/c~1d|/e}-{hash:body:/a/b|/f}{form:a}",
        "it prints as written"
    );
    let wanted = TemplateFields::from_templates([&template]);
    let texts = |pointers: &[Pointer]| pointers.iter().map(Pointer::to_string).collect::<Vec<_>>();
    assert_eq!(
        texts(wanted.template_pointers()),
        ["/a/b", "/c~1d", "/e", "/f"],
        "each member is asked for once"
    );
    assert_eq!(
        *wanted.form_fields,
        [Box::from("a")],
        "a field's name is text"
    );
    assert_eq!(
        texts(&wanted.pointers[wanted.template_pointer_count..]),
        ["/a"],
        "and where JSON has a member of this name, it is seen"
    );
}

#[test]
fn from_the_end_of_a_list_only_the_last_element_has_a_name() {
    for text in [
        "/-1",
        "/messages/-1/id",
        "/-",
        "/-x",
        "/a-2",
        "/-1x",
        "/--2",
    ] {
        let pointer = Pointer::parse(text).map(|pointer| pointer.to_string());
        assert_eq!(pointer.as_deref(), Ok(text), "{text} names something");
    }
    for text in ["/-2", "/messages/-10/id", "/-0", "/a/-01"] {
        assert!(
            matches!(Pointer::parse(text), Err(TemplateError::Pointer { .. })),
            "{text} would never name an element"
        );
    }
}

#[test]
fn filters_stand_before_a_source() {
    let source = Source::Body([Pointer::parse("/id").unwrap()].into());
    for (text, filter, is_hashed) in [
        ("{body:/id}", None, false),
        ("{hash:body:/id}", None, true),
        ("{uuid:body:/id}", Some(IdFilter::Uuid), false),
        ("{int:body:/id}", Some(IdFilter::Int), false),
        ("{lower:body:/id}", Some(IdFilter::Lower), false),
        ("{hash:uuid:body:/id}", Some(IdFilter::Uuid), true),
        ("{hash:lower:body:/id}", Some(IdFilter::Lower), true),
    ] {
        let template = Template::parse(text).unwrap();
        let source = source.clone();
        assert_eq!(
            template.parts(),
            [TemplatePart::Placeholder(Placeholder {
                source,
                filter,
                is_hashed
            })],
            "{text}"
        );
        assert_eq!(template.to_string(), text, "it prints as written");
    }
    for text in [
        "{hash:hash:body:/id}",
        "{uuid:hash:body:/id}",
        "{lower:hash:body:/id}",
        "{uuid:uuid:body:/id}",
        "{lower:uuid:body:/id}",
        "{hash:int:lower:body:/id}",
    ] {
        assert!(
            matches!(Template::parse(text), Err(TemplateError::Misplaced(_))),
            "{text}: the second filter would change nothing, or refuse everything"
        );
    }
}

/// Templates, and what is wrong with each.
const WRONG_TEMPLATES: &str = "\
{uuid:hash:body:/a} => `hash` can't follow another filter: write uuid, int or lower directly before the source, and hash only in front of that
{uuid:thread} => `thread` is not a source: write one of body, form, header, cookie, query, path, hash, uuid, int, lower
{body:session_id} => `session_id` is not a JSON pointer: it must start with `/`, as in {body:/session_id}
{body:/a~2} => `/a~2` is not a JSON pointer: write 0 (for `~`) or 1 (for `/`) after `~`
{bdy:/a} => `bdy` is not a source: write one of body, form, header, cookie, query, path, hash, uuid, int, lower
{session} => `session` is not a source: write one of body, form, header, cookie, query, path, hash, uuid, int, lower
{body:/a|b} => `b` is not a JSON pointer: it must start with `/`, as in {body:/session_id}
{body:/a|} => `` is not a JSON pointer: it must start with `/`, as in {body:/session_id}
{form:} => `{form:}` has no name: write {form:session_id}
{header:} => `{header:}` has no name: write {header:x-session-id}
{header:a b} => `a b` is not a header name: write letters, digits and `-`
{body:/a => a `{` has no matching `}`: write `}` after the source
a} => a `}` has no matching `{`: write a source as {header:x-session-id}
 => an empty template never gives an id: write a source, such as {header:x-session-id}
";

/// Templates of keys, and what is wrong with each.
const WRONG_KEY_TEMPLATES: &str = "\
lock:{user} => `{user}` is not allowed in a key: write {user_id} or {session_id}
lock:{user_id} => without {session_id} all sessions would share one key: add {session_id}
";

#[test]
fn what_is_wrong_with_a_template_is_said_with_its_remedy() {
    let cases = |text: &'static str| text.lines().map(|line| line.split_once(" => ").unwrap());
    for (text, message) in cases(WRONG_TEMPLATES) {
        let error = Template::parse(text).unwrap_err();
        assert_eq!(error.to_string(), message, "the problem of {text:?}");
    }
    for (text, message) in cases(WRONG_KEY_TEMPLATES) {
        let error = KeyTemplate::parse(text).unwrap_err();
        assert_eq!(error.to_string(), message, "the problem of {text:?}");
    }
}

#[test]
fn what_no_request_can_have_is_no_source() {
    for text in [
        "{form:a|b}",
        "{query:a|b}",
        "{header:x-a|x-b}",
        "{cookie:a|b}",
        "{hash:query:a|b}",
        "{header:X-Seriatim-Fence}",
    ] {
        assert!(
            matches!(Template::parse(text), Err(TemplateError::Never { .. })),
            "{text} would never resolve"
        );
    }
}

#[test]
fn no_two_pairs_of_ids_share_a_key() {
    for text in [
        "{user_id}{session_id}",
        "k:{user_id}-{session_id}",
        "{session_id}/{user_id}",
        // "a:" + "3A" would be "a" + "3A:".
        "k:{user_id}%{session_id}",
        "k:{user_id}a%2{session_id}",
    ] {
        assert_eq!(
            KeyTemplate::parse(text),
            Err(TemplateError::NoBoundary),
            "what can stand in an id divides nothing: {text}"
        );
    }
    for text in [
        "{user_id}:{session_id}",
        "k{session_id}",
        "{user_id}-%-{session_id}",
    ] {
        assert!(KeyTemplate::parse(text).is_ok(), "{text}");
    }
}
