//! The options that say which requests are turns, and how they are locked.

use std::time::Duration;

use super::Kind::{Boolean, Duration as Lasting, Integer, List, Table, Text, Words};
use super::Unwritten::{As, Otherwise};
use super::{Section, Setting};
use crate::config::WEEK;
use crate::config::routes::{LONGEST_LINE, LONGEST_SETTLING, SHORTEST_LEASE};

/// `[lock]`.
pub(super) const LOCK: Section = Section {
    table: "lock",
    about: "How turns are locked. These are the defaults of all routes; each route may have any of \
            these options for itself.",
    options: &[
        Setting::live(
            "key",
            Text("template"),
            As("\"lock:session:{user_id}:{session_id}\""),
            "\"agent:{session_id}\"",
            "The lock's name in the store.",
        ),
        Setting::live(
            "lock_timeout",
            Lasting(SHORTEST_LEASE, WEEK),
            As("300"),
            "\"10m\"",
            "The lease: for how long the store promises the lock. A turn that takes longer is cut, \
             unless the lock is extended. Longer than `store.timeout`.",
        ),
        Setting::live(
            "extend_lock_interval",
            Lasting(Duration::from_millis(50), WEEK),
            Otherwise("never"),
            "100",
            "How often the lease is extended; at most half of it.",
        ),
        Setting::live(
            "blocking",
            Boolean,
            As("false"),
            "true",
            "A turn whose session is busy: refused at once, or, with true, waiting in line.",
        ),
        Setting::live(
            "blocking_timeout",
            Lasting(Duration::from_millis(10), WEEK),
            Otherwise("as long as its client stays"),
            "30",
            "How long a turn waits at most; then it is refused as `wait_timeout`. With `blocking`.",
        ),
        Setting::live(
            "interrupt",
            Boolean,
            As("false"),
            "true",
            "The newest turn replaces the running one and all that wait. With `blocking`, and not \
             with on_disconnect = \"continue\".",
        ),
        Setting::live(
            "max_waiters",
            Integer(1, LONGEST_LINE),
            As("64"),
            "8",
            "How many may wait for one session; one more is refused as `queue_full`. With `blocking`.",
        ),
        Setting::live(
            "on_disconnect",
            Words(&["cancel", "continue"]),
            As("\"cancel\""),
            "\"continue\"",
            "A client that is gone: \"cancel\" the backend's request, or \"continue\" to read its \
             answer to the end, for a backend that works on in any case.",
        ),
        Setting::live(
            "on_lost",
            Words(&["abort", "continue"]),
            As("\"abort\""),
            "\"continue\"",
            "A lease that was lost: \"abort\" the turn, or \"continue\" it unprotected.",
        ),
        Setting::live(
            "settle",
            Lasting(Duration::ZERO, LONGEST_SETTLING),
            As("0"),
            "\"300ms\"",
            "How long the lock is kept after the answer's end, or after the request was cancelled, \
             for a backend that saves its state late. The answer's end is held back as long. Shorter \
             than `lock_timeout`.",
        ),
        Setting::live(
            "enforce",
            Boolean,
            As("true"),
            "false",
            "With false, turns are only watched: nothing waits or is refused, and two at once are \
             logged.",
        ),
        Setting::live(
            "on_missing",
            Words(&["pass", "reject"]),
            As("\"pass\""),
            "\"reject\"",
            "A request without a session or a user: \"pass\" it on without a lock, or \"reject\" it \
             with 400.",
        ),
        Setting::live(
            "on_malformed",
            Words(&["pass", "pass_non_json", "reject"]),
            As("\"reject\""),
            "\"pass_non_json\"",
            "A body that should name the session and can't be read: \"reject\" it with 400, or \
             \"pass\" it on without a lock; \"pass_non_json\" passes a body that clearly isn't JSON, \
             and rejects all others.",
        ),
    ],
};

