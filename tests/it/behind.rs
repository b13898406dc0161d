//! Seriatim behind products that close connections without a byte: nginx, HAProxy, Caddy, Traefik and Envoy, each a
//! real process with the file of `docs/ingress.md`.
//!
//! A turn waits for the test to let it go, so nothing depends on how long the machine takes: the test counts the
//! comments, each of which takes the time that Seriatim was told. Limits of the products are one second here.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use tempfile::TempDir;

use crate::support::app::{CHAT, wait_for_queue_length};
use crate::support::backend::event;
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Answer, Client, Request};
use crate::support::redis::Redis;
use crate::support::{Reserved, wait_for_async, within};

/// A product in front of a replica. Killed when dropped.
struct Front {
    addr: SocketAddr,
    child: Child,
    _port: Reserved,
    _folder: TempDir,
}

/// How to start a product.
struct Product {
    name: &'static str,
    /// Its files: the first line of the block in the docs without the comment sign and the folder, and what is
    /// replaced in the block.
    files: &'static [(&'static str, &'static [(&'static str, &'static str)])],
    /// Makes the command from the folder with the files.
    command: fn(&Path) -> Command,
    /// Whether it also has a limit for the time without a byte in the middle of a response.
    cuts_silent_streams: bool,
}

/// The address of Seriatim in the docs.
const SERIATIM: &str = "127.0.0.1:8080";

const NGINX: Product = Product {
    name: "nginx",
    files: &[(
        "nginx: /etc/nginx/conf.d/agent.conf",
        &[
            ("listen 80;", "listen 127.0.0.1:PORT;"),
            ("proxy_read_timeout 60s;", "proxy_read_timeout 1s;"),
            // The second replica is the first one here.
            ("127.0.0.1:8081", "127.0.0.1:SERIATIM"),
        ],
    )],
    command: |folder| {
        // One process, so that killing it ends it.
        let main = "daemon off; master_process off; pid nginx.pid; error_log stderr; events {}\n\
             http { access_log off; client_body_temp_path body; proxy_temp_path proxy;\n\
             fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi; include agent.conf; }\n";
        fs::write(folder.join("nginx.conf"), main).expect("the file can be written");
        let mut command = Command::new("nginx");
        command
            .arg("-p")
            .arg(folder)
            .args(["-c", "nginx.conf", "-e", "stderr"]);
        command
    },
    cuts_silent_streams: true,
};

const HAPROXY: Product = Product {
    name: "HAProxy",
    files: &[(
        "HAProxy: /etc/haproxy/haproxy.cfg",
        &[
            ("bind :80", "bind 127.0.0.1:PORT"),
            ("timeout client  60s", "timeout client  1s"),
            ("timeout server  60s", "timeout server  1s"),
        ],
    )],
    command: |folder| {
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(folder.join("haproxy.cfg"));
        command
    },
    cuts_silent_streams: true,
};

const CADDY: Product = Product {
    name: "Caddy",
    files: &[(
        "Caddy: /etc/caddy/Caddyfile",
        &[
            (
                "http://agent.example.com {",
                "{\n admin off\n}\nhttp://127.0.0.1:PORT {",
            ),
            ("response_header_timeout 60s", "response_header_timeout 1s"),
            ("read_timeout 60s", "read_timeout 1s"),
        ],
    )],
    command: |folder| {
        let mut command = Command::new(packaged("caddy"));
        command.args(["run", "--adapter", "caddyfile", "--config", "Caddyfile"]);
        command.env("HOME", folder);
        command
    },
    cuts_silent_streams: true,
};

const TRAEFIK: Product = Product {
    name: "Traefik",
    files: &[
        (
            "Traefik: /etc/traefik/traefik.yml",
            &[
                ("\":80\"", "127.0.0.1:PORT"),
                ("/etc/traefik/agent.yml", "agent.yml"),
            ],
        ),
        (
            "Traefik: /etc/traefik/agent.yml",
            &[("responseHeaderTimeout: 60s", "responseHeaderTimeout: 1s")],
        ),
    ],
    command: |_| {
        let mut command = Command::new(packaged("traefik"));
        command.arg("--configfile=traefik.yml");
        command
    },
    cuts_silent_streams: false,
};

