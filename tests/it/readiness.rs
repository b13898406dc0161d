//! `GET /readyz`: a replica is ready when it can lock turns, and says why it can't. A short outage of
//! Redis takes no replica out of its Service.

use std::net::SocketAddr;

use crate::support::app::{App, CHAT};
use crate::support::bench::Replicas;
use crate::support::client::{Client, turn};
use crate::support::fault::Mode;
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::{wait_for, wait_for_async};

/// The rights that docs/redis.md gives Seriatim's user.
const RIGHTS: &str = "~lock:session:* ~{lock:session:* ~seriatim:instance:* &seriatim:instance:* \
    +evalsha +script|load +info +get +set +del +scan +pexpire +pttl +time +exists +publish +subscribe \
    +zadd +zrem +zrange +zrangebyscore +zscore +zcard +hset +hget +hdel +hexists";

/// Options for a store that is found to be down soon.
const QUICK: &str = "timeout = \"1s\"\ncrash_recovery = \"3s\"\n";

async fn ask(admin: SocketAddr) -> (u16, String) {
    let answer = Client::connect(admin).await.get("/readyz").await;
    (answer.status, answer.text().to_owned())
}

/// Waits until `/readyz` has this status, and a line that contains all of these texts.
async fn wait_until(admin: SocketAddr, status: u16, texts: &[&str], what: &str) {
    let mut last = None;
    let says = async || {
        let (is, line) = ask(admin).await;
        let fits = is == status && texts.iter().all(|text| line.contains(text));
        assert_eq!(line.lines().count(), 1, "the reason is one line: {line}");
        if last.as_ref() != Some(&line) {
            eprintln!("{is} {line}");
            last = Some(line);
        }
        fits
    };
    wait_for_async(says, what).await;
}

/// Sets the rights of Seriatim's user.
async fn grant(redis: &Redis, rights: &str) {
    let reset = "ACL SETUSER seriatim reset resetchannels on >password";
    let command: Vec<_> = reset.split(' ').chain(rights.split_whitespace()).collect();
    redis.command(&command).await;
}

#[tokio::test]
async fn a_replica_without_a_right_is_not_ready_and_names_the_right() {
    let bench = Replicas::on_redis().await;
    for (denied, named) in [
        ("~lock:session:*", "; tried GET lock:session:"),
        ("~{lock:session:*", "; tried GET {lock:session:"),
        ("~seriatim:instance:*", "; tried GET seriatim:instance:"),
        (
            "&seriatim:instance:*",
            "; tried SUBSCRIBE seriatim:instance:",
        ),
        ("+set", "run the 'set' command"),
        ("+zadd", "run the 'zadd' command"),
        ("+hset", "run the 'hset' command"),
        ("+evalsha", "run the 'evalsha' command"),
        ("+publish", "run the 'publish' command"),
    ] {
        let some: Vec<_> = RIGHTS
            .split_whitespace()
            .filter(|right| *right != denied)
            .collect();
        grant(&bench.redis, &some.join(" ")).await;
        let url = format!("redis://seriatim:password@{}/0", bench.redis.addr());
        let app = bench.replica_at(&url, QUICK);
        let what = format!("the missing right is named: {denied}");
        wait_until(app.admin(), 503, &["NOPERM", named], &what).await;
        grant(&bench.redis, RIGHTS).await;
        wait_until(app.admin(), 200, &["ready"], "the right was given").await;
        assert_eq!(
            turn(app.addr(), "s1", "plain:x").await.status,
            200,
            "a ready replica serves: {denied}"
        );
        app.stop().await;
        // What a test could not remove expires.
        let gone = async || {
            let left = bench.redis.command(&["KEYS", "*seriatim-self-test*"]).await;
            left == ::redis::Value::Array(Vec::new())
        };
        wait_for_async(gone, "a test leaves no key").await;
    }
}

