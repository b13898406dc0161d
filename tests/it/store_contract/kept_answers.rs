//! Answers that a store keeps for other replicas. A store that keeps none has none.

use std::time::Duration;

use bytes::Bytes;
use seriatim::key::SessionKey;
use seriatim::lock::{
    AnswerEntry, AnswerLookup, AnswerWrite, Claim, EntryKind, EntryPlace, LockHolder,
};

use super::{KEY, LEASE, StoreSetup};
use crate::support::wait_for_async;

store_contract!(
    an_answer_is_read_in_order_by_another_instance,
    a_repeated_write_adds_nothing,
    a_write_behind_something_that_is_gone_removes_the_answer,
    forgotten_entries_are_gone_and_the_head_stays,
    an_answer_is_gone_when_its_time_is_over,
    a_renewed_answer_stays,
    a_late_write_does_not_hide_the_answer_of_the_holder,
    an_answer_is_hidden_by_none_whose_id_begins_that_of_the_holder,
    an_answer_has_any_bytes,
    the_holder_is_found,
    a_turn_without_an_answer_is_named_as_the_last,
);

/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);

const START: EntryPlace = EntryPlace {
    bytes: 0,
    kind: EntryKind::Start,
};

const HEAD: EntryPlace = EntryPlace {
    bytes: 0,
    kind: EntryKind::Head,
};

fn data(bytes: u64) -> EntryPlace {
    let kind = EntryKind::Data;
    EntryPlace { bytes, kind }
}

fn end(bytes: u64) -> EntryPlace {
    let kind = EntryKind::End;
    EntryPlace { bytes, kind }
}

fn write(after: EntryPlace, entries: &[(EntryPlace, &str)]) -> AnswerWrite {
    let entry = |(place, payload): &(EntryPlace, &str)| AnswerEntry {
        place: *place,
        payload: Bytes::copy_from_slice(payload.as_bytes()),
    };
    AnswerWrite {
        after,
        entries: entries.iter().map(entry).collect(),
        forgotten: Vec::new(),
        ttl: LONG,
    }
}

impl StoreSetup {
    /// Writes to the answer of a turn of the first instance; `true` if the store has all of it.
    async fn write(&self, claim: &Claim, write: &AnswerWrite) -> bool {
        let written = self.store(0).write_answer(&claim.key, claim.id, write);
        written.await.expect("the store answers")
    }

    /// What another instance reads of a turn's answer; `None`: there is none.
    async fn read(
        &self,
        claim: &Claim,
        after: EntryPlace,
        limit: usize,
    ) -> Option<Vec<(EntryPlace, String)>> {
        let reply = self
            .store(1)
            .read_answer(&claim.key, claim.id, after, limit);
        let entries = reply.await.expect("the store answers")?;
        let text = |entry: AnswerEntry| {
            (
                entry.place,
                String::from_utf8(entry.payload.into()).expect("text"),
            )
        };
        Some(entries.into_iter().map(text).collect())
    }

    async fn find(&self) -> AnswerLookup {
        let found = self.store(1).find_answer(&SessionKey::literal(KEY));
        found.await.expect("the store answers")
    }

    /// Whether the store keeps answers. If not, asserts that it has none.
    async fn keeps(&self) -> bool {
        let keeps = self.store(0).keeps_answers();
        if !keeps {
            let claim = self.claim(KEY, LEASE);
            let is_written = self.write(&claim, &write(START, &[(HEAD, "head")])).await;
            assert!(!is_written, "it doesn't say that it keeps an answer");
            assert_eq!(
                (self.read(&claim, START, 9).await, self.find().await),
                (None, AnswerLookup::default()),
                "it has none"
            );
        }
        keeps
    }
}

