//! The table "Who may use whom", kept true: reads the paths that the code names.
//!
//! It knows paths (`a::b`, also in braces), line comments and where a file's unit tests begin, and
//! nothing else of Rust. A file's unit tests may name what they like.

use std::fs;
use std::path::{Path, PathBuf};

mod shape;

/// Which modules each module may name. A new module needs a row of its own.
const MAY_USE: &[(&str, &[&str])] = &[
    (
        "cli",
        // Of the proxy, `explain` alone: what a request comes to is said by the code that carries it.
        // Of redact, the switch: it is an option of the log.
        // Of lock, what `seriatim locks` asks for, and is answered.
        // Of outcome, the error codes.
        &[
            "app", "config", "redact", "lock", "logging", "listen", "drain", "outcome", "reload",
            "proxy",
        ],
    ),
    (
        "app",
        &[
            "admin", "answer", "budget", "config", "drain", "journal",
            // Which keys are locks, for the operator.
            "key", "listen", "lock", "metrics", "proxy", "reload", "logging", "trace",
        ],
    ),
    // Tells what has happened lately, and the keys it happened to.
    (
        "admin",
        &[
            "drain", "journal", "key", "lock", "metrics", "redact", "secret",
        ],
    ),
    // Whose answers they are: a session's, and a turn's.
    ("answer", &["cipher", "key", "lock", "metrics"]),
    // Which text format a client asks for.
    ("metrics", &["http_syntax", "outcome"]),
    ("outcome", &[]),
    ("drain", &[]),
    // Notes the keys of what was refused or lost, and samples what is counted.
    ("journal", &["key", "metrics", "outcome"]),
    // Counts what became of each new configuration.
    ("reload", &["config", "metrics"]),
    ("listen", &["drain", "http1", "http2", "service", "wire"]),
    (
        "http1",
        &["deadline", "header_names", "http_syntax", "service", "wire"],
    ),
    // The rules for header fields are those of HTTP/1.
    ("http2", &["deadline", "http1", "service", "wire"]),
    // Counts the memory of large heads.
    (
        "service",
        &["budget", "deadline", "drain", "http_syntax", "wire"],
    ),
    ("http_syntax", &[]),
    ("header_names", &[]),
    ("wire", &["deadline"]),
    ("client_tls", &[]),
    ("pem_files", &["secret"]),
    ("dial", &[]),
    (
        "proxy",
        &[
            "answer",
            "budget",
            "config",
            "key",
            "lock",
            "drain",
            "listen",
            "wire",
            "deadline",
            "client_tls",
            "dial",
            "header_names",
            "http_syntax",
            // Tells of the end of every request.
            "journal",
            "logging",
            "metrics",
            "outcome",
            "redact",
            "timestamp",
            "trace",
        ],
    ),
    ("key", &["redact"]),
    ("redact", &[]),
    ("budget", &[]),
    ("deadline", &[]),
    // The files of the password and of certificates are read for each connection to the store.
    (
        "lock",
        &[
            "client_tls",
            "deadline",
            "dial",
            "key",
            "metrics",
            "outcome",
            "pem_files",
            "redact",
            "secret",
            "timestamp",
        ],
    ),
    // A secret's file is looked at when the configuration is read, and read when it is asked for.
    // Of lock, the options of `[lock]`, which it reads.
    ("config", &["cipher", "key", "lock", "pem_files", "secret"]),
    ("secret", &[]),
    // A key's file is a secret.
    ("cipher", &["secret"]),
    ("logging", &["timestamp"]),
    ("timestamp", &[]),
    // What a request's spans say of its route and its session, and where they are sent.
    (
        "trace",
        &["client_tls", "config", "dial", "key", "outcome", "redact"],
    ),
];

