use serde_json::json;

use super::*;

fn three_nodes() -> ClusterMap {
    let addresses = (0..3).map(|id| format!("keydb-{id}:50051")).collect();
    ClusterMap::create(&NewCluster {
        addresses,
        range_count: 128,
        durability: Durability::Memory,
    })
    .unwrap()
}

fn edited(edit: impl FnOnce(&mut Value)) -> Result<ClusterMap, MapError> {
    let mut json: Value = serde_json::from_slice(&three_nodes().to_json()).unwrap();
    edit(&mut json);
    ClusterMap::from_json(&serde_json::to_vec(&json).unwrap())
}

#[test]
fn a_map_reads_back_from_its_json() {
    let map = three_nodes();
    assert_eq!(ClusterMap::from_json(&map.to_json()), Ok(map));
}

/// A target, as JSON.
fn target() -> Value {
    json!({
        "operation_id": "00112233445566778899aabbccddeeff",
        "addresses": ["keydb-0:50051", "keydb-1:50051"],
        "phase": "hand_over",
        "started_ms": 1_700_000_000_000_u64,
    })
}

/// A range with these fields in the place of its own, in a map with a target.
fn with_range(index: usize, fields: Value) -> Result<ClusterMap, MapError> {
    edited(|json| {
        json["target"] = target();
        for (name, value) in fields.as_object().unwrap() {
            json["ranges"][index][name] = value.clone();
        }
    })
}

fn from(node: u32, generation: u64) -> Value {
    json!({"node": node, "gen": generation, "copy": "ffeeddccbbaa99887766554433221100"})
}

#[test]
fn a_map_of_a_running_operation_reads_back_from_its_json() {
    let map = with_range(0, json!({"owner": 1, "gen": 3, "from": from(0, 1)})).unwrap();
    assert_eq!(map.ranges[0].from.as_ref().unwrap().node, NodeId(0));
    assert_eq!(map.target.as_ref().unwrap().phase, Phase::HandOver);
    assert_eq!(ClusterMap::from_json(&map.to_json()), Ok(map));

    let map = with_range(1, json!({"successor": 2})).unwrap();
    assert_eq!(map.ranges[1].successor, Some(NodeId(2)));
    assert_eq!(ClusterMap::from_json(&map.to_json()), Ok(map));
}

#[test]
fn what_is_usually_absent_is_not_written() {
    let json: Value = serde_json::from_slice(&three_nodes().to_json()).unwrap();
    let fields: Vec<&String> = json["ranges"][0].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["gen", "id", "owner", "start"]);
}

#[test]
fn unknown_fields_are_kept_at_every_level() {
    let map = edited(|json| {
        json["target"] = target();
        json["target"]["later"] = 5.into();
        json["ranges"][0]["gen"] = 2.into();
        json["ranges"][0]["from"] = from(1, 1);
        json["ranges"][0]["from"]["later"] = 6.into();
        json["later"] = 1.into();
        json["hash"]["later"] = 2.into();
        json["nodes"][1]["later"] = 3.into();
        json["ranges"][5]["later"] = 4.into();
    })
    .unwrap();
    let back: Value = serde_json::from_slice(&map.successor().to_json()).unwrap();
    assert_eq!(back["later"], 1);
    assert_eq!(back["hash"]["later"], 2);
    assert_eq!(back["nodes"][1]["later"], 3);
    assert_eq!(back["ranges"][5]["later"], 4);
    assert_eq!(back["target"]["later"], 5);
    assert_eq!(back["ranges"][0]["from"]["later"], 6);
}

#[test]
fn another_format_or_an_unknown_feature_or_mode_is_refused() {
    let unsupported =
        |map: Result<ClusterMap, MapError>| matches!(map, Err(MapError::Unsupported { .. }));
    assert!(unsupported(edited(|json| *json = json!({"format": 2}))));
    assert!(unsupported(edited(
        |json| json["required_features"] = json!(["splits"])
    )));
    assert!(unsupported(edited(|json| json["hash"]["bits"] = 64.into())));
    assert!(matches!(
        edited(|json| json["durability"] = "eventually".into()),
        Err(MapError::Malformed(_))
    ));
}

#[test]
fn a_map_that_contradicts_itself_is_refused() {
    let inconsistent =
        |map: Result<ClusterMap, MapError>| matches!(map, Err(MapError::Inconsistent(_)));
    assert!(inconsistent(edited(
        |json| json["ranges"][0]["start"] = "0000000000000001".into()
    )));
    assert!(inconsistent(edited(
        |json| json["ranges"][3]["start"] = json["ranges"][2]["start"].clone()
    )));
    assert!(inconsistent(edited(
        |json| json["ranges"][3]["owner"] = 9.into()
    )));
    assert!(inconsistent(edited(
        |json| json["ranges"][3]["id"] = 4.into()
    )));
    assert!(inconsistent(edited(
        |json| json["nodes"][0]["id"] = 1.into()
    )));
    assert!(inconsistent(edited(
        |json| json["nodes"][0]["address"] = "keydb-1:50051".into()
    )));
    assert!(matches!(
        edited(|json| json["ranges"][3]["start"] = "xyz".into()),
        Err(MapError::Malformed(_))
    ));
}

#[test]
fn a_range_that_moves_in_a_way_that_cannot_be_is_refused_by_name() {
    // Range 4 is owned by node 1 under generation 1.
    for (fields, reason) in [
        (json!({"successor": 9}), "not a member"),
        (json!({"successor": 1}), "its owner"),
        (json!({"gen": 2, "from": from(9, 1)}), "not a member"),
        (json!({"gen": 2, "from": from(1, 1)}), "its owner"),
        (json!({"gen": 2, "from": from(0, 2)}), "generation 2"),
        (
            json!({"gen": 2, "from": from(0, 1), "successor": 2}),
            "still handed over",
        ),
    ] {
        let text = with_range(4, fields).unwrap_err().to_string();
        assert!(text.contains("range 4 ") && text.contains(reason), "{text}");
    }
    let without_target = edited(|json| json["ranges"][4]["successor"] = 2.into());
    let text = without_target.unwrap_err().to_string();
    assert!(
        text.contains("range 4 ") && text.contains("no target"),
        "{text}"
    );
}

#[test]
fn every_fingerprint_falls_into_the_range_that_contains_it() {
    let map = three_nodes();
    for top in [
        0,
        1,
        u64::MAX / 128,
        u64::MAX / 2,
        u64::MAX / 2 + 1,
        u64::MAX,
    ] {
        assert!(map.bounds(map.range_index_of(top)).contains(top), "{top:x}");
    }
}

#[test]
fn a_successor_is_newer_and_has_its_own_nonce() {
    let map = three_nodes();
    let next = map.successor();
    assert!(next.version() > map.version());
    assert_ne!(next.write_nonce, map.write_nonce);
}
