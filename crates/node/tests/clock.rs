//! What a node does when its clock, or the storage's, jumps.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use std::{sync::Arc, time::Duration};

use keydb_core::{Clock, Durability, ManualClock, OperationId, SinceBoot, UnixMillis};
use keydb_node::NodeError;
use keydb_storage::testing::DOWN;
use support::{cluster::*, *};

const HOUR: Duration = Duration::from_secs(3600);

impl Cluster {
    /// From the next start on the node's clock shows this time.
    fn set_clock(&mut self, now: UnixMillis) {
        self.world.clock = Arc::new(ManualClock::new(now));
    }

    /// Waits until the node's disk knows that its clock was right at this time.
    async fn clock_is_kept(&self) {
        let now = self.world.clock.now().0.to_string();
        let path = self.data_dir().join("clock.json");
        let knows = |text: String| text.contains(&now);
        eventually(async || std::fs::read_to_string(&path).is_ok_and(knows)).await;
    }

    /// Waits until the node has looked a few times for what expired, by its clock, which goes on for that.
    async fn node_sweeps(&self, client: &mut Client, map: &keydb_core::ClusterMap) {
        for _ in 0..2 {
            // It forgets old answers whenever it looks, whatever it does about keys. This one is that of a key that lives on.
            let seen = keys(map, 0..1);
            let operation = OperationId::random();
            self.world.claim(client, map, &seen, operation, 0).await;
            self.advance(Duration::from_secs(350));
            eventually(async || status(&mut client.clone()).await.answer_operations == 0).await;
        }
    }
}

#[tokio::test]
async fn a_clock_that_is_off_by_more_than_is_allowed_stops_the_start() {
    let (mut cluster, node, ..) = Cluster::new(Durability::Journal).await;
    node.stop().await;
    for (clock_ms, ahead) in [(START.0 + 3_600_000, 3_600_000), (START.0 - 3_500, -3_500)] {
        cluster.set_clock(UnixMillis(clock_ms));
        let error = cluster.start().await.ended().await.unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, NodeError::Clock { ahead_ms, .. } if ahead_ms == ahead),
            "{text}"
        );
        for words in ["clock is off", "clock_error_max_ms is 2000", "NTP"] {
            assert!(text.contains(words), "{text}");
        }
    }
    // Within what is allowed, and the second that the storage's time is cut to.
    for clock_ms in [START.0 - 1_900, START.0 + 2_900] {
        cluster.set_clock(UnixMillis(clock_ms));
        let (node, client) = cluster.loaded().await;
        assert!(!warns(&client, &["clock"]).await);
        node.stop().await;
    }
}

#[tokio::test]
async fn a_clock_that_has_gone_back_stops_the_start_with_object_storage_and_without() {
    let (mut cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.advance(HOUR);
    cluster.put(&mut client, &map, 0..10).await;
    node.kill().await;

    cluster.set_clock(START);
    let error = cluster.start().await.ended().await.unwrap_err();
    let is_behind = |ahead_ms| ahead_ms == -3_600_000;
    assert!(
        matches!(error, NodeError::Clock { ahead_ms, .. } if is_behind(ahead_ms)),
        "{error}"
    );
    // The disk itself knows as well.
    cluster.storage.all(DOWN);
    let error = cluster.start().await.ended().await.unwrap_err();
    assert!(matches!(error, NodeError::ClockWentBack { .. }), "{error}");
    assert!(error.to_string().contains("gone back"), "{error}");
    // Snapshots know it where the journal does not.
    cluster.storage.works();
    cluster.set_clock(UnixMillis(START.0 + 3_600_000));
    let (node, mut client) = cluster.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..20).await, 10);
    cluster.snapshot(&mut client, true).await;
    node.stop().await;
    cluster.storage.all(DOWN);
    cluster.set_clock(UnixMillis(START.0 + 3_500_000));
    let error = cluster.start().await.ended().await.unwrap_err();
    assert!(matches!(error, NodeError::ClockWentBack { .. }), "{error}");
}