/// What is named in a few places only: whatever is below the path is named in files whose name
/// begins so.
const NAMED_ONLY_IN: &[(&str, &[&str])] = &[
    ("redis", &["src/lock/redis"]),
    ("crate::lock::redis", &["src/app/stores.rs", "src/lock"]),
    ("crate::lock::memory", &["src/app/stores.rs", "src/lock"]),
    ("figment", &["src/config/reader"]),
    // NO_COLOR is no option: every program has it.
    ("std::env", &["src/config/reader.rs", "src/logging.rs"]),
    // A host's other addresses are tried in one place. The commands call this machine alone.
    ("TcpStream::connect", &["src/dial.rs", "src/cli"]),
    ("hyper::server", &["src/http1", "src/http2"]),
    (
        "crate::proxy",
        &["src/proxy", "src/app", "src/cli/explain.rs"],
    ),
    // The collector of spans is no backend: one request at a time, by a thread of its own.
    (
        "hyper::client",
        &["src/proxy/forward", "src/trace/collector.rs"],
    ),
    // Of the command line, only the demo serves anything by itself: its agent.
    (
        "crate::listen",
        &["src/listen", "src/app", "src/proxy", "src/cli/demo.rs"],
    ),
    (
        "crate::drain",
        &[
            "src/drain",
            "src/admin",
            "src/listen",
            "src/service",
            "src/app",
            "src/proxy",
            "src/cli/demo.rs",
        ],
    ),
];

/// What children of `proxy` may name of each other.
const OF_SIBLINGS: &[(&str, &str)] = &[
    ("acquire", "crate::proxy::body_timer::BodyLimits"),
    ("acquire", "crate::proxy::forward"),
    ("acquire", "crate::proxy::keep_alive"),
    ("acquire", "crate::proxy::record::RequestRecord"),
    ("acquire", "crate::proxy::refusal"),
    ("body", "crate::proxy::stream"),
    ("exchange", "crate::proxy::end"),
    ("exchange", "crate::proxy::forward"),
    ("exchange", "crate::proxy::orphan::Orphans"),
    ("exchange", "crate::proxy::record::RequestRecord"),
    ("exchange", "crate::proxy::refusal::Refusal"),
    ("explain", "crate::proxy::forward::headers"),
    ("explain", "crate::proxy::keep_alive::reads_events"),
    ("explain", "crate::proxy::refusal::Refusal"),
    // `explain` calls `session::read` as the proxy does, with the same arguments.
    ("explain", "crate::proxy::body_timer::BodyLimits"),
    ("explain", "crate::proxy::route::Candidates"),
    ("explain", "crate::proxy::route::Router"),
    ("explain", "crate::proxy::session"),
    ("keep_alive", "crate::proxy::record::CommentCounter"),
    ("keep_alive", "crate::proxy::refusal"),
    ("keep_alive", "crate::proxy::stream"),
    ("orphan", "crate::proxy::end"),
    ("orphan", "crate::proxy::forward"),
    ("orphan", "crate::proxy::record::RequestRecord"),
    ("record", "crate::proxy::end::End"),
    ("record", "crate::proxy::refusal"),
    ("record", "crate::proxy::session::NeededLock"),
    ("record", "crate::proxy::session::SessionError"),
    ("refusal", "crate::proxy::forward::ForwardError"),
    ("refusal", "crate::proxy::session::SessionError"),
    ("rejected", "crate::proxy::record"),
    ("rejected", "crate::proxy::refusal"),
    ("stream", "crate::proxy::end"),
    ("stream", "crate::proxy::forward::BackendBody"),
    ("stream", "crate::proxy::orphan"),
    ("stream", "crate::proxy::record::RequestRecord"),
    ("stream", "crate::proxy::silence"),
    ("tunnel", "crate::proxy::end"),
    ("tunnel", "crate::proxy::forward::BackendBody"),
    ("tunnel", "crate::proxy::record::RequestRecord"),
    ("forward", "crate::proxy::body_timer"),
    ("replay", "crate::proxy::acquire"),
    ("replay", "crate::proxy::cors::RequestOrigin"),
    ("replay", "crate::proxy::end::End"),
    ("replay", "crate::proxy::forward::OutgoingBody"),
    ("replay", "crate::proxy::keep_alive::unfit_response"),
    ("replay", "crate::proxy::record::RequestRecord"),
    ("replay", "crate::proxy::refusal::Refusal"),
    ("replay", "crate::proxy::refusal::UnfitResponse"),
    ("replay", "crate::proxy::silence"),
    ("replay", "crate::proxy::stream::ResponseAborted"),
    ("respond", "crate::proxy::body_timer::BodyLimits"),
    ("respond", "crate::proxy::cors::RequestOrigin"),
    ("respond", "crate::proxy::end"),
    ("respond", "crate::proxy::exchange"),
    ("respond", "crate::proxy::forward"),
    ("respond", "crate::proxy::keep_alive"),
    ("respond", "crate::proxy::orphan::Orphans"),
    ("respond", "crate::proxy::record::RequestRecord"),
    ("respond", "crate::proxy::refusal::Refusal"),
    ("respond", "crate::proxy::silence"),
    ("respond", "crate::proxy::stream::GuardedBody"),
    ("respond", "crate::proxy::tunnel::TunnelEndpoints"),
    ("session", "crate::proxy::body_timer"),
    ("session", "crate::proxy::route::Candidates"),
    ("session", "crate::proxy::route::PathAmbiguity"),
    ("session", "crate::proxy::route::RouteMatch"),
];