#[tokio::test]
async fn a_missing_right_to_the_records_of_turns_is_named() {
    let bench = Replicas::on_redis().await;
    let others = "~{lock:session:*:fence ~{lock:session:*:queue ~{lock:session:*:waiters";
    let some = RIGHTS.replace("~{lock:session:*", others);
    grant(&bench.redis, &some).await;
    let url = format!("redis://seriatim:password@{}/0", bench.redis.addr());
    let app = bench.replica_at(&url, QUICK);
    let named = ["NOPERM", "; tried GET {lock:session:", ":once:"];
    wait_until(app.admin(), 503, &named, "the key is named").await;
    grant(&bench.redis, RIGHTS).await;
    wait_until(app.admin(), 200, &["ready"], "the right was given").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_to_the_heartbeat_that_is_taken_away_is_named() {
    let bench = Replicas::on_redis().await;
    grant(&bench.redis, RIGHTS).await;
    let url = format!("redis://seriatim:password@{}/0", bench.redis.addr());
    let store = format!("{QUICK}unready_after = \"0s\"\ninstance = \"pod-0\"\n");
    let process = Process::start(&bench.config_at(&url, &store, ""));
    wait_until(process.admin(), 200, &["ready\n"], "it is ready").await;
    let less = RIGHTS.replace(" ~seriatim:instance:*", "");
    grant(&bench.redis, &less).await;
    let named = "; tried GET, SET and PEXPIRE seriatim:instance:1:pod-0";
    wait_until(process.admin(), 503, &["NOPERM", named], "the key is named").await;
    wait_for(|| process.has_logged(named), "the log names the key, too").await;
    grant(&bench.redis, RIGHTS).await;
    wait_until(process.admin(), 200, &["ready\n"], "the right is back").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_is_logged_once_and_the_test_that_needs_it_takes_no_lock() {
    let bench = Replicas::on_redis().await;
    let some = RIGHTS.replace(" +hexists", "");
    grant(&bench.redis, &some).await;
    let url = format!("redis://seriatim:password@{}/0", bench.redis.addr());
    let path = bench.config_at(&url, QUICK, "[log]\nlevel = \"debug\"\n");
    let process = Process::start(&path);
    let errors = || process.times_logged("turns can't be locked");
    let repeated = || process.times_logged("self-test failed; trying again");
    wait_for(|| errors() + repeated() >= 3, "the test fails three times").await;
    assert_eq!(errors(), 1, "what stays the same is logged once");
    let named = ["NOPERM", "lock:session:unknown:seriatim-self-test-*"];
    wait_until(process.admin(), 503, &named, "the key is named").await;
    let metrics = Client::connect(process.admin()).await.get("/metrics").await;
    for (command, is_sent) in [
        ("check_access", true),
        ("acquire", false),
        ("withdraw", false),
    ] {
        let counted = format!("seriatim_store_command_seconds_count{{command=\"{command}\"}} ");
        let text = metrics.text();
        let count = text.lines().find_map(|line| line.strip_prefix(&*counted));
        let count = count.expect("each command is counted");
        assert_eq!(count != "0", is_sent, "{command} was sent {count} times");
    }
    grant(&bench.redis, RIGHTS).await;
    wait_until(process.admin(), 200, &["ready\n"], "the right was given").await;
    let logged = || process.has_logged("turns can be locked now");
    wait_for(logged, "the log says that the remedy helped").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_redis_does_not_have_is_named() {
    let bench = Replicas::on_redis().await;
    for (absent, key) in [("ZSCORE", "{lock:session:"), ("HSET", "{lock:session:")] {
        let redis = Redis::start_with(&["--rename-command", absent, ""]).await;
        for ids in ["plain", "hash"] {
            let path = bench.config_at(&redis.url(), QUICK, &format!("[log]\nids = \"{ids}\"\n"));
            let process = Process::start(&path);
            let named = ["ERR", &format!("; tried {absent} {key}")];
            let what = format!("the command is named with ids = {ids}: {absent}");
            wait_until(process.admin(), 503, &named, &what).await;
        }
    }
    let path = bench.config_at(&bench.redis.url(), QUICK, "[log]\nids = \"hash\"\n");
    let process = Process::start(&path);
    wait_until(
        process.admin(),
        200,
        &["ready\n"],
        "a Redis with all of them",
    )
    .await;
}

#[tokio::test]
async fn a_self_test_that_works_leaves_no_key_at_once() {
    let bench = Replicas::on_redis().await;
    let app = bench.replica(QUICK, "");
    wait_until(app.admin(), 200, &["ready"], "a replica is ready").await;
    let left = bench.redis.command(&["KEYS", "*seriatim-self-test*"]).await;
    let none = ::redis::Value::Array(Vec::new());
    assert_eq!(left, none, "no key is left of the test");
}

#[tokio::test]
async fn the_keys_of_every_route_are_tested() {
    let bench = Replicas::on_redis().await;
    grant(&bench.redis, RIGHTS).await;
    let url = format!("redis://seriatim:password@{}/0", bench.redis.addr());
    let other = "[[routes]]\nname = \"other\"\npath = \"/other\"\nkey = \"other:{session_id}\"\n\
                 session_id = [\"{header:x-session}\"]\n";
    let config = format!("{CHAT}{other}");
    let backend = bench.backend.url();
    let app = App::start(&backend, &url, QUICK, &config);
    let named = ["NOPERM", "; tried GET other:seriatim-self-test-"];
    wait_until(app.admin(), 503, &named, "the other route's key is named").await;
    grant(&bench.redis, &format!("{RIGHTS} ~other:* ~{{other:*")).await;
    wait_until(app.admin(), 200, &["ready"], "both routes can lock").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_to_keys_that_are_denied_is_seen() {
    let bench = Replicas::on_redis().await;
    grant(&bench.redis, RIGHTS).await;
    let url = format!("redis://seriatim:password@{}/0", bench.redis.addr());
    let mut process = None;
    for (limit, status) in [("1h", 200), ("0s", 503)] {
        let store = format!("{QUICK}unready_after = \"{limit}\"\n");
        let path = bench.config_at(&url, &store, "");
        let before = std::fs::read_to_string(&path).expect("the file is there");
        let process = process.insert(Process::start(&path));
        wait_until(process.admin(), 200, &["ready"], "it is ready").await;
        let after = before.replace(
            CHAT,
            &format!("[lock]\nkey = \"other:{{user_id}}:{{session_id}}\"\n{CHAT}"),
        );
        std::fs::write(&path, after).expect("the file is written");
        process.signal("HUP");
        let named = ["NOPERM", "; tried GET other:"];
        wait_until(process.admin(), status, &named, "the new key is denied").await;
        let logged = || process.has_logged("turns can't be locked");
        wait_for(logged, "the log has the reason").await;
        std::fs::write(&path, before).expect("the file is written");
        process.signal("HUP");
        wait_until(process.admin(), 200, &["ready\n"], "the old key is allowed").await;
    }
}

/// Waits until the replica has made another self-test.
async fn wait_for_another_test(app: &App, before: u64) {
    let tested = async || tests_of(app).await > before;
    wait_for_async(tested, "the replica tests a lock again").await;
}

/// How many commands of self-tests the replica has sent.
async fn tests_of(app: &App) -> u64 {
    let name = "seriatim_store_command_seconds_count{command=\"check_access\"}";
    app.metric(name).await.parse().expect("a count")
}

#[tokio::test]
async fn a_replica_whose_turns_are_refused_is_not_ready_until_a_test_lock_works() {
    let bench = Replicas::on_redis().await;
    grant(&bench.redis, RIGHTS).await;
    let url = format!("redis://seriatim:password@{}/0", bench.redis.addr());
    let limited = |limit| format!("{QUICK}unready_after = \"{limit}\"\n");
    let strict = bench.replica_at(&url, &limited("0s"));
    let patient = bench.replica_at(&url, &limited("1h"));
    let all = [&strict, &patient];
    for cause in ["OOM", "NOPERM"] {
        for app in all {
            wait_until(app.admin(), 200, &["ready\n"], "a replica is ready").await;
        }
        let spoil = async |is_spoilt: bool| match cause {
            "OOM" => {
                let most = if is_spoilt { "1" } else { "0" };
                bench
                    .redis
                    .command(&["CONFIG", "SET", "maxmemory", most])
                    .await;
            }
            _ => {
                let less = RIGHTS.replace("~lock:session:*", "");
                grant(&bench.redis, if is_spoilt { &less } else { RIGHTS }).await;
            }
        };
        spoil(true).await;
        for app in all {
            assert_eq!(
                turn(app.addr(), "s1", "plain:x").await.status,
                503,
                "{cause}"
            );
        }
        let why = [cause, "; tried "];
        wait_until(strict.admin(), 503, &why, "it can't lock a turn").await;
        let why = [&why[..], &["ready, although ", "not ready after 3600s"]].concat();
        wait_until(patient.admin(), 200, &why, "it has time").await;
        spoil(false).await;
    }
    for app in all {
        wait_until(app.admin(), 200, &["ready\n"], "no turn was needed").await;
    }
}

#[tokio::test]
async fn a_refusal_of_one_session_leaves_a_replica_ready() {
    let bench = Replicas::on_redis().await;
    // The keys of requests without a user's id, such as those of a self-test.
    let some = RIGHTS.replace("~lock:session:* ", "~lock:session:unknown:* ");
    grant(&bench.redis, &some).await;
    let url = format!("redis://seriatim:password@{}/0", bench.redis.addr());
    let app = bench.replica_at(&url, &format!("{QUICK}unready_after = \"0s\"\n"));
    wait_until(app.admin(), 200, &["ready\n"], "the replica is ready").await;
    for _ in 0..2 {
        let before = tests_of(&app).await;
        assert_eq!(
            turn(app.addr(), "s1", "plain:x").await.status,
            503,
            "refused"
        );
        wait_for_another_test(&app, before).await;
        assert_eq!(
            ask(app.admin()).await,
            (200, "ready\n".into()),
            "it stays so"
        );
    }
}

#[tokio::test]
async fn a_short_outage_takes_no_replica_out_and_its_error_is_told() {
    let bench = Replicas::on_faulty_network().await;
    for recovery in ["3s", "0s"] {
        let store = |limit| {
            format!(
                "timeout = \"1s\"\ncrash_recovery = \"{recovery}\"\nunready_after = \"{limit}\"\n"
            )
        };
        let (patient, strict) = (
            bench.replica(&store("1h"), ""),
            bench.replica(&store("1s"), ""),
        );
        for app in [&patient, &strict] {
            wait_until(app.admin(), 200, &["ready\n"], "a replica is ready").await;
        }
        bench.network.set(Mode::Reset).await;
        let address = bench.network.addr().to_string();
        let error = [&*address, "can't be reached: ", "refused"];
        let told = [
            "ready, although the store at ",
            error[0],
            error[1],
            error[2],
        ];
        wait_until(
            patient.admin(),
            200,
            &told,
            "it stays ready, and says why not",
        )
        .await;
        wait_until(
            strict.admin(),
            503,
            &error,
            "it is not ready after a second",
        )
        .await;
        assert_eq!(ask(patient.admin()).await.0, 200, "the other one still is");
        let fresh = bench.replica(&store("1h"), "");
        wait_until(fresh.admin(), 503, &error, "one that was never ready isn't").await;
        bench.network.set(Mode::Pass).await;
        for app in [patient, strict, fresh] {
            wait_until(app.admin(), 200, &["ready\n"], "the store is back").await;
            app.stop().await;
        }
    }
}

#[tokio::test]
async fn a_store_that_takes_connections_and_refuses_every_command_is_an_outage_that_goes_on() {
    let bench = Replicas::on_redis().await;
    let limited = |limit| format!("{QUICK}unready_after = \"{limit}\"\n");
    let (strict, patient) = (
        bench.replica(&limited("2s"), ""),
        bench.replica(&limited("1h"), ""),
    );
    for app in [&strict, &patient] {
        wait_until(app.admin(), 200, &["ready\n"], "a replica is ready").await;
    }
    // A replica without a master takes connections, and no write.
    bench.redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let refused = ["it is a replica"];
    wait_until(
        strict.admin(),
        503,
        &refused,
        "no turn can be locked for two seconds",
    )
    .await;
    for _ in 0..100 {
        let states = (ask(strict.admin()).await.0, ask(patient.admin()).await.0);
        assert_eq!(states, (503, 200), "each keeps its state all the time");
    }
    bench.redis.command(&["REPLICAOF", "NO", "ONE"]).await;
    for app in [&strict, &patient] {
        wait_until(app.admin(), 200, &["ready\n"], "it takes writes again").await;
    }
}