/// `[[routes]]`.
pub(super) const ROUTES: Section = Section {
    table: "routes",
    about: "The first route whose conditions (`host`, `methods`, `path`, `headers`, `when`) all hold \
            takes the request. All options of `lock` may stand here, too.",
    options: &[
        Setting::live(
            "name",
            Text("text"),
            Otherwise("its number, as `route-0`"),
            "\"chat\"",
            "Its name in logs and metrics, and beside its locks. Each route has its own.",
        ),
        Setting::live(
            "preset",
            Text("name"),
            Otherwise("none"),
            "\"langgraph\"",
            "The routes of a well-known backend, in this place. An option beside it overrides the preset's. \
             `seriatim presets` lists all.",
        ),
        Setting::live(
            "prefix",
            Text("path pattern"),
            Otherwise("none"),
            "\"/agents/{agent}\"",
            "With `preset`: a path before all its paths.",
        ),
        Setting::live(
            "host",
            List("hosts, or one"),
            Otherwise("any"),
            "[\"agent.example.com\", \"*.example.com\"]",
            "The hosts it takes, without ports.",
        ),
        Setting::live(
            "methods",
            List("methods"),
            Otherwise("any"),
            "[\"POST\"]",
            "The methods it takes. On a route that locks, `GET` includes `HEAD`, and a method in an \
             override header counts, too.",
        ),
        Setting::live(
            "path",
            Text("path pattern"),
            Otherwise("any"),
            "\"/threads/{thread}/runs/{*rest}\"",
            "Literals, `{name}` for one segment, `{*rest}` for all that follow. A route that locks takes \
             every spelling: another case, encoding, dots, doubled slashes, a host in front (`//x/chat`), a \
             format behind the last word (`/chat.json`).",
        ),
        Setting::live(
            "headers",
            Table("headers and their values"),
            Otherwise("any"),
            "{ x-kind = \"chat\", x-other = [\"a\", \"b\"], x-any = \"*\" }",
            "Headers that must be there, each with one of the values; \"*\" is any.",
        ),
        Setting::live(
            "when",
            Table("templates and their values"),
            Otherwise("nothing"),
            "{ \"{body:/method}\" = [\"message/send\", \"message/stream\"] }",
            "Values that must be in the request, from any source.",
        ),
        Setting::live(
            "upstream",
            Text("URL"),
            Otherwise("the one of the top level"),
            "\"http://127.0.0.1:8001\"",
            "A backend of its own.",
        ),
        Setting::live(
            "lock",
            Boolean,
            As("true"),
            "false",
            "With false, its requests pass freely: stop, cancel, history.",
        ),
        Setting::live(
            "session_id",
            List("templates"),
            Otherwise("required where it locks"),
            "[\"{body:/session_id}\", \"session_{hash:body:/input}\"]",
            "Where the session's id comes from: the first template with a value wins. A filter gives one \
             lock to all spellings of an id, as `{uuid:path:thread}`.",
        ),
        Setting::live(
            "user_id",
            List("templates"),
            As("[\"unknown\"]"),
            "[\"{header:x-user}\", \"unknown\"]",
            "Where the user's id comes from, in the same way. By default all users are the user `unknown`.",
        ),
        Setting::live(
            "busy",
            Table("the options of `busy`"),
            Otherwise("those of `busy`"),
            "{ status = 409 }",
            "What its refused callers get, laid over `busy`.",
        ),
    ],
};

/// `[busy]`.
pub(super) const BUSY: Section = Section {
    table: "busy",
    about: "What a caller gets whose session is busy. Each route may override it.",
    options: &[
        Setting::live(
            "status",
            Integer(400, 599),
            As("429"),
            "409",
            "The status. With format = \"json-rpc\" 200, too, and then for every refusal of the route.",
        ),
        Setting::live(
            "format",
            Words(&["json", "json-rpc", "openai"]),
            As("\"json\""),
            "\"openai\"",
            "How the body is built, of every answer that is made up here: four members; an error with \
             the request's id, for MCP and A2A; or an error as OpenAI's clients read it.",
        ),
        Setting::live(
            "error",
            Text("text, or a table of languages"),
            As("\"AI 正在思考中，请稍后再试\""),
            "{ zh = \"请稍候\", en = \"Please wait\" }",
            "The sentence for the user; of several, `accept-language` chooses.",
        ),
        Setting::live(
            "retry_after",
            Integer(0, 86_400),
            As("1"),
            "5",
            "When to come again, in seconds, as the header `retry-after`.",
        ),
    ],
};
