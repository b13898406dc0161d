//! Tests of the reader of URLs.

use super::*;

/// An example of each form, which errors have.
const TCP: &str = "redis://host:6379/0";
const TLS: &str = "rediss://host:6379/0";
const SENTINEL: &str = "redis-sentinel://host1:26379,host2:26379/MASTER/0";
const TLS_SENTINEL: &str = "rediss-sentinel://host1:26379,host2:26379/MASTER/0";
const CLUSTER: &str = "redis-cluster://host1:6379,host2:6379";
const TLS_CLUSTER: &str = "rediss-cluster://host1:6379,host2:6379";
const SOCKET: &str = "unix:///run/redis.sock";

/// Host, port, database, user and password.
fn read(url: &str) -> (String, u16, i64, Option<String>, Option<String>) {
    let url = RedisUrl::parse(url).expect("a URL");
    let RedisTopology::Single(RedisEndpoint::Tcp { host, port }) = url.topology else {
        panic!("not TCP: {url}");
    };
    (host, port, url.database, url.user, url.password)
}

#[test]
fn a_url_with_tls_is_read_as_one_without() {
    for url in ["redis://h", "redis://a:p@s@h_1.x:7/3", "redis://[::1]:7"] {
        let plain = RedisUrl::parse(url).expect("a URL");
        let tls = RedisUrl::parse(&url.replace("redis:", "rediss:")).expect("a URL with TLS");
        assert!(tls.has_tls() && !plain.has_tls(), "{url}");
        let RedisTopology::Single(RedisEndpoint::Tls { host, port, name }) = &tls.topology else {
            panic!("no TLS: {tls}");
        };
        let (host, port) = (host.clone(), *port);
        assert_eq!(name.to_str(), *host, "the certificate is for the host");
        let label = format!("rediss://{host}:{port}/{}", tls.database);
        assert_eq!(tls.label(), label, "the label has the scheme");
        let expected = RedisTopology::Single(RedisEndpoint::Tcp { host, port });
        assert_eq!(expected, plain.topology, "{url}");
        let login = |url: RedisUrl| (url.database, url.user, url.password);
        assert_eq!(login(tls), login(plain), "{url}");
    }
}

#[test]
fn the_url_of_a_socket_has_its_path_and_what_other_clients_write_around_it() {
    let long = format!("/{}", "x".repeat(LONGEST_PATH - 1));
    for (url, path, database, user, password) in [
        ("unix:///run/redis.sock", "/run/redis.sock", 0, "", ""),
        ("unix:/run/redis.sock", "/run/redis.sock", 0, "", ""),
        (
            "unix:///run/redis.sock?db=15",
            "/run/redis.sock",
            15,
            "",
            "",
        ),
        ("unix:///run/a@b:c.sock", "/run/a@b:c.sock", 0, "", ""),
        ("unix:///run/a%20%3fb", "/run/a ?b", 0, "", ""),
        ("unix://agent@/run/r", "/run/r", 0, "agent", ""),
        ("unix://agent:p@s:s%2F@/r?db=1", "/r", 1, "agent", "p@s:s/"),
        ("unix://:p@/r", "/r", 0, "", "p"),
        (&format!("unix://{long}"), &long, 0, "", ""),
    ] {
        let read = RedisUrl::parse(url).expect("a URL");
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let expected = RedisTopology::Single(RedisEndpoint::Socket(path.into()));
        assert_eq!(read.topology, expected, "{url}");
        assert_eq!(read.label(), format!("unix://{path}?db={database}"));
        assert_eq!(read.database, database, "{url}");
        assert_eq!((read.user, read.password), (text(user), text(password)));
    }
}

