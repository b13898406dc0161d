//! The two commands of a turn: the scripts that acquire and release the lock of a claim, with their keys and arguments.

use super::clock::micros;
use super::keys::KeyNames;
use super::scripts;
use crate::lock::{AcquireRequest, Claim, Ticket, millis};

/// Writes the command that acquires the claim's lock, and that does nothing after `not_after`.
pub(super) fn write_acquisition(
    names: &KeyNames,
    claim: &Claim,
    request: &AcquireRequest,
    not_after: u64,
    unsent: &mut Vec<u8>,
) {
    let ticket = request.queue.and_then(|options| options.ticket);
    let dead = request.take_over.as_ref();
    let is_new = ticket.is_none() && dead.is_none();
    let of_record = if claim.once.is_some() { 2 } else { 0 };
    let arguments = 4 + of_record + if is_new { 0 } else { 3 };
    let mut call = names.write_about(claim, &scripts::ACQUIRE, arguments, unsent);
    call.text(claim.token.as_str());
    call.number(millis(claim.lease));
    call.number(not_after);
    if let Some(once) = &claim.once {
        call.text(&once.describe(claim.id));
        call.number(millis(once.record_ttl(claim.lease)));
    }
    match request.queue {
        None => call.text(""),
        Some(options) => {
            let (id, mut most) = (claim.id.text(), itoa::Buffer::new());
            let [prefix, kind, instance] = names.channel(&claim.instance).map(str::as_bytes);
            let most = most.format(options.max_waiters).as_bytes();
            let interrupts: &[u8] = if options.interrupts { b" 1" } else { b" 0" };
            let id = id.as_bytes();
            call.parts([id, b" ", prefix, kind, instance, b" ", most, interrupts]);
        }
    }
    if !is_new {
        call.number(ticket.map_or(0, |Ticket(ticket)| ticket));
        call.text(dead.map_or("", |dead| dead.holder.as_str()));
        call.number(dead.map_or(0, |dead| micros(dead.min_age)));
    }
    call.finish();
}

/// Writes the command that frees the claim's lock, and leaves its queue.
pub(super) fn write_release(names: &KeyNames, claim: &Claim, unsent: &mut Vec<u8>) {
    let arguments = if claim.once.is_some() { 6 } else { 3 };
    let mut call = names.write_about(claim, &scripts::RELEASE, arguments, unsent);
    call.text(claim.token.as_str());
    call.number(claim.not_after());
    call.parts([claim.id.text().as_bytes()]);
    if let Some(once) = &claim.once {
        call.text(&once.describe(claim.id));
        call.number(millis(once.turn.keep));
        call.text(scripts::turn_fate(once));
    }
    call.finish();
}
