//! How many commands a turn takes at Redis.

use std::time::Duration;

use super::measure::load;
use super::redis::{RedisLoad, connect};
use super::stage::Stage;
use super::subject::{Kind, Subject};
use crate::Failure;

/// How many turns are counted.
const TURNS: usize = 1000;

/// Time for what is done in the background after a turn.
const SETTLE: Duration = Duration::from_millis(300);

/// Counts the commands that a subject sends for turns of one client. What scripts call isn't counted.
pub(crate) async fn per_turn(stage: &Stage, subject: &Subject) -> Result<f64, Failure> {
    let addr = stage
        .redis_addr(subject.kind)?
        .ok_or("a subject without a Redis has no commands")?;
    let mut redis = connect(addr).await?;
    let before = RedisLoad::read(&mut redis).await?;
    let tally = load(subject.kind, 300, 1)
        .exactly(subject.addr, TURNS)
        .await;
    tokio::time::sleep(SETTLE).await;
    let after = RedisLoad::read(&mut redis).await?;
    // naive sets without a script; in Seriatim's scripts SET is no command of its own. A refusal took a SET, too.
    let sets = match subject.kind {
        Kind::Naive => after.sets - before.sets - tally.refusals as f64,
        _ => 0.0,
    };
    Ok((after.scripts - before.scripts + sets) / tally.latencies.len() as f64)
}
