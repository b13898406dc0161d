//! Answers that go through Redis to another replica: each replica here is what a process has of them, without HTTP.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use redis::Value;
use seriatim::answer::{
    AnswerEnd, AnswerHead, AnswerLimits, AnswerPart, AnswerReader, AnswerWriter, Answers,
    SharedAnswers, SharingOptions,
};
use seriatim::cipher::CipherKeys;
use seriatim::key::SessionKey;
use seriatim::lock::redis::{RedisAddress, RedisStores};
use seriatim::lock::{AnswerEntry, AnswerWrite, ClaimIssuer, EntryKind, EntryPlace, Epoch, Store};
use seriatim::secret::SecretFile;
use tokio::time::timeout;

use crate::support::redis::Redis;
use crate::support::{LIMIT, wait_for, wait_for_async};

const KEY: &str = "lock:session:u:s1";

/// How long Redis keeps the answer of a process that is gone.
const RUN_TTL: Duration = Duration::from_secs(2);

/// What one process has of kept answers.
struct Replica {
    answers: Answers,
    shared: SharedAnswers,
    issuer: Arc<ClaimIssuer>,
    options: SharingOptions,
}

impl Replica {
    fn new(redis: &Redis, number: u64) -> Self {
        let address = RedisAddress::parse(&redis.url(), Duration::from_millis(500)).expect("a URL");
        let stores = RedisStores::new(address);
        let issuer = Arc::new(ClaimIssuer::new(
            &format!("pod-{number}"),
            Epoch(number),
            false,
        ));
        let answers = Answers::default();
        let connect = move || Arc::new(stores.connect()) as Arc<dyn Store>;
        Self {
            shared: SharedAnswers::new(answers.clone(), Arc::clone(&issuer), connect),
            answers,
            issuer,
            options: SharingOptions {
                limits: AnswerLimits {
                    max_turn: 4 << 20,
                    max_total: 256 << 20,
                    keep: Duration::from_secs(60),
                },
                run_ttl: RUN_TTL,
                keys: None,
            },
        }
    }

    fn with_key(mut self, lines: &str) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), lines).expect("a file");
        let keys = CipherKeys::read(&SecretFile::new(file.path()));
        self.options.keys = Some(keys.expect("a key"));
        self
    }

    /// Begins the answer of a turn, which goes to Redis.
    fn begin(&self) -> AnswerWriter {
        let turn = self.issuer.reserve_id();
        self.shared.begin(&key(), turn, self.options.clone())
    }

    async fn find(&self) -> Option<AnswerReader> {
        self.shared.find(&key(), true, &self.options).await
    }

    /// A reader of the session's answer, once its head is there.
    async fn reader(&self) -> AnswerReader {
        let mut found = None;
        let is_found = async || match self.find().await {
            Some(mut reader) => {
                let has_head = within(reader.head()).await.is_some();
                found = has_head.then_some(reader);
                has_head
            }
            None => false,
        };
        wait_for_async(is_found, "the answer is found").await;
        found.expect("it was found")
    }
}

fn key() -> SessionKey {
    SessionKey::literal(KEY)
}

fn head() -> AnswerHead {
    let mut headers = HeaderMap::new();
    headers.insert(
        "content-type",
        HeaderValue::from_static("text/event-stream"),
    );
    AnswerHead::new(StatusCode::CREATED, &headers)
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.expect("it takes no longer")
}

/// Reads until there are `count` bytes.
async fn read(reader: &mut AnswerReader, count: usize) -> Vec<u8> {
    let mut text = Vec::new();
    while text.len() < count {
        match within(reader.next()).await {
            AnswerPart::Data(data) => text.extend_from_slice(&data),
            other => panic!("it goes on behind {} bytes: {other:?}", text.len()),
        }
    }
    text
}

/// Reads to the end.
async fn read_all(reader: &mut AnswerReader) -> (Vec<u8>, AnswerPart) {
    let mut text = Vec::new();
    loop {
        match within(reader.next()).await {
            AnswerPart::Data(data) => text.extend_from_slice(&data),
            end => return (text, end),
        }
    }
}

