use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use keydb_core::{Clock, ClusterMap, Durability, ManualClock, NewCluster, NodeId, UnixMillis};
use keydb_proto::shard::{RangeKeys, RequestHeader};

use super::*;
use crate::{NodeConfig, ranges::owned::CurrentMap, requests::steps::STEP_KEYS};

const START: UnixMillis = UnixMillis(1_700_000_000_000);

/// A clock that goes on by five seconds when it has been read so often.
#[derive(Debug)]
struct Jumping(AtomicU64);

impl Clock for Jumping {
    fn now(&self) -> UnixMillis {
        let left = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        left.map_or(START.plus(Duration::from_secs(5)), |_| START)
    }
}

#[tokio::test]
async fn a_key_lives_as_long_as_was_asked_for_from_the_end_of_the_last_wait_on() {
    let map = ClusterMap::create(&NewCluster {
        addresses: vec!["a:1".to_owned()],
        range_count: 1,
        durability: Durability::Memory,
    })
    .unwrap();
    let key = Fingerprint::from_parts(1, 0).to_bytes().to_vec();
    let claim = || ClaimRequest {
        header: Some(RequestHeader {
            cluster_id: map.cluster_id.to_bytes().to_vec().into(),
            lineage: map.lineage,
            epoch: map.epoch,
            target_node: 0,
            not_after_unix_ms: START.plus(Duration::from_secs(60)).0,
        }),
        ranges: vec![RangeKeys {
            range_id: 0,
            generation: map.ranges[0].generation,
            key_count: 1,
            attempt: 0,
        }],
        fingerprints: key.clone().into(),
        ttl_seconds: 1,
        operation_id: OperationId::random().to_bytes().to_vec().into(),
        only_remembered: false,
    };
    let clock = Arc::new(Jumping(AtomicU64::new(u64::MAX)));
    let node = Node::new(NodeConfig::new(NodeId(0)), clock.clone());
    let ranges = OwnedRanges::new(CurrentMap::new(map.clone()), NodeId(0), &node.arena, None);
    node.membership.set(MembershipState::Serving(ranges));
    // The first look is at the request as it comes in; then it has waited.
    clock.0.store(1, Ordering::SeqCst);
    let reply = super::claim(&node, &claim()).await.unwrap();
    assert_eq!(reply.first[0], 1);
    let reply = super::claim(&node, &claim()).await.unwrap();
    assert_eq!(reply.first[0], 0);
}

#[tokio::test]
async fn what_a_key_set_stored_before_it_refused_a_key_is_first_for_the_repeat() {
    const HOUR: Duration = Duration::from_secs(3600);
    let map = ClusterMap::create(&NewCluster {
        addresses: vec!["a:1".to_owned()],
        range_count: 1,
        durability: Durability::Memory,
    })
    .unwrap();
    // No hashes, so that a key set refuses them from some number on.
    let keys = |numbers: std::ops::Range<u64>| -> Vec<u8> {
        numbers
            .flat_map(|number| Fingerprint::from_parts(u64::MAX / 3, number as u32).to_bytes())
            .collect()
    };
    let claim = |packed: Vec<u8>, ttl_seconds, name: &str, attempt| ClaimRequest {
        header: Some(RequestHeader {
            cluster_id: map.cluster_id.to_bytes().to_vec().into(),
            lineage: map.lineage,
            epoch: map.epoch,
            target_node: 0,
            not_after_unix_ms: START.plus(24 * HOUR).0,
        }),
        ranges: vec![RangeKeys {
            range_id: 0,
            generation: map.ranges[0].generation,
            key_count: u32::try_from(packed.len() / 12).unwrap(),
            attempt,
        }],
        fingerprints: packed.into(),
        ttl_seconds,
        operation_id: OperationId::from_name(name).to_bytes().to_vec().into(),
        only_remembered: false,
    };
    let clock = Arc::new(ManualClock::new(START));
    let mut config = NodeConfig::new(NodeId(0));
    config.limits.answer_memory_age = 24 * HOUR;
    let node = Node::new(config, clock.clone());
    let ranges = OwnedRanges::new(CurrentMap::new(map.clone()), NodeId(0), &node.arena, None);
    node.membership.set(MembershipState::Serving(ranges));
    // How many there is room for.
    let mut room = 0_u64;
    loop {
        let name = format!("fill {room}");
        let reply = super::claim(&node, &claim(keys(room..room + 1), 1, &name, 0)).await;
        if !reply.unwrap().refused.is_empty() {
            break;
        }
        room += 1;
        assert!(room < 1_000_000);
    }
    let ranges = OwnedRanges::new(CurrentMap::new(map.clone()), NodeId(0), &node.arena, None);
    node.membership.set(MembershipState::Serving(ranges));
    // Ten are left, of which one is somebody else's for long. The claim wants twenty more.
    for from in (0..room - 10).step_by(STEP_KEYS) {
        let part = keys(from..(from + STEP_KEYS as u64).min(room - 10));
        let fill = claim(part, 1, &format!("again {from}"), 0);
        assert_eq!(super::claim(&node, &fill).await.unwrap().refused, []);
    }
    let other = claim(keys(room - 10..room - 9), 10_000, "other", 0);
    assert_eq!(super::claim(&node, &other).await.unwrap().first[0], 1);
    let wanted = keys(room - 10..room + 11);
    let reply = super::claim(&node, &claim(wanted.clone(), 10_000, "a", 0)).await;
    assert_eq!(reply.unwrap().refused.len(), 1);
    // What filled it is over for so long that its room is used again.
    clock.advance(2 * HOUR);
    node.clock.trust(true);
    let again = super::claim(&node, &claim(wanted, 10_000, "a", 1))
        .await
        .unwrap();
    assert_eq!(again.refused, []);
    let told = |bytes: &[u8]| -> String {
        (0..21)
            .map(|index| {
                if bytes[index / 8] >> (index % 8) & 1 == 1 {
                    '1'
                } else {
                    '0'
                }
            })
            .collect()
    };
    assert_eq!(told(&again.first), "011111111111111111111");
    assert!(again.unknown.iter().all(|byte| *byte == 0));
}

#[test]
fn only_the_given_bits_are_cleared() {
    let mut bytes = [0xff; 4];
    clear_bits(&mut bytes, 7, 17);
    assert_eq!(bytes, [0x7f, 0x00, 0xfe, 0xff]);
}
