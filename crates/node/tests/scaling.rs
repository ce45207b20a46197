//! Changes of a cluster's membership, up to what is written into the map.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use keydb_core::{ClusterMap, NodeId, OperationId, Phase};
use keydb_proto::{
    error_code,
    shard::{
        ErrorCode, ScaleOperationRequest, ScaleReply, ScaleRequest,
        admin_service_client::AdminServiceClient,
    },
};
use keydb_storage::{
    MAP_KEY,
    testing::{DOWN, StorageFault},
};
use support::*;
use tonic::{Status, transport::Channel};

struct Admin {
    client: AdminServiceClient<Channel>,
    cluster_id: bytes::Bytes,
}

impl Admin {
    async fn of(node: &RunningNode, map: &ClusterMap) -> Self {
        let at = format!("http://{}", node.address);
        Self {
            client: AdminServiceClient::connect(at).await.unwrap(),
            cluster_id: map.cluster_id.to_bytes().to_vec().into(),
        }
    }

    async fn scale_as(
        &self,
        operation: OperationId,
        addresses: &[&str],
        preview: bool,
    ) -> Result<ScaleReply, Status> {
        let request = ScaleRequest {
            cluster_id: self.cluster_id.clone(),
            operation_id: operation.to_bytes().to_vec().into(),
            addresses: addresses.iter().map(|it| (*it).to_owned()).collect(),
            preview,
        };
        Ok(self.client.clone().scale(request).await?.into_inner())
    }

    async fn scale(&self, addresses: &[&str]) -> Result<ScaleReply, Status> {
        self.scale_as(OperationId::random(), addresses, false).await
    }

    fn operation(&self, id: Option<OperationId>) -> ScaleOperationRequest {
        ScaleOperationRequest {
            cluster_id: self.cluster_id.clone(),
            operation_id: id
                .map(|id| id.to_bytes().to_vec())
                .unwrap_or_default()
                .into(),
        }
    }

    async fn complete(&self, id: Option<OperationId>) -> Result<ScaleReply, Status> {
        let request = self.operation(id);
        Ok(self
            .client
            .clone()
            .scale_complete(request)
            .await?
            .into_inner())
    }

    async fn abort(&self, id: Option<OperationId>) -> Result<ScaleReply, Status> {
        let request = self.operation(id);
        Ok(self.client.clone().abort_scale(request).await?.into_inner())
    }
}

/// A node that waits to become a member.
async fn spare(world: &World, id: u32) -> RunningNode {
    world.start(config(id), listen().await)
}

/// An address where nobody listens.
async fn nobody() -> String {
    address_of(&listen().await)
}

fn successors(map: &ClusterMap) -> Vec<(u32, u32, u32)> {
    let moving = map.ranges.iter();
    moving
        .filter_map(|range| Some((range.id.0, range.owner.0, range.successor?.0)))
        .collect()
}

fn moves(reply: &ScaleReply) -> Vec<(u32, u32, u32)> {
    let moves = reply.moves.iter();
    moves
        .map(|it| (it.range_id, it.from_node, it.to_node))
        .collect()
}

