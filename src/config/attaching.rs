//! Routes that attach to the turns of others, or stop them: whether they find these turns, and who does.
//!
//! Invariant: what may be meant is only a remark. Whether two sources of an id give the same one is not known here.

use super::Config;
use super::lock::SessionAction;
use super::problem::Problem;
use super::reader::ConfigTable;
use super::routes::{Route, TurnConfig};
use super::templates;
use super::value_kind::quoted;

impl Config {
    /// Reports routes whose requests attach to answers that no route keeps.
    pub(super) fn check_attaching(&self, root: &ConfigTable<'_>, entries: &[usize]) {
        for (entry, route) in entries.iter().zip(&self.routes) {
            let Some(turn) = route.turn.as_ref().filter(|turn| turn.attach) else {
                continue;
            };
            let keeps = |other: &TurnConfig| other.lock.replay && other.lock.key == turn.lock.key;
            if !self.turns().any(keeps) {
                let why = "finds no answer: no route with the same `key` keeps its answers; write replay = true into \
                           the route of the turns";
                root.note_as(&format!("routes[{entry}].attach"), "true".into(), why);
            }
        }
    }

    /// Says which routes that attach or stop never find a turn, and which let everybody find one.
    pub(super) fn attaching_remarks(&self) -> impl Iterator<Item = Problem> {
        self.routes.iter().filter_map(|route| {
            let turn = route.turn.as_ref()?;
            let own = match turn.action() {
                SessionAction::Turn => return None,
                SessionAction::Attach => "attach = true",
                SessionAction::Stop => "stop = true",
            };
            let remark = self.attaching_remark(turn)?;
            let remark = format!("{own} on {}: {remark}", quoted(&route.name));
            Some(Problem::new("", remark))
        })
    }

    fn attaching_remark(&self, turn: &TurnConfig) -> Option<String> {
        if !turn.lock.key.names_user() {
            return None;
        }
        let finds = |other: &&Route| {
            other.turn.as_ref().is_some_and(|other| {
                let is_one = other.action() == SessionAction::Turn;
                let is_found = other.lock.replay || turn.action() == SessionAction::Stop;
                is_one && is_found && other.lock.key == turn.lock.key
            })
        };
        let mut others = self.routes.iter().filter(finds).peekable();
        let first = others.peek()?.name.clone();
        let mut users = others.filter_map(|other| other.turn.as_ref());
        if !users.any(|other| may_be_same_user(other, turn)) {
            return Some(format!(
                "its user_id is not that of {}, so it never finds a turn of it: write the same user_id into both",
                quoted(&first)
            ));
        }
        let is_open = turn.attach && has_one_user(turn);
        is_open.then(|| {
            format!(
                "its user_id is the same for everybody, so everybody who knows the id of a session reads its answer: \
                 write user_id = [\"{{header:x-user-id}}\"] into it and into {}, if a gateway writes this header",
                quoted(&first)
            )
        })
    }
}

/// Whether all requests of a route have one user.
fn has_one_user(turn: &TurnConfig) -> bool {
    turn.user_id.iter().all(templates::is_constant)
}

/// Whether requests of the two routes may have the same user.
fn may_be_same_user(one: &TurnConfig, other: &TurnConfig) -> bool {
    match (has_one_user(one), has_one_user(other)) {
        (true, true) => one.user_id.first() == other.user_id.first(),
        (false, false) => true,
        _ => false,
    }
}