/// All that Redis has, as text.
async fn dump(redis: &Redis) -> String {
    let mut all = String::new();
    for key in redis.keys().await {
        let is_stream = matches!(
            redis.command(&["TYPE", &key]).await,
            Value::SimpleString(kind) if kind == "stream"
        );
        let value = match is_stream {
            true => redis.command(&["XRANGE", &key, "-", "+"]).await,
            false => redis.command(&["GET", &key]).await,
        };
        all.push_str(&format!("{key} {}\n", flat(&value)));
    }
    all
}

fn flat(value: &Value) -> String {
    match value {
        Value::Array(items) => items.iter().map(flat).collect(),
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned() + " ",
        other => format!("{other:?} "),
    }
}

fn whole() -> AnswerPart {
    AnswerPart::End(AnswerEnd::Whole { trailers: None })
}

#[tokio::test]
async fn an_answer_is_read_on_another_replica_from_its_first_byte_and_live() {
    let redis = Redis::start().await;
    let (a, b) = (Replica::new(&redis, 1), Replica::new(&redis, 2));
    assert!(b.find().await.is_none(), "there is none yet");
    let mut writer = a.begin();
    writer.head(head());
    writer.push(b"one ");
    let mut first = b.reader().await;
    let seen = first.head().await.expect("it has a head");
    assert_eq!(*seen, head(), "status and headers are those of the turn");
    assert_eq!(read(&mut first, 4).await, b"one ");
    writer.push(b"two ");
    assert_eq!(read(&mut first, 4).await, b"two ", "live");
    let mut second = b.reader().await;
    assert!(
        Arc::ptr_eq(first.answer(), second.answer()),
        "one follower serves all readers of a process"
    );
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("12"));
    let end = AnswerEnd::Whole {
        trailers: Some(trailers),
    };
    writer.push(b"end");
    writer.end(end.clone());
    let end = AnswerPart::End(end);
    assert_eq!(read_all(&mut first).await, (b"end".to_vec(), end.clone()));
    let all = b"one two end".to_vec();
    assert_eq!(read_all(&mut second).await, (all.clone(), end.clone()));
    wait_for(|| b.answers.is_empty(), "the other replica keeps nothing").await;
    let mut late = b.reader().await;
    assert_eq!(read_all(&mut late).await, (all, end), "it is kept in Redis");
}

#[tokio::test]
async fn an_answer_whose_lock_is_released_before_its_first_write_is_found() {
    let redis = Redis::start().await;
    let (a, b) = (Replica::new(&redis, 1), Replica::new(&redis, 2));
    let turn = a.issuer.reserve_id();
    // A repeat of a turn that has ended: nobody has the lock, and nothing is in Redis yet.
    let found = b.shared.find_turn(&key(), turn, &b.options);
    let mut reader = found.expect("Redis keeps answers");
    assert!(
        timeout(Duration::from_millis(200), reader.head())
            .await
            .is_err(),
        "it waits for the first write"
    );
    let mut writer = a.shared.begin(&key(), turn, a.options.clone());
    writer.head(head());
    writer.push(b"short");
    writer.end_whole();
    assert!(within(reader.head()).await.is_some(), "the head comes");
    assert_eq!(read_all(&mut reader).await, (b"short".to_vec(), whole()));
    let none = b
        .shared
        .find_turn(&key(), a.issuer.reserve_id(), &b.options);
    let mut none = none.expect("Redis keeps answers");
    assert_eq!(within(none.head()).await, None, "but not for ever");
}

#[tokio::test]
async fn a_large_answer_arrives_whole() {
    let redis = Redis::start().await;
    let (a, b) = (Replica::new(&redis, 1), Replica::new(&redis, 2));
    let mut writer = a.begin();
    writer.head(head());
    let text: Vec<u8> = (0..2_000_000_u32).map(|n| (n / 7) as u8).collect();
    for piece in text.chunks(70_000) {
        writer.push(piece);
        tokio::task::yield_now().await;
    }
    let mut reader = b.reader().await;
    writer.end(AnswerEnd::Whole { trailers: None });
    let (read, end) = read_all(&mut reader).await;
    assert!(read == text, "all bytes, in order: {}", read.len());
    assert_eq!(end, whole());
}

