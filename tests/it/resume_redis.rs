//! Kept answers on several replicas: requests attach to a turn, and stop it, wherever they come in.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use redis::Value;
use tokio::sync::watch;

use crate::support::app::{App, CHAT, key};
use crate::support::backend::{event, events, stream_with};
use crate::support::bench::{Bench, Replicas, Setup, assert_error_response};
use crate::support::client::{Answer, Client, Request, begin_turn, turn};
use crate::support::fault::Mode;
use crate::support::kept::{RESUME, assert_whole, attach, attached, streaming, wait_for_viewers};
use crate::support::redis::Redis;
use crate::support::{wait_for, wait_for_async};

/// A crash is noticed within a test, and a command has the time that it needs on a busy machine.
const QUICK: &str = "timeout = \"1s\"\ncrash_recovery = \"6s\"\n";

async fn two(tables: &str) -> Bench<Redis> {
    let config = format!("{tables}{RESUME}{CHAT}");
    Setup::new(&config)
        .store(QUICK)
        .replicas(2)
        .on_redis()
        .await
}

async fn call(replica: SocketAddr, request: &Request) -> Answer {
    Client::connect(replica).await.call(request).await
}

/// The keys of kept answers in Redis.
async fn answer_keys(redis: &Redis) -> Vec<String> {
    let keys = redis.keys().await.into_iter();
    keys.filter(|key| key.contains(":answer")).collect()
}

#[tokio::test]
async fn a_client_that_comes_back_to_another_replica_gets_the_whole_answer() {
    let bench = two("").await;
    let text = stream_with("\n");
    for (session, script, begins) in [("s1", "cut:30:lf", true), ("s2", "gate-head", false)] {
        let mut first = begin_turn(bench.replica(0), session, script).await;
        bench.backend.started(session, 1).await;
        if begins {
            first.read_until("id: 1").await;
        }
        first.half_close().await;
        first.read_to_close().await;
        let mut viewers = Vec::new();
        for n in [1, 1, 0] {
            let mut viewer = attached(bench.replica(n), session).await;
            if begins {
                viewer.read_until("id: 1").await;
            }
            viewers.push(viewer);
        }
        wait_for_viewers(&bench.others[0], 2).await;
        bench.backend.open_gate(session);
        let text = if begins { &*text } else { "open" };
        for viewer in &mut viewers {
            assert_whole(script, &viewer.answer().await, text);
        }
        for n in 0..2 {
            let kept = call(bench.replica(n), &attach(session)).await;
            assert_whole("an answer that has ended", &kept, text);
        }
        assert_eq!(
            bench.backend.turns(session).len(),
            1,
            "the backend saw one turn"
        );
    }
    let kept = answer_keys(&bench.redis).await;
    assert_eq!(kept.len(), 4, "an answer and its name each: {kept:?}");
}

#[tokio::test]
async fn the_newest_answer_is_found_on_every_replica() {
    let bench = two("").await;
    for n in 0..4 {
        // In turn, so that each replica also keeps an older answer.
        let text = format!("answer {n}");
        let answer = turn(bench.replica(n), "s1", &format!("plain:{text}")).await;
        assert_whole("the turn", &answer, &text);
        let is_newest = async || {
            let viewers = [attach("s1"), attach("s1")];
            let mut newest = true;
            for (replica, request) in viewers.iter().enumerate() {
                let answer = call(bench.replica(replica), request).await;
                newest &= answer.whole && answer.text() == text;
            }
            newest
        };
        wait_for_async(is_newest, "both replicas give the newest answer").await;
    }
}

