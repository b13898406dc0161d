//! Tests of kept answers: readers, bounds, and what becomes of an answer that ended.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tokio::time::sleep;

use super::*;
use crate::lock::Epoch;

const LIMITS: AnswerLimits = AnswerLimits {
    max_turn: 4 << 20,
    max_total: 256 << 20,
    keep: Duration::from_secs(120),
};

const WHOLE: AnswerEnd = AnswerEnd::Whole { trailers: None };

fn turn(number: u64) -> ClaimId {
    ClaimId {
        epoch: Epoch(1),
        number,
    }
}

fn begin(answers: &Answers, number: u64, limits: AnswerLimits) -> AnswerWriter {
    let mut writer = answers.begin(&SessionKey::literal("s1"), turn(number), limits);
    writer.head(AnswerHead::new(StatusCode::OK, &HeaderMap::new()));
    writer
}

/// What a reader has now, and how it ends; `None`: it waits.
fn read(reader: &mut AnswerReader) -> (Vec<u8>, Option<AnswerPart>) {
    let mut context = Context::from_waker(Waker::noop());
    let mut text = Vec::new();
    loop {
        match reader.poll_next(&mut context) {
            Poll::Ready(AnswerPart::Data(data)) => text.extend_from_slice(&data),
            Poll::Ready(other) => return (text, Some(other)),
            Poll::Pending => return (text, None),
        }
    }
}

#[tokio::test]
async fn readers_get_an_answer_from_its_first_byte_and_then_live() {
    crate::time_limit::limit_this_test();
    let answers = Answers::default();
    let mut writer = begin(&answers, 1, LIMITS);
    let mut first = writer.answer().reader();
    let long = b"0123456789".repeat(10_000);
    writer.push(b"one ");
    writer.push(&long);
    assert_eq!(read(&mut first), ([b"one ", &*long].concat(), None));
    writer.push(b" two");
    assert_eq!(read(&mut first), (b" two".to_vec(), None), "and no more");
    let whole = [b"one ", &*long, b" two"].concat();
    let found = answers.find(&SessionKey::literal("s1")).expect("it runs");
    let mut second = found.reader();
    assert_eq!(read(&mut second), (whole.clone(), None));
    assert_eq!(answers.bytes(), whole.len() as u64, "readers cost nothing");
    let waiting = tokio::spawn(async move { second.next().await });
    tokio::task::yield_now().await;
    writer.end(WHOLE);
    let end = Some(AnswerPart::End(WHOLE));
    assert_eq!(waiting.await.ok(), end, "a reader that waits is woken");
    assert_eq!(read(&mut first), (Vec::new(), end.clone()));
    assert_eq!(read(&mut found.reader()), (whole, end), "it is kept");
}

