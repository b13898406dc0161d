//! Which keys of a store are session keys, and which ids a session key contains.
//!
//! Invariant: ids that are read from a key give the same key again. A key that matches a template's
//! literal text but that no ids give (other code may have written it) is in the space, without ids.

use std::sync::Arc;

use percent_encoding::percent_decode_str;

use super::{KeyPart, KeyTemplate, SessionKey, is_encoded};

/// All keys that a set of key templates can give. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace(Arc<[KeyTemplate]>);

/// The ids in a session key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionIds {
    /// The user's id; `None` where the template has no `{user_id}`.
    pub user: Option<String>,
    /// The session's id, decoded.
    pub session: String,
}

/// The prefix of the keys by which instances show that they are alive. These keys are not locks.
pub const INSTANCE: &str = "seriatim:instance:";

// === impl Keyspace ===

impl Keyspace {
    /// The keys of these templates; without any template, those of [`KeyTemplate::conventional`].
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

    /// A glob for Redis's `SCAN` that every key of the space matches. Other keys may match it too;
    /// [`Keyspace::contains`] tells them apart.
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

    /// Whether a key can be a lock. Companion keys of a lock (`{…}:fence`) and keys of instances are not.
    pub fn contains(&self, key: &str) -> bool {
        !key.starts_with('{')
            && !key.starts_with(INSTANCE)
            && self.0.iter().any(|template| looks_like(template, key))
    }

    /// The ids in a key; `None` if no template gives the key.
    pub fn ids(&self, key: &str) -> Option<SessionIds> {
        self.0.iter().find_map(|template| template.read(key))
    }

    /// Whether a key is one of these ids. An id that isn't given fits every key, and so does a user for a template
    /// without users.
    pub fn fits(&self, key: &str, user: Option<&str>, session: Option<&str>) -> bool {
        let is_of = |ids: SessionIds| {
            let own = ids.user.as_deref();
            user.is_none_or(|user| own.is_none_or(|own| own == user))
                && session.is_none_or(|session| ids.session == session)
        };
        let has_no_ids = user.is_none() && session.is_none();
        has_no_ids || self.0.iter().filter_map(|one| one.read(key)).any(is_of)
    }

    /// The keys of a session, one for each template, without duplicates.
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
    /// The ids from which this template makes the key; `None` if there are none.
    pub fn read(&self, key: &str) -> Option<SessionIds> {
        let mut found = Vec::new();
        if !match_parts(&self.parts, key, &mut found) {
            return None;
        }
        let id = |wanted: &KeyPart| {
            let found = found.iter().find(|(part, _)| *part == wanted);
            found.and_then(|(_, text)| percent_decode_str(text).decode_utf8().ok())
        };
        let (user, session) = (id(&KeyPart::User), id(&KeyPart::Session)?);
        // Fails where the key has two values for one id, or an encoding that wasn't needed.
        let is_same = self
            .fill(user.as_deref().unwrap_or_default(), &session)
            .as_str()
            == key;
        is_same.then(|| SessionIds {
            user: user.map(Into::into),
            session: session.into(),
        })
    }
}

/// Finds the part of the key that each id is. The result is unambiguous: a character that no id contains
/// separates two ids.
fn match_parts<'p, 'k>(
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
            .is_some_and(|key| match_parts(rest, key, found));
    }
    let longest = key.find(separates).unwrap_or(key.len());
    let ends = key.char_indices().map(|(at, _)| at).chain([key.len()]);
    ends.take_while(|end| *end <= longest).any(|end| {
        let (id, after) = key.split_at(end);
        found.push((first, id));
        let fits = match_parts(rest, after, found);
        if !fits {
            found.pop();
        }
        fits
    })
}

/// Whether a key never has this character in an id, not even as a part of an encoded one.
fn separates(character: char) -> bool {
    character != '%' && is_encoded(character)
}

/// Whether a key has a template's literal text in the right places, with any text for the ids.
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

/// Appends text to a glob, with the glob's special characters escaped.
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
        fn ids_are_read_back_from_their_key(
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
                prop_assert!(is_beside || space.contains(key.as_str()), "{} is one of {}", key.as_str(), text);
            }
        }

        #[test]
        fn ids_read_from_any_text_give_that_text_again(key in "[a-c:%0-9AF {}]{0,16}") {
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
    fn a_key_that_other_code_has_written_is_in_the_space_without_ids() {
        let space = space(&["lock:session:{user_id}:{session_id}"]);
        for key in [
            "lock:session:a:b:c",
            "lock:session:a:%3a",
            "lock:session:a%41:b",
        ] {
            assert!(space.contains(key), "{key} may be a lock");
            assert_eq!(space.ids(key), None, "{key} was not made by the template");
        }
        for key in [
            "{lock:session:a:b}:fence",
            "lock:session",
            "lock:session:a",
            "other:session:a:b",
            "",
        ] {
            assert!(!space.contains(key), "{key} is no lock");
        }
        assert!(
            !self::space(&["{user_id}:{session_id}"]).contains("seriatim:instance:pod-1"),
            "an instance's key is none, whatever the template"
        );
    }

    #[test]
    fn a_key_fits_the_ids_that_give_it() {
        let space = space(&["lock:session:{user_id}:{session_id}", "plan:{session_id}"]);
        let (u, s) = (Some("u"), Some("s"));
        for (key, user, session, expected) in [
            ("lock:session:u:s", u, s, true),
            ("lock:session:u:s", Some("v"), s, false),
            ("lock:session:u:s", u, Some("t"), false),
            ("lock:session:u:s", None, Some("t"), false),
            ("lock:session:u:s", Some("v"), None, false),
            ("lock:session:u:s", None, s, true),
            ("plan:s", Some("v"), s, true),
            ("plan:s", u, Some("t"), false),
            // Other code has written it.
            ("lock:session:u:s:t", None, None, true),
            ("lock:session:u:s:t", u, None, false),
        ] {
            let fits = space.fits(key, user, session);
            assert_eq!(fits, expected, "{key} of {user:?} {session:?}");
        }
    }

    #[test]
    fn a_glob_escapes_literal_text() {
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
    fn a_session_has_one_key_for_each_different_template() {
        let space = space(&["{session_id}", "a:{session_id}", "{session_id}"]);
        let keys = space.keys("u", "s");
        let keys: Vec<_> = keys.iter().map(SessionKey::as_str).collect();
        assert_eq!(keys, ["s", "a:s"], "each of them once, in their order");
    }
}
