//! The page at `/` of the admin interface, as an operator's browser has it (`tests/clients/page_browser.js`):
//! it shows what is, does what it is told after a question, and asks nobody else.
//!
//! The browser's script sends the turns itself and prints what it saw as one line of JSON; whether
//! that is right is said here. How it looks is for people to see.

use std::net::SocketAddr;

use serde_json::{Value, json};
use seriatim::app::{self, RunningApp};
use seriatim::config::Config;
use tempfile::TempDir;

use crate::clients::{Backend, Client};
use crate::support::client::{Client as Connection, Request};
use crate::support::redis::Redis;

/// A replica with Redis, and an agent behind it.
struct Scene {
    redis: Redis,
    running: RunningApp,
    _agent: Backend,
    _folder: TempDir,
}

const TOKEN: &str = "a-token-of-the-tests";

/// Whether a turn waits is for its request to say.
const ROUTES: &str = r#"
[[routes]]
name = "refusing"
path = "/chat"
headers = { x-way = "refuse" }
session_id = ["{body:/session_id}"]
user_id = ["{body:/user_id}"]

[[routes]]
name = "waiting"
path = "/chat"
headers = { x-way = "wait" }
session_id = ["{body:/session_id}"]
user_id = ["{body:/user_id}"]
blocking = true
"#;

// === impl Scene ===

impl Scene {
    async fn set(token: Option<&str>) -> Self {
        let (redis, agent) = tokio::join!(Redis::start(), Backend::start("page_backend.py"));
        let folder = TempDir::new().expect("a folder for the token");
        let file = folder.path().join("token");
        let token_file = token.map(|token| {
            std::fs::write(&file, token).expect("it can be written");
            format!("token_file = {:?}\n", file.display().to_string())
        });
        let text = format!(
            "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n{}\
             [store]\nurl = \"{}\"\ninstance = \"replica-1\"\n{ROUTES}",
            agent.url(),
            token_file.unwrap_or_default(),
            redis.url(),
        );
        let config = match Config::read("test", &text, &Vec::new()) {
            Ok(config) => config,
            Err(problems) => panic!("{problems}\n{text}"),
        };
        let running = app::start(config).expect("a free port and a few threads");
        Self {
            redis,
            running,
            _agent: agent,
            _folder: folder,
        }
    }

    fn admin(&self) -> SocketAddr {
        self.running.admin_addr()
    }

    /// What the operator's browser sees; nothing of it may be wrong, or from elsewhere.
    async fn see(&self, what: &str, token: Option<&str>) -> Value {
        let admin = format!("http://{}", self.admin());
        let proxy = self.running.proxy_addr().tcp().expect("it listens on TCP");
        let proxy = format!("http://{proxy}");
        let mut arguments = vec![&*proxy, what];
        arguments.extend(token);
        let saw = Client("page_browser.js").call(&admin, &arguments).await;
        assert_eq!(
            saw["wrong"],
            json!([]),
            "a browser has nothing to complain of"
        );
        let elsewhere = format!("http://elsewhere.test:{}", self.admin().port());
        let own = if what == "stranger" { elsewhere } else { admin };
        assert_eq!(saw["asked"], json!([own]), "the page asks its replica only");
        saw
    }
}

// === tests ===

#[tokio::test]
async fn the_page_may_do_nothing_that_it_needs_not() {
    let scene = Scene::set(Some(TOKEN)).await;
    let mut operator = Connection::connect(scene.admin()).await;
    let page = operator.get("/").await;
    assert_eq!(page.status, 200, "the page itself is open: it has no data");
    let of = |name| page.header(name).unwrap_or_default();
    for part in [
        "default-src 'none'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(
            of("content-security-policy").contains(part),
            "its policy is strict: {part} in {}",
            of("content-security-policy")
        );
    }
    assert_eq!(of("referrer-policy"), "no-referrer", "it tells nobody");
    assert_eq!(of("x-content-type-options"), "nosniff", "it is a page");
    assert_eq!(
        of("cache-control"),
        "no-cache",
        "another version has another page"
    );
    let posted = operator.call(&Request::post("/")).await;
    assert_eq!(posted.status, 405, "it can be looked at only");
}

