//! What the replies to operators' commands mean. A reply that no command sends gives `None`.

use std::time::Duration;

use redis::Value;

use super::reply::text;
use crate::key::{Keyspace, SessionKey};
use crate::lock::{Fence, LockHolder, LockInfo, ScanPage};

/// The reply of `SCAN`, without the keys that Seriatim never makes.
pub(super) fn scan_page(value: &Value, space: &Keyspace) -> Option<ScanPage> {
    let Value::Array(items) = value else {
        return None;
    };
    let [next, Value::Array(keys)] = &**items else {
        return None;
    };
    let next: u64 = text(next)?.parse().ok()?;
    let keys = keys.iter().filter_map(|key| match key {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    });
    let keys = keys.filter(|key| space.holds(key));
    Some(ScanPage {
        keys: keys.map(SessionKey::literal).collect(),
        next: (next != 0).then_some(next),
    })
}

/// The reply of `inspect.lua` about this many locks.
pub(super) fn lock_infos(value: &Value, expected: usize) -> Option<Vec<LockInfo>> {
    let Value::Array(items) = value else {
        return None;
    };
    let (Value::Int(now), locks) = items.split_first()? else {
        return None;
    };
    if locks.len() != expected {
        return None;
    }
    locks.iter().map(|lock| lock_info(lock, *now)).collect()
}

fn lock_info(value: &Value, now: i64) -> Option<LockInfo> {
    let Value::Array(items) = value else {
        return None;
    };
    let [
        holder,
        Value::Int(ttl),
        Value::Int(fence),
        Value::Int(waiters),
        Value::Array(queue),
    ] = &**items
    else {
        return None;
    };
    let holder = Some(LockHolder::new(text(holder)?)).filter(|_| *ttl != -2);
    let fence = (*fence > 0 && holder.is_some()).then_some(fence.unsigned_abs());
    let age = fence.map(|fence| Duration::from_micros(now.unsigned_abs().saturating_sub(fence)));
    let ttl = u64::try_from(*ttl).ok().map(Duration::from_millis);
    let queue = queue
        .iter()
        .map(|token| Some(LockHolder::new(text(token)?)));
    Some(LockInfo {
        holder,
        fence: fence.map(Fence),
        age,
        ttl,
        waiters: usize::try_from(*waiters).ok()?,
        queue: queue.collect::<Option<_>>()?,
    })
}
