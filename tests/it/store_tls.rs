//! Redis over TLS and over a Unix socket: what is verified, what is presented, and what a failure says.

use std::fs;
use std::sync::Arc;

use crate::support::app::{App, CHAT};
use crate::support::backend::{Backend, event};
use crate::support::client::{Client, begin_turn, turn};
use crate::support::process::{Process, run};
use crate::support::redis::Redis;
use crate::support::tls_redis::{Authority, TlsRedis};
use crate::support::{wait_for, wait_for_async};

/// The ACL user of the tests.
async fn add_user(redis: &Redis) {
    let user = [
        "ACL", "SETUSER", "agent", "on", ">geheim", "~*", "&*", "+@all",
    ];
    redis.command(&user).await;
}

/// The lines of `CLIENT LIST` of connections of the ACL user.
async fn connections_of_user(redis: &Redis) -> Vec<String> {
    let list = redis.command(&["CLIENT", "LIST"]).await;
    let list: String = redis::from_redis_value(list).expect("CLIENT LIST gives text");
    let lines = list.lines().filter(|line| line.contains(" user=agent "));
    lines.map(str::to_owned).collect()
}

async fn is_served(app: &App) -> bool {
    turn(app.addr(), "s1", "plain:x").await.status == 200
}

async fn readiness(app: &App) -> String {
    let answer = Client::connect(app.admin()).await.get("/readyz").await;
    answer.text().to_owned()
}

/// Asserts that two replicas with this store exclude each other.
async fn assert_locks(url: &str, store: &str) {
    let backend = Backend::start("plain:ok").await;
    let [one, other] = [(); 2].map(|()| App::start(&backend.url(), url, store, CHAT));
    for app in [&one, &other] {
        wait_for_async(async || is_served(app).await, "turns are served").await;
    }
    let mut running = begin_turn(one.addr(), "s2", "gate").await;
    running.read_until(&event(0)).await;
    let busy = turn(other.addr(), "s2", "plain:x").await;
    assert_eq!(busy.status, 429, "the lock is in the one Redis: {url}");
}

#[tokio::test]
async fn sessions_are_locked_over_tls_as_an_acl_user_with_and_without_a_client_certificate() {
    for clients in ["no", "yes"] {
        let authority = Authority::new();
        let own = authority.issue("redis", "localhost");
        let client = authority.issue("client", "agent");
        let server = TlsRedis::start_with(authority, &own, clients).await;
        add_user(&server.redis).await;
        let url = format!("rediss://agent:geheim@localhost:{}/1", server.port());
        let presented = match clients {
            "yes" => client.options(),
            _ => String::new(),
        };
        assert_locks(&url, &format!("{}{presented}", server.trusted())).await;
    }
}

#[tokio::test]
async fn sessions_are_locked_over_a_unix_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("redis.sock");
    let socket = socket.to_str().expect("its name is text");
    let redis = Redis::start_with(&["--unixsocket", socket]).await;
    add_user(&redis).await;
    assert_locks(&format!("unix://{socket}"), "").await;
    let backend = Backend::start("plain:ok").await;
    let url = format!("unix://agent:geheim@{socket}?db=1");
    let app = App::start(&backend.url(), &url, "", CHAT);
    wait_for_async(async || is_served(&app).await, "turns are served").await;
    let connections = connections_of_user(&redis).await;
    let address = format!(" addr={socket}:0 ");
    let are_right = |line: &String| line.contains(&address) && line.contains(" db=1 ");
    assert!(
        !connections.is_empty() && connections.iter().all(are_right),
        "user, database and socket are those of the URL: {connections:?}"
    );
}

