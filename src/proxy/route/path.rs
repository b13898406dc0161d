//! The readings of a path: its segments, decoded and resolved, as each kind of backend divides it.
//!
//! Invariant: the reading of every known backend is among them. Which routes take a reading is left to
//! `route`.

use std::borrow::Cow;

use percent_encoding::percent_decode;
use thiserror::Error;

use crate::config::pattern::fold;

/// Why backends divide a path into different segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(in crate::proxy) enum PathAmbiguity {
    #[error("the path has an encoded slash or a backslash, at which some servers divide it")]
    HiddenSlash,
    #[error("the path has a doubled slash, which some servers read as one")]
    Slashes,
    #[error("the path has a segment of dots, which some servers resolve")]
    Dots,
    #[error("the path has parameters (a semicolon), which some servers cut off")]
    Parameters,
}

/// A path's segments, decoded and resolved.
pub(super) type PathSegments<'p> = Vec<Cow<'p, [u8]>>;

/// A segment as it is compared with literals: without its parameters, in one case. `None`: it isn't UTF-8.
pub(super) fn folded(segment: &[u8]) -> Option<Cow<'_, [u8]>> {
    let is_folded = |byte: &u8| byte.is_ascii() && !byte.is_ascii_uppercase() && *byte != b';';
    if segment.iter().all(is_folded) {
        return Some(Cow::Borrowed(segment));
    }
    let text = str::from_utf8(segment).ok()?;
    let name = text.split(';').next().unwrap_or(text);
    Some(match fold(name) {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    })
}

/// Whether every backend reads a path as it is spelled, so that no other reading is needed.
pub(super) fn is_plain(path: &str) -> bool {
    // No branch in the loop, so that the compiler vectorizes it: nearly every path is plain.
    let bytes = path.as_bytes();
    let is_alone = bytes.iter().fold(true, |is_plain, byte| {
        let is_mark = (*byte == b'%') | (*byte == b';') | (*byte == b'\\');
        is_plain & !is_mark & !byte.is_ascii_control()
    });
    let pairs = bytes.iter().zip(bytes.iter().skip(1));
    is_alone
        & pairs.fold(true, |is_plain, (byte, next)| {
            is_plain & !((*byte == b'/') & ((*next == b'/') | (*next == b'.')))
        })
}

/// Whether a path decodes to a control character: some frameworks end the path there.
pub(super) fn has_control(path: &str) -> bool {
    percent_decode(path.as_bytes()).any(|byte| byte.is_ascii_control())
}

/// A path without the bytes that aren't UTF-8 when it is decoded, as some backends read it. `None`: there are
/// no such bytes.
pub(super) fn without_invalid(path: &str) -> Option<String> {
    let decoded: Cow<'_, [u8]> = percent_decode(path.as_bytes()).into();
    if str::from_utf8(&decoded).is_ok() {
        return None;
    }
    let sent = path.as_bytes();
    let is_escape = |at: usize| {
        let digits = sent.get(at + 1..at + 3);
        sent[at] == b'%' && digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    let mut at = 0;
    // The next `count` decoded bytes, as they were sent.
    let mut next = |count: usize| {
        let start = at;
        for _ in 0..count {
            at += if is_escape(at) { 3 } else { 1 };
        }
        &sent[start..at]
    };
    let mut kept = Vec::with_capacity(sent.len());
    for chunk in decoded.utf8_chunks() {
        kept.extend_from_slice(next(chunk.valid().len()));
        next(chunk.invalid().len());
    }
    String::from_utf8(kept).ok()
}

/// The segments of a path that [is plain](is_plain).
pub(super) fn of_plain(path: &str) -> PathSegments<'_> {
    let segments = path.as_bytes().split(|byte| *byte == b'/');
    let named = segments.filter(|segment| !segment.is_empty());
    named.map(Cow::Borrowed).collect()
}

/// The path split where a slash was sent; an encoded one is part of its segment.
pub(super) fn as_sent(path: &str) -> PathSegments<'_> {
    let segments = path.split('/');
    resolve(segments.map(|segment| Cow::from(percent_decode(segment.as_bytes()))))
}

/// The path split after it was decoded, backslashes counting as slashes, as some backends do.
pub(super) fn decoded_first(path: &str) -> PathSegments<'_> {
    resolve(split(path, true, true))
}

