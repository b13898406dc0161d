//! `[errors]`: the language of error responses. The texts are in `proxy::refusal`.

use super::option::options;
use super::value_kind::{word, words};

options! {
    /// Error responses, whatever their reason.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ErrorsConfig in "errors" {
        /// The language of the sentence for the user (`error`) in every error response: `zh` is Chinese, `en` is
        /// English, and `auto` is whichever of the two the client prefers (`accept-language`), Chinese if it
        /// prefers neither. `busy.error` replaces the sentence of a busy session.
        language: ErrorLanguage = ErrorLanguage::Chinese, word(), example "\"auto\"", Live;
    }
}

words! {
    /// The language of error responses.
    pub enum ErrorLanguage {
        /// Chinese.
        Chinese = "zh",
        /// English.
        English = "en",
        /// The one of both that the client prefers.
        Auto = "auto",
    }
}
