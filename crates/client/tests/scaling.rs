//! Scaling by whichever member answers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use keydb_client::{AdminClient, AdminError, Phase};
use support::{
    LONG,
    cluster::Cluster,
    proxy::{Mode, Proxy},
};
use tokio::net::TcpListener;

/// A cluster of two nodes; the first is reached through the proxy.
async fn behind_a_proxy() -> (Cluster, Proxy, Vec<String>) {
    let listeners = [
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    ];
    let [first, second] = [0, 1].map(|it: usize| listeners[it].local_addr().unwrap());
    let proxy = Proxy::start(first).await;
    let addresses = vec![proxy.address.clone(), second.to_string()];
    let cluster = Cluster::start_as(listeners.into(), addresses.clone()).await;
    let registered = async || {
        let map = cluster.map_store().load().await.unwrap().unwrap();
        map.nodes.iter().all(|node| node.disk_id.is_some())
    };
    while !registered().await {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    (cluster, proxy, addresses)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_whose_reply_is_lost_is_found_by_another_member() {
    let (cluster, proxy, addresses) = behind_a_proxy().await;
    let admin = AdminClient::connect(cluster.config()).await.unwrap();
    proxy.set(Mode::LoseNextReply);
    let planned = admin.scale(&addresses[1..]).await.unwrap();
    assert_eq!(proxy.lost(), 1);
    assert_eq!((planned.changed, planned.moves.len()), (true, 64));
    let target = cluster.map_store().load().await.unwrap().unwrap().target;
    assert_eq!(Some(target.unwrap().operation_id), planned.operation);
    // The client goes by it at once.
    assert_eq!(
        admin.cluster_map().target.as_ref().unwrap().phase,
        Phase::Copy
    );
    admin.abort(planned.operation).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_down_hinders_nobody_and_its_keys_are_not_counted() {
    let (mut cluster, _proxy, addresses) = behind_a_proxy().await;
    let client = cluster.client().await;
    let keys: Vec<String> = (0..100).map(|key| key.to_string()).collect();
    client.put(&keys, "1h".parse().unwrap()).await.unwrap();
    let admin = AdminClient::from(client);
    cluster.stop(0).await;
    let preview = admin.preview(&addresses[1..]).await.unwrap();
    assert_eq!((preview.planned.moves.len(), preview.keys), (64, 0));
    assert_eq!(preview.silent, [admin.cluster_map().nodes[0].id]);
    assert!(admin.operation().await.unwrap().is_none());

    let planned = admin.scale(&addresses[1..]).await.unwrap();
    let id = admin.scale_complete(planned.operation).await.unwrap();
    let progress = admin.operation().await.unwrap().unwrap();
    assert_eq!((progress.operation, progress.phase), (id, Phase::HandOver));
    assert_eq!(
        (progress.moves, progress.waiting, progress.moved()),
        (64, 64, 0)
    );

    // Somebody who waits hears of the end, and that it was none.
    let waiting = admin.auto_scale(&addresses[1..], LONG, |_| {});
    let abort = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        admin.abort(Some(id)).await.unwrap()
    };
    let (waited, aborted) = tokio::join!(waiting, abort);
    assert!(aborted);
    let error = waited.unwrap_err();
    assert!(matches!(error, AdminError::Conflict { .. }), "{error}");
    let hasty = admin.wait(id, std::time::Duration::ZERO, |_| {}).await;
    assert!(hasty.is_ok(), "what does not run is over");
}
