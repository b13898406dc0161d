//! `seriatim demo`: runs a small streaming agent behind the proxy, and sends three turns that show what the
//! proxy does. Then it prints a command to try it by hand. It uses neither Redis nor a configuration file.

use std::convert::Infallible;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body::{Body, Frame};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Interval, interval};

use super::{OK, cant_start, print};
use crate::app;
use crate::config::Config;
use crate::drain;
use crate::listen::{self, FnService, ListenEndpoint, Listener, ServeSettings};

/// Options of `seriatim demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// The address on which the proxy listens
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Show the three turns, then exit
    #[arg(long)]
    once: bool,
}

/// The agent's answer, sent word by word. It takes long enough for a second turn to arrive meanwhile.
const WORDS: [&str; 8] = [
    "One", "turn", "at", "a", "time,", "one", "after", "another.",
];
const PACE: Duration = Duration::from_millis(400);

// === impl DemoArgs ===

impl DemoArgs {
    pub(super) async fn run(self) -> u8 {
        match self.show().await {
            Ok(()) => OK,
            Err(error) => cant_start(format!("{error}; try `--listen 127.0.0.1:0`")),
        }
    }

    async fn show(self) -> Result<(), Box<dyn Error>> {
        // Dropping `_drain` at the end of the demo stops the agent.
        let (_drain, watch) = drain::channel();
        let anywhere = ListenEndpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let agent = Listener::bind(&anywhere)?;
        let agent_address = agent.address().clone();
        tokio::spawn(agent.accept(watch.clone(), move |accepted| {
            let watch = watch.clone();
            let agent = FnService(|_, _| answer());
            tokio::spawn(async move {
                listen::serve(accepted, &ServeSettings::default(), watch, agent).await;
            });
        }));
        let text = format!(
            "listen = \"{}\"\nupstream = \"http://{agent_address}\"\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n{ROUTE}",
            self.listen
        );
        let config = Config::read("the demo's configuration", &text, &Vec::new())?;
        let proxy = app::start(config)?;
        let address = proxy.proxy_addr().tcp().ok_or("no TCP address")?;
        print(format!(
            "Demo agent, which streams its answers: http://{agent_address}\n\
             Seriatim in front of it: http://{address}\n\
             Status page: http://{}/\n\nConfiguration:\n{ROUTE}",
            proxy.admin_addr()
        ));

        let (streaming, started) = oneshot::channel();
        let first = tokio::spawn(turn(address, "turn 1", "", Some(streaming)));
        // The first word has arrived: the first turn holds the lock.
        let _ = started.await;
        turn(
            address,
            "turn 2",
            ", of the same session, while turn 1 streams",
            None,
        )
        .await?;
        first.await??;
        turn(address, "turn 3", ", after the end of turn 1", None).await?;

        if !self.once {
            print(format!(
                "\nTry it yourself. Run this in two terminals at the same time:\n\n  {}\n\n\
                 The status page shows the turn that runs, and the one that was refused: http://{}/\n",
                curl(address),
                proxy.admin_addr()
            ));
            print("Press Ctrl-C to stop.");
            tokio::signal::ctrl_c().await?;
        }
        proxy.stop().await;
        Ok(())
    }
}

const ROUTE: &str = r#"
[[routes]]
name       = "chat"
path       = "/chat"
methods    = ["POST"]
session_id = ["{body:/session_id}"]
user_id    = ["{body:/user_id}", "unknown"]
"#;

const TURN: &str = r#"{"session_id": "session_123", "user_id": "user", "input": "hello"}"#;

fn curl(address: SocketAddr) -> String {
    format!("curl -iN http://{address}/chat -H 'content-type: application/json' -d '{TURN}'")
}

// === the client ===

/// Sends a turn and prints the response as it arrives, each line with the turn's name. `when` is for the first
/// line only. Notifies `streaming` at the first event.
async fn turn(
    address: SocketAddr,
    name: &str,
    when: &str,
    mut streaming: Option<oneshot::Sender<()>>,
) -> io::Result<()> {
    print(format!("{name}{when}: POST /chat {TURN}"));
    let mut stream = TcpStream::connect(address).await?;
    let length = TURN.len();
    let request = format!(
        "POST /chat HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{TURN}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut lines = BufReader::new(stream).lines();
    let status = lines.next_line().await?.ok_or(ErrorKind::UnexpectedEof)?;
    print(format!("{name}: {status}"));
    while let Some(line) = lines.next_line().await? {
        // Prints events and JSON, but neither headers nor chunk sizes.
        if line.starts_with("data:") || line.starts_with('{') {
            print(format!("{name}: {line}"));
            if let Some(streaming) = streaming.take() {
                let _ = streaming.send(());
            }
        }
    }
    Ok(())
}

// === the agent ===

/// The agent's response body: one server-sent event for each word.
struct DemoAnswer {
    /// How many words were sent.
    sent: usize,
    pace: Interval,
}

async fn answer() -> Response<DemoAnswer> {
    let mut response = Response::new(DemoAnswer {
        sent: 0,
        pace: interval(PACE),
    });
    let event_stream = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(CONTENT_TYPE, event_stream);
    response
}

impl Body for DemoAnswer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(word) = WORDS.get(self.sent) else {
            return Poll::Ready(None);
        };
        ready!(self.pace.poll_tick(cx));
        self.sent += 1;
        let event = format!("data: {{\"text\": {word:?}}}\n\n");
        Poll::Ready(Some(Ok(Frame::data(event.into()))))
    }
}
