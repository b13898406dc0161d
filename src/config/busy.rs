//! `[busy]`: the response to a request whose session is busy.
//!
//! Invariant: the status is 200 only in JSON-RPC. Building the response is left to `proxy::refusal`.

use std::collections::BTreeMap;

use http::StatusCode;

use super::errors::ErrorLanguage;
use super::option::options;
use super::reader::{ConfigTable, ConfigValue};
use super::value_kind::{Boolean, Kind, Optional, inline_table, quoted, word, words};

options! {
    /// The response to a request whose session is busy.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct BusyConfig in "busy" {
        /// The status. With `format = "json-rpc"` it may be 200, and then every error response of the
        /// route has this status.
        status: StatusCode = StatusCode::TOO_MANY_REQUESTS, Status, example "409", Live;
        /// The form of the body, for every error response of the route: `json` has the members
        /// `success`, `error`, `detail` and `status_code`; `json-rpc` is an error with the request's
        /// id, for MCP and A2A; `openai` is an error as clients of OpenAI's API expect it. `ai-sdk` and
        /// `ag-ui` are `json`, and inside an event stream (`keep_alive`) the error of the protocol: for
        /// `useChat`, and for clients of AG-UI.
        format: BusyFormat = BusyFormat::Json, word(), example "\"openai\"", Live;
        /// The sentence for the user. With several languages, `accept-language` decides. The default is
        /// in the language of `errors.language`; here it is in Chinese.
        error: BTreeMap<String, String> = BTreeMap::from([(String::new(), BUSY[0].into())]),
            Sentences, example "{ zh = \"请稍候\", en = \"Please wait\" }", Live;
        /// When the client should try again; sent in the headers `retry-after` and `retry-after-ms`. `auto`:
        /// when the session is likely to be free, by how long the last turns of the route took, from 1 to 59
        /// seconds. A number of seconds: always after this time.
        retry_after: RetryAfter = RetryAfter::Auto, RetryTime, example "5", Live;
        /// Whether the body also has the members `retry_after_ms`, `busy_since` and `queue`. The headers
        /// have the same values in any case.
        explain: Option<bool> = None, Optional(Boolean),
            unset "true, and false with the formats `json-rpc` and `openai`",
            example "false", Live;
    }
}

/// When a client whose session is busy should try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// When the session is likely to be free.
    Auto,
    /// After this many seconds.
    Seconds(u64),
}

words! {
    /// The form of the body of an error response.
    #[derive(Default)]
    pub enum BusyFormat {
        /// An object with four members: `success`, `error`, `detail` and `status_code`.
        #[default]
        Json = "json",
        /// An error object with the request's id (JSON-RPC 2.0 §5).
        JsonRpc = "json-rpc",
        /// An error object as OpenAI's API has it.
        OpenAi = "openai",
        /// As `Json`; inside an event stream, an error chunk of the AI SDK.
        AiSdk = "ai-sdk",
        /// As `Json`; inside an event stream, the event `RUN_ERROR` of AG-UI.
        AgUi = "ag-ui",
    }
}

/// The sentence for a user whose session is busy, in Chinese and in English.
const BUSY: [&str; 2] = [
    "AI 正在思考中，请稍后再试",
    "The AI is thinking, please try again later",
];

/// The word for [`RetryAfter::Auto`].
const AUTO: &str = "auto";

/// The longest time after which a client may be told to try again, in seconds: a day.
const LONGEST_RETRY: u64 = 86_400;

/// The status of an error response.
struct Status;

/// `"auto"`, or a number of seconds.
struct RetryTime;

/// One sentence under the language `""`, or a sentence for each language.
struct Sentences;

impl BusyConfig {
    /// The defaults in this language.
    pub(super) fn in_language(language: ErrorLanguage) -> Self {
        let [chinese, english] = BUSY;
        let sentences = match language {
            ErrorLanguage::Chinese => vec![("", chinese)],
            ErrorLanguage::English => vec![("", english)],
            ErrorLanguage::Auto => vec![("zh", chinese), ("en", english)],
        };
        let sentences = sentences.into_iter();
        Self {
            error: sentences
                .map(|(language, text)| (language.to_owned(), text.to_owned()))
                .collect(),
            ..Self::default()
        }
    }

