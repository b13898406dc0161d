//! The options of the process as a whole.

use std::time::Duration;

use super::Kind::{Duration as Lasting, Integer, Size, SizeOrZero, Text, Words};
use super::Unwritten::{As, Otherwise};
use super::{Section, Setting};
use crate::config::{HOUR, MS, WEEK};

const MINUTE: Duration = Duration::from_secs(60);

/// What stands before all tables.
pub(super) const TOP: Section = Section {
    table: "",
    about: "Where clients connect, and where their requests go. Keys of the top level stand before \
            the first table.",
    options: &[
        Setting::fixed(
            "listen",
            Text("address and port, or \"unix:/path\""),
            As("\"0.0.0.0:8080\""),
            "\"unix:/run/seriatim.sock\"",
            "Where clients connect, in HTTP/1.1 or HTTP/2.",
        ),
        Setting::live(
            "upstream",
            Text("URL"),
            Otherwise("required"),
            "\"h2c://agent.example:50051\"",
            "The backend: \"http://host:port\", \"https://host\" (its certificate is verified), \
             \"h2c://host:port\" (HTTP/2 without TLS, as gRPC speaks it) or \"unix:/run/agent.sock\". \
             Not needed if each route has its own and `unmatched` is \"reject\".",
        ),
        Setting::live(
            "upstream_ca_file",
            Text("path"),
            Otherwise("only the public ones"),
            "\"/etc/ssl/private-ca.pem\"",
            "Certificate authorities, in PEM, that backends with https may have besides the public \
             ones.",
        ),
        Setting::live(
            "forwarded",
            Words(&["trust", "replace"]),
            As("\"trust\""),
            "\"replace\"",
            "`x-forwarded-for`, `-proto`, `-host`, `-port` and `forwarded` of a client: \"trust\" \
             them and add this hop, as behind an ingress, or \"replace\" them by what is seen here.",
        ),
        Setting::live(
            "unmatched",
            Words(&["pass", "reject"]),
            As("\"pass\""),
            "\"reject\"",
            "A request that no route takes: \"pass\" it on without a lock, or \"reject\" it with 404.",
        ),
    ],
};

/// `[store]`.
pub(super) const STORE: Section = Section {
    table: "store",
    about: "Where locks live. Without this table they are in the process' memory, and protect one \
            replica only.",
    options: &[
        Setting::fixed(
            "url",
            Text("URL"),
            As("\"memory:\""),
            "\"redis://agent@redis.example:6379/1\"",
            "\"memory:\", or Redis at \"redis://[user[:password]@]host:port/database\".",
        ),
        Setting::fixed(
            "password_file",
            Text("path"),
            Otherwise("none"),
            "\"/run/secrets/redis\"",
            "A file that holds Redis's password, in place of one in `url`.",
        ),
        Setting::fixed(
            "timeout",
            Lasting(MS, MINUTE),
            As("\"1s\""),
            "\"250ms\"",
            "How long one command may take. With Redis out of reach, the end of an answer is held \
             back for so long at most.",
        ),
        Setting::fixed(
            "on_error",
            Words(&["reject", "allow", "local"]),
            As("\"reject\""),
            "\"local\"",
            "A new turn with Redis out of reach: \"reject\" it with 503, \"allow\" it without a lock, \
             or have it take this replica's own lock, \"local\". The last two are marked in the log.",
        ),
        Setting::fixed(
            "crash_recovery",
            Lasting(Duration::ZERO, HOUR),
            As("\"30s\""),
            "\"1m\"",
            "How long the sessions of a replica that was lost stay blocked; at least three times \
             `timeout`, or 0: for their whole `lock_timeout`.",
        ),
        Setting::fixed(
            "instance",
            Text("name"),
            Otherwise("host name and digits"),
            "\"agent-0\"",
            "This process' name, which no other that is alive may have. One that stays the same \
             through a restart frees what the process before it held.",
        ),
    ],
};

/// `[limits]`.
pub(super) const LIMITS: Section = Section {
    table: "limits",
    about: "How much Seriatim takes from clients.",
    options: &[
        Setting::live(
            "max_body",
            Size,
            As("\"10MiB\""),
            "\"1MiB\"",
            "The largest body that is read to find its session, as it comes and decoded; a \
             larger one gets 413. Bodies that aren't read may have any size.",
        ),
        Setting::live(
            "max_buffered",
            Size,
            As("\"256MiB\""),
            "\"1GiB\"",
            "Memory for all bodies together, those that are read and those that are read \
             ahead. When it is full, a body that is on its way, or whose turn waits in line, \
             gets 503 `overloaded`, the oldest first; if there is none, the new one does. \
             Reading ahead stops at half of it. At least `max_body`.",
        ),
        Setting::live(
            "read_before_lock",
            SizeOrZero,
            As("\"64KiB\""),
            "\"1MiB\"",
            "Bodies up to this `content-length` are read completely before the lock is asked \
             for, so a slow client blocks nobody. Larger bodies, and bodies without a length, \
             are sent while the lock is held. 0: the lock always comes first. A body that \
             holds the id is always read first, up to `max_body`.",
        ),
        Setting::live(
            "min_body_rate",
            SizeOrZero,
            As("240"),
            "\"1KiB\"",
            "Minimum upload speed in bytes per second. It applies to bodies that are read for \
             the id, or whose request holds a lock, until the answer begins. A slower client \
             gets 408 when it is `timeouts.request_body` late. 0: no minimum.",
        ),
        Setting::live(
            "max_id_bytes",
            Size,
            As("512"),
            "128",
            "The longest user or session id; a longer one gets 400.",
        ),
        Setting::fixed(
            "max_connections",
            Integer(1, 1 << 20),
            As("10000"),
            "500",
            "Clients' connections at the same time. One more gets 503; with TLS it is closed.",
        ),
    ],
};

