//! After a reconnection to Redis: what the store may have lost in between is there again at once.

use crate::support::app::CHAT;
use crate::support::bench::Setup;
use crate::support::wait_for_async;

#[tokio::test]
async fn a_heartbeat_is_sent_at_once_after_a_reconnection() {
    // Otherwise the next one comes after ten minutes.
    let setup = Setup::new(CHAT).store("crash_recovery = \"30m\"");
    let bench = setup.on_faulty_network().await;
    bench.redis.is_connected().await;
    let is_alive = async || !bench.redis.instances().await.is_empty();
    wait_for_async(is_alive, "the first heartbeat").await;
    // What a restart from an older snapshot does.
    for instance in bench.redis.instances().await {
        bench.redis.command(&["DEL", &instance]).await;
    }
    bench.network.cut().await;
    wait_for_async(is_alive, "a heartbeat on the new connection").await;
}
