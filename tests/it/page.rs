//! The page at `/` of the admin interface, in a real browser (`tests/clients/page_browser.js`): it
//! shows the current state, acts after a confirmation, and sends requests to no other host.
//!
//! The browser's script sends the turns itself and prints what it saw as one line of JSON; the tests
//! check that line. Nothing tests how the page looks.

use std::net::SocketAddr;

use serde_json::{Value, json};
use seriatim::app::{self, RunningApp};
use seriatim::config::Config;
use seriatim::outcome::{LockLoss, Outcome};
use tempfile::TempDir;

use crate::clients::{Backend, Client};
use crate::support::client::{Client as Connection, Request};
use crate::support::redis::Redis;

/// A replica with Redis and an agent as its backend.
struct Scene {
    redis: Redis,
    running: RunningApp,
    _agent: Backend,
    _folder: TempDir,
}

const TOKEN: &str = "a-token-of-the-tests";

/// A header of the request says whether its turn waits.
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
            std::fs::write(&file, token).expect("the file is written");
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

    /// Runs the browser's script and returns what it saw; fails on a console error or a request to
    /// another host.
    async fn see(&self, what: &str, token: Option<&str>) -> Value {
        let admin = format!("http://{}", self.admin());
        let proxy = self
            .running
            .proxy_addr()
            .tcp()
            .expect("the proxy listens on TCP");
        let proxy = format!("http://{proxy}");
        let mut arguments = vec![&*proxy, what];
        arguments.extend(token);
        let saw = Client("page_browser.js").call(&admin, &arguments).await;
        assert_eq!(saw["wrong"], json!([]), "the browser reports no error");
        let elsewhere = format!("http://elsewhere.test:{}", self.admin().port());
        let own = if what == "stranger" { elsewhere } else { admin };
        assert_eq!(
            saw["asked"],
            json!([own]),
            "the page sends requests to its replica only"
        );
        saw
    }
}

// === tests ===

#[tokio::test]
async fn the_page_has_strict_security_headers() {
    let scene = Scene::set(Some(TOKEN)).await;
    let mut operator = Connection::connect(scene.admin()).await;
    let page = operator.get("/").await;
    assert_eq!(
        page.status, 200,
        "the page itself needs no token, as it has no data"
    );
    let header = |name| page.header(name).unwrap_or_default();
    for part in [
        "default-src 'none'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(
            header("content-security-policy").contains(part),
            "the content security policy contains {part}: {}",
            header("content-security-policy")
        );
    }
    assert_eq!(
        header("referrer-policy"),
        "no-referrer",
        "the page sends no referrer"
    );
    assert_eq!(
        header("x-content-type-options"),
        "nosniff",
        "browsers don't guess its type"
    );
    assert_eq!(
        header("cache-control"),
        "no-cache",
        "the browser revalidates the page"
    );
    let posted = operator.call(&Request::post("/")).await;
    assert_eq!(posted.status, 405, "the page takes no POST");
}

#[tokio::test]
async fn the_page_needs_the_token_and_stores_it_in_its_tab_only() {
    let scene = Scene::set(Some(TOKEN)).await;
    let saw = scene.see("token", Some(TOKEN)).await;
    let url = format!("http://{}/", scene.admin());
    let nowhere = json!([{}, {}, url, ""]);
    assert_eq!(
        saw["without"],
        json!([false, "token", ""]),
        "without a token the page shows nothing and asks for it"
    );
    assert_eq!(
        saw["wrong_token"],
        json!([false, nowhere]),
        "a wrong token shows nothing and isn't stored"
    );
    let kept = json!([{"seriatim.token": TOKEN}, {}, url, ""]);
    assert_eq!(
        saw["right"], kept,
        "the right token is in the session storage only"
    );
    assert_eq!(saw["reloaded"], false, "a reload finds the token");
    assert_eq!(
        saw["forgotten"],
        json!([false, nowhere]),
        "the token is removed on request"
    );
}

