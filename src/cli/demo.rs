//! `seriatim demo`: a small streaming agent, the proxy before it, and three turns that show what it
//! does. Then the commands to try it by hand.

use std::convert::Infallible;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::Response;
use http_body::{Body, Frame};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Interval, interval};

use super::{OK, cant_start, say};
use crate::app;
use crate::config::Config;
use crate::drain;
use crate::listen::{self, FnService, ListenEndpoint, Listener, ServeSettings};

/// Options of `seriatim demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Where the proxy listens
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Show the three turns and leave
    #[arg(long)]
    once: bool,
}

/// What the agent says, a word each time. Long enough for a second turn to come in between.
const WORDS: [&str; 8] = [
    "One", "turn", "at", "a", "time,", "one", "after", "another.",
];
const PACE: Duration = Duration::from_millis(400);

// === impl Demo ===

impl DemoArgs {
    pub(super) async fn run(self) -> u8 {
        match self.show().await {
            Ok(()) => OK,
            Err(error) => cant_start(format!("{error}; try `--listen 127.0.0.1:0`")),
        }
    }

    async fn show(self) -> Result<(), Box<dyn Error>> {
        // Lives as long as the demo: what it serves ends with it.
        let (_stop, watch) = drain::channel();
        let anywhere = ListenEndpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let agent = Listener::bind(&anywhere)?;
        let agent_address = agent.address().clone();
        let turns = Arc::new(AtomicU64::new(0));
        tokio::spawn(agent.accept(watch.clone(), move |accepted| {
            let (turns, watch) = (Arc::clone(&turns), watch.clone());
            let agent = FnService(move |_, _| answer(Arc::clone(&turns)));
            tokio::spawn(async move {
                listen::serve(accepted, &ServeSettings::default(), watch, agent).await;
            });
        }));
        let text = format!(
            "listen = \"{}\"\nupstream = \"http://{agent_address}\"\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n{ROUTE}",
            self.listen
        );
        let proxy = app::start(Config::read(
            "the demo's configuration",
            &text,
            &Vec::new(),
        )?)?;
        let address = proxy.proxy_addr().tcp().ok_or("no TCP address")?;
        say(format!(
            "An agent that streams its answers listens on {agent_address}, and Seriatim"
        ));
        say(format!(
            "stands before it on {address}, with this configuration:\n\n{ROUTE}"
        ));

        let (streaming, started) = oneshot::channel();
        let first = tokio::spawn(turn(address, "turn 1", Some(streaming)));
        // Once the first word is there, the first turn is under way.
        let _ = started.await;
        turn(address, "turn 2, the same session", None).await?;
        first.await??;
        turn(address, "turn 3, after the end of turn 1", None).await?;

        if !self.once {
            say(format!(
                "\nTry it yourself, in two terminals at once:\n\n  {}\n",
                curl(address)
            ));
            say("Ctrl-C ends it.");
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

/// Sends a turn and says what comes back, as it comes.
async fn turn(
    address: SocketAddr,
    name: &str,
    mut streaming: Option<oneshot::Sender<()>>,
) -> io::Result<()> {
    say(format!("{name}: POST /chat {TURN}"));
    let mut stream = TcpStream::connect(address).await?;
    let length = TURN.len();
    let request = format!(
        "POST /chat HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{TURN}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut lines = BufReader::new(stream).lines();
    let status = lines.next_line().await?.ok_or(ErrorKind::UnexpectedEof)?;
    say(format!("{name}: {status}"));
    while let Some(line) = lines.next_line().await? {
        // Events and JSON; not headers, and not the sizes of chunks.
        if line.starts_with("data:") || line.starts_with('{') {
            say(format!("{name}: {line}"));
            if let Some(streaming) = streaming.take() {
                let _ = streaming.send(());
            }
        }
    }
    Ok(())
}

// === the agent ===

/// The answer to one of the turns, which it counts: word by word, as server-sent events.
struct DemoAnswer {
    turn: u64,
    said: usize,
    pace: Interval,
}

async fn answer(turns: Arc<AtomicU64>) -> Response<DemoAnswer> {
    let turn = turns.fetch_add(1, Ordering::Relaxed) + 1;
    let mut response = Response::new(DemoAnswer {
        turn,
        said: 0,
        pace: interval(PACE),
    });
    let event_stream = http::HeaderValue::from_static("text/event-stream");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, event_stream);
    response
}

impl Body for DemoAnswer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(word) = WORDS.get(self.said) else {
            return Poll::Ready(None);
        };
        ready!(self.pace.poll_tick(cx));
        self.said += 1;
        let event = format!("data: {{\"turn\": {}, \"text\": {word:?}}}\n\n", self.turn);
        Poll::Ready(Some(Ok(Frame::data(event.into()))))
    }
}