#[tokio::test]
async fn a_broken_answer_ends_as_such_and_nothing_stays() {
    let redis = Redis::start().await;
    let (mut a, b) = (Replica::new(&redis, 1), Replica::new(&redis, 2));
    a.options.limits.keep = Duration::from_millis(300);
    let mut writer = a.begin();
    writer.head(head());
    writer.push(b"half");
    let mut reader = b.reader().await;
    assert_eq!(read(&mut reader, 4).await, b"half");
    drop(writer);
    let end = read_all(&mut reader).await.1;
    assert_eq!(end, AnswerPart::End(AnswerEnd::Aborted), "never as whole");
    let is_empty = async || redis.keys().await.is_empty();
    wait_for_async(is_empty, "nothing is left after keep").await;
    assert!(b.find().await.is_none(), "nothing is kept");
}

#[tokio::test]
async fn the_readers_of_a_process_that_is_gone_end_with_an_error() {
    let redis = Redis::start().await;
    let b = Replica::new(&redis, 2);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let url = redis.url();
    let gone = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        // A process that is killed: its tasks end in the middle, and nobody writes an end.
        let writer = runtime.block_on(async {
            let address = RedisAddress::parse(&url, Duration::from_millis(500)).expect("a URL");
            let stores = RedisStores::new(address);
            let issuer = Arc::new(ClaimIssuer::new("pod-1", Epoch(1), false));
            let answers = Answers::default();
            let connect = move || Arc::new(stores.connect()) as Arc<dyn Store>;
            let shared = SharedAnswers::new(answers, Arc::clone(&issuer), connect);
            let limits = AnswerLimits {
                max_turn: 1 << 20,
                max_total: 1 << 20,
                keep: Duration::from_secs(60),
            };
            let options = SharingOptions {
                limits,
                run_ttl: RUN_TTL,
                keys: None,
            };
            let mut writer = shared.begin(&key(), issuer.reserve_id(), options);
            writer.head(head());
            writer.push(b"half");
            let _ = sender.send(());
            // Longer than Redis keeps an answer that nobody renews.
            let renewed = tokio::task::spawn_blocking(move || stopped.recv());
            renewed.await.expect("no panic").expect("the test goes on");
            writer
        });
        runtime.shutdown_background();
        writer
    });
    receiver.await.expect("it writes");
    let mut readers = Vec::new();
    for _ in 0..5 {
        let mut reader = b.reader().await;
        assert_eq!(read(&mut reader, 4).await, b"half");
        readers.push(reader);
    }
    let answer = async || {
        let keys = redis.keys().await;
        let found = keys.into_iter().find(|key| key.contains(":answer:"));
        found.expect("its answer stays while it lives")
    };
    let (low, high) = (1600, 1700);
    let ages = async || redis.pttl(&answer().await).await < low;
    wait_for_async(ages, "it would expire").await;
    let renewed = async || redis.pttl(&answer().await).await > high;
    wait_for_async(renewed, "a silent answer is renewed").await;
    stop.send(()).expect("it waits");
    let writer = tokio::task::spawn_blocking(move || gone.join());
    let writer = writer.await.expect("no panic").expect("no panic");
    for reader in &mut readers {
        let end = read_all(reader).await.1;
        assert_eq!(end, AnswerPart::End(AnswerEnd::Aborted), "never as whole");
    }
    let is_empty = async || redis.keys().await.is_empty();
    wait_for_async(is_empty, "nothing is left of it").await;
    drop(writer);
}