#[tokio::test]
async fn the_page_shows_a_turn_with_its_queue_and_its_refusals() {
    let scene = Scene::set(Some(TOKEN)).await;
    let saw = scene.see("watch", Some(TOKEN)).await;
    assert_eq!(
        saw["empty"], "No session is locked",
        "a page without sessions says so"
    );
    assert_eq!(saw["rows"], 2, "each held session has one row");
    let cells = saw["cells"].as_array().expect("cells");
    let cell = |at: usize| cells[at].as_str().unwrap_or_default();
    assert_eq!(
        (cell(0), cell(3), cell(4), cell(6)),
        ("u1 / watched", "waiting", "replica-1", "1"),
        "a row has user, session, route, holder and waiters: {cells:?}"
    );
    assert!(
        cell(1).ends_with('s') && cell(2).contains('m') && !cell(5).is_empty(),
        "a row has age, time left and request: {cells:?}"
    );
    assert_eq!(saw["instance"], "replica-1", "the page names its instance");
    assert_eq!(
        saw["store"], "Redis, up",
        "the page shows the state of the store"
    );
    assert_eq!(
        (&saw["found"], &saw["foundEvents"], &saw["notFound"]),
        (
            &json!(["another"]),
            &json!("No refusal matches"),
            &json!("No locked session matches")
        ),
        "a search ignores case, finds sessions and refusals, and says if it finds none"
    );
    assert_eq!(
        saw["foundByKey"],
        json!(["watched"]),
        "a session is found by the text of its refusal"
    );
    assert_eq!(
        saw["event"][0], "429 session_busy",
        "a refusal has its status and code"
    );
    assert!(
        saw["event"][1]
            .as_str()
            .is_some_and(|why| why.contains("blocking = false")),
        "a refusal has its reason: {}",
        saw["event"]
    );
    assert_eq!(saw["queue"], json!(["waiting"]), "waiters are shown");
    let detail = saw["detail"].as_array().expect("a list");
    assert_eq!(
        detail[..3],
        [
            json!("u1"),
            json!("watched"),
            json!("lock:session:u1:watched")
        ],
        "ids and key of a session are shown in full"
    );
    assert_eq!(
        saw["copied"], "lock:session:u1:watched",
        "the key can be copied"
    );
    let whole = json!({"end": "whole", "pieces": 3});
    assert_eq!(
        (&saw["first"], &saw["second"]),
        (&json!([200, whole, 429]), &whole),
        "watching a turn doesn't change it"
    );
}

#[tokio::test]
async fn the_page_releases_and_interrupts_after_a_confirmation() {
    let scene = Scene::set(Some(TOKEN)).await;
    let saw = scene.see("act", Some(TOKEN)).await;
    assert_eq!(
        saw["question"],
        json!([
            "Force release this session?",
            "lock:session:u1:held",
            "cancel"
        ]),
        "a force release needs a confirmation, and cancel has the focus"
    );
    assert_eq!(
        saw["afterCancel"],
        json!(["held", "release"]),
        "cancelling changes nothing and restores the focus"
    );
    assert_eq!(
        saw["released"],
        json!([{"end": "cut"}, true]),
        "a forced release cuts the response of the turn"
    );
    let whole = json!([200, {"end": "whole", "pieces": 3}]);
    assert_eq!(saw["next"], whole, "the session is free after the release");
    assert_eq!(
        (&saw["interruptQuestion"], &saw["interrupted"]),
        (&json!("Interrupt this turn?"), &json!({"end": "cut"})),
        "a turn is interrupted after a confirmation"
    );
    assert_eq!(
        saw["after"], whole,
        "the session is free after the interrupt"
    );
}

#[tokio::test]
async fn the_page_takes_a_waiter_out_after_a_confirmation() {
    let scene = Scene::set(Some(TOKEN)).await;
    let saw = scene.see("dequeue", Some(TOKEN)).await;
    assert_eq!(
        saw["queue"],
        json!([["1", "first"], ["2", "second"], ["3", ".."]]),
        "each waiter has its place and its request"
    );
    assert_eq!(
        saw["question"],
        json!([
            "Take this turn out of the queue?",
            [
                "lock:session:u1:held",
                "2",
                "replica-1",
                "waiting",
                "second"
            ],
            "cancel"
        ]),
        "a confirmation names the waiter, and cancel has the focus"
    );
    assert_eq!(saw["afterCancel"], 3, "cancelling changes nothing");
    let told = json!([409, "dequeued", "本轮对话已被管理员移出队列"]);
    assert_eq!(
        (&saw["out"], &saw["outToo"]),
        (&told, &told),
        "the client of a waiter that is taken out is told"
    );
    assert_eq!(
        saw["left"],
        json!([["1", "first"]]),
        "the others move up, and nobody else is taken out"
    );
    assert_eq!(
        saw["event"], "409 dequeued",
        "it is among the refusals of the replica"
    );
    assert_eq!(
        saw["late"],
        "This request no longer waits: it is over, or has the lock now. Nothing was done.",
        "a waiter that got the lock in the meantime keeps it"
    );
    let whole = json!([200, {"end": "whole", "pieces": 3}]);
    assert_eq!(
        (&saw["held"], &saw["first"]),
        (&whole, &whole),
        "the running turn and the other waiter go on"
    );
}

#[tokio::test]
async fn the_page_works_with_the_keyboard_alone() {
    let scene = Scene::set(None).await;
    let saw = scene.see("keyboard", None).await;
    assert_eq!(
        (&saw["search"], &saw["typed"]),
        (&json!("search"), &json!("by-hand")),
        "a slash moves the focus to the search, and isn't typed"
    );
    assert_eq!(saw["visible"], "solid", "the focus is visible");
    assert_eq!(saw["stays"], true, "the focus stays while the page updates");
    assert_eq!(saw["round"], json!(["detail"]), "a dialog keeps the focus");
    assert_eq!(
        (&saw["question"], &saw["back"]),
        (&json!("cancel"), &json!("release")),
        "a dialog returns the focus when it closes"
    );
    assert_eq!(
        saw["after"], true,
        "after a release the next row has the focus"
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
        "an id is shown as text, with invisible characters escaped"
    );
    assert_eq!(
        saw["details"],
        json!(vec!["held"; shown.len()]),
        "each such session has a detail view"
    );
    assert_eq!(saw["markup"], json!([0, false]), "no id becomes markup");
    assert_eq!(
        saw["overflow"],
        json!([false, false, false]),
        "no id overflows the page, wide or narrow"
    );
}