#[test]
fn what_is_no_url_of_a_socket_is_refused_with_its_reason_and_without_the_password() {
    use RedisUrlError::{Control, LongPath, SocketOptions, SocketPath};
    let long = format!("unix:///{}", "x".repeat(LONGEST_PATH));
    let reserved = |character, encoded| RedisUrlError::Reserved { character, encoded };
    for (url, why) in [
        ("unix:", SocketPath),
        ("unix://", SocketPath),
        ("unix:///", SocketPath),
        ("unix:run/redis.sock", SocketPath),
        ("unix://run/redis.sock", SocketPath),
        ("unix://:geheim@run/redis.sock", SocketPath),
        ("unix://:geheim", SocketPath),
        (&long, LongPath),
        ("unix:///r%00", Control),
        ("unix:///r?db=x", SocketOptions),
        ("unix:///r?db=-1", SocketOptions),
        ("unix:///r?db=1&pass=geheim", SocketOptions),
        ("unix:///r?pass=geheim", SocketOptions),
        ("unix:///r#1", SocketOptions),
        ("unix://:ge/heim@/r", reserved('/', "%2F")),
        ("unix://:ge?heim@/r", reserved('?', "%3F")),
    ] {
        let error = RedisUrl::parse(url).expect_err(url);
        assert_eq!(error, why, "{url}");
        assert!(!error.to_string().contains("heim"), "{error}");
    }
}

#[test]
fn a_url_is_read_as_it_is_documented() {
    for (url, host, port, database, user, password) in [
        ("redis://h", "h", 6379, 0, "", ""),
        ("redis://h/", "h", 6379, 0, "", ""),
        (
            "redis://my_redis.svc-1:1/15",
            "my_redis.svc-1",
            1,
            15,
            "",
            "",
        ),
        ("redis://[::1]:7/1", "::1", 7, 1, "", ""),
        ("redis://[::1]", "::1", 6379, 0, "", ""),
        ("redis://agent@h", "h", 6379, 0, "agent", ""),
        ("redis://agent:@h", "h", 6379, 0, "agent", ""),
        ("redis://:p@h", "h", 6379, 0, "", "p"),
        ("redis://:p@s:s%@h", "h", 6379, 0, "", "p@s:s%"),
        (
            "redis://a%40b:%2F%3f%23%E4%B8%AD@h",
            "h",
            6379,
            0,
            "a@b",
            "/?#中",
        ),
        ("redis://:中 文@h", "h", 6379, 0, "", "中 文"),
    ] {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let expected = (host.into(), port, database, text(user), text(password));
        assert_eq!(read(url), expected, "{url}");
    }
}

#[test]
fn what_is_no_url_is_refused_with_its_reason_and_without_the_password() {
    use RedisUrlError::{Control, Database, Host, Invalid, NotText, Port};
    let reserved = |character, encoded| RedisUrlError::Reserved { character, encoded };
    let options = |example, character| RedisUrlError::Options { example, character };
    for (url, why) in [
        ("redisss://h", Invalid),
        ("http://h", Invalid),
        ("rediss://", Host(TLS)),
        ("rediss://a..b", Host(TLS)),
        ("rediss://h:x", Port(TLS)),
        ("rediss://h/x", Database(TLS)),
        ("rediss://h/0#insecure", options(TLS, '#')),
        ("redis://", Host(TCP)),
        ("redis://:geheim@/0", Host(TCP)),
        ("redis://:geheim/0", Host(TCP)),
        ("redis://h:x", Port(TCP)),
        ("redis://h:", Port(TCP)),
        ("redis://h:+1", Port(TCP)),
        ("redis://h:65536", Port(TCP)),
        ("redis://h/16a", Database(TCP)),
        ("redis://h/-1", Database(TCP)),
        ("redis://h/99999999999999999999", Database(TCP)),
        ("redis://h/0?protocol=resp3", options(TCP, '?')),
        ("redis://h?db=1", options(TCP, '?')),
        ("redis://h/0#x", options(TCP, '#')),
        ("redis://a b", Host(TCP)),
        ("redis://[::1", Host(TCP)),
        ("redis://[h]", Host(TCP)),
        ("redis://:geheim@h\n", Control),
        ("redis://:ge\theim@h", Control),
        ("redis://:geheim%ff@h", NotText),
        ("redis://:geheim#1@h", reserved('#', "%23")),
        ("redis://:geheim?1@h", reserved('?', "%3F")),
        ("redis://:geheim/1@h", reserved('/', "%2F")),
        ("redis://us/er:geheim@h", reserved('/', "%2F")),
    ] {
        let error = RedisUrl::parse(url).expect_err(url);
        assert_eq!(error, why, "{url}");
        assert!(!error.to_string().contains("geh"), "{error}");
    }
}