const ENVOY: Product = Product {
    name: "Envoy",
    files: &[(
        "Envoy: /etc/envoy/envoy.yaml",
        &[
            (
                "address: 0.0.0.0, port_value: 80 ",
                "address: 127.0.0.1, port_value: PORT ",
            ),
            (
                "address: 127.0.0.1, port_value: 8080 ",
                "address: 127.0.0.1, port_value: SERIATIM ",
            ),
            ("stream_idle_timeout: 60s", "stream_idle_timeout: 1s"),
        ],
    )],
    command: |_| {
        let mut command = Command::new(packaged("envoy"));
        command.args(["-c", "envoy.yaml", "--use-dynamic-base-id"]);
        command.args(["--concurrency", "1", "--log-level", "warning"]);
        command
    },
    cuts_silent_streams: true,
};

#[tokio::test]
async fn three_turns_of_a_session_are_served_whole_and_in_order_behind_nginx() {
    NGINX.test().await;
}

#[tokio::test]
async fn three_turns_of_a_session_are_served_whole_and_in_order_behind_haproxy() {
    HAPROXY.test().await;
}

#[tokio::test]
async fn three_turns_of_a_session_are_served_whole_and_in_order_behind_caddy() {
    CADDY.test().await;
}

#[tokio::test]
async fn three_turns_of_a_session_are_served_whole_and_in_order_behind_traefik() {
    TRAEFIK.test().await;
}

#[tokio::test]
async fn three_turns_of_a_session_are_served_whole_and_in_order_behind_envoy() {
    ENVOY.test().await;
}

/// A comment is sent this often, and a product is content with one in a second.
const KEEP_ALIVE: &str = "100ms";

/// This many comments take longer than the limit of the products.
const COMMENTS: usize = 13;

/// The program of a package from PyPI that `.ci/test` installs.
fn packaged(program: &str) -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-proxies-venv/bin");
    let folder = std::env::var_os("SERIATIM_TEST_PROXIES").map_or(own.into(), PathBuf::from);
    let path = folder.join(program);
    assert!(
        path.exists(),
        "{} is missing: run .ci/test, which installs it",
        path.display()
    );
    path
}

/// The block of `docs/ingress.md` whose first line is this comment.
fn block(first_line: &str) -> String {
    let page = include_str!("../../docs/ingress.md");
    let begin = format!("\n# {first_line}\n");
    let (_, rest) = page
        .split_once(&begin)
        .unwrap_or_else(|| panic!("a block of docs/ingress.md begins with {first_line:?}"));
    let (text, _) = rest.split_once("\n```\n").expect("the block is closed");
    format!("{text}\n")
}

/// A turn of a client that reads an event stream, and ends when its gate is opened.
fn turn(session: &str, number: usize) -> Request {
    let request = Request::turn(session, "gate").header("accept", "text/event-stream");
    request.header("x-n", &number.to_string())
}

/// What is in an event stream beside comments.
fn without_comments(answer: &Answer) -> String {
    let text = answer.text();
    let events = text.split_inclusive("\n\n");
    events.filter(|event| !event.starts_with(':')).collect()
}

/// Waits until this client has got so many comments from now on.
async fn comments(client: &mut Client, count: usize) {
    let counted = async {
        let mut seen = 0;
        while seen < count {
            let piece = client.piece().await;
            let piece = piece.expect("the response goes on while its turn waits or thinks");
            let lines = piece.split(|byte| *byte == b'\n');
            seen += lines.filter(|line| line.starts_with(b":")).count();
        }
    };
    within("comments while the turn waits or thinks", counted).await;
}

// === impl Product ===

impl Product {
    async fn test(&self) {
        self.keeps_turns_that_wait_and_think().await;
        self.gives_up_without_comments().await;
    }

