//! The ways in which a request is ambiguous, each with its own text.
//!
//! Invariant: a text is true for every request that it is given for. It says what is in the request, and
//! not which of several things might be.

use thiserror::Error;

use crate::proxy::route::PathAmbiguity;

/// Why two readers of a request could find different values of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(in crate::proxy) enum Ambiguity {
    #[error("the header occurs more than once")]
    HeaderTwice,
    #[error("another header has a name that some servers treat as the same")]
    HeaderAlike,

    #[error("the cookie occurs more than once")]
    CookieTwice,
    #[error("a cookie has another name that some servers treat as the same")]
    CookieAlike,
    #[error(
        "its name and a = are in the middle of a cookie, where servers that divide cookies at other \
         characters find it"
    )]
    CookieInside,
    #[error("white space is between its name and the =")]
    CookieSpaced,
    #[error("the cookie is between quotes that another cookie opens")]
    CookieQuoted,
    #[error("the request has several cookie headers, of which some servers read only one")]
    CookieLines,
    #[error("its value has white space, a comma, a quote or a backslash")]
    CookieCharacter,
    #[error("its value begins or ends with what some servers take for white space")]
    CookieEnd,
    #[error("its value begins with j:, behind which some servers read JSON")]
    CookieJson,
    #[error("its value has a % that begins no escape, beside whole escapes")]
    CookieEscape,
    #[error("its value has an encoded space or an encoded quote")]
    CookieEncoded,
    #[error("its decoded value is not UTF-8")]
    CookieNotUtf8,

    #[error("the field occurs more than once")]
    FieldTwice,
    #[error("a field has another name that some servers treat as the same")]
    FieldAlike,
    #[error("a semicolon is next to the field, at which some servers divide fields")]
    FieldSemicolon,
    #[error("the field has characters beyond ASCII that aren't percent-encoded")]
    FieldNotAscii,
    #[error("the field has a % that begins no escape")]
    FieldEscape,
    #[error("the field's value has ]=, where its name ends for some servers")]
    FieldBracket,
    #[error(
        "the field is in the middle of JSON, where servers that read any body as a form find it"
    )]
    FieldInJson,
    #[error("the field is a file")]
    FieldFile,
    #[error("the field's part has a content-transfer-encoding")]
    FieldEncoded,
    #[error("the field's part has a content type other than text in UTF-8")]
    FieldType,
    #[error("the field's value begins with a byte order mark")]
    FieldMark,

    #[error(transparent)]
    Path(PathAmbiguity),
    #[error("its segment of the path has a space, and some routers read + as a space")]
    PathSpace,
    #[error(
        "the path has a semicolon, and some servers read what follows it as fields of the query"
    )]
    QueryInPath,

    #[error("the member, or one on the path to it, occurs more than once")]
    MemberTwice,
    #[error("the member, or one on the path to it, has its name in another case")]
    MemberCase,
    #[error(
        "the route names two members whose names differ only in case, and the body has one of them"
    )]
    MemberOfAnother,
    #[error("the route names too many members")]
    TooManyMembers,
    #[error("the members that it names have different values")]
    MembersDiffer,
    #[error(
        "the body is a list of requests (a batch), and the member may be in any of them; send the turn \
         alone, not in a batch"
    )]
    MemberInBatch,
    #[error(
        "the body is a list of requests (a batch), and one of them may be a turn; send the turn alone, not \
         in a batch"
    )]
    TurnInBatch,

    #[error("the query has a field in its place, which some servers read first")]
    AlsoInQuery,
    #[error(
        "a server that reads the body as a form finds a field in its place; send JSON with content-type: \
         application/json"
    )]
    AlsoInForm,
    #[error(
        "the JSON doesn't have it, and a server that reads any body as a form finds a field in its place; \
         send it as a member"
    )]
    OnlyInForm,
    #[error("the body isn't JSON, and a server that reads it as a form finds a field in its place")]
    FormForJson,
    #[error("the body is JSON with a member in its place")]
    JsonForForm,
}