#[tokio::test]
async fn without_an_answer_there_is_204() {
    let tables = "[[routes]]\nname = \"not kept\"\npath = \"/chat/unkept\"\nreplay = false\nsession_id = [\"{body:/session_id}\"]\nuser_id = [\"u1\"]\n";
    let bench = two(tables).await;
    let answer = call(bench.replica(1), &attach("s1")).await;
    assert_eq!((answer.status, answer.text()), (204, String::new()));
    // A turn that isn't kept is not waited for.
    let unkept = Request::post("/chat/unkept")
        .header("x-test-session", "s1")
        .header("x-test-script", "gate")
        .json(r#"{"session_id":"s1"}"#);
    let mut running = Client::connect(bench.replica(0)).await;
    running.send(&unkept).await;
    running.read_until(&event(0)).await;
    let answer = call(bench.replica(1), &attach("s1")).await;
    assert_eq!(answer.status, 204, "nobody waits for it: {answer:?}");
    bench.backend.open_gate("s1");
    assert!(running.answer().await.whole, "it isn't disturbed");
    // Neither it, nor a turn that gets no response, lets anybody have the answer before it.
    let unkept = unkept.header("x-test-script", "gate");
    for n in 0..2 {
        turn(bench.replica(n), "s1", "plain:first").await;
        let gets = async |status: u16| {
            let answers = [
                call(bench.replica(0), &attach("s1")).await,
                call(bench.replica(1), &attach("s1")).await,
            ];
            answers.iter().all(|answer| answer.status == status)
        };
        wait_for_async(async || gets(200).await, "both have the answer").await;
        let mut running = Client::connect(bench.replica(0)).await;
        running.send(&unkept).await;
        running.read_until(&event(0)).await;
        assert!(gets(204).await, "while a turn runs that isn't kept");
        bench.backend.open_gate("s1");
        assert!(running.answer().await.whole);
        let failed = turn(bench.replica(0), "s1", "close").await;
        assert_eq!(failed.status, 502, "the backend gives no response");
        wait_for_async(async || gets(204).await, "neither has an answer").await;
    }
}

#[tokio::test]
async fn a_route_may_leave_out_answers_that_have_ended_on_another_replica() {
    let config = RESUME.replace("attach = true", "attach = true\nattach_ended = false");
    let setup = format!("{config}{CHAT}");
    let bench = Setup::new(&setup).store(QUICK).replicas(2).on_redis().await;
    let mut first = bench.hold("s1").await;
    let mut viewer = attached(bench.replica(1), "s1").await;
    viewer.read_until(&event(0)).await;
    bench.backend.open_gate("s1");
    assert_whole("a turn that runs", &viewer.answer().await, &event(0));
    assert!(first.answer().await.whole);
    let kept = answer_keys(&bench.redis).await;
    assert_eq!(kept.len(), 2, "the answer is kept: {kept:?}");
    for n in 0..2 {
        let answer = call(bench.replica(n), &attach("s1")).await;
        assert_eq!(answer.status, 204, "it has ended");
    }
}

#[tokio::test]
async fn whoever_sees_the_end_finds_the_lock_released() {
    let config = format!("{RESUME}{CHAT}");
    let setup = Setup::new(&config).store("timeout = \"3s\"\n");
    let bench = setup.on_faulty_network().await;
    for case in ["stays", "leaves", "hurries"] {
        let mut first = bench.hold(case).await;
        let mut viewer = attached(bench.replica(0), case).await;
        viewer.read_until(&event(0)).await;
        if case == "leaves" {
            first.half_close().await;
            first.read_to_close().await;
        }
        // A release takes its time.
        bench
            .network
            .set(Mode::Delay(Duration::from_millis(300)))
            .await;
        bench.backend.open_gate(case);
        if case == "hurries" {
            let has_ended = async || bench.backend.running(case) == 0;
            wait_for_async(has_ended, "the backend has finished").await;
            first.reset();
        }
        assert_whole(case, &viewer.answer().await, &event(0));
        let holder = bench.redis.get(&key(case)).await;
        assert_eq!(holder, None, "{case}: the session is free");
        bench.network.set(Mode::Pass).await;
    }
}

#[tokio::test]
async fn a_client_stops_a_turn_of_another_replica() {
    for prefix in ["", "prefix = \"team:\"\n"] {
        a_client_stops_a_turn_with(prefix).await;
    }
}

async fn a_client_stops_a_turn_with(prefix: &str) {
    let (config, store) = (format!("{RESUME}{CHAT}"), format!("{QUICK}{prefix}"));
    let setup = Setup::new(&config).store(&store).replicas(2);
    let bench = setup.on_redis().await;
    let mut first = bench.hold("s1").await;
    let mut viewer = attached(bench.replica(1), "s1").await;
    viewer.read_until(&event(0)).await;
    let stopped = Request::new("DELETE", "/chat/s1/stream");
    let answer = call(bench.replica(1), &stopped).await;
    assert_eq!(answer.text(), r#"{"stopped":true}"#);
    for (who, client) in [("its client", &mut first), ("a viewer", &mut viewer)] {
        let answer = client.try_answer().await;
        let is_whole = answer.is_ok_and(|answer| answer.whole);
        assert!(!is_whole, "{who} doesn't take it for whole");
    }
    bench.backend.gone("s1").await;
    let answer = turn(bench.replica(0), "s1", "plain:next").await;
    assert_whole("the next turn", &answer, "next");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_says_so_only_of_a_turn_of_another_replica_that_it_stopped() {
    let bench = Replicas::on_redis().await;
    let options =
        |option: &str| RESUME.replace("replay = true", &format!("replay = true\n{option}"));
    let sleeper = bench.process(QUICK, &options("enforce = false"));
    let other = bench.replica(QUICK, &options("settle = \"1s\""));
    let asked = bench.replica(QUICK, RESUME);
    let stopped = async |session: &str| {
        let stop = Request::new("DELETE", &format!("/chat/{session}/stream"));
        call(asked.addr(), &stop).await.text()
    };
    let mut observed = begin_turn(sleeper.addr(), "s1", "gate").await;
    observed.read_until(&event(0)).await;
    let is_seen = async || bench.redis.keys().await.contains(&key("s1"));
    wait_for_async(is_seen, "the lock of the observed turn").await;
    assert_eq!(stopped("s1").await, r#"{"stopped":false}"#, "it goes on");
    bench.backend.open_gate("s1");
    assert!(observed.answer().await.whole, "it isn't disturbed");

    let mut complete = begin_turn(other.addr(), "s2", "gate").await;
    complete.read_until(&event(0)).await;
    bench.backend.open_gate("s2");
    bench.backend.ended("s2", 1).await;
    // Its lock stays for a second.
    assert_eq!(stopped("s2").await, r#"{"stopped":false}"#, "it is over");
    assert!(complete.answer().await.whole);

    // A replica that doesn't react.
    let sleeper = bench.process(QUICK, RESUME);
    let mut held = begin_turn(sleeper.addr(), "s3", "gate").await;
    held.read_until(&event(0)).await;
    sleeper.signal("STOP");
    let answer = stopped("s3").await;
    sleeper.signal("CONT");
    assert_eq!(answer, r#"{"stopped":false}"#, "it is not known to stop");
}

#[tokio::test]
async fn without_redis_nothing_is_stopped_and_the_own_replica_still_has_the_answer() {
    let bench = two("").await;
    let mut first = bench.hold("s1").await;
    bench.redis.kill();
    for n in 0..2 {
        let stop = Request::new("DELETE", "/chat/s1/stream");
        let answer = call(bench.replica(n), &stop).await;
        assert_error_response("a stop", &answer, 503, "store_unavailable");
    }
    let mut viewer = attached(bench.replica(0), "s1").await;
    viewer.read_until(&event(0)).await;
    let elsewhere = call(bench.replica(1), &attach("s1")).await;
    assert_eq!(
        elsewhere.status, 204,
        "nothing is known there: {elsewhere:?}"
    );
    bench.backend.open_gate("s1");
    for (who, client) in [("the first client", &mut first), ("a viewer", &mut viewer)] {
        let answer = client.answer().await;
        assert!(answer.whole, "{who} has all of it: {answer:?}");
    }
}

#[tokio::test]
async fn an_event_source_goes_on_at_another_replica() {
    let events = |numbers: RangeInclusive<usize>| -> String {
        let events = numbers.map(|n| format!("id: {n}\ndata: {n}\n\n"));
        events.collect()
    };
    let (more, rest) = watch::channel(None);
    let backend = streaming(events(1..=3), rest).await;
    let redis = Redis::start().await;
    let config = format!("{RESUME}{CHAT}");
    let [a, b] = [0, 1].map(|_| App::start(&backend.url(), &redis.url(), QUICK, &config));
    let mut first = begin_turn(a.addr(), "s1", "").await;
    first.read_until("data: 3\n\n").await;
    let mut seen = attached(b.addr(), "s1").await;
    seen.read_until("data: 3\n\n").await;
    let behind = |id: &str| attach("s1").header("last-event-id", id);
    let mut second = Client::connect(b.addr()).await;
    second.send(&behind("2")).await;
    second.read_until("data: 3\n\n").await;
    more.send_replace(Some(events(4..=4)));
    assert_whole(
        "behind the second",
        &second.answer().await,
        "id: 3\ndata: 3\n\nid: 4\ndata: 4\n\n",
    );
    let answer = call(b.addr(), &behind("3")).await;
    assert_whole("of an answer that is kept", &answer, "id: 4\ndata: 4\n\n");
    let answer = call(b.addr(), &behind("4")).await;
    assert_eq!(answer.status, 204, "nothing follows");
    assert!(first.answer().await.whole && seen.answer().await.whole);
}

#[tokio::test]
async fn a_repeat_at_another_replica_gets_the_answer_of_the_turn() {
    let config = format!(
        "{RESUME}{CHAT}once = [\"{{header:idempotency-key}}\"]\non_repeat = \"attach\"\nblocking = true\n"
    );
    let setup = Setup::new(&config).store(QUICK).replicas(2);
    let bench = setup.on_redis().await;
    let keyed =
        |script: &str, key: &str| Request::turn("s1", script).header("idempotency-key", key);
    let sent = async |n: usize, request: &Request| {
        let mut client = Client::connect(bench.replica(n)).await;
        client.send(request).await;
        client
    };
    let request = keyed("cut:30:lf", "k1");
    let mut first = sent(0, &request).await;
    first.read_until("id: 1").await;
    first.reset();
    let mut repeat = sent(1, &request).await;
    repeat.read_until("id: 1").await;
    // A turn that waits, and its repeat.
    let waits = keyed("plain:next", "k2");
    let mut waiter = sent(0, &waits).await;
    bench.app.wait_for_waiters(1).await;
    let mut its_repeat = sent(1, &waits).await;
    bench.backend.open_gate("s1");
    let text = stream_with("\n");
    assert_whole("of a turn that runs", &repeat.answer().await, &text);
    assert_whole("the waiter", &waiter.answer().await, "next");
    assert_whole("of one that waited", &its_repeat.answer().await, "next");
    let again = sent(1, &request).await.answer().await;
    assert_whole("of one that has ended", &again, &text);
    assert_eq!(bench.backend.turns("s1").len(), 2, "each turn ran once");
}

#[tokio::test]
async fn a_repeat_waits_for_an_answer_that_is_not_in_redis_yet() {
    for on_repeat in ["attach", "reject"] {
        let config = format!(
            "{RESUME}{CHAT}once = [\"{{header:idempotency-key}}\"]\non_repeat = \"{on_repeat}\"\n"
        );
        let setup = Setup::new(&config).store(QUICK).replicas(2);
        let bench = setup.on_redis().await;
        let request = Request::turn("s1", "plain:once").header("idempotency-key", "k1");
        assert_whole("the turn", &call(bench.replica(0), &request).await, "once");
        let mut answer = None;
        let is_written = async || {
            let mut streams = Vec::new();
            for key in answer_keys(&bench.redis).await {
                if key.contains(":answer:") {
                    streams.push(key);
                }
            }
            answer = streams.pop();
            match &answer {
                Some(key) => bench.redis.command(&["XLEN", key]).await == Value::Int(3),
                None => false,
            }
        };
        wait_for_async(is_written, "Redis has the answer").await;
        let answer = answer.expect("it was found");
        // As if it were under way.
        bench.redis.command(&["RENAME", &answer, "later"]).await;
        let monitor = bench.redis.monitor().await;
        let mut repeat = Client::connect(bench.replica(1)).await;
        repeat.send(&request).await;
        let looks = async || {
            let lines = monitor.lines().await;
            lines.iter().any(|line| line.contains("\"XRANGE\""))
        };
        wait_for_async(looks, "the repeat looks for it").await;
        bench.redis.command(&["RENAME", "later", &answer]).await;
        assert_whole(on_repeat, &repeat.answer().await, "once");
        assert_eq!(bench.backend.turns("s1").len(), 1, "the turn ran once");
    }
}

#[tokio::test]
async fn an_answer_over_its_limit_is_refused_on_another_replica() {
    let bench = two("[replay]\nmax_turn = 65536\n").await;
    let answer = turn(bench.replica(0), "s1", "big:1000000").await;
    assert!(
        answer.whole && answer.text().len() >= 1_000_000,
        "it's whole"
    );
    let refused = async || {
        let answer = call(bench.replica(1), &attach("s1")).await;
        answer.status == 409
    };
    wait_for_async(refused, "its beginning isn't kept").await;
    let answer = call(bench.replica(1), &attach("s1")).await;
    assert_error_response("too long", &answer, 409, "answer_too_long");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_viewers_of_a_killed_replica_end_with_an_error() {
    let bench = Replicas::on_redis().await;
    let victim = bench.process(QUICK, RESUME);
    let other = bench.replica(QUICK, RESUME);
    let mut held = begin_turn(victim.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    // One whose answer has not begun.
    let _silent = begin_turn(victim.addr(), "s2", "gate-head").await;
    bench.backend.started("s2", 1).await;
    let mut viewers = Vec::new();
    for _ in 0..5 {
        let mut viewer = attached(other.addr(), "s1").await;
        viewer.read_until(&event(0)).await;
        viewers.push(viewer);
    }
    let mut waiting = attached(other.addr(), "s2").await;
    wait_for_viewers(&other, 6).await;
    victim.signal("KILL");
    for viewer in &mut viewers {
        let answer = viewer.try_answer().await;
        let is_whole = answer.is_ok_and(|answer| answer.whole);
        assert!(!is_whole, "a viewer doesn't take it for whole");
    }
    let answer = waiting.answer().await;
    assert_eq!(answer.status, 204, "there will be no answer: {answer:?}");
    let is_gone = async || answer_keys(&bench.redis).await.is_empty();
    wait_for_async(is_gone, "nothing is left of its answers").await;
    let answer = call(other.addr(), &attach("s1")).await;
    assert_eq!(answer.status, 204, "no part of it is kept");
}

#[tokio::test]
async fn redis_that_dies_in_the_middle_leaves_the_first_client_its_answer() {
    // The turn needs no lock to come to its end.
    let bench = two("").await;
    let mut first = bench.hold("s1").await;
    let mut viewer = attached(bench.replica(1), "s1").await;
    viewer.read_until(&event(0)).await;
    bench.redis.kill();
    bench.backend.open_gate("s1");
    let answer = first.answer().await;
    assert!(answer.whole, "the first client has all of it: {answer:?}");
    let answer = viewer.try_answer().await;
    let is_whole = answer.is_ok_and(|answer| answer.whole);
    assert!(!is_whole, "a viewer doesn't take it for whole");
}

#[tokio::test]
async fn nothing_is_left_in_redis_after_keep() {
    let bench = two("[replay]\nkeep = \"1s\"\n").await;
    let answer = turn(bench.replica(0), "s1", "chunked:2:0").await;
    assert_whole("the turn", &answer, &events(2));
    let is_kept = async || !answer_keys(&bench.redis).await.is_empty();
    wait_for_async(is_kept, "the answer is kept").await;
    bench.wait_until_no_keys().await;
    let answer = call(bench.replica(1), &attach("s1")).await;
    assert_eq!(answer.status, 204, "it isn't kept any more: {answer:?}");
}

#[tokio::test]
async fn a_replica_that_stops_leaves_its_answers_to_the_others() {
    let bench = two("").await;
    let mut first = bench.hold("s1").await;
    let mut viewer = attached(bench.replica(1), "s1").await;
    viewer.read_until(&event(0)).await;
    let Bench {
        app,
        others,
        backend,
        redis: _redis,
        ..
    } = bench;
    let addr = app.addr();
    let stopping = tokio::spawn(app.stop());
    let refuses = async || Client::try_connect(addr).await.is_err();
    wait_for_async(refuses, "it stops").await;
    backend.open_gate("s1");
    let whole = first.answer().await;
    assert!(whole.whole, "its turn comes to its end");
    assert_whole("a viewer elsewhere", &viewer.answer().await, &whole.text());
    stopping.await.expect("it stops");
    let kept = call(others[0].addr(), &attach("s1")).await;
    assert_whole("the kept answer", &kept, &whole.text());
}

#[tokio::test]
async fn with_a_key_file_no_text_is_in_redis() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "7f".repeat(32)).expect("a key");
    let tables = format!("[replay]\nkey_file = {:?}\n", file.path());
    let bench = two(&tables).await;
    let answer = turn(bench.replica(0), "s1", "plain:geheim").await;
    assert_whole("the turn", &answer, "geheim");
    let kept = async || call(bench.replica(1), &attach("s1")).await.text() == "geheim";
    wait_for_async(kept, "it is read on another replica").await;
    for key in answer_keys(&bench.redis).await {
        let value = match key.contains(":answer:") {
            true => bench.redis.command(&["XRANGE", &key, "-", "+"]).await,
            false => continue,
        };
        let text = format!("{value:?}");
        assert!(
            !text.contains("geheim") && !text.contains("text/plain") && !text.contains("status"),
            "{key} is encrypted: {text}"
        );
    }
}

#[tokio::test]
async fn a_right_that_kept_answers_need_is_named_when_it_is_missing() {
    let redis = Redis::start().await;
    let rights = "on >password ~* &* +@all -xadd";
    let user = format!("ACL SETUSER poor reset {rights}");
    redis
        .command(&user.split_whitespace().collect::<Vec<_>>())
        .await;
    let url = format!("redis://poor:password@{}/0", redis.addr());
    let backend = crate::support::backend::Backend::start("plain:ok").await;
    let ready = async |app: &App| {
        let answer = Client::connect(app.admin()).await.get("/readyz").await;
        (answer.status, answer.text())
    };
    let without = App::start(&backend.url(), &url, "", CHAT);
    let is_ready = async || ready(&without).await.0 == 200;
    wait_for_async(is_ready, "who keeps no answers needs no right").await;
    let app = App::start(&backend.url(), &url, "", &format!("{RESUME}{CHAT}"));
    let is_named = async || {
        let (status, text) = ready(&app).await;
        status == 503 && text.contains("XADD {lock:session:")
    };
    wait_for_async(is_named, "the command and the key are named").await;
    redis.command(&["ACL", "SETUSER", "poor", "+xadd"]).await;
    let is_ready = async || ready(&app).await.0 == 200;
    wait_for_async(is_ready, "the right was given").await;
    wait_for(|| true, "done").await;
}