#[test]
fn a_url_prints_without_its_password() {
    for (url, printed) in [
        ("redis://:ge@heim@h/1", "redis://:***@h/1"),
        ("redis://agent:geheim@h", "redis://agent:***@h"),
        ("redis://agent@h", "redis://agent@h"),
        ("redis://@h", "redis://@h"),
        ("rediss://agent:ge@heim@h", "rediss://agent:***@h"),
        (
            "redis-sentinel://agent:geheim@h1,h2:7/m/1",
            "redis-sentinel://agent:***@h1,h2:7/m/1",
        ),
        (
            "rediss-cluster://:geheim@h1,h2:7",
            "rediss-cluster://:***@h1,h2:7",
        ),
        ("unix:/r", "unix:///r"),
        ("unix:///a:b@c?db=1", "unix:///a:b@c?db=1"),
        ("unix://agent:geheim@/r?db=1", "unix://agent:***@/r?db=1"),
    ] {
        let url = RedisUrl::parse(url).expect("a URL");
        assert_eq!(format!("{url} {url:?}"), format!("{printed} {printed}"));
    }
}

/// The hosts as URLs have them, the name of the master, and whether each connection has TLS.
fn servers(url: &RedisUrl) -> (Vec<String>, &str, bool) {
    let (hosts, master) = match &url.topology {
        RedisTopology::Sentinel { sentinels, master } => (sentinels, &**master),
        RedisTopology::Cluster(nodes) => (nodes, ""),
        RedisTopology::Single(_) => panic!("a single server: {url}"),
    };
    let has_tls = hosts.iter().all(RedisEndpoint::has_tls);
    assert_eq!(has_tls, url.has_tls(), "all hosts or none: {url}");
    let hosts = hosts.iter().map(RedisEndpoint::address).collect();
    (hosts, master, has_tls)
}

#[test]
fn a_url_of_sentinels_has_their_hosts_the_master_and_the_database() {
    for (url, hosts, master, database, user, password) in [
        (
            "redis-sentinel://h/mymaster",
            "h:26379",
            "mymaster",
            0,
            "",
            "",
        ),
        ("redis-sentinel://h/m/", "h:26379", "m", 0, "", ""),
        (
            "redis-sentinel://h1:7,[::1],h_3.x:26380/My.ma-st_er1/15",
            "h1:7,[::1]:26379,h_3.x:26380",
            "My.ma-st_er1",
            15,
            "",
            "",
        ),
        ("redis-sentinel://h/6380/0", "h:26379", "6380", 0, "", ""),
        ("redis-sentinel://h,h/m", "h:26379,h:26379", "m", 0, "", ""),
        (
            "redis-sentinel://agent@h1,h2/m",
            "h1:26379,h2:26379",
            "m",
            0,
            "agent",
            "",
        ),
        (
            "redis-sentinel://a%40b:p%2Cs%2F:%@h1:1,h2/m/2",
            "h1:1,h2:26379",
            "m",
            2,
            "a@b",
            "p,s/:%",
        ),
    ] {
        for (url, has_tls) in [
            (url.to_owned(), false),
            (url.replace("redis-", "rediss-"), true),
        ] {
            let read = RedisUrl::parse(&url).expect("a URL");
            let expected: Vec<_> = hosts.split(',').map(str::to_owned).collect();
            assert_eq!(servers(&read), (expected, master, has_tls), "{url}");
            assert!(read.has_sentinels(), "{url}");
            let scheme = if has_tls { "rediss" } else { "redis" };
            let label = format!("{scheme}-sentinel://{hosts}/{master}/{database}");
            assert_eq!(read.label(), label, "the label has no login");
            assert_eq!(read.database, database, "{url}");
            let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            assert_eq!(
                (read.user, read.password),
                (text(user), text(password)),
                "{url}"
            );
        }
    }
}