#[tokio::test]
async fn an_operation_goes_from_its_plan_to_its_end_and_repeats_change_nothing() {
    let (world, map, node, _) = one_node().await;
    let admin = Admin::of(&node, &map).await;
    let spare = spare(&world, 1).await;
    let both = [&*node.address, &*spare.address];

    let preview = admin.scale_as(OperationId::random(), &both, true).await;
    let preview = preview.unwrap();
    assert!(preview.changed && preview.operation_id.is_empty());
    assert_eq!(world.map().await, map, "a preview changes nothing");

    let id = OperationId::random();
    let planned = admin.scale_as(id, &both, false).await.unwrap();
    assert!(planned.changed);
    assert_eq!(*planned.operation_id, id.to_bytes());
    assert_eq!(planned.moves.len(), 4);
    assert_eq!(moves(&preview), moves(&planned));
    assert_eq!(planned.joins[0].address, spare.address);
    let stored = world.map().await;
    assert_eq!(successors(&stored), moves(&planned));
    let target = stored.target.unwrap();
    assert_eq!((target.operation_id, target.phase), (id, Phase::Copy));
    assert_eq!(target.started_ms, world.now());

    // The same again: as the repeat of a call whose reply was lost, and as somebody else's.
    let repeat = admin.scale_as(id, &both, false).await.unwrap();
    assert!(repeat.changed);
    let other = admin.scale(&both).await.unwrap();
    assert!(!other.changed);
    assert_eq!(other.operation_id, planned.operation_id);
    assert_eq!(moves(&other), moves(&planned));
    let elsewhere = admin.scale(&[&node.address]).await;
    assert_refused(elsewhere, ErrorCode::Conflict, &[&id.to_string(), "abort"]);

    let another = Some(OperationId::random());
    for refused in [admin.complete(another).await, admin.abort(another).await] {
        assert_refused(refused, ErrorCode::Conflict, &[&id.to_string()]);
    }
    assert!(admin.complete(Some(id)).await.unwrap().changed);
    assert!(!admin.complete(None).await.unwrap().changed);
    let phase = world.map().await.target.unwrap().phase;
    assert_eq!(phase, Phase::HandOver);

    eventually(async || world.map().await.target.is_none()).await;
    let after = world.map().await;
    let moved = after.ranges.iter().filter(|range| range.owner == NodeId(1));
    assert_eq!(moved.count(), 4);
    assert!(after.ranges.iter().all(|range| range.from.is_none()));
    assert_refused(admin.complete(None).await, ErrorCode::Conflict, &["no"]);
    node.stop().await;
    spare.stop().await;
}