#[tokio::test]
async fn redis_that_dies_in_the_middle_hurts_the_other_replicas_alone() {
    let redis = Redis::start().await;
    let (a, b) = (Replica::new(&redis, 1), Replica::new(&redis, 2));
    let mut writer = a.begin();
    writer.head(head());
    writer.push(b"half");
    let mut own = writer.answer().reader();
    let mut other = b.reader().await;
    assert_eq!(read(&mut other, 4).await, b"half");
    redis.kill();
    writer.push(b" whole");
    writer.end(AnswerEnd::Whole { trailers: None });
    assert_eq!(
        read_all(&mut own).await,
        (b"half whole".to_vec(), whole()),
        "a reader here has all of it"
    );
    let end = read_all(&mut other).await.1;
    assert_eq!(end, AnswerPart::End(AnswerEnd::Aborted), "never as whole");
    assert!(
        a.shared.flush(LIMIT).await,
        "nothing waits for Redis for ever"
    );
}

#[tokio::test]
async fn a_redis_that_is_away_for_a_moment_loses_nothing() {
    let redis = Redis::start().await;
    let (mut a, mut b) = (Replica::new(&redis, 1), Replica::new(&redis, 2));
    for replica in [&mut a, &mut b] {
        replica.options.run_ttl = Duration::from_secs(30);
    }
    let mut writer = a.begin();
    writer.head(head());
    writer.push(b"before ");
    let mut reader = b.reader().await;
    assert_eq!(read(&mut reader, 7).await, b"before ");
    redis.stop_cont(true).await;
    writer.push(b"meanwhile ");
    // The first write times out, and may have been executed.
    tokio::time::sleep(Duration::from_millis(700)).await;
    writer.push(b"after");
    writer.end(AnswerEnd::Whole { trailers: None });
    let brief = Duration::from_millis(10);
    assert!(!a.shared.flush(brief).await, "the end isn't written yet");
    redis.stop_cont(false).await;
    assert!(a.shared.flush(LIMIT).await, "it is written then");
    assert_eq!(
        read_all(&mut reader).await,
        (b"meanwhile after".to_vec(), whole()),
        "nothing twice, nothing lost"
    );
}

#[tokio::test]
async fn a_redis_without_its_data_ends_the_readers() {
    let redis = Redis::start().await;
    let (a, b) = (Replica::new(&redis, 1), Replica::new(&redis, 2));
    let mut writer = a.begin();
    writer.head(head());
    writer.push(b"half");
    let mut reader = b.reader().await;
    assert_eq!(read(&mut reader, 4).await, b"half");
    redis.command(&["FLUSHALL"]).await;
    writer.push(b" more");
    let end = read_all(&mut reader).await.1;
    assert_eq!(end, AnswerPart::End(AnswerEnd::Aborted), "never as whole");
    assert_eq!(redis.keys().await, [""; 0], "no half answer is written");
}