/// What the stores may not know: who waits for an answer, and the lease of one who holds.
const ABOVE_THE_STORES: &[&str] = &[
    "extender",
    "guard",
    "instance",
    "queue",
    "locks",
    "heartbeat",
    "releaser",
    "registry",
    "background",
    "claim_state",
    "Locks",
    "LockGuard",
];

/// The longest a file in `src` may be, in lines: more than that nobody reads at once.
const LONGEST: usize = 600;

/// Files that are longer than that, and how long at most, until they are split.
const STILL_LONGER: &[(&str, usize)] = &[
    // Cases, one below the other.
    ("src/proxy/session/json/tests.rs", 1260),
];

/// A source file, by its path from the repository's top.
struct File {
    path: String,
    text: String,
    /// Its module, as `["crate", "proxy", "route"]`.
    module: Vec<String>,
}

// === impl File ===

impl File {
    /// All below a folder, in order.
    fn all(folder: &str) -> Vec<Self> {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        let mut folders = vec![top.join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("the folder is there") {
                let path = entry.expect("it can be listed").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|ending| ending == "rs") {
                    files.push(Self::read(top, &path));
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        assert!(!files.is_empty(), "there is code in {folder}");
        files
    }

    fn read(top: &Path, path: &PathBuf) -> Self {
        let text = fs::read_to_string(path).expect("it can be read");
        let path = path.strip_prefix(top).expect("it is below the top");
        let path = path.to_str().expect("its name is text").to_owned();
        let inner = path.trim_end_matches(".rs").split('/').skip(1);
        let inner = inner.filter(|name| !matches!(*name, "lib" | "main" | "mod"));
        let module = ["crate"].into_iter().chain(inner).map(str::to_owned);
        Self {
            module: module.collect(),
            path,
            text,
        }
    }

    /// The top module that it is part of; `None` for the crate's two roots.
    fn top(&self) -> Option<&str> {
        self.module.get(1).map(|name| &**name)
    }

    /// The code without comments and unit tests.
    fn code(&self) -> String {
        if self.path.ends_with("/tests.rs") {
            return String::new();
        }
        let lines = self.text.lines();
        let code = lines.take_while(|line| !line.starts_with("#[cfg(test)]"));
        let uncommented = code.map(|line| match line.find("//") {
            // `http://` in a text is no comment.
            Some(at) if at == 0 || line[..at].ends_with(' ') => &line[..at],
            _ => line,
        });
        uncommented.collect::<Vec<_>>().join("\n")
    }

    /// All paths of more than one step that it names, from the crate's root where that can be told.
    fn paths(&self) -> Vec<String> {
        let (code, mut paths) = (self.code(), Vec::new());
        let mut rest = &*code;
        while let Some(start) = rest.find(|c| is_name(c) || c == ':') {
            let text = &rest[start..];
            rest = read_path(text, "", &mut paths);
            if rest.len() == text.len() {
                rest = &text[1..];
            }
        }
        let paths = paths
            .iter()
            .map(|path| path.trim_matches(':'))
            .filter(|path| path.contains("::"));
        paths.map(|path| self.resolve(path)).collect()
    }

    /// Takes `super` and `self` out of a path.
    fn resolve(&self, path: &str) -> String {
        let mut steps: Vec<_> = path.split("::").collect();
        let mut module: Vec<_> = self.module.iter().map(|name| &**name).collect();
        match steps[0] {
            "self" => drop(steps.remove(0)),
            "super" => {
                while steps.first() == Some(&"super") {
                    steps.remove(0);
                    module.pop();
                }
            }
            _ => return path.to_owned(),
        }
        module.extend(steps);
        module.join("::")
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Reads the path at the start of `text`, which follows `before`; one in braces is several. Gives
/// what stands behind it.
fn read_path<'t>(text: &'t str, before: &str, paths: &mut Vec<String>) -> &'t str {
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = format!("{before}{name}");
    let Some(behind) = rest.strip_prefix("::") else {
        paths.push(path);
        return rest;
    };
    let before = format!("{path}::");
    let Some(mut rest) = behind.strip_prefix('{') else {
        return read_path(behind, &before, paths);
    };
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if let Some(behind) = rest.strip_prefix('}') {
            return behind;
        }
        rest = read_path(rest, &before, paths);
        // What follows `as` is no part of the path.
        match rest.find([',', '}']) {
            Some(end) => rest = &rest[end..],
            None => return "",
        }
    }
}

/// Whether a path is this one, or goes on from it.
fn is_below(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// What stands directly below `outer` in a path.
fn step_below<'p>(path: &'p str, outer: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(outer)?.strip_prefix("::")?;
    rest.split("::").next()
}

/// Fails with every breach of a rule at once.
fn none(breaches: &[String], rule: &str) {
    assert!(breaches.is_empty(), "{rule}:\n{}", breaches.join("\n"));
}

// === tests ===

#[test]
fn the_reader_of_paths_sees_them_all() {
    let file = File {
        path: "src/proxy/route.rs".into(),
        module: ["crate", "proxy", "route"].map(str::to_owned).into(),
        text: "use std::{env, io::{self, Write as _}};\n\
               use ::redis::Cmd; // hyper::client\n\
               use super::stream::{End, Ending};\n\
               pub(in crate::proxy) fn f(a: crate::lock::Held) -> <A as b::C>::D { Vec::<u8>::new() }\n\
               let u = \"http://x\"; super::super::key::fill(self::x::Y, figment::Z);\n\
               #[cfg(test)]\nmod tests { use crate::app::start; }\n"
            .into(),
    };
    assert_eq!(
        file.paths(),
        [
            "std::env",
            "std::io::self",
            "std::io::Write",
            "redis::Cmd",
            "crate::proxy::stream::End",
            "crate::proxy::stream::Ending",
            "crate::proxy",
            "crate::lock::Held",
            "b::C",
            "crate::key::fill",
            "crate::proxy::route::x::Y",
            "figment::Z",
        ],
        "the rules below look at every path that the code names, and at no comment and no test"
    );
}

#[test]
fn modules_use_only_whom_they_may() {
    let files = File::all("src");
    let mut breaches = Vec::new();
    for file in &files {
        let Some(top) = file.top() else { continue };
        let Some((_, may)) = MAY_USE.iter().find(|(module, _)| *module == top) else {
            breaches.push(format!("{} is in no row of the table", file.path));
            continue;
        };
        for path in file.paths() {
            let Some(used) = step_below(&path, "crate") else {
                continue;
            };
            if used != top && !may.contains(&used) {
                breaches.push(format!("{} names {path}", file.path));
            }
        }
    }
    none(&breaches, "left may use right, and nobody else");
    for (module, _) in MAY_USE {
        assert!(
            files.iter().any(|file| file.top() == Some(module)),
            "a row is for a module that there is: {module}"
        );
    }
}

#[test]
fn main_is_thin() {
    let files = File::all("src");
    let main = files.iter().find(|file| file.path == "src/main.rs");
    let paths = main.expect("there is a binary").paths();
    let own: Vec<_> = paths
        .iter()
        .filter(|path| is_below(path, "seriatim"))
        .collect();
    assert_eq!(
        own,
        ["seriatim::cli::main"],
        "the binary calls the command line and does nothing else"
    );
}

#[test]
fn what_is_named_in_one_place_is_named_nowhere_else() {
    let mut breaches = Vec::new();
    for file in File::all("src") {
        for path in file.paths() {
            for (named, places) in NAMED_ONLY_IN {
                let is_there = places.iter().any(|place| file.path.starts_with(place));
                if is_below(&path, named) && !is_there {
                    let places = places.join(", ");
                    breaches.push(format!("{} names {path}, for {places} only", file.path));
                }
            }
            let is_proxys = file.top() == Some("proxy");
            let of_listen = path.strip_prefix("crate::listen::").unwrap_or(&path);
            let is_requests = matches!(
                of_listen,
                "ClientBody"
                    | "ClientConnection"
                    | "RejectedRequest"
                    | "Serve"
                    | "BadRequest"
                    | "InterimResponses"
                    // Explains what is refused before the proxy sees it.
                    | "check_head"
            );
            if is_proxys && is_below(&path, "crate::listen") && !is_requests {
                breaches.push(format!("{} names {path}, not a request's", file.path));
            }
        }
    }
    none(&breaches, "each thing is known in its place alone");
}

#[test]
fn the_proxys_children_do_not_use_each_other() {
    let files = File::all("src");
    let child = |file: &File| match &*file.module {
        [_, proxy, child, ..] if proxy == "proxy" => Some(child.clone()),
        _ => None,
    };
    let children: Vec<_> = files.iter().filter_map(child).collect();
    let mut breaches = Vec::new();
    for file in &files {
        let Some(own) = child(file) else { continue };
        for path in file.paths() {
            let is_siblings = step_below(&path, "crate::proxy")
                .is_some_and(|used| *used != own && children.iter().any(|child| child == used));
            let may = OF_SIBLINGS
                .iter()
                .any(|(who, what)| *who == own && is_below(&path, what));
            if is_siblings && !may {
                breaches.push(format!("{} names {path}", file.path));
            }
        }
    }
    none(
        &breaches,
        "proxy.rs joins its children; they don't know each other",
    );
}

#[test]
fn the_stores_know_neither_line_nor_lease() {
    let mut breaches = Vec::new();
    for file in File::all("src") {
        let is_store = ["src/lock/memory", "src/lock/redis"]
            .iter()
            .any(|store| file.path.starts_with(store));
        for path in file.paths() {
            let used = step_below(&path, "crate::lock");
            if is_store && used.is_some_and(|used| ABOVE_THE_STORES.contains(&used)) {
                breaches.push(format!("{} names {path}", file.path));
            }
        }
    }
    none(
        &breaches,
        "a store knows claims and answers, and nothing above",
    );
}

#[test]
fn every_file_opens_with_what_it_owns() {
    let all = ["src", "tests"].map(File::all).into_iter().flatten();
    let breaches: Vec<_> = all
        .filter(|file| !file.text.starts_with("//! "))
        .map(|file| file.path)
        .collect();
    none(&breaches, "a file opens with //!");
}

#[test]
fn no_file_is_too_long_to_be_read() {
    let breaches: Vec<_> = File::all("src")
        .iter()
        .filter_map(|file| {
            let known = STILL_LONGER.iter().find(|(path, _)| *path == file.path);
            let most = known.map_or(LONGEST, |(_, lines)| *lines);
            let lines = file.text.lines().count();
            (lines > most).then(|| format!("{} has {lines}", file.path))
        })
        .collect();
    none(&breaches, "a file in src has at most 600 lines");
}