#[tokio::test]
async fn a_missing_socket_is_told_with_its_path() {
    let backend = Backend::start("plain:ok").await;
    let app = App::start(&backend.url(), "unix://:geheim@/nowhere/r.sock", "", CHAT);
    let said = async || readiness(&app).await;
    let wanted = "the store at unix:///nowhere/r.sock?db=0 can't be reached: No such file";
    let is_told = async || said().await.contains(wanted);
    wait_for_async(is_told, "the error has the socket's path").await;
    assert!(!said().await.contains("geheim"), "and no password");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_accepted_with_server_name_only() {
    let authority = Authority::new();
    let own = authority.issue("redis", "redis.internal");
    let server = TlsRedis::start_with(authority, &own, "no").await;
    let backend = Backend::start("plain:ok").await;
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("rediss://{host}:{}/0", server.port());
        let app = App::start(&backend.url(), &url, &server.trusted(), CHAT);
        let wanted = format!("not for {host}: set store.server_name");
        let is_told = async || {
            let said = readiness(&app).await;
            said.contains(&wanted) && said.contains("redis.internal")
        };
        wait_for_async(is_told, "the error names both names").await;
        assert!(!is_served(&app).await, "no turn is served");
        let store = format!("{}server_name = \"redis.internal\"\n", server.trusted());
        let app = App::start(&backend.url(), &url, &store, CHAT);
        wait_for_async(async || is_served(&app).await, "the name is the right one").await;
    }
}

#[tokio::test]
async fn each_failure_of_tls_says_what_to_do() {
    let (authority, stranger) = (Authority::new(), Authority::named("a stranger"));
    let of_stranger = stranger.issue("client", "agent").options();
    // Of an authority that has the name of the right one.
    let impostor = Authority::new();
    let of_impostor = impostor.issue("client", "agent").options();
    let own = authority.issue("redis", "localhost");
    let server = TlsRedis::start_with(authority, &own, "yes").await;
    let authority = Authority::new();
    let expired = authority.issue_expired("redis", "localhost");
    let outdated = TlsRedis::start_with(authority, &expired, "no").await;
    let backend = Backend::start("plain:ok").await;
    let trusted = server.trusted();
    let secret = |url: String| url.replace("://", "://:geheim@");
    let without_tls = format!("redis://localhost:{}/0", server.port());
    let plain = format!("rediss://localhost:{}/0", server.redis.port());
    for (url, store, wanted) in [
        (server.url(), String::new(), "set store.ca_file"),
        (
            server.url(),
            format!("ca_file = {:?}", stranger.file()),
            "set store.ca_file",
        ),
        (
            server.url(),
            format!("ca_file = {:?}", impostor.file()),
            "set store.ca_file",
        ),
        (outdated.url(), outdated.trusted(), "has expired: renew it"),
        (
            server.url(),
            trusted.clone(),
            "requires a client certificate: set store.cert_file and store.key_file",
        ),
        (
            server.url(),
            format!("{trusted}{of_stranger}"),
            "refuses the certificate of store.cert_file (UnknownCA)",
        ),
        (
            server.url(),
            format!("{trusted}{of_impostor}"),
            "refuses the certificate of store.cert_file (DecryptError)",
        ),
        (
            plain,
            trusted.clone(),
            "write redis:// in place of rediss://",
        ),
        (
            without_tls,
            String::new(),
            "write rediss:// in place of redis://",
        ),
    ] {
        let app = App::start(&backend.url(), &secret(url.clone()), &store, CHAT);
        let said = async || readiness(&app).await;
        let is_told = async || said().await.contains(wanted);
        wait_for_async(is_told, &format!("{url} {store}: {wanted}")).await;
        let label = url.trim_start_matches("redis://");
        let said = said().await;
        assert!(said.contains(label), "the store is named: {said}");
        assert!(!said.contains("geheim"), "the password isn't shown: {said}");
        assert!(!is_served(&app).await, "no turn is served: {wanted}");
    }
}

#[tokio::test]
async fn a_missing_client_certificate_is_told_with_tls_1_2_too() {
    let authority = Authority::new();
    let own = authority.issue("redis", "localhost");
    let client = authority.issue("client", "agent").options();
    let server = TlsRedis::start_with(authority, &own, "yes").await;
    let only = ["CONFIG", "SET", "tls-protocols", "TLSv1.2"];
    server.redis.command(&only).await;
    let backend = Backend::start("plain:ok").await;
    let app = App::start(&backend.url(), &server.url(), &server.trusted(), CHAT);
    let wanted = "if Redis requires a client certificate, set store.cert_file and store.key_file";
    let is_told = async || readiness(&app).await.contains(wanted);
    wait_for_async(is_told, "the error says what may be missing").await;
    let store = format!("{}{client}", server.trusted());
    let app = App::start(&backend.url(), &server.url(), &store, CHAT);
    wait_for_async(async || is_served(&app).await, "with it, turns are served").await;
}

