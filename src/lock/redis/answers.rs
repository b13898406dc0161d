//! Kept answers in Redis: a stream for each answer, and a key that names the session's newest one.
//!
//! Invariant: every write carries the id of the last entry before it, so that a stream never has a gap that its writer
//! doesn't know, and a repeated command adds nothing twice.

use redis::{Cmd, Value, cmd};

use super::access::AccessAttempt;
use super::command::StoreCommand;
use super::{RedisStore, millis, reply, scripts};
use crate::key::SessionKey;
use crate::lock::{AnswerEntry, AnswerLookup, AnswerWrite, ClaimId, EntryKind, EntryPlace};
use crate::lock::{LockHolder, StoreFuture};

/// The size of an entry's id and what is around its payload in a command, in bytes.
const ENTRY_BYTES: usize = 48;

impl RedisStore {
    /// See [`super::Store::write_answer`].
    pub(super) fn write_to_answer(
        &self,
        key: &SessionKey,
        turn: ClaimId,
        write: &AnswerWrite,
    ) -> StoreFuture<bool> {
        let names = [
            self.names.answer(key, turn),
            self.names.newest_answer(key),
            key.as_str().to_owned(),
        ];
        let bytes: usize = write.entries.iter().map(|it| it.payload.len()).sum();
        let ids = write.entries.len() + write.forgotten.len();
        let mut command = scripts::WRITE_ANSWER.call(
            names.iter().map(String::as_str),
            bytes + (ids + 4) * ENTRY_BYTES,
        );
        command
            .arg(stream_id(write.after))
            .arg(millis(write.ttl))
            .arg(turn.to_string())
            .arg(write.forgotten.len());
        for place in &write.forgotten {
            command.arg(stream_id(*place));
        }
        for AnswerEntry { place, payload } in &write.entries {
            command.arg(stream_id(*place)).arg(&payload[..]);
        }
        let slot = self.routes.slot(key.as_str());
        self.send(
            StoreCommand::WriteAnswer,
            slot,
            command,
            |value| match value {
                Value::Int(is_whole) => Some(*is_whole == 1),
                _ => None,
            },
        )
    }

    /// See [`super::Store::find_answer`].
    pub(super) fn look_up_answer(&self, key: &SessionKey) -> StoreFuture<AnswerLookup> {
        let newest = self.names.newest_answer(key);
        let command = scripts::FIND_ANSWER.call([key.as_str(), &newest].into_iter(), 0);
        let slot = self.routes.slot(key.as_str());
        self.send(StoreCommand::FindAnswer, slot, command, lookup)
    }

    /// See [`super::Store::read_answer`].
    pub(super) fn read_from_answer(
        &self,
        key: &SessionKey,
        turn: ClaimId,
        after: EntryPlace,
        limit: usize,
    ) -> StoreFuture<Option<Vec<AnswerEntry>>> {
        let answer = self.names.answer(key, turn);
        let mut command = scripts::READ_ANSWER.call([&*answer].into_iter(), ENTRY_BYTES);
        // Redis before 6.2 has no open ranges. No entry has an id between these two.
        let next = format!("{}-{}", after.bytes, after.kind as u64 + 1);
        command.arg(next).arg(limit);
        let slot = self.routes.slot(key.as_str());
        self.send(StoreCommand::ReadAnswer, slot, command, entries)
    }

    /// See [`super::Store::check_answer_access`].
    pub(super) fn try_answer_access(&self, key: &SessionKey) -> StoreFuture<()> {
        let (attempts, routes) = (self.answer_attempts(key), self.routes.clone());
        StoreFuture::new(async move { routes.try_all(attempts).await })
    }

    /// One attempt for each command and each key that kept answers need.
    fn answer_attempts(&self, key: &SessionKey) -> Vec<AccessAttempt> {
        let turn = ClaimId {
            epoch: crate::lock::Epoch(0),
            number: 0,
        };
        let (answer, newest) = (self.names.answer(key, turn), self.names.newest_answer(key));
        // `XX` sets only what is there. XADD lacks a value: Redis checks the permission first, and the arguments later.
        let all: [(_, _, &[&str]); 8] = [
            ("XADD", &answer, &["1-1", "0", "0", "0"]),
            ("XRANGE", &answer, &["-", "+"]),
            ("XREVRANGE", &answer, &["+", "-"]),
            ("XDEL", &answer, &["1-1"]),
            ("PEXPIRE", &answer, &["1"]),
            ("DEL", &answer, &[]),
            ("GET", &newest, &[]),
            ("SET", &newest, &["", "XX", "PX", "1"]),
        ];
        let attempts = all.map(|(name, key, arguments)| {
            let mut command: Cmd = cmd(name);
            command.arg(key).arg(arguments);
            AccessAttempt {
                command,
                text: [name, " ", key].concat(),
                key: key.clone(),
            }
        });
        attempts.into()
    }
}

/// The id of an entry in its stream.
fn stream_id(place: EntryPlace) -> String {
    format!("{}-{}", place.bytes, place.kind as u64)
}

/// The reply of `find_answer.lua`.
fn lookup(value: &Value) -> Option<AnswerLookup> {
    let [holder, last] = reply::array(value)? else {
        return None;
    };
    let (holder, last) = (reply::text(holder)?, reply::text(last)?);
    Some(AnswerLookup {
        holder: (!holder.is_empty()).then(|| LockHolder::new(holder)),
        last: last.parse().ok(),
    })
}

/// The reply of `read_answer.lua`.
fn entries(value: &Value) -> Option<Option<Vec<AnswerEntry>>> {
    if *value == Value::Nil {
        return Some(None);
    }
    let entries = reply::array(value)?.iter().map(entry);
    Some(Some(entries.collect::<Option<_>>()?))
}

fn entry(value: &Value) -> Option<AnswerEntry> {
    let [id, Value::Array(fields)] = reply::array(value)? else {
        return None;
    };
    let [_, Value::BulkString(payload)] = &fields[..] else {
        return None;
    };
    let (bytes, kind) = reply::text(id)?.split_once('-')?;
    Some(AnswerEntry {
        place: EntryPlace {
            bytes: bytes.parse().ok()?,
            kind: EntryKind::from_number(kind.parse().ok()?)?,
        },
        payload: payload.clone().into(),
    })
}