    async fn keeps_turns_that_wait_and_think(&self) {
        let lock = format!("[lock]\nblocking = true\nkeep_alive = \"{KEEP_ALIVE}\"\n");
        let bench = Setup::new(&format!("{lock}{CHAT}")).on_redis().await;
        let front = self.start(&bench).await;
        let mut turns = front.three_turns(&bench).await;
        for number in 0..turns.len() {
            let (turn, later) = turns[number..].split_first_mut().expect("one is left");
            bench.backend.started("s1", number + 1).await;
            // The turn thinks for longer than the limit, and the later ones wait.
            comments(turn, COMMENTS).await;
            for waiter in later {
                comments(waiter, COMMENTS).await;
            }
            bench.backend.open_gate("s1");
            let answer = turn.answer().await;
            assert_eq!(
                (answer.status, answer.whole, without_comments(&answer)),
                (200, true, event(0)),
                "behind {}, turn {number} gets its whole response: {answer:?}",
                self.name
            );
        }
        let numbers = bench.backend.turns("s1").into_iter().map(|turn| {
            let number = turn.header("x-n").expect("the turn has its number");
            number.to_owned()
        });
        assert_eq!(
            numbers.collect::<Vec<_>>(),
            ["0", "1", "2"],
            "behind {}, the turns are served in order",
            self.name
        );
        bench.wait_until_no_keys().await;
    }

    async fn gives_up_without_comments(&self) {
        let config = format!("[lock]\nblocking = true\n{CHAT}");
        let bench = Setup::new(&config).on_redis().await;
        let front = self.start(&bench).await;
        // Its own connection has no limit.
        let mut holder = bench.hold("s1").await;
        let waiter = async |number| {
            let mut client = Client::connect(front.addr).await;
            client.call(&turn("s1", number)).await.status
        };
        assert_eq!(
            tokio::join!(waiter(1), waiter(2)),
            (504, 504),
            "{} gives up on waiting turns without `keep_alive`",
            self.name
        );
        bench.backend.open_gate("s1");
        assert!(holder.answer().await.whole, "the holder is not disturbed");
        if self.cuts_silent_streams {
            let mut client = Client::connect(front.addr).await;
            let answer = client.call(&turn("s2", 0)).await;
            assert_eq!(
                (answer.status, answer.whole),
                (200, false),
                "{} cuts a silent stream without `keep_alive`: {answer:?}",
                self.name
            );
        }
        bench.wait_until_no_keys().await;
    }

    /// Starts the product in front of the first replica.
    async fn start(&self, bench: &Bench<Redis>) -> Front {
        let (port, folder) = (Reserved::new(), TempDir::new().expect("a folder"));
        let (addr, replica) = (port.addr(), bench.app.addr());
        for (comment, changes) in self.files {
            let mut text = block(comment);
            for (old, new) in *changes {
                assert!(text.contains(old), "{comment} has {old:?}");
                let new = new.replace("PORT", &addr.port().to_string());
                text = text.replace(old, &new.replace("SERIATIM", &replica.port().to_string()));
            }
            let text = text.replace(SERIATIM, &replica.to_string());
            let name = comment.rsplit('/').next().unwrap_or(comment);
            fs::write(folder.path().join(name), text).expect("the file can be written");
        }
        let log = folder.path().join("log");
        let output = fs::File::create(&log).expect("the file can be written");
        let mut child = (self.command)(folder.path())
            .current_dir(folder.path())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; .ci/test installs it", self.name));
        let serves = async || {
            let ended = child.try_wait().expect("a child of this process");
            let said = || fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "{} has ended: {}", self.name, said());
            match Client::try_connect(addr).await {
                // Traefik listens before it knows its routes.
                Ok(mut client) => client.get("/").await.text() == "ok",
                Err(_) => false,
            }
        };
        wait_for_async(serves, &format!("{} serves", self.name)).await;
        Front {
            addr,
            child,
            _port: port,
            _folder: folder,
        }
    }
}

// === impl Front ===

impl Front {
    /// Sends three turns of one session. The first one runs, and the others wait in this order.
    async fn three_turns(&self, bench: &Bench<Redis>) -> Vec<Client> {
        let mut turns = Vec::new();
        for number in 0..3 {
            let mut client = Client::connect(self.addr).await;
            client.send(&turn("s1", number)).await;
            match number {
                0 => client.read_until(&event(0)).await,
                number => wait_for_queue_length(&bench.redis, "s1", number).await,
            }
            turns.push(client);
        }
        turns
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // An error means that the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
