//! TLS and Unix sockets as listeners of the proxy.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use seriatim::app;
use seriatim::config::Config;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::app::{App, CHAT};
use crate::support::backend::{Backend, event};
use crate::support::client::{Client, Request};
use crate::support::h2_client::{H2, turn};
use crate::support::{wait_for_async, within};

/// A replica with its own certificate, in a folder as Kubernetes mounts a secret.
struct TlsSetup {
    backend: Backend,
    folder: TempDir,
    certificate: CertificateDer<'static>,
    app: App,
}

impl TlsSetup {
    async fn start(config: &str) -> Self {
        let backend = Backend::start("plain:ok").await;
        let folder = tempfile::tempdir().expect("a folder");
        let certificate = new_pair(folder.path(), "first");
        let (cert, key) = (
            folder.path().join("tls/cert.pem"),
            folder.path().join("tls/key.pem"),
        );
        let tls = format!(
            "[tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
            cert.display(),
            key.display()
        );
        let app = App::in_memory(&backend, &format!("{tls}{config}{CHAT}"));
        Self {
            backend,
            folder,
            certificate,
            app,
        }
    }

    /// A TLS connection that trusts only the certificate `trusted`.
    async fn connect(
        &self,
        trusted: &CertificateDer<'static>,
        protocol: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).expect("a certificate");
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_root_certificates(roots)
            .with_no_client_auth();
        if !protocol.is_empty() {
            config.alpn_protocols = vec![protocol.into()];
        }
        let stream = TcpStream::connect(self.app.addr())
            .await
            .expect("a connection");
        let name = ServerName::try_from("agent.example").expect("a name");
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        within("a handshake", connecting).await
    }

    async fn stream(&self, protocol: &str) -> TlsStream<TcpStream> {
        self.connect(&self.certificate, protocol)
            .await
            .expect("TLS")
    }
}

/// Creates a certificate and its key in the folder `name`, and points the symlink `tls` to it, as
/// Kubernetes does for a secret.
fn new_pair(folder: &Path, name: &str) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["agent.example".to_owned()]).expect("a certificate");
    let own = folder.join(name);
    fs::create_dir(&own).expect("a folder");
    fs::write(own.join("cert.pem"), cert.pem()).expect("the file is written");
    fs::write(own.join("key.pem"), signing_key.serialize_pem()).expect("the file is written");
    swap(folder, name);
    cert.der().clone()
}

fn swap(folder: &Path, name: &str) {
    symlink(name, folder.join("new")).expect("a symlink");
    fs::rename(folder.join("new"), folder.join("tls")).expect("the symlink is swapped");
}

/// Sends one HTTP/1 request with `connection: close` and returns the response.
async fn ask(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), head: &str) -> String {
    stream
        .write_all(head.as_bytes())
        .await
        .expect("the connection is writable");
    let mut answer = Vec::new();
    let read = within("a response", stream.read_to_end(&mut answer));
    // Some servers close without a TLS close_notify.
    let _ = read.await;
    String::from_utf8_lossy(&answer).into_owned()
}

const GET: &str = "GET /x HTTP/1.1\r\nhost: agent.example\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn tls_serves_http1_and_http2_and_sets_x_forwarded_proto() {
    let bench = TlsSetup::start("").await;
    for protocol in ["http/1.1", ""] {
        let mut stream = bench.stream(protocol).await;
        let answer = ask(&mut stream, GET).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK"),
            "{protocol}: {answer}"
        );
    }
    let mut client = H2::over(bench.stream("h2").await).await;
    assert_eq!(
        client.call(turn("s1", "plain:yes")).await.text(),
        "yes",
        "HTTP/2 by ALPN"
    );
    for request in bench.backend.requests() {
        let proto = request
            .headers
            .iter()
            .find(|(name, _)| name == "x-forwarded-proto");
        assert_eq!(
            proto.map(|(_, value)| &**value),
            Some("https"),
            "x-forwarded-proto is https"
        );
    }
    let mut plain = Client::connect(bench.app.addr()).await;
    plain.send(&Request::get("/x")).await;
    let answer = plain.read_to_close().await;
    assert!(
        !answer.starts_with(b"HTTP"),
        "a client without TLS isn't served"
    );
}

#[tokio::test]
async fn a_disconnect_over_tls_cancels_the_turn() {
    let bench = TlsSetup::start("").await;
    for protocol in ["http/1.1", "h2"] {
        let stream = bench.stream(protocol).await;
        match protocol {
            "h2" => {
                let mut client = H2::over(stream).await;
                let mut answer = client
                    .send(turn(protocol, "gate"))
                    .await
                    .expect("a response");
                answer.until(&event(0)).await;
                client.lose();
            }
            _ => {
                let mut stream = stream;
                let request = Request::turn(protocol, "gate").bytes(bench.app.addr());
                stream
                    .write_all(&request)
                    .await
                    .expect("the connection is writable");
                // And the beginning of another request.
                stream
                    .write_all(b"GET / HT")
                    .await
                    .expect("the connection is writable");
                bench.backend.started(protocol, 1).await;
                drop(stream);
            }
        }
        bench.backend.gone(protocol).await;
    }
}