#[tokio::test]
async fn the_log_has_a_failure_of_tls_in_one_line() {
    let server = TlsRedis::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.toml");
    let url = server.url().replace("://", "://:geheim@");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"http://127.0.0.1:1\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [log]\nformat = \"json\"\n[store]\nurl = \"{url}\"\n"
    );
    fs::write(&path, text).expect("written");
    let replica = Process::start(&path);
    wait_for(|| replica.has_logged("store not usable"), "it is logged").await;
    replica.signal("TERM");
    let (_, events) = replica.end();
    let told: Vec<_> = events
        .iter()
        .filter(|event| event["message"] == "store not usable")
        .collect();
    for event in told {
        let error = event["error"].as_str().expect("text");
        assert!(
            error.contains(&server.url()) && error.contains("set store.ca_file"),
            "where and what to do: {error}"
        );
        assert!(!error.contains('\n'), "in one line: {error}");
    }
    let all = format!("{events:?}");
    assert!(!all.contains("geheim"), "the password isn't logged: {all}");
}

#[tokio::test]
async fn renewed_certificates_need_no_restart() {
    let authority = Authority::new();
    let own = authority.issue("redis", "localhost");
    let client = authority.issue("client", "agent");
    let mut server = TlsRedis::start_with(authority, &own, "yes").await;
    let backend = Backend::start("plain:ok").await;
    let store = format!("{}{}", server.trusted(), client.options());
    let app = App::start(&backend.url(), &server.url(), &store, CHAT);
    wait_for_async(async || is_served(&app).await, "turns are served").await;

    // Another authority for both sides: Redis first.
    let second = Authority::new();
    let (own_2, client_2) = (
        second.issue("redis", "localhost"),
        second.issue("client", "agent"),
    );
    let (ca_file, first) = (server.authority.file(), server.authority.file());
    let before = fs::read(&first).expect("the first authority");
    fs::copy(&own_2.cert, &own.cert).expect("copied");
    fs::copy(&own_2.key, &own.key).expect("copied");
    fs::copy(second.file(), &ca_file).expect("copied");
    let redis = Arc::get_mut(&mut server.redis).expect("nobody else has it");
    redis.restart().await;
    // Redis has read its files; the proxy's still have the first authority.
    fs::write(&ca_file, before).expect("written");
    let refused = async || readiness(&app).await.contains("set store.ca_file");
    wait_for_async(refused, "the new authority isn't trusted yet").await;
    fs::copy(second.file(), &ca_file).expect("copied");
    let refused = async || readiness(&app).await.contains("refuses the certificate");
    wait_for_async(refused, "the old client certificate is refused").await;
    fs::remove_file(&client.key).expect("removed");
    let file = client.key.display().to_string();
    let named = async || {
        let said = readiness(&app).await;
        said.contains("store.key_file: ") && said.contains(&file)
    };
    wait_for_async(named, "the error names the option and the file").await;
    fs::copy(&client_2.cert, &client.cert).expect("copied");
    fs::copy(&client_2.key, &client.key).expect("copied");
    wait_for_async(async || is_served(&app).await, "all files are new").await;
}

#[test]
fn check_and_run_refuse_options_of_tls_for_a_store_without_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.toml");
    // A process that accepted the URL would end here, too, with another error.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("its address");
    for url in ["redis://127.0.0.1:1/0", "unix:///run/r.sock", "memory:"] {
        let text = format!(
            "listen = \"{listen}\"\nupstream = \"http://127.0.0.1:1\"\n\
             [store]\nurl = \"{url}\"\nserver_name = \"redis.internal\"\n"
        );
        fs::write(&path, text).expect("written");
        let path = path.to_str().expect("its name is text");
        let outputs = [run(&["check", "--config", path]), run(&["--config", path])];
        for output in &outputs {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                said.contains("store.server_name") && said.contains("rediss://host:6379/0"),
                "{said}"
            );
            assert_eq!(output.status.code(), Some(78), "the configuration: {said}");
        }
    }
}