async fn an_answer_is_read_in_order_by_another_instance(bench: StoreSetup) {
    if !bench.keeps().await {
        return;
    }
    let claim = bench.claim(KEY, LEASE);
    assert_eq!(
        bench.read(&claim, START, 9).await,
        None,
        "nothing is written yet"
    );
    bench.granted(&claim).await;
    let first = write(START, &[(HEAD, "head"), (data(2), "ab")]);
    assert!(
        bench.write(&claim, &first).await,
        "the first write has all of it"
    );
    let found = bench.find().await;
    assert_eq!(
        (found.holder, found.last),
        (Some(LockHolder::from(&claim.token)), Some(claim.id)),
        "the holder and its answer are found"
    );
    let head = (HEAD, "head".to_owned());
    let ab = (data(2), "ab".to_owned());
    assert_eq!(
        bench.read(&claim, START, 9).await,
        Some(vec![head.clone(), ab]),
        "all is read from the beginning"
    );
    assert_eq!(
        bench.read(&claim, START, 1).await,
        Some(vec![head]),
        "no more than the limit is read"
    );
    assert_eq!(
        bench.read(&claim, data(2), 9).await,
        Some(vec![]),
        "nothing is behind the last entry, and the answer is there"
    );
    bench.release(&claim).await;
    let last = write(data(2), &[(data(1002), "cd"), (end(1002), "end")]);
    assert!(bench.write(&claim, &last).await, "the end is written");
    assert_eq!(
        bench.read(&claim, data(2), 9).await,
        Some(vec![
            (data(1002), "cd".to_owned()),
            (end(1002), "end".to_owned())
        ]),
        "who was there reads on, and the end comes behind the last byte"
    );
    let found = bench.find().await;
    assert_eq!(
        (found.holder, found.last),
        (None, Some(claim.id)),
        "the answer outlives the lock"
    );
}

async fn a_repeated_write_adds_nothing(bench: StoreSetup) {
    if !bench.keeps().await {
        return;
    }
    let claim = bench.claim(KEY, LEASE);
    let writes = [
        write(START, &[(HEAD, "head"), (data(2), "ab")]),
        write(data(2), &[(data(4), "cd")]),
    ];
    for each in &writes {
        for _ in 0..2 {
            assert!(bench.write(&claim, each).await, "nothing is lost");
        }
    }
    let places: Vec<_> = bench
        .read(&claim, START, 9)
        .await
        .into_iter()
        .flatten()
        .map(|(place, _)| place)
        .collect();
    assert_eq!(places, [HEAD, data(2), data(4)], "each entry is there once");
}

async fn a_write_behind_something_that_is_gone_removes_the_answer(bench: StoreSetup) {
    if !bench.keeps().await {
        return;
    }
    let claim = bench.claim(KEY, LEASE);
    assert!(
        !bench.write(&claim, &write(data(2), &[])).await,
        "nothing can be renewed that isn't there"
    );
    assert!(bench.write(&claim, &write(START, &[(HEAD, "head")])).await);
    let late = write(data(2), &[(data(4), "cd")]);
    assert!(!bench.write(&claim, &late).await, "an entry is missing");
    assert_eq!(
        bench.read(&claim, START, 9).await,
        None,
        "an answer with a gap isn't there"
    );
}

async fn forgotten_entries_are_gone_and_the_head_stays(bench: StoreSetup) {
    if !bench.keeps().await {
        return;
    }
    let claim = bench.claim(KEY, LEASE);
    let first = write(START, &[(HEAD, "head"), (data(2), "ab"), (data(4), "cd")]);
    bench.write(&claim, &first).await;
    let next = AnswerWrite {
        forgotten: vec![data(2), data(4)],
        ..write(data(4), &[(data(6), "ef")])
    };
    assert!(bench.write(&claim, &next).await, "the newest part is there");
    assert_eq!(
        bench.read(&claim, START, 9).await,
        Some(vec![(HEAD, "head".to_owned()), (data(6), "ef".to_owned())]),
        "a new reader gets the head, and sees what is missing"
    );
}

async fn an_answer_is_gone_when_its_time_is_over(bench: StoreSetup) {
    if !bench.keeps().await {
        return;
    }
    let claim = bench.claim(KEY, LEASE);
    let brief = AnswerWrite {
        ttl: Duration::from_millis(200),
        ..write(START, &[(HEAD, "head")])
    };
    bench.write(&claim, &brief).await;
    let is_gone = async || {
        bench.read(&claim, START, 9).await.is_none()
            && bench.find().await == AnswerLookup::default()
    };
    wait_for_async(is_gone, "the answer is gone").await;
    bench.wait_until_no_keys().await;
}

