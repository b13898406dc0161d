//! Which of a store's keys are session keys, and whose: the way back from a key to its ids.
//!
//! Invariant: an id that is read out of a key gives that very key again. A key that merely looks as
//! if it were one, as other code may have written it, belongs to the space and has no ids.

use std::sync::Arc;

use percent_encoding::percent_decode_str;

use super::{KeyPart, KeyTemplate, SessionKey, is_encoded};

/// The keys that some templates may give. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace(Arc<[KeyTemplate]>);

/// Whose a session key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionIds {
    /// The user's id; `None` where keys don't name it.
    pub user: Option<String>,
    /// The session's id.
    pub session: String,
}

/// How the keys begin that the store has for instances, which are no locks.
pub const INSTANCE: &str = "seriatim:instance:";

// === impl Keyspace ===

impl Keyspace {
    /// The keys of these templates; with none, those that code by the convention writes.
    pub fn new(templates: impl IntoIterator<Item = KeyTemplate>) -> Self {
        let mut own: Vec<KeyTemplate> = Vec::new();
        for template in templates {
            if !own.contains(&template) {
                own.push(template);
            }
        }
        if own.is_empty() {
            own.push(KeyTemplate::conventional());
        }
        Self(own.into())
    }

    /// A pattern that all of them match, as Redis's `SCAN` has it. Other keys may match it, too: see
    /// [`Keyspace::holds`].
    pub fn glob(&self) -> String {
        let mut glob = String::new();
        if let [template] = &*self.0 {
            for part in &template.parts {
                match part {
                    KeyPart::Literal(text) => escape(text, &mut glob),
                    KeyPart::User | KeyPart::Session => glob.push('*'),
                }
            }
            return glob;
        }
        let starts = self.0.iter().map(|template| match template.parts.first() {
            Some(KeyPart::Literal(text)) => &**text,
            _ => "",
        });
        escape(starts.reduce(common).unwrap_or_default(), &mut glob);
        glob.push('*');
        glob
    }

    /// Whether a key may be a lock's: what stands beside a lock, and an instance's key, is none.
    pub fn holds(&self, key: &str) -> bool {
        !key.starts_with('{')
            && !key.starts_with(INSTANCE)
            && self.0.iter().any(|template| looks_like(template, key))
    }

    /// Whose a key is; `None` if no template gives it.
    pub fn ids(&self, key: &str) -> Option<SessionIds> {
        self.0.iter().find_map(|template| template.read(key))
    }

    /// The keys that a session's turns may have, by the templates.
    pub fn keys(&self, user: &str, session: &str) -> Vec<SessionKey> {
        let mut keys = Vec::new();
        for template in &*self.0 {
            let key = template.fill(user, session);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }
}

impl KeyTemplate {
    /// The ids that make this key; `None`: none do.
    pub fn read(&self, key: &str) -> Option<SessionIds> {
        let mut found = Vec::new();
        if !take_apart(&self.parts, key, &mut found) {
            return None;
        }
        let id = |wanted: &KeyPart| {
            let found = found.iter().find(|(part, _)| *part == wanted);
            found.and_then(|(_, text)| percent_decode_str(text).decode_utf8().ok())
        };
        let (user, session) = (id(&KeyPart::User), id(&KeyPart::Session)?);
        // Also where one stands twice, or what is encoded needn't be.
        let is_it = self
            .fill(user.as_deref().unwrap_or_default(), &session)
            .as_str()
            == key;
        is_it.then(|| SessionIds {
            user: user.map(Into::into),
            session: session.into(),
        })
    }
}

/// Finds which piece of the key each id is. There is one way only: between two ids stands a byte that
/// is in no id.
fn take_apart<'p, 'k>(
    parts: &'p [KeyPart],
    key: &'k str,
    found: &mut Vec<(&'p KeyPart, &'k str)>,
) -> bool {
    let Some((first, rest)) = parts.split_first() else {
        return key.is_empty();
    };
    if let KeyPart::Literal(text) = first {
        return key
            .strip_prefix(&**text)
            .is_some_and(|key| take_apart(rest, key, found));
    }
    let longest = key.find(divides).unwrap_or(key.len());
    let ends = key.char_indices().map(|(at, _)| at).chain([key.len()]);
    ends.take_while(|end| *end <= longest).any(|end| {
        let (id, behind) = key.split_at(end);
        found.push((first, id));
        let fits = take_apart(rest, behind, found);
        if !fits {
            found.pop();
        }
        fits
    })
}

/// Whether it never stands in an id as part of a key, not even where one is encoded.
fn divides(character: char) -> bool {
    character != '%' && is_encoded(character)
}

/// Whether a key has a template's literals where they belong, with anything between them.
fn looks_like(template: &KeyTemplate, key: &str) -> bool {
    let mut rest = key;
    let last = template.parts.len() - 1;
    for (at, part) in template.parts.iter().enumerate() {
        let KeyPart::Literal(text) = part else {
            continue;
        };
        let behind = match at {
            0 => rest.strip_prefix(&**text),
            _ if at == last => rest.strip_suffix(&**text).map(|_| ""),
            _ => rest.find(&**text).map(|found| &rest[found + text.len()..]),
        };
        match behind {
            Some(behind) => rest = behind,
            None => return false,
        }
    }
    true
}

fn common<'t>(one: &'t str, other: &'t str) -> &'t str {
    let same = one.char_indices().zip(other.chars());
    let end = same
        .take_while(|((_, a), b)| a == b)
        .last()
        .map_or(0, |((at, a), _)| at + a.len_utf8());
    &one[..end]
}

/// Appends text so that a pattern takes it to the letter.
fn escape(text: &str, glob: &mut String) {
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            glob.push('\\');
        }
        glob.push(character);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn template(text: &str) -> KeyTemplate {
        KeyTemplate::parse(text).expect("a template")
    }