#[tokio::test]
async fn a_jump_while_it_runs_is_said_loudly_and_costs_no_key_until_the_clocks_agree_again() {
    // By which the node's clock gets ahead of the storage's, and the storage's of the node's.
    for (node_ahead, storage_ahead) in [(3 * HOUR, Duration::ZERO), (3 * HOUR, 6 * HOUR)] {
        let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
        cluster.put_for(&mut client, &map, 0..1, 1_000_000).await;
        cluster.put_for(&mut client, &map, 1..1000, 60).await;
        cluster.world.clock.advance(node_ahead);
        cluster.storage.clock.advance(storage_ahead);
        // Nothing else may come in between: it is not even tried before the clocks are compared.
        cluster.node_sweeps(&mut client, &map).await;
        eventually(async || warns(&client, &["clock is off", "nothing is reclaimed"]).await).await;
        assert_eq!(status(&mut client).await.keys, 1000);
        // Writes reclaim nothing either, nor do snapshots leave anything out.
        cluster.put(&mut client, &map, 10_000..60_000).await;
        assert_eq!(status(&mut client).await.keys, 51_000);
        cluster.snapshot(&mut client, true).await;
        assert_eq!(cluster.stored_entries().await, 51_000);
        // Answers follow the clock.
        assert_eq!(cluster.present(&mut client, &map, 0..1000).await, 1);

        let behind = node_ahead.abs_diff(storage_ahead);
        if node_ahead > storage_ahead {
            cluster.storage.clock.advance(behind);
        } else {
            cluster.world.clock.advance(behind);
        }
        eventually(async || !warns(&client, &["clock"]).await).await;
        cluster.node_sweeps(&mut client, &map).await;
        eventually(async || status(&mut client.clone()).await.keys == 50_001).await;
        node.stop().await;
    }
}