#[tokio::test]
async fn an_answer_whose_writer_is_dropped_has_aborted() {
    crate::time_limit::limit_this_test();
    let answers = Answers::default();
    let mut writer = begin(&answers, 1, LIMITS);
    writer.push(b"half");
    let mut reader = writer.answer().reader();
    drop(writer);
    let aborted = Some(AnswerPart::End(AnswerEnd::Aborted));
    assert_eq!(read(&mut reader), (b"half".to_vec(), aborted));

    let writer = answers.begin(&SessionKey::literal("s2"), turn(2), LIMITS);
    let mut reader = writer.answer().reader();
    drop(writer);
    assert_eq!(reader.head().await, None, "who waits for a head is told");
    let found = answers.find(&SessionKey::literal("s2"));
    assert!(found.is_none(), "without a head there is nothing to keep");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_kept_for_some_time_after_its_end() {
    crate::time_limit::limit_this_test();
    let answers = Answers::default();
    let key = SessionKey::literal("s1");
    let mut first = begin(&answers, 1, LIMITS);
    first.push(b"first");
    first.end(WHOLE);
    sleep(Duration::from_secs(60)).await;
    let mut second = begin(&answers, 2, LIMITS);
    second.push(b"second");
    let newest = answers.find(&key).expect("one runs");
    assert_eq!(newest.turn(), turn(2), "the turn that runs comes first");
    let older = answers.find_turn(&key, turn(1)).expect("it is kept");
    assert_eq!(read(&mut older.reader()).0, b"first");
    drop((newest, older));
    sleep(Duration::from_secs(61)).await;
    assert!(
        answers.find_turn(&key, turn(1)).is_none(),
        "its time is over"
    );
    assert!(
        answers.find(&key).is_some(),
        "a turn runs as long as it runs"
    );
    second.end(WHOLE);
    sleep(Duration::from_secs(121)).await;
    assert!(answers.is_empty(), "nothing is left");
    assert_eq!(answers.bytes(), 0, "of its bytes, too");
}

#[tokio::test]
async fn of_an_answer_over_its_limit_only_a_window_is_kept() {
    crate::time_limit::limit_this_test();
    let limits = AnswerLimits {
        max_turn: 1 << 20,
        ..LIMITS
    };
    let answers = Answers::default();
    let mut writer = begin(&answers, 1, limits);
    let mut idle = writer.answer().reader();
    let mut live = writer.answer().reader();
    let event = format!("data: {}\n\n", "x".repeat(1016)).into_bytes();
    let mut over = 0;
    for _ in 0..4096 {
        over += u32::from(writer.push(&event));
        assert!(matches!(read(&mut live), (_, None)), "who reads goes on");
    }
    assert_eq!(over, 1, "it is told once");
    let answer = Arc::clone(writer.answer());
    assert!(answer.is_windowed());
    assert!(answers.bytes() < 300_000, "a window: {}", answers.bytes());
    assert_eq!(
        read(&mut idle).1,
        Some(AnswerPart::Gone),
        "who doesn't, falls out"
    );
    writer.push(b"data: half");
    let mut new = answer.live_reader().expect("an event has ended");
    assert_eq!(
        read(&mut new),
        (b"data: half".to_vec(), None),
        "live, by whole events"
    );
}

#[tokio::test]
async fn all_answers_together_have_a_limit_and_the_oldest_that_ended_goes_first() {
    crate::time_limit::limit_this_test();
    let limits = AnswerLimits {
        max_total: 1000,
        ..LIMITS
    };
    let answers = Answers::default();
    let key = SessionKey::literal("s1");
    for number in 1..=3 {
        let mut writer = begin(&answers, number, limits);
        writer.push(&[b'x'; 300]);
        writer.end(WHOLE);
    }
    let mut writer = begin(&answers, 4, limits);
    let mut push = |count| writer.push(&vec![b'x'; count]);
    let kept = |number| answers.find_turn(&key, turn(number)).is_some();
    assert!(!push(300), "there is room");
    assert_eq!([kept(1), kept(2), kept(3)], [false, true, true]);
    assert!(!push(600), "there is room once more");
    assert!(!push(600), "it is over the limit, and has lost nothing");
    assert_eq!([kept(2), kept(3), kept(4)], [false, false, true]);
    assert!(push(20_000), "now its beginning is lost");
    assert!(!push(20_000), "which is told once");
}

/// The bytes in memory of answers of 240 KB that run at once, and how many of them have lost bytes. Each is read as
/// it comes.
fn run_together(answers: &Answers, count: u64, limits: AnswerLimits) -> (u64, u32) {
    let mut most = 0;
    let mut cut = 0;
    let mut running: Vec<_> = (0..count)
        .map(|number| {
            let writer = begin(answers, number, limits);
            let reader = writer.answer().reader();
            (writer, reader)
        })
        .collect();
    for _ in 0..240 {
        for (writer, live) in &mut running {
            cut += u32::from(writer.push(&[b'x'; 1000]));
            let (text, end) = read(live);
            assert_eq!((text.len(), end), (1000, None), "who reads goes on");
            most = most.max(answers.bytes());
        }
    }
    for (writer, _) in running {
        writer.end(WHOLE);
    }
    (most, cut)
}

#[tokio::test]
async fn answers_that_run_need_little_more_memory_than_all_may_have() {
    crate::time_limit::limit_this_test();
    let (answers, count) = (Answers::default(), 200);
    let limits = AnswerLimits {
        max_total: 8 << 20,
        ..LIMITS
    };
    let (most, cut) = run_together(&answers, count, limits);
    let bound = limits.max_total + count * SMALL_WINDOW;
    assert!(most <= bound, "{most} bytes are more than {bound}");
    assert!(cut > 100, "most have lost their beginning: {cut}");
    let left = answers.bytes();
    assert!(
        left <= limits.max_total,
        "{left} bytes when they have ended"
    );
}

#[tokio::test]
async fn windows_count_for_the_memory_of_all_answers() {
    crate::time_limit::limit_this_test();
    let (answers, count) = (Answers::default(), 50);
    let limits = AnswerLimits {
        max_turn: 64 << 10,
        max_total: 1 << 20,
        ..LIMITS
    };
    let (most, _) = run_together(&answers, count, limits);
    let bound = limits.max_total + count * SMALL_WINDOW;
    assert!(most <= bound, "{most} bytes are more than {bound}");
    let one = Answers::default();
    let (most, _) = run_together(&one, 1, limits);
    assert!(most <= limits.max_turn, "of one: {most}");
}

#[tokio::test]
async fn a_turn_without_an_answer_hides_those_before_it() {
    crate::time_limit::limit_this_test();
    let (answers, key) = (Answers::default(), SessionKey::literal("s1"));
    begin(&answers, 1, LIMITS).end(WHOLE);
    let failing = answers.begin(&key, turn(2), LIMITS);
    let later = begin(&answers, 3, LIMITS);
    drop(failing);
    assert_eq!(
        answers.find(&key).map(|found| found.turn()),
        Some(turn(3)),
        "but not one behind it"
    );
    later.end(WHOLE);
    drop(answers.begin(&key, turn(4), LIMITS));
    assert!(answers.find(&key).is_none(), "the last turn has none");
    assert!(answers.find_turn(&key, turn(1)).is_some(), "for repeats");
    begin(&answers, 5, LIMITS).end(WHOLE);
    assert!(answers.find(&key).is_some(), "until the next answer");
}

#[tokio::test]
async fn a_reader_goes_on_behind_an_event() {
    crate::time_limit::limit_this_test();
    let answers = Answers::default();
    let mut writer = begin(&answers, 1, LIMITS);
    writer.push(b"\xef\xbb\xbfid: 1\ndata: a\n\nid:2\r\ndata: b\r\n\r\nid: 3\rdata: c\r\rdata: d\n\nid: 4\n: half");
    let answer = Arc::clone(writer.answer());
    let behind = |id: &str| {
        let reader = answer.reader_behind(id.as_bytes());
        reader.map(|mut reader| String::from_utf8_lossy(&read(&mut reader).0).into_owned())
    };
    let rest = behind("1").expect("more follows");
    assert!(rest.starts_with("id:2\r\n"), "{rest:?}");
    let rest = behind("2").expect("more follows");
    assert!(rest.starts_with("id: 3\r"), "{rest:?}");
    let rest = behind("3").expect("more follows");
    assert!(
        rest.starts_with("data: d"),
        "an event without an id comes again: {rest:?}"
    );
    let all = behind("4").expect("the whole answer");
    assert!(all.contains("id: 1"), "an event that hasn't ended: {all:?}");
    assert!(behind("x").expect("the whole answer").contains("id: 1"));
    writer.push(b"\ndata: e\n\n: bye\n\n");
    writer.end(WHOLE);
    assert_eq!(behind("4"), None, "nothing follows");
    assert!(behind("3").is_some());
}

#[tokio::test]
async fn a_reader_gets_all_events_behind_the_first_with_its_id() {
    crate::time_limit::limit_this_test();
    let answers = Answers::default();
    let limits = AnswerLimits {
        max_turn: 1000,
        ..LIMITS
    };
    let mut writer = begin(&answers, 1, limits);
    writer.push(b"id: m\ndata: a\n\nid: m\ndata: b\n\nid: m\ndata: c\n\nid: n\ndata: d\n\n");
    let answer = Arc::clone(writer.answer());
    let behind = |id: &str| {
        let reader = answer.reader_behind(id.as_bytes());
        reader.map(|mut reader| String::from_utf8_lossy(&read(&mut reader).0).into_owned())
    };
    let rest = "id: m\ndata: b\n\nid: m\ndata: c\n\nid: n\ndata: d\n\n";
    assert_eq!(behind("m").as_deref(), Some(rest), "repeated, not lost");
    writer.push(b"id: n\ndata: e\n\n");
    for _ in 0..20 {
        writer.push(b": a comment that takes room, so that the beginning is lost later\n");
        writer.push(b"id: m\ndata: f\n\n");
    }
    assert!(answer.start() > 0, "the beginning is lost");
    let reader = answer.reader_behind(b"m").expect("more follows");
    assert_eq!(reader.at(), 0, "nobody knows which one it has got");
    writer.push(b"id: last\ndata: g\n\n");
    writer.end(WHOLE);
    assert!(answer.reader_behind(b"last").is_none(), "nothing follows");
}

#[tokio::test]
async fn an_event_that_comes_again_at_the_end_is_not_taken_for_seen() {
    crate::time_limit::limit_this_test();
    let answers = Answers::default();
    let mut writer = begin(&answers, 1, LIMITS);
    writer.push(b"id: m\ndata: a\n\nid: m\ndata: b\n\n");
    let answer = Arc::clone(writer.answer());
    writer.end(WHOLE);
    let mut rest = answer.reader_behind(b"m").expect("more follows");
    assert_eq!(read(&mut rest).0, b"id: m\ndata: b\n\n");
}