#[test]
fn a_url_of_a_cluster_has_the_hosts_of_nodes() {
    for (url, hosts, user, password) in [
        ("redis-cluster://h", "h:6379", "", ""),
        ("redis-cluster://h/", "h:6379", "", ""),
        ("redis-cluster://h:7/0", "h:7", "", ""),
        (
            "redis-cluster://[::1]:7000,h2,h3:1",
            "[::1]:7000,h2:6379,h3:1",
            "",
            "",
        ),
        (
            "redis-cluster://agent:p%2C:s@h1,h2",
            "h1:6379,h2:6379",
            "agent",
            "p,:s",
        ),
        ("redis-cluster://:p@h1,h2/0", "h1:6379,h2:6379", "", "p"),
    ] {
        for (url, has_tls) in [
            (url.to_owned(), false),
            (url.replace("redis-", "rediss-"), true),
        ] {
            let read = RedisUrl::parse(&url).expect("a URL");
            let expected: Vec<_> = hosts.split(',').map(str::to_owned).collect();
            assert_eq!(servers(&read), (expected, "", has_tls), "{url}");
            assert!(!read.has_sentinels(), "{url}");
            let scheme = if has_tls { "rediss" } else { "redis" };
            let label = format!("{scheme}-cluster://{hosts}");
            assert_eq!((read.label(), read.database), (label, 0), "no login");
            let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            assert_eq!(
                (read.user, read.password),
                (text(user), text(password)),
                "{url}"
            );
        }
    }
}

#[test]
fn a_certificate_has_to_be_for_each_host_of_a_list() {
    let url = RedisUrl::parse("rediss-cluster://a.example,b.example:7").expect("a URL");
    let RedisTopology::Cluster(nodes) = &url.topology else {
        panic!("no cluster: {url}");
    };
    let names = nodes.iter().map(|node| match node {
        RedisEndpoint::Tls { name, .. } => name.to_str().into_owned(),
        other => panic!("no TLS: {other:?}"),
    });
    assert_eq!(names.collect::<Vec<_>>(), ["a.example", "b.example"]);
}

