//! What the replies of the scripts mean. A reply that no script sends gives `None`.

use std::time::Duration;

use redis::Value;

use crate::lock::{AcquireReply, Fence, InstanceLiveness, LockHolder, QueueState, Ticket};

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
            [Value::Int(ticket), holder] => AcquireReply::Waiting(
                Ticket(ticket.unsigned_abs()),
                LockHolder::new(text(holder)?),
            ),
            [Value::Int(0)] => AcquireReply::QueueFull,
            [Value::Int(-1)] => AcquireReply::Superseded,
            _ => return None,
        },
        holder => AcquireReply::Busy(LockHolder::new(text(holder)?)),
    };
    Some(AcquireOutcome::Reply(reply))
}

/// The reply of `watch.lua` about one queue.
pub(super) fn queue_state(value: &Value) -> Option<QueueState> {
    let Value::Array(items) = value else {
        return None;
    };
    let [Value::Int(present), holder] = &**items else {
        return None;
    };
    let holder = Some(text(holder)?).filter(|holder| !holder.is_empty());
    Some(QueueState {
        present: usize::try_from(*present).ok()?,
        holder: holder.map(LockHolder::new),
    })
}

/// The reply of `liveness.lua`. A value that isn't an epoch is nobody's heartbeat.
pub(super) fn liveness(value: &Value) -> Option<Option<InstanceLiveness>> {
    let items = match value {
        Value::Nil => return Some(None),
        Value::Array(items) => items,
        _ => return None,
    };
    let [epoch, Value::Int(ttl)] = &**items else {
        return None;
    };
    let epoch = text(epoch)?.parse().ok();
    Some(epoch.map(|epoch| InstanceLiveness {
        epoch,
        ttl: Duration::from_millis((*ttl).max(0).unsigned_abs()),
    }))
}

/// A text in a reply; `?` for one that isn't UTF-8, which another program may have written.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => Some(std::str::from_utf8(bytes).unwrap_or("?")),
        _ => None,
    }
}