    /// Whether the body of a response to a busy session says more than the contract's four members. Clients of other
    /// formats expect none of it.
    pub fn explains(&self) -> bool {
        self.explain.unwrap_or(match self.format {
            BusyFormat::Json | BusyFormat::AiSdk | BusyFormat::AgUi => true,
            BusyFormat::JsonRpc | BusyFormat::OpenAi => false,
        })
    }

    /// Reports a status that is for another format.
    pub(super) fn check(&self, table: &ConfigTable<'_>) {
        if self.status == StatusCode::OK && self.format != BusyFormat::JsonRpc {
            let (key, why) = match table.wrote("status") {
                true => (
                    "status",
                    "200 needs format = \"json-rpc\": write it too, or write a whole number from 400 to 599",
                ),
                false => (
                    "format",
                    "contradicts status = 200, which needs format = \"json-rpc\": write status = 429 too",
                ),
            };
            table.note(key, why);
        }
    }
}

impl Kind for Status {
    type Value = StatusCode;

    fn read(&self, entry: ConfigValue<'_>) -> Option<StatusCode> {
        let status = entry.integer_where(
            // Some clients of JSON-RPC look for an error only in a response with status 200.
            |status| status == 200 || (400..=599).contains(&status),
            "write a whole number from 400 to 599, or 200 with format = \"json-rpc\"",
        )?;
        StatusCode::from_u16(u16::try_from(status).ok()?).ok()
    }

    fn show(&self, value: &StatusCode) -> Option<String> {
        Some(value.as_u16().to_string())
    }

    fn describe(&self) -> String {
        "number, 400 to 599".into()
    }
}

impl Kind for RetryTime {
    type Value = RetryAfter;

    fn read(&self, entry: ConfigValue<'_>) -> Option<RetryAfter> {
        if entry.is(AUTO) {
            return Some(RetryAfter::Auto);
        }
        let wanted = format!("write a whole number from 0 to {LONGEST_RETRY}, or {AUTO:?}");
        let seconds = entry.integer_where(|seconds| seconds <= LONGEST_RETRY, &wanted)?;
        Some(RetryAfter::Seconds(seconds))
    }

    fn show(&self, value: &RetryAfter) -> Option<String> {
        Some(match value {
            RetryAfter::Auto => quoted(AUTO),
            RetryAfter::Seconds(seconds) => seconds.to_string(),
        })
    }

    fn describe(&self) -> String {
        format!("number, 0 to {LONGEST_RETRY}, or {AUTO:?}")
    }
}

impl Kind for Sentences {
    type Value = BTreeMap<String, String>;

    fn read(&self, entry: ConfigValue<'_>) -> Option<Self::Value> {
        if entry.is_string() {
            return Some(BTreeMap::from([(String::new(), entry.string()?)]));
        }
        if entry.is_empty_table() {
            entry.wrong("has no sentence: write { zh = \"...\", en = \"...\" }");
            return None;
        }
        if !entry.is_table() {
            entry.wrong("write text in quotes, or { zh = \"...\", en = \"...\" }");
            return None;
        }
        let mut sentences = BTreeMap::new();
        for (language, entry) in entry.table()?.drain() {
            if language.is_empty() {
                entry.wrong("the language is missing: write en = \"...\"");
            } else if let Some(text) = entry.string() {
                sentences.insert(language.to_lowercase(), text);
            }
        }
        Some(sentences)
    }

    fn show(&self, value: &Self::Value) -> Option<String> {
        if let Some(text) = value.get("") {
            return Some(quoted(text));
        }
        Some(inline_table(
            value
                .iter()
                .map(|(language, text)| (language, quoted(text))),
        ))
    }

    fn describe(&self) -> String {
        "text, or a table of languages".into()
    }
}