async fn a_renewed_answer_stays(bench: StoreSetup) {
    if !bench.keeps().await {
        return;
    }
    let claim = bench.claim(KEY, LEASE);
    let first = AnswerWrite {
        ttl: Duration::from_secs(5),
        ..write(START, &[(HEAD, "head")])
    };
    bench.write(&claim, &first).await;
    assert!(
        bench.write(&claim, &write(HEAD, &[])).await,
        "a write without entries renews it"
    );
    for key in bench.backing.keys().await {
        let left = bench.backing.server_of(&key).await.pttl(&key).await;
        assert!(left > 5000, "{key} stays for longer: {left} ms");
    }
}

async fn a_late_write_does_not_hide_the_answer_of_the_holder(bench: StoreSetup) {
    if !bench.keeps().await {
        return;
    }
    let (before, after) = (bench.claim(KEY, LEASE), bench.claim(KEY, LEASE));
    bench.granted(&after).await;
    let head = write(START, &[(HEAD, "head")]);
    bench.write(&after, &head).await;
    bench.write(&before, &head).await;
    let last = bench.find().await.last;
    assert_eq!(last, Some(after.id), "the holder's answer is the newest");
    bench.release(&after).await;
    let next = bench.claim(KEY, LEASE);
    bench.write(&next, &head).await;
    let last = bench.find().await.last;
    assert_eq!(last, Some(next.id), "a later turn's answer is newer");
}

async fn an_answer_is_hidden_by_none_whose_id_begins_that_of_the_holder(bench: StoreSetup) {
    if !bench.keeps().await {
        return;
    }
    // No number begins with that of the first claim, which is 0.
    bench.claim(KEY, LEASE);
    let before = bench.claim(KEY, LEASE);
    let begin = before.id.to_string();
    let mut holder = bench.claim(KEY, LEASE);
    while !holder.id.to_string().starts_with(&begin) {
        holder = bench.claim(KEY, LEASE);
    }
    let head = write(START, &[(HEAD, "head")]);
    bench.write(&before, &head).await;
    bench.granted(&holder).await;
    bench.write(&holder, &head).await;
    let last = bench.find().await.last;
    assert_eq!(last, Some(holder.id), "the holder's answer is the newest");
}

async fn an_answer_has_any_bytes(bench: StoreSetup) {
    if !bench.keeps().await {
        return;
    }
    let claim = bench.claim(KEY, LEASE);
    let entry = AnswerEntry {
        place: data(256),
        payload: (0..=255).collect(),
    };
    let write = AnswerWrite {
        entries: vec![entry.clone()],
        ..write(START, &[])
    };
    bench.write(&claim, &write).await;
    let read = bench
        .store(1)
        .read_answer(&claim.key, claim.id, START, 9)
        .await;
    assert_eq!(
        read.expect("the store answers"),
        Some(vec![entry]),
        "the payload comes back as it was written"
    );
}

async fn the_holder_is_found(bench: StoreSetup) {
    let claim = bench.claim(KEY, LEASE);
    bench.granted(&claim).await;
    let found = bench.find().await;
    assert_eq!(
        (found.holder, found.last),
        (Some(LockHolder::from(&claim.token)), None),
        "it has the lock, and no answer"
    );
    bench.release(&claim).await;
    assert_eq!(bench.find().await, AnswerLookup::default(), "nobody has it");
}

async fn a_turn_without_an_answer_is_named_as_the_last(bench: StoreSetup) {
    if !bench.keeps().await {
        return;
    }
    let (before, failed) = (bench.claim(KEY, LEASE), bench.claim(KEY, LEASE));
    bench.write(&before, &write(START, &[(HEAD, "head")])).await;
    assert!(
        bench
            .write(&failed, &write(START, &[(end(0), "end")]))
            .await,
        "nothing is lost"
    );
    let last = bench.find().await.last;
    assert_eq!(last, Some(failed.id), "it is the last turn");
    let its_end = Some(vec![(end(0), "end".to_owned())]);
    assert_eq!(
        bench.read(&failed, START, 9).await,
        its_end,
        "it has no more"
    );
    assert!(
        bench.read(&before, START, 9).await.is_some(),
        "the one before it stays for repeats"
    );
}