#[tokio::test]
async fn a_slow_tls_handshake_times_out() {
    let bench = TlsSetup::start("[timeouts]\nrequest_head = \"300ms\"\n").await;
    for begun in [&b""[..], b"\x16\x03\x01\x02\0\x01"] {
        let mut client = Client::connect(bench.app.addr()).await;
        client.send_raw(begun).await;
        client.read_to_close().await;
    }
    let mut stream = bench.stream("").await;
    let answer = ask(&mut stream, "GET").await;
    assert!(
        answer.starts_with("HTTP/1.1 408"),
        "a slow head after the handshake times out: {answer}"
    );
}

#[tokio::test]
async fn a_renewed_certificate_is_used_and_a_mismatched_pair_is_not() {
    let bench = TlsSetup::start("").await;
    let mut kept = H2::over(bench.stream("h2").await).await;
    let second = new_pair(bench.folder.path(), "second");
    let renewed = async || bench.connect(&second, "h2").await.is_ok();
    wait_for_async(renewed, "the new certificate is presented").await;
    bench
        .connect(&bench.certificate, "h2")
        .await
        .expect_err("the old certificate isn't presented any more");
    assert_eq!(
        kept.call(turn("s1", "plain:yes")).await.text(),
        "yes",
        "an open connection goes on"
    );
    // First a key that doesn't match the certificate, then a valid pair.
    let third = new_pair(bench.folder.path(), "third");
    fs::copy(
        bench.folder.path().join("third/cert.pem"),
        bench.folder.path().join("second/cert.pem"),
    )
    .expect("the file is copied");
    swap(bench.folder.path(), "second");
    let old_or_third = async || {
        bench.connect(&second, "h2").await.is_ok() || bench.connect(&third, "h2").await.is_ok()
    };
    assert!(old_or_third().await, "a mismatched pair is not presented");
    swap(bench.folder.path(), "third");
    let renewed = async || bench.connect(&third, "h2").await.is_ok();
    wait_for_async(renewed, "the next valid pair is presented").await;
}

// === Unix sockets ===

fn on_socket(path: &Path, backend: &Backend) -> Result<app::RunningApp, app::StartError> {
    let text = format!(
        "listen = \"unix:{}\"\nupstream = \"{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n{CHAT}",
        path.display(),
        backend.url()
    );
    let config = match Config::read("test", &text, &Vec::new()) {
        Ok(config) => config,
        Err(problems) => panic!("{problems}"),
    };
    app::start(config)
}

#[tokio::test]
async fn a_unix_socket_is_served_and_its_file_is_removed_at_the_stop() {
    let backend = Backend::start("plain:ok").await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("seriatim.sock");
    // A stale socket that no process serves.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists(), "the stale socket's file exists");
    let running = on_socket(&path, &backend).expect("a stale socket is replaced");
    assert_eq!(
        running.proxy_addr().to_string(),
        format!("unix:{}", path.display()),
        "the address is the socket's path"
    );
    let connect = async || UnixStream::connect(&path).await.expect("a connection");
    let head = GET.replace("\r\n\r\n", "\r\nx-forwarded-for: 10.0.0.1\r\n\r\n");
    let answer = ask(&mut connect().await, &head).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK"),
        "a request over the socket is served: {answer}"
    );
    let request = backend.requests().pop().expect("a request");
    let hops: Vec<_> = request
        .headers
        .iter()
        .filter(|(name, _)| name == "x-forwarded-for")
        .collect();
    assert_eq!(hops.len(), 1, "no client address is added");
    assert_eq!(hops[0].1, "10.0.0.1", "x-forwarded-for is unchanged");
    let mut client = H2::over(connect().await).await;
    let mut streaming = client.send(turn("s1", "gate")).await.expect("a response");
    streaming.until(&event(0)).await;
    client.lose();
    backend.gone("s1").await;
    let second = on_socket(&path, &backend);
    assert!(
        matches!(second, Err(app::StartError::Listen { .. })),
        "a socket in use isn't replaced"
    );
    running.stop().await;
    assert!(!path.exists(), "the stop removes the socket's file");
    fs::write(&path, "a file").expect("the file is written");
    assert!(
        on_socket(&path, &backend).is_err(),
        "a file that isn't a socket isn't replaced"
    );
    assert!(path.exists(), "the file stays");
}
