//! The language of an error response: by `errors.language`, or the caller's (`accept-language`, RFC 9110
//! §12.5.4).

use http::HeaderMap;
use http::header::ACCEPT_LANGUAGE;

use crate::config::{BusyConfig, ErrorLanguage};
use crate::http_syntax::weighted_items;

/// A language in which the proxy has a sentence for every error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::proxy) enum SentenceLanguage {
    /// Chinese. Also for a caller who prefers neither language.
    #[default]
    Chinese,
    /// English.
    English,
}

// === impl SentenceLanguage ===

impl SentenceLanguage {
    /// The language of the error responses to this caller.
    pub(in crate::proxy) fn for_caller(configured: ErrorLanguage, caller: &HeaderMap) -> Self {
        match configured {
            ErrorLanguage::Chinese => Self::Chinese,
            ErrorLanguage::English => Self::English,
            ErrorLanguage::Auto => {
                let known = |range: &str| match range {
                    "zh" => Some(Self::Chinese),
                    "en" => Some(Self::English),
                    _ => None,
                };
                preferred(caller, known).unwrap_or_default()
            }
        }
    }

    /// The one of two sentences that is in this language.
    pub(super) fn pick(self, chinese: &'static str, english: &'static str) -> &'static str {
        match self {
            Self::Chinese => chinese,
            Self::English => english,
        }
    }
}

/// The text of `busy.error` in the language that the caller prefers. If it prefers none of them: the
/// text without a language, or the Chinese one, or the first by the alphabet.
pub(super) fn text_for_caller<'b>(busy: &'b BusyConfig, caller: &HeaderMap) -> &'b str {
    let fallback = || busy.error.get("").or_else(|| busy.error.get("zh"));
    preferred(caller, |range| busy.error.get(range))
        .or_else(fallback)
        .or_else(|| busy.error.values().next())
        .map_or("", String::as_str)
}

/// What is known for the language that the caller prefers among those for which something is.
fn preferred<T>(caller: &HeaderMap, known: impl Fn(&str) -> Option<T>) -> Option<T> {
    let wanted = caller.get(ACCEPT_LANGUAGE);
    let wanted = wanted.and_then(|value| value.to_str().ok());
    let mut ranges: Vec<_> = weighted_items(wanted.unwrap_or_default()).collect();
    // The sort is stable: of two ranges with equal weights, the first one wins.
    ranges.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranges.iter().find_map(|(range, _)| {
        // What is for `zh` also serves `zh-CN` (lookup, RFC 4647 §3.4).
        let range = range.to_lowercase();
        let mut range = range.as_str();
        loop {
            if let Some(found) = known(range) {
                return Some(found);
            }
            range = range.rsplit_once('-')?.0;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_is_in_the_callers_language() {
        let texts = [("zh", "忙"), ("en", "busy"), ("de", "besetzt")];
        let error = texts
            .map(|(language, text)| (language.to_owned(), text.to_owned()))
            .into();
        let busy = BusyConfig {
            error,
            ..BusyConfig::default()
        };
        for (accepted, text) in [
            ("en-GB,en;q=0.9", "busy"),
            ("fr, de;q=0.3, en;q=0.5", "busy"),
            ("de-AT-1996", "besetzt"),
            ("fr", "忙"),
            ("en;q=0, de", "besetzt"),
            ("en;Q=0, DE", "besetzt"),
            ("", "忙"),
            (";;;q=x,,", "忙"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_LANGUAGE, accepted.parse().unwrap());
            assert_eq!(
                text_for_caller(&busy, &headers),
                text,
                "the best match for {accepted:?}"
            );
        }
    }

    #[test]
    fn every_error_is_in_the_configured_language_or_the_callers() {
        use SentenceLanguage::{Chinese, English};
        for (accepted, automatic) in [
            ("", Chinese),
            ("*", Chinese),
            ("fr, de", Chinese),
            ("en-US,en;q=0.9,zh-CN;q=0.8", English),
            ("zh-Hans-CN, en;q=0.9", Chinese),
            ("fr, en;q=0.5", English),
            ("en;q=0, zh;q=0.1", Chinese),
        ] {
            let mut caller = HeaderMap::new();
            caller.insert(ACCEPT_LANGUAGE, accepted.parse().unwrap());
            for (configured, expected) in [
                (ErrorLanguage::Auto, automatic),
                (ErrorLanguage::Chinese, Chinese),
                (ErrorLanguage::English, English),
            ] {
                let language = SentenceLanguage::for_caller(configured, &caller);
                assert_eq!(language, expected, "{configured:?} for {accepted:?}");
            }
        }
    }
}