/// `[timeouts]`.
pub(super) const TIMEOUTS: Section = Section {
    table: "timeouts",
    about: "How long Seriatim waits for clients and backends.",
    options: &[
        Setting::fixed(
            "request_head",
            Lasting(MS, HOUR),
            As("\"10s\""),
            "\"5s\"",
            "Maximum time for the head of a request, from its first byte; for the first \
             request of a connection, from the connection's beginning. Then 408; over HTTP/2 \
             the connection is closed.",
        ),
        Setting::live(
            "request_body",
            Lasting(MS, HOUR),
            As("\"30s\""),
            "\"1m\"",
            "Maximum time without a new byte of the body, until the answer begins; then 408.",
        ),
        Setting::live(
            "request_body_total",
            Lasting(MS, WEEK),
            As("\"5m\""),
            "\"1h\"",
            "Maximum time for the whole body, until the answer begins; then 408. It applies to \
             bodies that are read for the id, or whose request holds a lock. Time that a slow \
             backend takes doesn't count.",
        ),
        Setting::live(
            "connect",
            Lasting(MS, HOUR),
            As("\"5s\""),
            "\"1s\"",
            "Maximum time for a connection to the backend, TLS included; then 504.",
        ),
        Setting::live(
            "response_head",
            Lasting(MS, WEEK),
            As("\"5m\""),
            "\"10m\"",
            "Maximum time until the backend's answer begins, once it has the request; then \
             504.",
        ),
        Setting::live(
            "idle_stream",
            Lasting(MS, WEEK),
            As("\"5m\""),
            "\"10m\"",
            "Once an answer has begun: maximum time without a byte in either direction; then \
             it is aborted. Longer than any `settle`.",
        ),
        Setting::live(
            "drain",
            Lasting(MS, HOUR),
            As("\"30s\""),
            "\"5m\"",
            "Maximum time for turns to end after SIGTERM; then they are aborted.",
        ),
    ],
};

/// `[tls]`.
pub(super) const TLS: Section = Section {
    table: "tls",
    about: "What clients are shown if they are to speak TLS. With this table they have to. A renewed \
            pair of files is taken up within seconds, for new connections.",
    options: &[
        Setting::fixed(
            "cert_file",
            Text("path"),
            Otherwise("no TLS"),
            "\"/etc/seriatim/cert.pem\"",
            "The certificate and those between it and its root, in PEM.",
        ),
        Setting::fixed(
            "key_file",
            Text("path"),
            Otherwise("no TLS"),
            "\"/etc/seriatim/key.pem\"",
            "Its private key, in PEM.",
        ),
    ],
};

/// `[admin]`.
pub(super) const ADMIN: Section = Section {
    table: "admin",
    about: "What operators and their machines ask, on a listener of its own.",
    options: &[
        Setting::fixed(
            "listen",
            Text("address and port"),
            As("\"127.0.0.1:9901\""),
            "\"0.0.0.0:9901\"",
            "Where they ask.",
        ),
        Setting::fixed(
            "token_file",
            Text("path"),
            Otherwise("loopback only"),
            "\"/run/secrets/seriatim-token\"",
            "A file with the token that opens what names sessions, sent as `authorization: Bearer`. \
             Without one, that is answered on a loopback address only. A new token in the file is in \
             force at once.",
        ),
    ],
};

/// `[log]`.
pub(super) const LOG: Section = Section {
    table: "log",
    about: "What is told on standard error.",
    options: &[
        Setting::fixed(
            "format",
            Words(&["text", "json"]),
            As("\"text\""),
            "\"json\"",
            "Lines for people, or for machines.",
        ),
        Setting::live(
            "level",
            Words(&["error", "warn", "info", "debug", "trace"]),
            As("\"info\""),
            "\"warn\"",
            "The least important events that are told. Each request's is one of \"info\"; what operators do to \
             locks is told in any case.",
        ),
        Setting::live(
            "ids",
            Words(&["plain", "hash"]),
            As("\"plain\""),
            "\"hash\"",
            "With \"hash\", no user's and no session's id is in the log and in spans: a session is shown \
             as `#` and the first 16 hex digits of the SHA-256 of its lock's name, the same on every \
             replica.",
        ),
    ],
};

/// `[tracing]`.
pub(super) const TELEMETRY: Section = Section {
    table: "tracing",
    about: "Where spans of each request, its wait, its lock and its backend are sent, joined to the \
            caller's `traceparent`.",
    options: &[
        Setting::fixed(
            "otlp",
            Text("URL"),
            Otherwise("nothing is sent"),
            "\"http://127.0.0.1:4318\"",
            "The collector, by OTLP over HTTP. Headers that it asks for stand in the environment \
             variable `OTEL_EXPORTER_OTLP_HEADERS`.",
        ),
        Setting::fixed(
            "ca_file",
            Text("path"),
            Otherwise("only the public ones"),
            "\"/etc/seriatim/ca.pem\"",
            "Certificate authorities, in PEM, that a collector with https may have besides the public \
             ones.",
        ),
        Setting::fixed(
            "service",
            Text("name"),
            As("\"seriatim\""),
            "\"chat-proxy\"",
            "The name that the spans go under. With `otlp`.",
        ),
    ],
};
