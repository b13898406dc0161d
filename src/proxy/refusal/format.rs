//! The format of an error response's body: the four members of the contract, as they are or inside the
//! error object of the caller's protocol.
//!
//! Invariant: every format of a body has all four members. What a client is told beyond them stands behind them.

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::config::{BusyConfig, BusyFormat};

/// The format of error responses to one request. The default is for requests whose route takes no lock.
#[derive(Clone, Debug, Default)]
pub(in crate::proxy) struct ErrorFormat {
    format: BusyFormat,
    /// Whether the response has status 200, and only the body has the error's status.
    is_always_ok: bool,
    /// Whether the response to a busy session has [`BusyMembers`].
    explains: bool,
    /// The JSON text of the request's id, for [`BusyFormat::JsonRpc`]; `None`: the error has a null id.
    id: Option<Box<RawValue>>,
}

/// The contract's four members, in its order.
#[derive(Serialize)]
pub(super) struct ContractBody<'f> {
    pub(super) success: bool,
    pub(super) error: &'f str,
    pub(super) detail: &'f str,
    pub(super) status_code: u16,
    /// The error code, for an error in an event stream, which has no header; `None`: the header has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'f str>,
    /// After how many milliseconds the client should try again; `None`: it isn't told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retry_after_ms: Option<u64>,
    /// `None`: the session isn't busy, or its client is told no more.
    #[serde(flatten)]
    pub(super) busy: Option<BusyMembers>,
}

/// What a client may know of its busy session. A member whose value isn't known is null.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BusyMembers {
    /// When the running turn took its lock, in RFC 3339.
    pub(super) busy_since: Option<String>,
    /// How many turns wait for the session.
    pub(super) queue: Option<usize>,
}

/// An error response of JSON-RPC 2.0 (§5).
#[derive(Serialize)]
struct JsonRpc<'f> {
    jsonrpc: &'static str,
    /// The request's id; null if it has none, or it can't be read.
    id: Option<&'f RawValue>,
    error: JsonRpcError<'f>,
}

#[derive(Serialize)]
struct JsonRpcError<'f> {
    code: i32,
    message: &'f str,
    data: &'f ContractBody<'f>,
}

/// An error of OpenAI's API, and beside it the other members of the contract.
#[derive(Serialize)]
struct OpenAi<'f> {
    success: bool,
    error: OpenAiError<'f>,
    detail: &'f str,
    status_code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(flatten)]
    busy: Option<&'f BusyMembers>,
}

#[derive(Serialize)]
struct OpenAiError<'f> {
    message: &'f str,
    r#type: &'static str,
    param: Option<&'f str>,
    code: &'f str,
}

/// An error chunk of the AI SDK's stream. Its schema is strict: another member would make it invalid.
#[derive(Serialize)]
struct AiSdkChunk<'f> {
    r#type: &'static str,
    #[serde(rename = "errorText")]
    error_text: &'f str,
}

/// The event with which a run of AG-UI fails.
#[derive(Serialize)]
struct AgUiRunError<'f> {
    r#type: &'static str,
    message: &'f str,
    code: &'f str,
}

/// "Server error", the first code that JSON-RPC 2.0 §5.1 leaves to implementations. A2A gives the next
/// ones (-32001 and on) meanings of its own. MCP servers use this one for errors before the call.
const SERVER_ERROR: i32 = -32000;

// === impl ErrorFormat ===

impl ErrorFormat {
    /// The format of a route's error responses. `call` is the JSON text of the request's id. An object,
    /// an array, true or false is no id (JSON-RPC 2.0 §4).
    pub(in crate::proxy) fn new(busy: &BusyConfig, call: Option<&str>) -> Self {
        let is_id =
            |text: &&str| text.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit());
        let id = call.filter(is_id).map(str::to_owned);
        Self {
            format: busy.format,
            is_always_ok: busy.status == StatusCode::OK,
            explains: busy.explains(),
            id: id.and_then(|id| RawValue::from_string(id).ok()),
        }
    }

    /// Whether the response to a busy session says more than the contract's four members.
    pub(super) fn explains(&self) -> bool {
        self.explains
    }

    /// The status of the response to an error whose own status is `status`.
    pub(super) fn status(&self, status: StatusCode) -> StatusCode {
        if self.is_always_ok {
            StatusCode::OK
        } else {
            status
        }
    }

    /// The response's body; `reason` is the word of the outcome.
    pub(super) fn body(&self, content: &ContractBody<'_>, reason: &str) -> Vec<u8> {
        let body = match self.format {
            BusyFormat::Json | BusyFormat::AiSdk | BusyFormat::AgUi => serde_json::to_vec(content),
            BusyFormat::JsonRpc => serde_json::to_vec(&JsonRpc {
                jsonrpc: "2.0",
                id: self.id.as_deref(),
                error: JsonRpcError {
                    code: SERVER_ERROR,
                    message: content.error,
                    data: content,
                },
            }),
            BusyFormat::OpenAi => serde_json::to_vec(&OpenAi {
                success: content.success,
                error: OpenAiError {
                    message: content.error,
                    r#type: openai_type(content.status_code),
                    param: None,
                    code: reason,
                },
                detail: content.detail,
                status_code: content.status_code,
                retry_after_ms: content.retry_after_ms,
                busy: content.busy.as_ref(),
            }),
        };
        // Strings, a number and valid JSON always serialize.
        body.unwrap_or_default()
    }

    /// The error as an event of an event stream. The clients of some protocols read an event's data only, by its
    /// `type`.
    pub(super) fn event(&self, content: &ContractBody<'_>, reason: &str) -> Bytes {
        let (name, data) = match self.format {
            BusyFormat::Json | BusyFormat::JsonRpc | BusyFormat::OpenAi => {
                ("event: error\n", Ok(self.body(content, reason)))
            }
            BusyFormat::AiSdk => {
                let chunk = AiSdkChunk {
                    r#type: "error",
                    error_text: content.error,
                };
                ("", serde_json::to_vec(&chunk))
            }
            BusyFormat::AgUi => {
                let event = AgUiRunError {
                    r#type: "RUN_ERROR",
                    message: content.error,
                    code: reason,
                };
                ("", serde_json::to_vec(&event))
            }
        };
        // JSON without white space is one line. Strings always serialize.
        let data = data.unwrap_or_default();
        [name.as_bytes(), b"data: ", &data, b"\n\n"].concat().into()
    }
}

