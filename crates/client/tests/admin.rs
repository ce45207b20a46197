//! What an operator asks of nodes.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something unexpected happens"
)]

mod support;

use std::time::Duration;

use keydb_client::{AdminClient, AdminError, SnapshotsCreated};
use keydb_proto::{
    refusal_status,
    shard::{CreateSnapshotsReply, ErrorCode},
};
use support::fake::{Fake, NOW_MS, Notes, Script, header, one_node};
use tonic::Status;

/// What a client gets from a node that answers so, and how often it asked, each time with what.
async fn create(
    full: bool,
    answer: impl Fn(usize) -> Result<(), Status> + Send + Sync + 'static,
) -> (Result<SnapshotsCreated, AdminError>, Vec<bool>) {
    let (listener, map) = one_node(4).await;
    let mut script = Script::of(&map);
    let notes = Notes::new();
    let noted = notes.clone();
    let cluster = map.cluster_id.to_bytes();
    script.create_snapshots = Box::new(move |request| {
        assert_eq!(*request.cluster_id, cluster);
        let reply = answer(noted.add(request.full)).map(|()| CreateSnapshotsReply {
            header: header(1, NOW_MS),
            complete_to_unix_ms: NOW_MS,
            lsn: 12,
            objects: 3,
            object_bytes: 4096,
        });
        Box::pin(async { reply })
    });
    let fake = Fake::start(listener, script).await;
    let mut config = fake.config();
    config.retry_delay = Duration::from_millis(5);
    let admin = AdminClient::connect(config).await.unwrap();
    let (member, made) = admin.create_snapshots(full).await.remove(0);
    assert_eq!(member, map.nodes[0]);
    admin.close(Duration::ZERO).await;
    (made, notes.all())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_up_to_when_object_storage_is_complete() {
    let (made, asked) = create(true, |_| Ok(())).await;
    let made = made.unwrap();
    assert_eq!((made.complete_to.0, made.lsn.0), (NOW_MS, 12));
    assert_eq!((made.objects, made.object_bytes), (3, 4096));
    assert_eq!(asked, [true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_busy_or_cut_off_is_asked_again() {
    let (made, asked) = create(false, |number| match number {
        0 => Err(Status::unavailable("connection reset")),
        1 => Err(refusal_status(ErrorCode::NoMap, "still registering")),
        _ => Ok(()),
    })
    .await;
    made.unwrap();
    assert_eq!(asked, [false; 3]);

    let (made, asked) = create(false, |_| Err(Status::unavailable("connection reset"))).await;
    let error = made.unwrap_err();
    assert!(
        matches!(&error, AdminError::Unavailable { attempts: 4, last_error } if last_error.contains("reset")),
        "{error}"
    );
    assert_eq!(asked.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_a_nodes_way_is_told_at_once() {
    for refusal in [
        refusal_status(ErrorCode::NotPossible, "durability memory has no snapshots"),
        Status::unimplemented("no such call"),
    ] {
        let message = refusal.message().to_owned();
        let (made, asked) = create(false, move |_| Err(refusal.clone())).await;
        let error = made.unwrap_err();
        assert!(matches!(&error, AdminError::Refused { .. }), "{error}");
        assert!(
            error.to_string().contains(&message) && error.to_string().contains("node 0"),
            "{error}"
        );
        assert_eq!(asked.len(), 1);
    }
}