#[tokio::test]
async fn an_abort_takes_new_nodes_out_of_the_map_again() {
    let (world, map, node, _) = one_node().await;
    let admin = Admin::of(&node, &map).await;
    let spare = spare(&world, 1).await;
    let planned = admin
        .scale(&[&*node.address, &*spare.address])
        .await
        .unwrap();
    // Once the new node has found its place.
    eventually(async || world.map().await.nodes[1].disk_id.is_some()).await;
    assert!(admin.abort(None).await.unwrap().changed);
    let id = OperationId::from_bytes((*planned.operation_id).try_into().unwrap());
    assert!(!admin.abort(Some(id)).await.unwrap().changed);
    let after = world.map().await;
    assert_eq!((after.target, after.nodes.len()), (None, 1));
    assert_refused(admin.complete(None).await, ErrorCode::Conflict, &["no"]);
    spare.ended().await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn what_cannot_be_a_member_is_refused_by_name_before_anything_changes() {
    let (world, map, node, _) = one_node().await;
    let admin = Admin::of(&node, &map).await;
    let (one, two) = (spare(&world, 1).await, spare(&world, 1).await);
    let (_, other_map, other, _) = one_node().await;
    let lost = World::new();
    let lost = spare(&lost, 5).await;
    let dead = nobody().await;
    let own = &*node.address;
    let other_cluster = other_map.cluster_id.to_string();

    for (addresses, words) in [
        (vec![], vec!["empty"]),
        (
            vec![own, &dead],
            vec!["no node answers at", &dead, "refused"],
        ),
        (vec![own, "no port"], vec!["\"no port\" is not host:port"]),
        (vec![own, own], vec![own, "twice"]),
        (
            vec![own, &other.address],
            vec![&other.address, "another cluster", &other_cluster],
        ),
        (
            vec![own, &one.address, &two.address],
            vec![&one.address, &two.address, "node 1"],
        ),
        (
            vec![own, &lost.address],
            vec![&lost.address, "no cluster map"],
        ),
        // Every one of them is named.
        (
            vec![&dead, &other.address],
            vec![&dead, &other.address, "another cluster"],
        ),
    ] {
        let refused = admin.scale(&addresses).await;
        assert_refused(refused, ErrorCode::InvalidRequest, &words);
        let preview = admin.scale_as(OperationId::random(), &addresses, true);
        assert_refused(preview.await, ErrorCode::InvalidRequest, &words);
    }
    assert_eq!(world.map().await, map);

    let stranger = Admin::of(&node, &other_map).await;
    let refused = stranger.scale(&[own]).await;
    assert_refused(refused, ErrorCode::WrongCluster, &[&other_cluster]);
    let not_a_member = Admin::of(&one, &map).await.scale(&[own]).await;
    assert_refused(not_a_member, ErrorCode::WrongNode, &["not a member"]);
    for node in [node, one, two, other, lost] {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_cluster_is_scaled_while_a_member_is_down() {
    let down = nobody().await;
    let (world, map, node, _) = one_node_beside(&[&down], config(0)).await;
    let admin = Admin::of(&node, &map).await;
    let spare = spare(&world, 2).await;
    let reply = admin.scale(&[&node.address, &down, &spare.address]).await;
    assert_eq!(reply.unwrap().moves.len(), 2);
    let members = world.map().await.nodes;
    assert_eq!(members.len(), 3);

    admin.abort(None).await.unwrap();
    let reply = admin.scale(&[&node.address]).await.unwrap();
    assert_eq!((reply.moves.len(), reply.leaves.len()), (4, 1));
    assert_eq!(reply.leaves[0].address, down);
    node.stop().await;
}

#[tokio::test]
async fn a_plan_whose_write_is_in_doubt_is_found_in_the_map_and_storage_that_is_down_is_named() {
    let (world, map, node, _) = one_node().await;
    let admin = Admin::of(&node, &map).await;
    let spare = spare(&world, 1).await;
    let both = [&*node.address, &*spare.address];
    world.storage.all(DOWN);
    let refused = admin.scale(&both).await;
    assert_refused(refused, ErrorCode::StorageUnavailable, &["cluster map"]);
    let preview = admin.scale_as(OperationId::random(), &both, true).await;
    assert_refused(preview, ErrorCode::StorageUnavailable, &["refused"]);

    let mut lost = false;
    world.storage.goes_wrong(move |call, key| {
        let now = call == "put" && key == MAP_KEY && !std::mem::replace(&mut lost, true);
        now.then_some(StorageFault::ReplyLost)
    });
    let id = OperationId::random();
    let reply = admin.scale_as(id, &both, false).await.unwrap();
    assert!(reply.changed);
    assert_eq!(world.map().await.target.unwrap().operation_id, id);

    // The new member writes to the map as well, and would end if it were refused.
    eventually(async || world.map().await.nodes[1].disk_id.is_some()).await;
    world
        .storage
        .goes_wrong(|call, key| (call == "put" && key == MAP_KEY).then_some(StorageFault::Refused));
    let refused = admin.abort(None).await.unwrap_err();
    let code = error_code(&refused);
    assert_eq!(code, Some(ErrorCode::StorageUnavailable), "{refused:?}");
    world.storage.works();
    node.stop().await;
    spare.stop().await;
}

#[tokio::test]
async fn one_member_writes_the_end_of_an_operation_and_then_nobody_writes_any_more() {
    let second = listen().await;
    let (world, _, node, _) = one_node_beside(&[&address_of(&second)], config(0)).await;
    let second = world.start(config(1), second);
    second.serving().await;
    let admin = Admin::of(&node, &world.map().await).await;
    // With nothing to move, handing over is all that there is to do; a node without ranges leaves.
    world
        .edit(|map| {
            for range in &mut map.ranges {
                range.owner = NodeId(0);
            }
        })
        .await;
    let before = world.map().await.epoch;
    let planned = admin.scale(&[&node.address]).await.unwrap();
    assert_eq!((planned.moves.len(), planned.leaves.len()), (0, 1));
    admin.complete(None).await.unwrap();
    eventually(async || world.map().await.target.is_none()).await;
    let after = world.map().await;
    assert_eq!((after.nodes.len(), after.epoch), (1, before + 3));
    second.ended().await.unwrap();

    let looks = world.storage.seen("get");
    let writes = world.storage.seen("put");
    eventually(async || world.storage.seen("get") > looks + 10).await;
    assert_eq!(world.storage.seen("put"), writes);
    node.stop().await;
}