/// The `type` of error that OpenAI's API gives with a status.
fn openai_type(status: u16) -> &'static str {
    match status {
        409 => "conflict_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: ContractBody<'static> = ContractBody {
        success: false,
        error: "busy",
        detail: "[lock:session:u:s] 锁已被占用",
        status_code: 429,
        reason: None,
        retry_after_ms: None,
        busy: None,
    };

    fn body(format: &ErrorFormat) -> String {
        String::from_utf8(format.body(&CONTENT, "session_busy")).expect("UTF-8")
    }

    #[test]
    fn an_id_comes_back_as_it_stands_in_the_request() {
        let four = r#"{"success":false,"error":"busy","detail":"[lock:session:u:s] 锁已被占用","status_code":429}"#;
        for (text, id) in [
            ("7", "7"),
            ("-0.50e3", "-0.50e3"),
            (
                "123456789012345678901234567890",
                "123456789012345678901234567890",
            ),
            (r#""a\u0062\/""#, r#""a\u0062\/""#),
            ("null", "null"),
            ("true", "null"),
            ("[1]", "null"),
            (r#"{"a":1}"#, "null"),
            ("7 8", "null"),
        ] {
            let busy = BusyConfig {
                format: BusyFormat::JsonRpc,
                ..BusyConfig::default()
            };
            let format = ErrorFormat::new(&busy, Some(text));
            let expected = format!(
                r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32000,"message":"busy","data":{four}}}}}"#
            );
            assert_eq!(body(&format), expected, "the id of {text}, digit by digit");
        }
    }

    #[test]
    fn the_error_inside_a_stream_is_the_one_of_the_protocol() {
        let four = r#""success":false,"error":"busy","detail":"[lock:session:u:s] 锁已被占用","status_code":429"#;
        for (format, expected) in [
            (
                BusyFormat::Json,
                format!("event: error\ndata: {{{four},\"reason\":\"wait_timeout\"}}\n\n"),
            ),
            (
                BusyFormat::AiSdk,
                "data: {\"type\":\"error\",\"errorText\":\"busy\"}\n\n".into(),
            ),
            (
                BusyFormat::AgUi,
                "data: {\"type\":\"RUN_ERROR\",\"message\":\"busy\",\"code\":\"wait_timeout\"}\n\n"
                    .into(),
            ),
        ] {
            let busy = BusyConfig {
                format,
                ..BusyConfig::default()
            };
            let format = ErrorFormat::new(&busy, None);
            assert_eq!(
                body(&format),
                format!("{{{four}}}"),
                "{:?}: the body of a response is the contract's",
                busy.format
            );
            let content = ContractBody {
                reason: Some("wait_timeout"),
                ..CONTENT
            };
            let event = format.event(&content, "wait_timeout");
            assert_eq!(event, expected, "{:?}", busy.format);
        }
    }

    #[test]
    fn openais_error_has_its_four_members_and_the_contracts_stay() {
        let busy = BusyConfig {
            format: BusyFormat::OpenAi,
            ..BusyConfig::default()
        };
        let format = ErrorFormat::new(&busy, None);
        assert_eq!(
            body(&format),
            "{\"success\":false,\"error\":{\"message\":\"busy\",\"type\":\"rate_limit_error\",\
             \"param\":null,\"code\":\"session_busy\"},\
             \"detail\":\"[lock:session:u:s] 锁已被占用\",\"status_code\":429}",
            "message, type, param and code, as OpenAI's clients read them"
        );
        for (status, kind) in [
            (409, "conflict_error"),
            (413, "invalid_request_error"),
            (503, "server_error"),
        ] {
            assert_eq!(openai_type(status), kind, "the type goes by the status");
        }
    }
}