#[tokio::test]
async fn while_the_storage_does_not_tell_its_time_a_node_starts_and_reclaims_nothing() {
    let (mut cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.put_for(&mut client, &map, 0..1, 1_000_000).await;
    cluster.put_for(&mut client, &map, 1..1000, 60).await;
    cluster.snapshot(&mut client, true).await;
    node.stop().await;

    for is_down in [true, false] {
        // By less than an hour too late: nobody can tell.
        let late = Duration::from_secs(3000);
        cluster.set_clock(UnixMillis(cluster.storage.clock.now().0).plus(late));
        cluster
            .storage
            .goes_wrong(move |call, _| (is_down || call == "now").then_some(DOWN));
        let (node, mut client) = cluster.loaded().await;
        let says = ["does not tell its time", "nothing is reclaimed"];
        eventually(async || warns(&client, &says).await).await;
        assert_eq!(status(&mut client).await.keys, 1000);
        cluster.node_sweeps(&mut client, &map).await;
        assert_eq!(status(&mut client).await.keys, 1000);

        cluster.storage.works();
        eventually(async || warns(&client, &["clock is off"]).await).await;
        cluster.node_sweeps(&mut client, &map).await;
        assert_eq!(status(&mut client).await.keys, 1000);
        // It goes on, and does not start again like this.
        assert_eq!(cluster.present(&mut client, &map, 0..10).await, 1);
        node.stop().await;
        let error = cluster.start().await.ended().await.unwrap_err();
        assert!(matches!(error, NodeError::Clock { .. }), "{error}");
        // The storage's clock was the wrong one.
        cluster.storage.clock.advance(late);
        cluster.advance(Duration::from_secs(60));
        let node = cluster.start().await;
        node.loaded().await;
        cluster.clock_is_kept().await;
        node.stop().await;
    }
    let (node, mut client) = cluster.loaded().await;
    cluster.node_sweeps(&mut client, &map).await;
    eventually(async || status(&mut client.clone()).await.keys == 1).await;
    node.stop().await;
}

#[tokio::test]
async fn an_outage_alone_does_not_keep_memory_from_being_given_back() {
    let (cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.put_for(&mut client, &map, 0..1, 1_000_000).await;
    cluster.put_for(&mut client, &map, 1..1000, 60).await;
    cluster.storage.all(DOWN);
    // A clock that goes as clocks do: steps far below what counts as a jump.
    for _ in 0..2 * 60 {
        cluster.advance(Duration::from_secs(60));
        let looks = cluster.storage.failed();
        eventually(async || cluster.storage.failed() > looks + 1).await;
    }
    eventually(async || status(&mut client.clone()).await.keys == 1).await;
    assert!(!warns(&client, &["clock"]).await);
    node.stop().await;
}

#[tokio::test]
async fn a_clock_that_is_far_ahead_is_not_gone_by_while_object_storage_is_away() {
    let (mut cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    cluster.put_for(&mut client, &map, 0..10, 3600).await;
    cluster.clock_is_kept().await;
    node.stop().await;
    cluster.storage.all(DOWN);
    cluster.set_clock(START.plus(1000 * HOUR));
    let error = cluster.start().await.ended().await.unwrap_err();
    assert!(
        matches!(error, NodeError::ClockUnconfirmed { .. }),
        "{error}"
    );
    for words in ["object storage does not answer", "NTP"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    // The same where the storage answers, and only does not tell its time.
    cluster.storage.all_of("now", DOWN);
    let error = cluster.start().await.ended().await.unwrap_err();
    assert!(
        matches!(error, NodeError::ClockUnconfirmed { .. }),
        "{error}"
    );
    cluster.storage.all(DOWN);
    cluster.set_clock(START.plus(Duration::from_secs(60)));
    let (node, mut client) = cluster.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..20).await, 10);
    node.stop().await;
}

#[tokio::test]
async fn since_the_same_boot_the_machine_itself_knows_how_late_it_is() {
    let (mut cluster, node, ..) = Cluster::new(Durability::Journal).await;
    node.stop().await;
    let at = |boot_id: &str, minutes: u64| SinceBoot {
        boot_id: boot_id.to_owned(),
        elapsed_ms: minutes * 60_000,
    };
    let minute = Duration::from_secs(60);
    cluster.set_clock(START);
    cluster.world.clock.set_since_boot(at("a", 5));
    let node = cluster.start().await;
    node.loaded().await;
    eventually(async || {
        let kept = std::fs::read_to_string(cluster.data_dir().join("clock.json"));
        kept.is_ok_and(|text| text.contains("boot_id"))
    })
    .await;
    node.stop().await;

    cluster.storage.all(DOWN);
    for (later, since_boot, goes) in [
        (601, at("a", 605), false),
        (5, at("a", 605), false),
        (600, at("b", 1), false),
        (5, at("b", 1), true),
        (600, at("a", 605), true),
    ] {
        cluster.set_clock(START.plus(minute * later));
        cluster.world.clock.set_since_boot(since_boot.clone());
        let node = cluster.start().await;
        if goes {
            node.loaded().await;
            node.stop().await;
        } else {
            let error = node.ended().await.unwrap_err();
            assert!(
                matches!(error, NodeError::ClockUnconfirmed { .. }),
                "{later} {since_boot:?}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn a_wrong_date_of_before_is_only_warned_of_where_object_storage_confirms_the_clock() {
    let (mut cluster, node, mut client, map) = Cluster::new(Durability::Journal).await;
    let wrong = START.plus(1000 * HOUR);
    cluster.world.clock.set(wrong);
    cluster.storage.clock.set(wrong);
    cluster.put_for(&mut client, &map, 0..10, 3600).await;
    cluster.snapshot(&mut client, false).await;
    cluster.put_for(&mut client, &map, 10..20, 3600).await;
    node.kill().await;

    cluster.storage.clock.set(START);
    cluster.set_clock(START);
    let (node, mut client) = cluster.loaded().await;
    assert!(warns(&client, &["clock was wrong before"]).await);
    assert_eq!(cluster.present(&mut client, &map, 0..30).await, 20);
    cluster.put_for(&mut client, &map, 20..30, 3600).await;
    assert_eq!(cluster.snapshot(&mut client, true).await, START.0);
    node.stop().await;
    // A new disk takes it over.
    cluster.lose_disk().await;
    let (node, mut client) = cluster.loaded().await;
    assert_eq!(cluster.present(&mut client, &map, 0..30).await, 30);
    node.stop().await;
}
