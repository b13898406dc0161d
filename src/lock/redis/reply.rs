//! What the replies of Redis mean. A reply that no command sends gives `None`.

use std::time::{Duration, SystemTime};

use redis::Value;

use crate::key::SessionKey;
use crate::lock::holder::UNKNOWN_HOLDER;
use crate::lock::{
    AcquireReply, BusySession, Fence, InstanceLiveness, LockHolder, LockInfo, QueueState,
    RepeatedState, RepeatedTurn, Ticket,
};

/// What the script that acquires replied.
pub(super) enum AcquireOutcome {
    /// The command arrived too late and was not executed.
    Late {
        /// Redis's time, in microseconds since 1970.
        now: u64,
    },
    /// The command was executed.
    Reply(AcquireReply),
}

/// The reply of `acquire.lua`.
pub(super) fn acquired(value: &Value) -> Option<AcquireOutcome> {
    let reply = match value {
        Value::Int(late) if *late < 0 => {
            return Some(AcquireOutcome::Late {
                now: late.unsigned_abs(),
            });
        }
        Value::Int(fence) => AcquireReply::Granted(Fence(fence.unsigned_abs())),
        Value::Array(items) => match &**items {
            [Value::BulkString(_), reply] => match acquired(reply)? {
                AcquireOutcome::Reply(reply) => AcquireReply::TookOver(Box::new(reply)),
                AcquireOutcome::Late { .. } => return None,
            },
            [Value::Int(ticket), holder] => AcquireReply::Waiting(
                Ticket(ticket.unsigned_abs()),
                LockHolder::new(text(holder)?),
            ),
            [
                state,
                turn,
                token,
                Value::Int(since),
                Value::Int(now),
                Value::Int(waiters),
            ] => {
                let session = busy(*since, *now, *waiters)?;
                repeated(text(state)?, text(turn)?, text(token)?, session)?
            }
            [Value::Int(-1)] => AcquireReply::Superseded,
            [Value::Int(-2)] => AcquireReply::Dequeued,
            [
                holder,
                Value::Int(since),
                Value::Int(now),
                Value::Int(waiters),
            ] => {
                let session = busy(*since, *now, *waiters)?;
                match holder {
                    Value::Int(0) => AcquireReply::QueueFull(session),
                    holder => AcquireReply::Busy(LockHolder::new(text(holder)?), session),
                }
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(AcquireOutcome::Reply(reply))
}

/// The reply of `acquire.lua` to a repeat.
fn repeated(state: &str, turn: &str, token: &str, session: BusySession) -> Option<AcquireReply> {
    let state = match state {
        "w" => RepeatedState::Waits,
        "r" => RepeatedState::Runs,
        "e" => RepeatedState::Ended,
        "d" => RepeatedState::InDoubt,
        "k" => return Some(AcquireReply::KeyReused),
        _ => return None,
    };
    Some(AcquireReply::Repeated(RepeatedTurn {
        turn: turn.parse().ok()?,
        state,
        holder: (!token.is_empty()).then(|| LockHolder::new(token)),
        session,
    }))
}

/// What a refused turn is told of its session, by the fence of the running turn.
fn busy(since: i64, now: i64, waiters: i64) -> Option<BusySession> {
    Some(BusySession {
        since: time(since),
        age: age(since, now),
        waiters: usize::try_from(waiters).ok()?,
    })
}

/// The reply of `watch.lua` about one queue.
pub(super) fn queue_state(value: &Value) -> Option<QueueState> {
    let [missing, holder, Value::Int(took_over), places] = array(value)? else {
        return None;
    };
    let missing = array(missing)?.iter().map(|id| text(id)?.parse().ok());
    let places = array(places)?.iter().map(|place| match place {
        Value::Int(place) => u32::try_from(*place).ok(),
        _ => None,
    });
    let holder = Some(text(holder)?).filter(|holder| !holder.is_empty());
    Some(QueueState {
        missing: missing.collect::<Option<_>>()?,
        holder: holder.map(LockHolder::new),
        took_over: *took_over == 1,
        places: places.collect::<Option<_>>()?,
    })
}

/// The reply of `liveness.lua`. A value that isn't an epoch is nobody's heartbeat.
pub(super) fn liveness(value: &Value) -> Option<Option<InstanceLiveness>> {
    if *value == Value::Nil {
        return Some(None);
    }
    let [epoch, Value::Int(ttl)] = array(value)? else {
        return None;
    };
    let epoch = text(epoch)?.parse().ok();
    Some(epoch.map(|epoch| InstanceLiveness {
        epoch,
        ttl: Duration::from_millis((*ttl).max(0).unsigned_abs()),
    }))
}

/// The reply of `SCAN`: the keys without those that aren't locks, and the next position, 0 at the end.
pub(super) fn scan_page(
    value: &Value,
    is_lock: impl Fn(&str) -> bool,
) -> Option<(Vec<SessionKey>, u64)> {
    let [next, Value::Array(keys)] = array(value)? else {
        return None;
    };
    let next: u64 = text(next)?.parse().ok()?;
    let keys = keys.iter().filter_map(|key| match key {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    });
    let keys = keys.filter(|key| is_lock(key));
    Some((keys.map(SessionKey::literal).collect(), next))
}

/// The reply of `inspect.lua` about one lock.
pub(super) fn lock_info(value: &Value) -> Option<LockInfo> {
    let [
        Value::Int(now),
        holder,
        Value::Int(ttl),
        Value::Int(fence),
        Value::Int(waiters),
        Value::Array(queue),
    ] = array(value)?
    else {
        return None;
    };
    let holder = Some(LockHolder::new(text(holder)?)).filter(|_| *ttl != -2);
    let fence = if holder.is_some() { *fence } else { 0 };
    let ttl = u64::try_from(*ttl).ok().map(Duration::from_millis);
    let queue = queue
        .iter()
        .map(|token| Some(LockHolder::new(text(token)?)));
    Some(LockInfo {
        holder,
        fence: (fence > 0).then_some(Fence(fence.unsigned_abs())),
        age: age(fence, *now),
        ttl,
        waiters: usize::try_from(*waiters).ok()?,
        queue: queue.collect::<Option<_>>()?,
    })
}

/// How long ago the lock with this fence was taken; `None` for 0: there is no fence.
fn age(fence: i64, now: i64) -> Option<Duration> {
    let age = now.unsigned_abs().saturating_sub(fence.unsigned_abs());
    (fence > 0).then_some(Duration::from_micros(age))
}

/// When the lock with this fence was taken; `None` for 0: there is no fence.
fn time(fence: i64) -> Option<SystemTime> {
    (fence > 0)
        .then_some(fence.unsigned_abs())
        .and_then(|fence| Fence(fence).time())
}

/// The items of an array in a reply.
pub(super) fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(items) => Some(items),
        _ => None,
    }
}

/// The names and values in a reply: a map, or with RESP2 a list in which they alternate.
pub(super) fn pairs(value: &Value) -> Vec<(&str, &str)> {
    let pair = |name, value| Some((text(name)?, text(value)?));
    match value {
        Value::Map(entries) => {
            let entries = entries.iter();
            entries
                .filter_map(|(name, value)| pair(name, value))
                .collect()
        }
        Value::Array(items) => {
            let items = items.chunks_exact(2);
            items.filter_map(|item| pair(&item[0], &item[1])).collect()
        }
        _ => Vec::new(),
    }
}

/// A text in a reply; [`UNKNOWN_HOLDER`] for one that isn't UTF-8, which another program may have written.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => Some(std::str::from_utf8(bytes).unwrap_or(UNKNOWN_HOLDER)),
        // What servers write for people to read, such as CLUSTER NODES.
        Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}
