//! The metrics by which an operator finds a stuck session: the age of the oldest lock, and the silence of
//! the quietest turn.

use seriatim::metrics::ExpositionFormat;

use crate::support::app::{App, CHAT};
use crate::support::backend::{Backend, event};
use crate::support::bench::hold;
use crate::support::client::begin_turn;
use crate::support::wait_for;

/// The value of a metric without labels.
fn value(app: &App, name: &str) -> f64 {
    let text = app.metrics().text(ExpositionFormat::Classic);
    let found = text.lines().find_map(|line| line.strip_prefix(name));
    let value = found.and_then(|rest| rest.trim().parse().ok());
    value.unwrap_or_else(|| panic!("{name} is in {text}"))
}

fn oldest(app: &App) -> f64 {
    value(app, "seriatim_oldest_lock_seconds ")
}

fn quietest(app: &App) -> f64 {
    value(app, "seriatim_quietest_turn_seconds ")
}

#[tokio::test]
async fn a_turn_that_is_stuck_is_old_and_quiet_until_it_ends() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    assert_eq!(
        (oldest(&app), quietest(&app)),
        (0.0, 0.0),
        "nothing is held"
    );
    let mut held = hold(app.addr(), "s1").await;
    wait_for(|| quietest(&app) > 0.5, "the turn is quiet").await;
    assert!(oldest(&app) > 0.5, "its lock is as old");
    // A younger turn changes neither.
    let mut other = hold(app.addr(), "s2").await;
    assert!(
        quietest(&app) > 0.5 && oldest(&app) > 0.5,
        "the oldest counts"
    );
    backend.open_gate("s1");
    backend.open_gate("s2");
    for turn in [&mut held, &mut other] {
        assert!(turn.answer().await.whole, "the turns end");
    }
    assert_eq!(
        (oldest(&app), quietest(&app)),
        (0.0, 0.0),
        "nothing is held"
    );
}

#[tokio::test]
async fn a_turn_that_moves_is_old_and_not_quiet_even_without_its_client() {
    let backend = Backend::start("plain:ok").await;
    for on_disconnect in ["cancel", "continue"] {
        let lock = format!("[lock]\non_disconnect = \"{on_disconnect}\"\n");
        let app = App::in_memory(&backend, &format!("{lock}{CHAT}"));
        let mut moving = begin_turn(app.addr(), on_disconnect, "chunked:100000:5").await;
        moving.read_until(&event(0)).await;
        if on_disconnect == "continue" {
            moving.reset();
        } else {
            tokio::spawn(async move { drop(moving.try_answer().await) });
        }
        wait_for(|| oldest(&app) > 1.0, "the lock is old").await;
        // The silence of a turn that has stopped would grow as its lock does.
        let moves = || quietest(&app) < oldest(&app) / 2.0;
        wait_for(moves, "bytes still move").await;
    }
}