#[tokio::test]
async fn an_answer_with_a_gap_never_looks_whole() {
    let redis = Redis::start().await;
    let b = Replica::new(&redis, 2);
    let address = RedisAddress::parse(&redis.url(), Duration::from_millis(500)).expect("a URL");
    let store = RedisStores::new(address).connect();
    let entry = |bytes, kind, payload: &str| AnswerEntry {
        place: EntryPlace { bytes, kind },
        payload: payload.to_owned().into(),
    };
    let write = AnswerWrite {
        after: EntryPlace::default(),
        entries: vec![
            entry(0, EntryKind::Head, r#"{"status":200,"headers":[]}"#),
            entry(2, EntryKind::Data, "ab"),
            // As after a failover that lost a write.
            entry(10, EntryKind::Data, "cd"),
            entry(10, EntryKind::End, r#"{"whole":true}"#),
        ],
        forgotten: Vec::new(),
        ttl: LIMIT,
    };
    let written = store.write_answer(&key(), b.issuer.reserve_id(), &write);
    assert!(written.await.expect("the store answers"));
    let mut reader = b.find().await.expect("there is an answer");
    let (text, end) = read_all(&mut reader).await;
    assert_eq!(text, b"ab", "what comes before it");
    assert_eq!(end, AnswerPart::End(AnswerEnd::Aborted));
}

#[tokio::test]
async fn of_an_answer_over_its_limit_the_end_is_kept() {
    let redis = Redis::start().await;
    let (mut a, mut b) = (Replica::new(&redis, 1), Replica::new(&redis, 2));
    for replica in [&mut a, &mut b] {
        replica.options.limits.max_turn = 300_000;
    }
    let mut writer = a.begin();
    writer.head(head());
    let line = |n: usize| format!("data: {n:>56}\n\n").into_bytes();
    writer.push(&line(0));
    let mut first = b.reader().await;
    let mut text = read(&mut first, 64).await;
    let lines = 16_384;
    for n in 1..lines {
        writer.push(&line(n));
        if n % 256 == 0 {
            // As fast as the reader elsewhere: it stays within the window.
            text.extend(read(&mut first, (n + 1) * 64 - text.len()).await);
        }
    }
    text.extend(read(&mut first, lines * 64 - text.len()).await);
    let expected: Vec<u8> = (0..lines).flat_map(line).collect();
    assert!(text == expected, "who was there reads on");
    let is_short = async || dump(&redis).await.len() < 600_000;
    wait_for_async(is_short, "Redis keeps a window").await;
    drop(first);
    wait_for(|| b.answers.is_empty(), "a follower ends without readers").await;
    let late = b.reader().await;
    let answer = late.answer();
    assert!(answer.is_windowed(), "a new reader can't have all of it");
    assert_eq!(answer.length(), (lines * 64) as u64, "it is at the end");
    let (kept, start) = answer.kept();
    assert_eq!(kept, expected[start as usize..], "it has the last part");
    assert!(answer.live_reader().is_some(), "it can begin with an event");
    writer.end(AnswerEnd::Whole { trailers: None });
}

#[tokio::test]
async fn what_redis_is_too_slow_for_is_left_out_and_never_looks_whole() {
    let redis = Redis::start().await;
    let (mut a, mut b) = (Replica::new(&redis, 1), Replica::new(&redis, 2));
    for replica in [&mut a, &mut b] {
        replica.options.limits.max_turn = 300_000;
    }
    let mut writer = a.begin();
    writer.head(head());
    let line = |n: usize| format!("data: {n:>56}\n\n").into_bytes();
    writer.push(&line(0));
    let mut first = b.reader().await;
    read(&mut first, 64).await;
    redis.stop_cont(true).await;
    let lines = 16_384;
    for n in 1..lines {
        writer.push(&line(n));
        // The keeper takes what it can.
        if n % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    redis.stop_cont(false).await;
    let (_, end) = read_all(&mut first).await;
    assert_eq!(
        end,
        AnswerPart::End(AnswerEnd::Aborted),
        "bytes are missing"
    );
    drop(first);
    wait_for(|| b.answers.is_empty(), "its follower ends").await;
    let expected: Vec<u8> = (0..lines).flat_map(line).collect();
    let is_there = async || b.reader().await.answer().length() == expected.len() as u64;
    wait_for_async(is_there, "the rest comes, in its own place").await;
    let late = b.reader().await;
    let (kept, start) = late.answer().kept();
    assert_eq!(kept, expected[start as usize..], "it has the last part");
}

#[tokio::test]
async fn with_a_key_no_text_is_in_redis_and_another_key_reads_nothing() {
    let redis = Redis::start().await;
    let (one, two) = ("11".repeat(32), "22".repeat(32));
    let a = Replica::new(&redis, 1).with_key(&one);
    let mut writer = a.begin();
    writer.head(head());
    writer.push(b"a secret text");
    let b = Replica::new(&redis, 2).with_key(&format!("{two}\n{one}"));
    let mut reader = b.reader().await;
    assert_eq!(read(&mut reader, 13).await, b"a secret text");
    let all = dump(&redis).await;
    for text in ["secret", "event-stream", "201"] {
        assert!(!all.contains(text), "{text:?} is encrypted: {all}");
    }
    assert!(all.contains(KEY), "the names of keys are not");
    for stranger in [
        Replica::new(&redis, 3).with_key(&two),
        Replica::new(&redis, 4),
    ] {
        let mut reader = stranger.find().await.expect("there is an answer");
        assert!(within(reader.head()).await.is_none(), "it can't be read");
    }
    writer.end(AnswerEnd::Whole { trailers: None });
    assert_eq!(read_all(&mut reader).await.1, whole());
}
