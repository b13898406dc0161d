//! What can be wrong with a template. The texts name what stands there and what to write instead.

use thiserror::Error;

/// The words that may stand before a colon in braces: kinds of source, then filters.
pub(super) const WORDS: [&str; 10] = [
    "body", "form", "header", "cookie", "query", "path", "hash", "uuid", "int", "lower",
];

/// Why a template can't be used. The text says what stands there and what to write.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// A `{` has no matching `}`.
    #[error("a `{{` has no matching `}}`: write `}}` after the source")]
    Unclosed,
    /// A `}` has no matching `{`.
    #[error("a `}}` has no matching `{{`: write a source as {{header:x-session-id}}")]
    Stray,
    /// This word before the colon is neither a source nor a filter.
    #[error("`{0}` is not a source: write one of {words}", words = WORDS.join(", "))]
    UnknownSource(String),
    /// This filter follows another filter that it can't follow.
    #[error(
        "`{0}` can't follow another filter: write uuid, int or lower directly before the source, and \
         hash only in front of that"
    )]
    Misplaced(String),
    /// A source has no name after its colon.
    #[error("`{{{kind}:}}` has no name: write {example}")]
    Nameless {
        /// The kind of source.
        kind: &'static str,
        /// A source of this kind as it should be written.
        example: &'static str,
    },
    /// The name of a `body` source is not a JSON pointer (RFC 6901).
    #[error("`{pointer}` is not a JSON pointer: {reason}")]
    Pointer {
        /// The pointer as it was written.
        pointer: String,
        /// What is wrong with the pointer, and what to write.
        reason: &'static str,
    },
    /// This name of a `header` source is not a header name.
    #[error("`{0}` is not a header name: write letters, digits and `-`")]
    Header(String),
    /// No request can have a value under this name.
    #[error("`{{{kind}:{name}}}` never has a value: {reason}")]
    Never {
        /// The kind of source.
        kind: &'static str,
        /// The name as it was written.
        name: String,
        /// Why there is never a value, and what to write.
        reason: &'static str,
    },
    /// Nothing separates the two ids of a key template.
    #[error(
        "sessions of different users could get the same key: write `:` between {{user_id}} and {{session_id}}"
    )]
    NoBoundary,
    /// The template is empty.
    #[error("an empty template never gives an id: write a source, such as {{header:x-session-id}}")]
    Empty,
    /// A key template has this word in braces, which is neither of the two ids.
    #[error("`{{{0}}}` is not allowed in a key: write {{user_id}} or {{session_id}}")]
    UnknownId(String),
    /// A key template would give every session the same key.
    #[error("without {{session_id}} all sessions would share one key: add {{session_id}}")]
    NoSession,
}