/// The readings of a path that isn't plain by fewer backends. Hidden slashes may divide it only if encoded, or
/// only as backslashes. Dots may stay, and then `..` is an id. A backend that reads the target as a reference
/// (WHATWG URL §4.4, `new URL` in Node) takes `//x` and `/\x` in front for a host, and lets `..` remove an
/// empty segment.
pub(super) fn unlikely(path: &str) -> Vec<PathSegments<'_>> {
    let splits: &[_] = match hides_slashes(path) {
        true => &[(false, false), (true, true), (true, false), (false, true)],
        false => &[(false, false)],
    };
    let behind_host = behind_host(path);
    let mut readings = Vec::new();
    for (decodes, by_backslash) in splits.iter().copied() {
        let segments = split(path, decodes, by_backslash);
        readings.push(resolve(segments.iter().cloned()));
        readings.push(resolve_with_empty(segments.iter().cloned()));
        let kept = segments.into_iter().filter(|segment| !segment.is_empty());
        readings.push(kept.collect());
        readings.extend(behind_host.map(|path| resolve(split(path, decodes, by_backslash))));
    }
    readings
}

/// The path behind the host, if a path begins like a reference with a host.
fn behind_host(path: &str) -> Option<&str> {
    const SLASHES: [char; 2] = ['/', '\\'];
    let host = path.trim_start_matches(SLASHES);
    let is_reference = path.len() - host.len() > 1;
    is_reference.then(|| host.find(SLASHES).map_or("", |at| &host[at..]))
}

/// A path's segments before dots are resolved: split before or after decoding, at slashes alone or at
/// backslashes, too.
fn split(path: &str, decodes: bool, by_backslash: bool) -> PathSegments<'_> {
    let divides = |byte: &u8| *byte == b'/' || by_backslash && *byte == b'\\';
    if !decodes {
        let segments = path.as_bytes().split(divides);
        return segments
            .map(|segment| percent_decode(segment).into())
            .collect();
    }
    let decoded: Vec<u8> = percent_decode(path.as_bytes()).collect();
    decoded
        .split(divides)
        .map(|segment| segment.to_vec().into())
        .collect()
}

/// Whether a path has other segments if it is split after decoding.
pub(super) fn hides_slashes(path: &str) -> bool {
    let encoded =
        |escape: &[u8]| escape.eq_ignore_ascii_case(b"%2f") || escape.eq_ignore_ascii_case(b"%5c");
    path.contains('\\') || path.as_bytes().windows(3).any(encoded)
}

/// Whether backends divide a path into different segments, and why: some split it before they decode it, some
/// resolve dots or doubled slashes, some cut parameters off.
pub(super) fn ambiguity(path: &str) -> Option<PathAmbiguity> {
    if hides_slashes(path) {
        return Some(PathAmbiguity::HiddenSlash);
    }
    let decoded: Cow<'_, [u8]> = percent_decode(path.as_bytes()).into();
    let mut segments = decoded.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        // An empty segment is a slash at the end, or a doubled slash.
        if segment.is_empty() && segments.peek().is_some() {
            return Some(PathAmbiguity::Slashes);
        }
        if matches!(segment, b"." | b"..") {
            return Some(PathAmbiguity::Dots);
        }
        if segment.contains(&b';') {
            return Some(PathAmbiguity::Parameters);
        }
    }
    None
}

/// Drops empty segments and `.`, and lets `..` remove the segment before it.
fn resolve<'p>(segments: impl IntoIterator<Item = Cow<'p, [u8]>>) -> PathSegments<'p> {
    let segments = segments.into_iter();
    resolve_with_empty(segments.filter(|segment| !name(segment).is_empty()))
}

/// Resolves dots where `..` may also remove an empty segment: `/a//../b` is `/a/b`.
fn resolve_with_empty<'p>(segments: impl Iterator<Item = Cow<'p, [u8]>>) -> PathSegments<'p> {
    let mut resolved = PathSegments::with_capacity(8);
    for segment in segments {
        match name(&segment) {
            b"." => {}
            b".." => {
                resolved.pop();
            }
            _ => resolved.push(segment),
        }
    }
    resolved.retain(|segment| !name(segment).is_empty());
    resolved
}

/// A segment without its parameters: servlet containers cut these off before they resolve dots.
fn name(segment: &[u8]) -> &[u8] {
    let end = segment.iter().position(|byte| *byte == b';');
    &segment[..end.unwrap_or(segment.len())]
}