#[tokio::test]
async fn the_page_has_two_languages_two_themes_and_an_offline_state() {
    let scene = Scene::set(None).await;
    let saw = scene.see("looks", None).await;
    assert_eq!(
        (&saw["zh"][0], &saw["zh"][1]),
        (&json!("zh-CN"), &json!("会话")),
        "the page uses the browser's language"
    );
    assert_eq!(
        (&saw["en"][0], &saw["en"][1]),
        (&json!("en"), &json!("Sessions")),
        "the page uses the chosen language"
    );
    assert_eq!(
        saw["remembered"], saw["en"],
        "the page remembers the chosen language"
    );
    assert_eq!(
        saw["words"],
        json!([true, [], []]),
        "every text exists in both languages, with the same placeholders"
    );
    let has = |language: usize, kind: &str, text: &str| {
        let texts = saw["codes"][language][kind].as_array().expect("a list");
        texts.iter().any(|own| own == text)
    };
    for outcome in Outcome::ALL.iter().filter(|one| one.is_refusal_or_loss()) {
        let code = outcome.as_str();
        assert!(
            has(0, "why", code) && has(1, "why", code) && has(1, "code", code),
            "the page explains {code} in both languages, and names it in Chinese"
        );
    }
    for loss in LockLoss::ALL {
        let reason = loss.to_string();
        assert!(has(1, "reason", &reason), "{reason:?} has a Chinese text");
    }
    let (day, night) = (&saw["zh"][2], &saw["dark"]);
    assert_ne!(day, night, "the theme follows the system");
    assert_eq!(
        (&saw["light"], &saw["chosenDark"]),
        (day, night),
        "the page uses the chosen theme"
    );
    assert_eq!(
        saw["unnamed"],
        json!([]),
        "every control has an accessible name"
    );
    assert_eq!(
        saw["offline"],
        json!(["No connection", "frozen"]),
        "stale data is marked when the connection is lost"
    );
    assert_eq!(
        saw["online"], "Live",
        "the page is live again after the connection returns"
    );
}

#[tokio::test]
async fn the_page_fits_a_small_phone_and_says_the_zone_of_its_times() {
    let scene = Scene::set(Some(TOKEN)).await;
    let saw = scene.see("phone", Some(TOKEN)).await;
    assert_eq!(
        saw["wide"],
        json!([]),
        "nothing is wider than 360 pixels, in either language"
    );
    assert_eq!(
        (&saw["listed"], &saw["title"]),
        (&json!("会话繁忙"), &json!("429 会话繁忙 (session_busy)")),
        "a code has a Chinese text, and can still be found in the docs"
    );
    let text = |name: &str| saw[name].as_str().unwrap_or_default();
    assert!(
        text("caption").ends_with("时区：GMT+8"),
        "the page says its zone: {}",
        text("caption")
    );
    assert!(
        text("time").contains(" GMT+8 (") && text("time").ends_with("Z)"),
        "a time has its zone, and is there in UTC: {}",
        text("time")
    );
    assert_eq!(saw["since"], 1, "so has the time of a lock");
}

#[tokio::test]
async fn the_page_explains_a_refusal_on_a_foreign_host() {
    let scene = Scene::set(None).await;
    let saw = scene.see("stranger", None).await;
    let message = saw["said"].as_str().expect("a text");
    assert!(
        message.contains("403")
            && message.contains("elsewhere.test")
            && message.contains("admin.token_file"),
        "the message names the host and the remedy: {message}"
    );
    assert_eq!(saw["data"], false, "a refused page shows no data");
}

#[tokio::test]
async fn the_page_lists_a_thousand_sessions_and_draws_some_at_a_time() {
    let scene = Scene::set(None).await;
    for number in 0..1200 {
        let key = format!("lock:session:u:s{number}");
        let taken = ["SET", &key, "somebody's", "PX", "600000"];
        scene.redis.command(&taken).await;
    }
    let saw = scene.see("many", None).await;
    assert_eq!(saw["first"][0], 100, "the first 100 rows are drawn");
    assert!(
        saw["first"][1]
            .as_str()
            .is_some_and(|words| words.starts_with("100 of 1,")),
        "the page shows the total: {}",
        saw["first"]
    );
    assert_eq!(saw["keys"], 200, "more rows are drawn on request");
    assert_eq!(
        (&saw["found"], &saw["holder"]),
        (&json!(["s1100"]), &json!("not Seriatim")),
        "a search covers all sessions"
    );
    assert_eq!(
        saw["interrupt"], true,
        "a holder that isn't Seriatim can't be interrupted"
    );
}