#[tokio::test]
async fn the_page_shows_nothing_without_the_token_and_keeps_it_in_its_tab() {
    let scene = Scene::set(Some(TOKEN)).await;
    let saw = scene.see("token", Some(TOKEN)).await;
    let url = format!("http://{}/", scene.admin());
    let nowhere = json!([{}, {}, url, ""]);
    assert_eq!(
        saw["without"],
        json!([false, "token", ""]),
        "who has no token sees nothing and is asked for it"
    );
    assert_eq!(
        saw["wrong_token"],
        json!([false, nowhere]),
        "another token opens nothing, and isn't kept"
    );
    let kept = json!([{"seriatim.token": TOKEN}, {}, url, ""]);
    assert_eq!(
        saw["right"], kept,
        "the right one is in the tab's own storage and nowhere else"
    );
    assert_eq!(saw["reloaded"], false, "where a reload finds it");
    assert_eq!(
        saw["forgotten"],
        json!([false, nowhere]),
        "and from where it goes when it is to be forgotten"
    );
}

#[tokio::test]
async fn the_page_shows_a_turn_its_line_and_its_refusals_and_sees_it_go() {
    let scene = Scene::set(Some(TOKEN)).await;
    let saw = scene.see("watch", Some(TOKEN)).await;
    assert_eq!(
        saw["empty"], "No session is held",
        "an empty page says what that means"
    );
    assert_eq!(saw["rows"], 2, "each held session is there, and once");
    let cells = saw["cells"].as_array().expect("cells");
    let cell = |at: usize| cells[at].as_str().unwrap_or_default();
    assert_eq!(
        (cell(0), cell(3), cell(4), cell(6)),
        ("u1 / watched", "waiting", "replica-1", "1"),
        "a session says whose it is, its route, its holder, and how many wait: {cells:?}"
    );
    assert!(
        cell(1).ends_with('s') && cell(2).contains('m') && !cell(5).is_empty(),
        "and its age, the time left, and its request: {cells:?}"
    );
    assert_eq!(saw["instance"], "replica-1", "the page says whom it asks");
    assert_eq!(saw["store"], "Redis, up", "and how its store is");
    assert_eq!(
        (&saw["found"], &saw["foundEvents"], &saw["notFound"]),
        (
            &json!(["another"]),
            &json!("No refusal matches"),
            &json!("No locked session matches")
        ),
        "a search finds sessions and refusals, whatever the case, and says when it finds none"
    );
    assert_eq!(
        saw["foundByKey"],
        json!(["watched"]),
        "and what a refusal's text says finds its session"
    );
    assert_eq!(
        saw["event"][0], "429 session_busy",
        "a refusal says what it was"
    );
    assert!(
        saw["event"][1]
            .as_str()
            .is_some_and(|why| why.contains("blocking = false")),
        "and why: {}",
        saw["event"]
    );
    assert_eq!(saw["queue"], json!(["waiting"]), "who waits is shown");
    let detail = saw["detail"].as_array().expect("a list");
    assert_eq!(
        detail[..3],
        [
            json!("u1"),
            json!("watched"),
            json!("lock:session:u1:watched")
        ],
        "a session's ids and key are shown whole"
    );
    assert_eq!(
        saw["copied"], "lock:session:u1:watched",
        "and the key can be copied"
    );
    let whole = json!({"end": "whole", "pieces": 3});
    assert_eq!(
        (&saw["first"], &saw["second"]),
        (&json!([200, whole, 429]), &whole),
        "nobody's turn is touched by being looked at"
    );
}

#[tokio::test]
async fn the_page_releases_and_interrupts_after_a_question() {
    let scene = Scene::set(Some(TOKEN)).await;
    let saw = scene.see("act", Some(TOKEN)).await;
    assert_eq!(
        saw["question"],
        json!([
            "Force release this session?",
            "lock:session:u1:held",
            "cancel"
        ]),
        "a force release is asked about, and doing nothing is what is offered first"
    );
    assert_eq!(
        saw["afterCancel"],
        json!(["held", "release"]),
        "who says no has done nothing, and is where they were"
    );
    assert_eq!(
        saw["released"],
        json!([{"end": "cut"}, true]),
        "the turn whose lock is taken away has its answer cut"
    );
    let whole = json!([200, {"end": "whole", "pieces": 3}]);
    assert_eq!(saw["next"], whole, "and the session is free");
    assert_eq!(
        (&saw["interruptQuestion"], &saw["interrupted"]),
        (&json!("Interrupt this turn?"), &json!({"end": "cut"})),
        "a turn is interrupted after a question"
    );
    assert_eq!(saw["after"], whole, "which frees its session");
}

