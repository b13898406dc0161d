//! What `explain` finds out about a request, for people and programs to read.

use crate::key::{OnceKey, SessionKey};

/// What the proxy would do with a request, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedRequest {
    /// The name of the route that takes or refuses the request. `None`: no route takes it, or it is refused
    /// before routes are compared.
    pub route: Option<Box<str>>,
    /// The routes that were compared before that route and don't take the request, in the order of the
    /// configuration. All routes, if none takes the request.
    pub skipped: Vec<SkippedRoute>,
    /// The templates of that route's `session_id`, then those of its `user_id`, and then those of its `once`, in their
    /// order.
    pub templates: Vec<ExplainedTemplate>,
    /// What the proxy does with the request.
    pub outcome: ExplainedOutcome,
    /// What tells whether the request repeats another one of its session. `None`: it takes no lock, or no template of
    /// `once` has a value.
    pub once: Option<OnceKey>,
    /// Whether the client of the turn gets a response while the turn waits. `None`: it takes no lock, or its route
    /// has no `keep_alive` or no turns that wait.
    pub keeps_client: Option<KeptClient>,
    /// Whether the request is a CORS preflight, which takes no lock.
    pub is_preflight: bool,
    /// Why the route can't read the body that it needs. `None`: it can, or doesn't need it.
    pub body_error: Option<String>,
    /// How many bytes the body was decoded to. 0: it has no content encoding, or can't be decoded.
    pub decoded: usize,
}

/// Whether the client of a waiting turn gets a response before its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptClient {
    /// After `keep_alive`.
    Kept,
    /// Its `accept` header asks for no event stream, and the route has `stream = "accept"`.
    ReadsNoEvents,
    /// The response to its method has no body.
    HasNoBody,
}

/// A route that doesn't take the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedRoute {
    /// The route's name.
    pub route: Box<str>,
    /// The condition that decides against the route.
    pub reason: UnmetCondition,
}

/// A condition of a route that doesn't hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnmetCondition {
    /// The route's `path`.
    Path,
    /// The route's `methods`.
    Methods,
    /// The route's `host`.
    Host,
    /// The route's `headers`.
    Headers,
    /// An entry of the route's `when`.
    When {
        /// The entry's template, for example `{body:/method}`.
        template: String,
        /// The values for which the condition holds.
        values: Vec<Box<str>>,
        /// The value of the template in this request.
        result: TemplateResult,
    },
    /// An entry of the route's `when`, and the body is a batch of requests. Of a route that locks, no request
    /// has one of the values; of another, not every request.
    WhenInBatch {
        /// The entry's template, for example `{body:/method}`.
        template: String,
        /// The values for which the condition holds.
        values: Vec<Box<str>>,
    },
    /// The route takes no lock, and the path isn't spelled exactly like the route's `path`: then another
    /// route comes first.
    Spelling,
}

/// One template of `session_id`, `user_id` or `once`, and its value in the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedTemplate {
    /// The option that has the template: `session_id`, `user_id` or `once`.
    pub option: &'static str,
    /// The template's text, for example `{body:/session_id}`.
    pub template: String,
    /// The value of the template in this request.
    pub result: TemplateResult,
    /// Which filter the template may need, judged by the form of its value. `None`: none.
    pub hint: Option<String>,
}

/// The value of a template in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateResult {
    /// This text. A session key has it percent-encoded, and a once id is its hash.
    Found(String),
    /// The request has no value there, and the next template is tried.
    Missing,
    /// The value can't be used or can't be read. The reason.
    Refused(String),
    /// The template wasn't tried: the ids were known, or the request refused, before it.
    NotTried,
}

/// What the proxy does with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExplainedOutcome {
    /// The request takes the lock with this key.
    Locks(SessionKey),
    /// The request reads the answer of a turn of the session with this key.
    Attaches(SessionKey),
    /// The request stops the turn of the session with this key.
    Stops(SessionKey),
    /// The request passes without a lock, for it needs none.
    Passes,
    /// The request passes a route that locks, and without a lock: no session is found in it.
    NoSession {
        /// The outcome in the log and the metrics, if the backend answers.
        code: &'static str,
    },
    /// The request gets an error response.
    Refused {
        /// The status of the error response, unless the route's `busy.status` is 200.
        status: u16,
        /// The error code in `x-seriatim-error`.
        code: &'static str,
        /// What is wrong with the request.
        reason: String,
    },
}
