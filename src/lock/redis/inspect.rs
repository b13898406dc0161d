//! What the scripts for operators answer, read.

use std::time::Duration;

use redis::Value;

use super::text;
use crate::key::{Keyspace, SessionKey};
use crate::lock::{Fence, LockHolder, LockInfo, ScanPage};

/// The answer of `SCAN`. A key that isn't text is none that Seriatim makes.
pub(super) fn scanned(value: &Value, space: &Keyspace) -> Option<ScanPage> {
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
    let keys = keys.filter(|key| space.contains(key));
    Some(ScanPage {
        keys: keys.map(SessionKey::literal).collect(),
        next: (next != 0).then_some(next),
    })
}

/// The answer of the script that looks at so many locks.
pub(super) fn looked(value: &Value, expected: usize) -> Option<Vec<LockInfo>> {
    let Value::Array(items) = value else {
        return None;
    };
    let (Value::Int(now), looks) = items.split_first()? else {
        return None;
    };
    if looks.len() != expected {
        return None;
    }
    looks.iter().map(|look| seen(look, *now)).collect()
}

fn seen(value: &Value, now: i64) -> Option<LockInfo> {
    let Value::Array(items) = value else {
        return None;
    };
    let [
        holder,
        Value::Int(left),
        Value::Int(fence),
        Value::Int(waiters),
        Value::Array(line),
    ] = &**items
    else {
        return None;
    };
    let holder = Some(LockHolder::new(text(holder)?)).filter(|_| *left != -2);
    let fence = (*fence > 0 && holder.is_some()).then_some(fence.unsigned_abs());
    let age = fence.map(|fence| Duration::from_micros(now.unsigned_abs().saturating_sub(fence)));
    let left = u64::try_from(*left).ok().map(Duration::from_millis);
    let line = line.iter().map(|token| Some(LockHolder::new(text(token)?)));
    Some(LockInfo {
        holder,
        fence: fence.map(Fence),
        age,
        left,
        waiters: usize::try_from(*waiters).ok()?,
        line: line.collect::<Option<_>>()?,
    })
}
