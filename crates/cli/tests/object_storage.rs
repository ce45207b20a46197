//! A cluster on a real S3 server, with the settings that its users have for one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::time::{Duration, Instant};

use keydb_storage::testing::TestBucket;
use support::{
    assert_code, assert_says,
    cluster::{Cluster, NODES, s3},
    keydb, stderr, wait_for_line,
};

/// In a bucket of its own; `None` where there is no S3 server.
fn create(interval: &str) -> Option<Cluster> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bucket = runtime.block_on(TestBucket::new())?;
    let interval = ("KEYDB_SNAPSHOT_INTERVAL", interval.to_owned());
    let settings = s3(&bucket, "").into_iter().chain([interval]);
    Some(Cluster::create(settings.collect()))
}

#[test]
fn a_cluster_whose_disks_are_all_lost_comes_back_from_s3_up_to_the_named_moment() {
    let Some(cluster) = create("60s") else {
        return;
    };
    let nodes = cluster.start(&[]);
    cluster.put(0..50_000);
    let made = cluster.json(&["snapshot", "create", "--json"]);
    let verified = cluster.json(&["snapshot", "verify", "--json"]);
    assert_eq!(verified["whole"], true, "{verified}");
    cluster.put(50_000..50_100);
    // Killed, every one of them, and their disks are gone.
    cluster.lose(nodes);
    for (id, mut stranger) in cluster.launch(&[]).into_iter().enumerate() {
        let consent = format!("keydb recover --node {id} --accept-loss");
        wait_for_line(&mut stranger, &consent);
        assert_eq!(stranger.child.wait().unwrap().code(), Some(1));
    }
    for id in 0..NODES {
        let complete_to = made["nodes"][id]["complete_to"].as_str().unwrap();
        let id = id.to_string();
        let asked = cluster.run(&["recover", "--node", &id]);
        assert_code(&asked, 2);
        let given_up = cluster.answer(&["recover", "--node", &id, "--accept-loss"]);
        for said in [stderr(&asked), given_up] {
            assert!(said.contains(&format!("up to {complete_to}")), "{said}");
        }
    }
    let _nodes = cluster.start(&[]);
    assert_eq!(cluster.present(0..1000), 1000);
    assert_eq!(cluster.present(49_000..50_000), 1000);
    assert_eq!(cluster.present(50_000..50_100), 0);
    let status = cluster.answer(&["status"]);
    assert_eq!(
        status.matches("once, last at 20").count(),
        NODES,
        "{status}"
    );
}

#[test]
fn snapshots_go_to_s3_by_themselves_and_what_is_kept_there_is_verified() {
    let Some(cluster) = create("1s") else {
        return;
    };
    let _nodes = cluster.start(&[]);
    cluster.put(0..10_000);
    let give_up = Instant::now() + Duration::from_secs(120);
    loop {
        let found = cluster.json(&["snapshot", "verify", "--json"]);
        let nodes = found["nodes"].as_array().unwrap();
        let entries: u64 = nodes
            .iter()
            .filter_map(|node| node["entries"].as_u64())
            .sum();
        if entries >= 10_000 {
            assert_eq!(found["whole"], true, "{found}");
            break;
        }
        assert!(Instant::now() < give_up, "{found}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_bucket_that_is_not_there_stops_the_start_by_name() {
    let Some(cluster) = create("60s") else {
        return;
    };
    let mut command = keydb();
    command
        .arg("init")
        .envs(cluster.settings.iter().cloned())
        .env("KEYDB_STORAGE_BUCKET", "no-such-bucket");
    let refused = command.output().unwrap();
    assert_says(&refused, 1, &["no-such-bucket"]);
}