#[tokio::test]
async fn the_page_is_used_with_the_keyboard_alone() {
    let scene = Scene::set(None).await;
    let saw = scene.see("keyboard", None).await;
    assert_eq!(
        (&saw["search"], &saw["typed"]),
        (&json!("search"), &json!("by-hand")),
        "a slash goes to the search, and isn't typed"
    );
    assert_eq!(saw["visible"], "solid", "the focus can be seen");
    assert_eq!(saw["stays"], true, "and stays while the page is filled");
    assert_eq!(
        saw["round"],
        json!(["detail"]),
        "a dialog keeps the focus in it"
    );
    assert_eq!(
        (&saw["question"], &saw["back"]),
        (&json!("cancel"), &json!("release")),
        "and gives it back to where it was"
    );
    assert_eq!(
        saw["after"], true,
        "after the release, whose row is gone, the next one has it"
    );
}

#[tokio::test]
async fn the_page_shows_hostile_ids_as_text() {
    let scene = Scene::set(None).await;
    let saw = scene.see("hostile", None).await;
    let mut shown = vec![
        "<img src=x onerror=document.title='pwned'>".to_owned(),
        r"\u{202e}gnp.exe\u{2028}second line".to_owned(),
        "长".repeat(170),
        "..".into(),
        "a/b?c#d%2e".into(),
        "😀👩\u{200d}👩\u{200d}👧".into(),
    ];
    shown.sort_by(|a, b| a.encode_utf16().cmp(b.encode_utf16()));
    assert_eq!(
        saw["shown"],
        json!(shown),
        "an id is shown as what it is, and what can't be seen of it is spelt"
    );
    assert_eq!(
        saw["details"],
        json!(vec!["held"; shown.len()]),
        "and each such session can be looked at"
    );
    assert_eq!(saw["markup"], json!([0, false]), "no id becomes markup");
    assert_eq!(
        saw["overflow"],
        json!([false, false]),
        "none breaks the page's width, wide or narrow"
    );
}

#[tokio::test]
async fn the_page_speaks_two_languages_by_day_and_night_and_says_when_it_is_blind() {
    let scene = Scene::set(None).await;
    let saw = scene.see("looks", None).await;
    assert_eq!(
        (&saw["zh"][0], &saw["zh"][1]),
        (&json!("zh-CN"), &json!("会话")),
        "it speaks its reader's language"
    );
    assert_eq!(
        (&saw["en"][0], &saw["en"][1]),
        (&json!("en"), &json!("Sessions")),
        "or the one they choose"
    );
    assert_eq!(saw["remembered"], saw["en"], "and remembers it");
    assert_eq!(
        saw["words"],
        json!([true, [], []]),
        "every text is there in both languages, with the same values in it"
    );
    let (day, night) = (&saw["zh"][2], &saw["dark"]);
    assert_ne!(day, night, "it is dark where the system is");
    assert_eq!(
        (&saw["light"], &saw["chosenDark"]),
        (day, night),
        "or as one chooses"
    );
    assert_eq!(saw["unnamed"], json!([]), "all that can be used has a name");
    assert_eq!(
        saw["offline"],
        json!(["No connection", "frozen"]),
        "what is old isn't shown as if it were live"
    );
    assert_eq!(saw["online"], "Live", "and then is live again");
}

#[tokio::test]
async fn the_page_says_why_it_is_refused_without_a_token() {
    let scene = Scene::set(None).await;
    let saw = scene.see("stranger", None).await;
    let said = saw["said"].as_str().expect("a text");
    assert!(
        said.contains("403")
            && said.contains("elsewhere.test")
            && said.contains("admin.token_file"),
        "who is refused is told what they came as, and what to do: {said}"
    );
    assert_eq!(saw["data"], false, "and sees nothing");
}

#[tokio::test]
async fn the_page_lists_a_thousand_sessions_and_draws_those_that_are_read() {
    let scene = Scene::set(None).await;
    for number in 0..1200 {
        let key = format!("lock:session:u:s{number}");
        let taken = ["SET", &key, "somebody's", "PX", "600000"];
        scene.redis.command(&taken).await;
    }
    let saw = scene.see("many", None).await;
    assert_eq!(saw["first"][0], 100, "as many are drawn as anybody reads");
    assert!(
        saw["first"][1]
            .as_str()
            .is_some_and(|words| words.starts_with("100 of 1,")),
        "and it says how many there are: {}",
        saw["first"]
    );
    assert_eq!(saw["keys"], 200, "more come when they are asked for");
    assert_eq!(
        (&saw["found"], &saw["holder"]),
        (&json!(["s1100"]), &json!("not Seriatim")),
        "a search looks at all of them"
    );
    assert_eq!(
        saw["interrupt"], true,
        "who isn't Seriatim can't be interrupted"
    );
}