#[test]
fn what_a_list_of_hosts_cant_mean_is_refused_with_the_form_to_write() {
    use RedisUrlError::{
        ClusterDatabase, Database, Hosts, Master, NoMaster, NotText, Port, SeveralHosts,
        SeveralLogins,
    };
    let options = |example, character| RedisUrlError::Options { example, character };
    let reserved = |character, encoded| RedisUrlError::Reserved { character, encoded };
    let several = |sentinel, cluster| SeveralHosts { sentinel, cluster };
    for (url, why) in [
        ("redis-sentinel://h:26379", NoMaster(SENTINEL)),
        ("rediss-sentinel://h1,h2/", NoMaster(TLS_SENTINEL)),
        ("redis-sentinel://:geheim@h//0", NoMaster(SENTINEL)),
        ("redis-sentinel://h/0", NoMaster(SENTINEL)),
        ("redis-sentinel://h/0/", NoMaster(SENTINEL)),
        ("redis-sentinel://:geheim@h/0#mymaster", NoMaster(SENTINEL)),
        ("redis-sentinel://h#mymaster", NoMaster(SENTINEL)),
        ("redis-sentinel://h/my%20master", Master(SENTINEL)),
        ("redis-sentinel://h/my master/0", Master(SENTINEL)),
        ("redis-sentinel://h/müller", Master(SENTINEL)),
        ("redis-sentinel://h/m/x", Database(SENTINEL)),
        ("redis-sentinel://h/0/mymaster", Database(SENTINEL)),
        ("redis-sentinel://h/m/-1", Database(SENTINEL)),
        ("redis-sentinel://h/m/0/1", Database(SENTINEL)),
        ("redis-sentinel://h/m?db=1", options(SENTINEL, '?')),
        ("rediss-cluster://h?protocol=3", options(TLS_CLUSTER, '?')),
        ("redis-cluster://h#x", options(CLUSTER, '#')),
        ("redis-cluster://h/1", ClusterDatabase(CLUSTER)),
        (
            "rediss-cluster://h1,h2/mymaster",
            ClusterDatabase(TLS_CLUSTER),
        ),
        ("redis-cluster://", Hosts(CLUSTER)),
        ("redis-cluster://:geheim@", Hosts(CLUSTER)),
        ("redis-cluster://h1,,h2", Hosts(CLUSTER)),
        ("redis-cluster://,h", Hosts(CLUSTER)),
        ("redis-cluster://h,", Hosts(CLUSTER)),
        ("redis-sentinel://h1, h2/m", Hosts(SENTINEL)),
        ("redis-sentinel://h1;h2/m", Hosts(SENTINEL)),
        ("redis-sentinel:///m", Hosts(SENTINEL)),
        ("rediss-cluster://h1,a..b", Hosts(TLS_CLUSTER)),
        ("redis-cluster://h1,::1", Hosts(CLUSTER)),
        ("redis-cluster://h1,[::1", Hosts(CLUSTER)),
        ("redis-cluster://h1:1,h2:x", Port(CLUSTER)),
        ("redis-sentinel://h1:1,h2:65536/m", Port(SENTINEL)),
        ("redis-cluster://a:geheim@h1,a:geheim@h2", SeveralLogins),
        ("redis-cluster://h1:1,a:geheim@h2:1", SeveralLogins),
        ("redis-cluster://a:ge@heim@h", SeveralLogins),
        ("redis-sentinel://a:ge,heim@h/m", SeveralLogins),
        ("redis-sentinel://a:ge/heim@h/m", reserved('/', "%2F")),
        ("redis-cluster://:geheim%ff@h", NotText),
        ("redis://h1,h2", several(SENTINEL, CLUSTER)),
        (
            "rediss://:geheim@h1:1,h2:2/0",
            several(TLS_SENTINEL, TLS_CLUSTER),
        ),
    ] {
        let error = RedisUrl::parse(url).expect_err(url);
        assert_eq!(error, why, "{url}");
        assert!(!error.to_string().contains("heim"), "{error}");
    }
}

#[test]
fn a_scheme_of_another_program_is_refused_with_the_form_to_write() {
    for (url, example) in [
        ("redis+sentinel://:geheim@h:26379/m/0", SENTINEL),
        ("sentinel://h:26379/m", SENTINEL),
        ("Redis-Sentinel://h/m", SENTINEL),
        ("rediss+sentinel://h/m", TLS_SENTINEL),
        ("redis-sentinel+tls://h/m", TLS_SENTINEL),
        ("redis+sentinels://h/m", TLS_SENTINEL),
        ("valkey-sentinel://h/m", SENTINEL),
        ("redis+cluster://h", CLUSTER),
        ("cluster://h", CLUSTER),
        ("rediss+cluster://h", TLS_CLUSTER),
        ("redis+tls://h", TLS),
        ("redis+ssl://h", TLS),
        ("redis+tcp://h", TCP),
        ("REDIS://h", TCP),
        ("valkey://h", TCP),
        ("valkeys://h", TLS),
        ("redis+unix:///r", SOCKET),
        ("redis-socket:///r", SOCKET),
    ] {
        let error = RedisUrl::parse(url).expect_err(url);
        assert_eq!(error, RedisUrlError::Scheme(example), "{url}");
    }
    for url in [
        "redis:h",
        "redis-sentinel:h/m",
        "tls://h",
        "tcp://h",
        "unixs://h",
        "https+redis://h",
        "redis-sentinel-x://h/m",
        "://h",
        "h:6379",
        "",
    ] {
        assert_eq!(RedisUrl::parse(url), Err(RedisUrlError::Invalid), "{url}");
    }
}

#[test]
fn each_example_of_an_error_is_a_url() {
    for example in [
        TCP,
        TLS,
        SENTINEL,
        TLS_SENTINEL,
        CLUSTER,
        TLS_CLUSTER,
        SOCKET,
    ] {
        assert!(RedisUrl::parse(example).is_ok(), "{example}");
    }
}
