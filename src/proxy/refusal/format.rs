//! The format of an error response's body: the four members of the contract, as they are or inside the
//! error object of the caller's protocol.
//!
//! Invariant: every format has all four members.

use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;

use super::language::SentenceLanguage;
use crate::config::{BusyConfig, BusyFormat};

/// The format of error responses to one request. The default is for requests whose route takes no lock.
#[derive(Clone, Debug, Default)]
pub(in crate::proxy) struct ErrorFormat {
    format: BusyFormat,
    /// Whether the response has status 200, and only the body has the error's status.
    is_always_ok: bool,
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
}

#[derive(Serialize)]
struct OpenAiError<'f> {
    message: &'f str,
    r#type: &'static str,
    param: Option<&'f str>,
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
            id: id.and_then(|id| RawValue::from_string(id).ok()),
        }
    }

    /// The status of the response to an error whose own status is `status`.
    pub(super) fn status(&self, status: StatusCode) -> StatusCode {
        if self.is_always_ok {
            StatusCode::OK
        } else {
            status
        }
    }

    /// The error for a client that has got the head of an event stream, and whose backend answered something else:
    /// with this status, and a body that begins with `text`. `text` is empty if the body is, or is encoded.
    pub(in crate::proxy) fn backend_error(
        &self,
        status: StatusCode,
        text: &str,
        language: SentenceLanguage,
    ) -> Vec<u8> {
        let told = match status.is_client_error() || status.is_server_error() {
            true => status,
            false => StatusCode::BAD_GATEWAY,
        };
        let without_text = format!("the backend answered with status {}", status.as_u16());
        let content = ContractBody {
            success: false,
            error: language.pick("智能体没有返回事件流", "The agent gave no event stream"),
            detail: if text.is_empty() { &without_text } else { text },
            status_code: told.as_u16(),
        };
        self.body(&content, "upstream_answer")
    }

    /// The response's body; `reason` is the word of the outcome.
    pub(super) fn body(&self, content: &ContractBody<'_>, reason: &str) -> Vec<u8> {
        let body = match self.format {
            BusyFormat::Json => serde_json::to_vec(content),
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
            }),
        };
        // Strings, a number and valid JSON always serialize.
        body.unwrap_or_default()
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
