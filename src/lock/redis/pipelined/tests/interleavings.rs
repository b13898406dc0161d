//! Any callers over one connection, in any order, with replies in any pieces: each gets its own reply.

use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::*;
use redis::{RedisError, RedisResult, Value};
use tokio::io::AsyncWriteExt as _;
use tokio::task::yield_now;
use tokio::time::{Instant, advance};

use super::{LONG, get, is_late, limit_this_test, remembered, start};

#[derive(Clone, Debug)]
enum Step {
    /// Sends a command; if `is_short`, its caller waits for a second only.
    Send {
        is_short: bool,
    },
    SendAsking,
    SendAll(usize),
    /// The caller at this index, of those that are left, goes.
    Leave(usize),
    /// The server replies to so many commands that it has received.
    Reply(usize),
    /// So many bytes of the replies arrive.
    Arrive(usize),
    /// A second passes.
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<bool>().prop_map(|is_short| Step::Send { is_short }),
        Just(Step::SendAsking),
        (0..4_usize).prop_map(Step::SendAll),
        any::<usize>().prop_map(Step::Leave),
        (1..6_usize).prop_map(Step::Reply),
        (1..40_usize).prop_map(Step::Arrive),
        Just(Step::Wait),
    ]
}

type Caller<'c> = Pin<Box<dyn Future<Output = RedisResult<Value>> + 'c>>;

/// The server replies to `GET key` with the key.
fn reply_to(command: &str) -> String {
    match command.strip_prefix("GET ") {
        Some(key) => format!("${}\r\n{key}\r\n", key.len()),
        None => "+OK\r\n".to_owned(),
    }
}

fn bulk(key: usize) -> Value {
    Value::BulkString(key.to_string().into_bytes())
}

/// Takes the steps; then all replies arrive. Gives how many places are left at the end.
async fn run(steps: Vec<Step>) -> Result<usize, TestCaseError> {
    limit_this_test();
    let mut it = start();
    let connection = it.connection.clone();
    let (mut key, mut replied) = (0, Vec::new());
    let mut callers: Vec<(Caller<'_>, Value, bool)> = Vec::new();
    for step in steps {
        match step {
            Step::Send { is_short } => {
                key += 1;
                let wait = if is_short {
                    Duration::from_secs(1)
                } else {
                    LONG * 9
                };
                let reply = connection.send(&get(key), Instant::now() + wait);
                callers.push((Box::pin(reply), bulk(key), is_short));
            }
            Step::SendAsking => {
                key += 1;
                let reply = connection.send_asking(Instant::now() + LONG * 9, |unsent| {
                    get(key).write_packed_command(unsent)
                });
                callers.push((Box::pin(reply), bulk(key), false));
            }
            Step::SendAll(count) => {
                let keys: Vec<_> = (key + 1..=key + count).collect();
                key += count;
                let expected = keys.iter().map(|key| bulk(*key)).collect();
                let connection = connection.clone();
                let caller = async move {
                    let mut commands = redis::pipe();
                    for key in keys {
                        commands.add_command(get(key));
                    }
                    let replies = connection.send_all(&commands, Instant::now() + LONG * 9);
                    replies.await.map(Value::Array)
                };
                callers.push((Box::pin(caller), Value::Array(expected), false));
            }
            Step::Leave(index) if !callers.is_empty() => {
                drop(callers.swap_remove(index % callers.len()));
            }
            Step::Leave(_) => {}
            Step::Reply(count) => {
                for _ in 0..count {
                    if let Some(Some(command)) = it.server.next_command().now_or_never() {
                        replied.extend(reply_to(&command).into_bytes());
                    }
                }
            }
            Step::Arrive(count) => {
                let piece: Vec<_> = replied.drain(..count.min(replied.len())).collect();
                it.server.stream.write_all(&piece).await.expect("written");
            }
            Step::Wait => advance(Duration::from_secs(1)).await,
        }
        yield_now().await;
        let mut waiting = Vec::new();
        for (mut caller, expected, is_short) in callers {
            match caller.as_mut().now_or_never() {
                Some(result) => check(&result, &expected, is_short)?,
                None => waiting.push((caller, expected, is_short)),
            }
        }
        callers = waiting;
    }
    yield_now().await;
    it.server.stream.write_all(&replied).await.expect("written");
    while let Some(Some(command)) = it.server.next_command().now_or_never() {
        it.server.reply(&reply_to(&command)).await;
    }
    for (caller, expected, is_short) in callers {
        check(&caller.await, &expected, is_short)?;
    }
    yield_now().await;
    Ok(remembered(&connection))
}

fn check(
    result: &RedisResult<Value>,
    expected: &Value,
    is_short: bool,
) -> Result<(), TestCaseError> {
    match result {
        Err(_) if is_short && is_late(result) => {}
        result => prop_assert_eq!(result, &Ok::<_, RedisError>(expected.clone())),
    }
    Ok(())
}

proptest! {
    #[test]
    fn each_caller_gets_its_own_reply_whatever_the_others_do(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().start_paused(true).build();
        let left = runtime.expect("a runtime").block_on(run(steps))?;
        prop_assert_eq!(left, 0, "no place stays");
    }
}