    fn space(texts: &[&str]) -> Keyspace {
        Keyspace::new(texts.iter().map(|text| template(text)))
    }

    const TEMPLATES: [&str; 10] = [
        "{user_id}-%-{session_id}",
        "lock:session:{user_id}:{session_id}",
        "{session_id}",
        "{user_id}:{session_id}",
        "{session_id}a:b{user_id}c",
        "x{user_id} y{session_id}%z",
        "l:{session_id}:{user_id}:{session_id}",
        "a%{user_id}a: :a{session_id}",
        "[*?]\\{user_id}:{session_id}",
        "锁:{user_id}锁:锁{session_id}锁",
    ];

    proptest! {
        #[test]
        fn the_ids_that_make_a_key_are_read_out_of_it(
            user in "[a-c:%{} *\\[锁\\x00\\x7f]{0,6}|\\PC{0,12}",
            session in "[a-c:%{} *\\[锁\\x00\\x7f]{0,6}|\\PC{0,12}",
        ) {
            for text in TEMPLATES {
                let template = template(text);
                let key = template.fill(&user, &session);
                let ids = SessionIds {
                    user: template.names_user().then(|| user.clone()),
                    session: session.clone(),
                };
                prop_assert_eq!(template.read(key.as_str()), Some(ids), "{} gives {}", text, key.as_str());
                let space = space(&[text]);
                let is_beside = key.as_str().starts_with(INSTANCE);
                prop_assert!(is_beside || space.holds(key.as_str()), "{} is one of {}", key.as_str(), text);
            }
        }

        #[test]
        fn what_is_read_out_of_any_text_makes_it_again(key in "[a-c:%0-9AF {}]{0,16}") {
            for text in TEMPLATES {
                let template = template(text);
                if let Some(ids) = template.read(&key) {
                    let again = template.fill(ids.user.as_deref().unwrap_or(""), &ids.session);
                    prop_assert_eq!(again.as_str(), &key, "by {}", text);
                }
            }
        }
    }

    #[test]
    fn a_key_that_other_code_has_written_is_in_the_space_and_nobodys() {
        let space = space(&["lock:session:{user_id}:{session_id}"]);
        for key in [
            "lock:session:a:b:c",
            "lock:session:a:%3a",
            "lock:session:a%41:b",
        ] {
            assert!(space.holds(key), "{key} may be a lock");
            assert_eq!(space.ids(key), None, "{key} was not made by the template");
        }
        for key in [
            "{lock:session:a:b}:fence",
            "lock:session",
            "lock:session:a",
            "other:session:a:b",
            "",
        ] {
            assert!(!space.holds(key), "{key} is no lock");
        }
        assert!(
            !self::space(&["{user_id}:{session_id}"]).holds("seriatim:instance:pod-1"),
            "an instance's key is none, whatever the template"
        );
    }

    #[test]
    fn a_pattern_takes_literals_to_the_letter() {
        for (templates, glob) in [
            (
                &["lock:session:{user_id}:{session_id}"][..],
                "lock:session:*:*",
            ),
            (&["[*?]\\{user_id}:{session_id}x"], "\\[\\*\\?\\]\\\\*:*x"),
            (&["lock:a:{session_id}", "lock:b*:{session_id}"], "lock:*"),
            (&["a*:{session_id}", "a*b:{session_id}"], "a\\**"),
            (&["a:{session_id}", "{session_id}"], "*"),
            (&["锁a:{session_id}", "锁b:{session_id}"], "锁*"),
            (&["a:{session_id}", "a:{session_id}"], "a:*"),
            (&[], "lock:session:*:*"),
        ] {
            assert_eq!(space(templates).glob(), glob, "of {templates:?}");
        }
    }

    #[test]
    fn a_session_has_a_key_by_each_template_that_says_another() {
        let space = space(&["{session_id}", "a:{session_id}", "{session_id}"]);
        let keys = space.keys("u", "s");
        let keys: Vec<_> = keys.iter().map(SessionKey::as_str).collect();
        assert_eq!(keys, ["s", "a:s"], "each of them once, in their order");
    }
}
