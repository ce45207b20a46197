//! Settings are a pure function of the variables.

use std::{path::Path, time::Duration};

use keydb_core::{Durability, NodeId};
use keydb_node::MemoryPolicy;

use super::{
    declared::{DECLARED, Reader},
    memory::MemoryLimit,
    *,
};

fn read(vars: &[(&str, &str)]) -> Result<Settings, String> {
    let vars = vars
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Settings::read(vars, Path::new("/somewhere")).map_err(|error| error.to_string())
}

#[test]
fn the_settings_of_a_go_keydb_user_work_verbatim() {
    let settings = read(&[
        ("KEYDB_NODE_ID", "0"),
        ("KEYDB_CLUSTER_SIZE", "3"),
        (
            "KEYDB_NODE_ADDRESSES",
            r#"["localhost:50051","localhost:50052","localhost:50053"]"#,
        ),
        ("KEYDB_PORT", "50051"),
        ("KEYDB_TOTAL_HASH_RANGES", "128"),
    ])
    .unwrap();
    assert_eq!(settings.node_id.value, Some(NodeId(0)));
    assert_eq!(
        settings.node_addresses.value.unwrap(),
        ["localhost:50051", "localhost:50052", "localhost:50053"]
    );
    assert_eq!(settings.port.value, 50051);
    assert_eq!(settings.total_hash_ranges.value, 128);
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}

#[test]
fn without_settings_the_defaults_hold() {
    let settings = read(&[]).unwrap();
    assert_eq!(settings.port.value, 50051);
    assert_eq!(settings.total_hash_ranges.value, 128);
    assert_eq!(settings.storage_text(), "file:///somewhere/keydb-storage");
    assert!(!settings.storage_is_given() && !settings.init.value);
    assert_eq!(settings.durability.value, Durability::Journal);
    assert_eq!(settings.http_port.value, Some(50080));
    assert_eq!(settings.data_dir.value, Path::new("/somewhere/keydb-data"));
    assert_eq!(settings.snapshot_interval.value, Duration::from_secs(60));
    assert_eq!(settings.memory_limit.value, MemoryLimit::None);
    assert_eq!(settings.memory_policy.value, MemoryPolicy::Refuse);
    assert!(settings.required_node_id().is_err() && settings.required_addresses().is_err());
}

#[test]
fn a_wrong_value_names_the_variable_the_value_and_what_would_be_right() {
    for (name, value, right) in [
        ("KEYDB_PORT", "99999", "1 to 65535"),
        ("KEYDB_PORT", "0", "1 to 65535"),
        ("KEYDB_HTTP_PORT", "99999", "off switches HTTP off"),
        ("KEYDB_DATA_DIR", "", "/var/lib/keydb"),
        ("KEYDB_DATA_DIR", "/", "/var/lib/keydb"),
        ("KEYDB_SNAPSHOT_INTERVAL", "60", "500ms, 10s"),
        ("KEYDB_SNAPSHOT_INTERVAL", "10ms", "1s to 24h"),
        ("KEYDB_MOVE_CPU_PERCENT", "0", "1 to 6400"),
        (
            "KEYDB_MOVE_BYTES_PER_SECOND",
            "1023KiB",
            "less than 1.0 MiB",
        ),
        ("KEYDB_SNAPSHOT_INTERVAL", "25h", "1s to 24h"),
        ("KEYDB_MAP_POLL_INTERVAL", "2h", "100ms to 1h"),
        ("KEYDB_DISK_HANG_LIMIT", "5s", "10s to 24h"),
        ("KEYDB_MEMORY_LIMIT", "8GB", "8GiB"),
        ("KEYDB_MEMORY_LIMIT", "120%", "1% to 100%"),
        ("KEYDB_MEMORY_POLICY", "evict", "refuse"),
        ("KEYDB_STORAGE_BUCKET", "", "keydb/prefix"),
        ("KEYDB_STORAGE_URL", "keydb-storage", "file:///"),
        ("KEYDB_STORAGE_URL", "s3://", "s3://bucket"),
        ("KEYDB_STORAGE_BUCKET", "A_B", "3 to 63"),
        ("KEYDB_NODE_ID", "keydb", "keydb-0"),
        ("KEYDB_NODE_ADDRESSES", "localhost", "keydb-0:50051"),
        ("KEYDB_TOTAL_HASH_RANGES", "0", "1 to 65536"),
        ("KEYDB_TOTAL_HASH_RANGES", "65537", "1 to 65536"),
        ("KEYDB_INIT", "yes", "true nor false"),
        ("KEYDB_DURABILITY", "disk", "journal, snapshot and memory"),
        ("KEYDB_ANSWER_MEMORY_BYTES", "lots", "16MiB"),
        ("KEYDB_ANSWER_MEMORY_AGE", "5", "5m"),
        ("KEYDB_REQUEST_KEYS_MAX", "0", "1 to 262144"),
        ("KEYDB_REQUESTS_IN_FLIGHT_MAX", "-1", "1 to 65536"),
        ("KEYDB_LOG", "keydb=loud", "debug"),
        ("KEYDB_LOG", "chatty", "\"chatty\" is no level"),
        ("KEYDB_LOG_FORMAT", "xml", "neither text nor json"),
        (
            "KEYDB_TRACES_ENDPOINT",
            "localhost:4317",
            "http://localhost:4317",
        ),
        (
            "KEYDB_TRACES_ENDPOINT",
            "https://collector:4317",
            "http://localhost:4317",
        ),
        (
            "KEYDB_TRACES_ENDPOINT",
            "http://collector",
            "http://localhost:4317",
        ),
        ("KEYDB_TRACES_ONE_IN", "0", "1 to 1000000000"),
    ] {
        let error = read(&[(name, value)]).unwrap_err();
        assert!(error.starts_with(&format!("{name}={value}: ")), "{error}");
        assert!(error.contains(right), "{error}");
    }
}

#[test]
fn every_wrong_value_is_reported_at_once() {
    let error = read(&[("KEYDB_PORT", "x"), ("KEYDB_INIT", "x"), ("KEYDB_X", "x")]).unwrap_err();
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn an_unknown_setting_is_refused_and_the_nearest_one_suggested() {
    let error = read(&[("KEYDB_NODE_ADDRESES", "a:1")]).unwrap_err();
    assert!(
        error.contains("did you mean KEYDB_NODE_ADDRESSES?"),
        "{error}"
    );
    // Settings of later work do nothing yet, so they do not exist yet.
    let error = read(&[("KEYDB_ZONE", "1")]).unwrap_err();
    assert!(error.contains("no setting of this name"), "{error}");
}

#[test]
fn the_cluster_size_must_fit_the_list_of_addresses() {
    let error = read(&[
        ("KEYDB_CLUSTER_SIZE", "2"),
        ("KEYDB_NODE_ADDRESSES", "a:1,b:1,c:1"),
    ])
    .unwrap_err();
    assert!(
        error.starts_with("KEYDB_CLUSTER_SIZE=2: ") && error.contains("3 addresses"),
        "{error}"
    );
}

#[test]
fn a_port_from_a_kubernetes_service_is_refused_with_its_cure() {
    let error = read(&[("KEYDB_PORT", "tcp://10.0.0.1:50051")]).unwrap_err();
    assert!(
        error.contains("Kubernetes") && error.contains("enableServiceLinks: false"),
        "{error}"
    );
}

#[test]
fn other_variables_from_a_kubernetes_service_are_ignored_with_a_warning() {
    let settings = read(&[
        ("KEYDB_SERVICE_HOST", "10.0.0.1"),
        ("KEYDB_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
    ])
    .unwrap();
    let [warning] = settings.warnings.as_slice() else {
        panic!("{:?}", settings.warnings);
    };
    assert!(warning.contains("KEYDB_SERVICE_HOST"), "{warning}");
    assert!(warning.contains("enableServiceLinks: false"), "{warning}");
}

#[test]
fn a_node_outside_the_list_or_on_another_port_is_warned_about() {
    let settings = read(&[("KEYDB_NODE_ID", "2"), ("KEYDB_NODE_ADDRESSES", "a:1,b:1")]).unwrap();
    assert!(
        settings.warnings[0].contains("node 2"),
        "{:?}",
        settings.warnings
    );
    let settings = read(&[("KEYDB_NODE_ID", "1"), ("KEYDB_NODE_ADDRESSES", "a:1,b:1")]).unwrap();
    assert!(
        settings.warnings[0].contains("port 50051"),
        "{:?}",
        settings.warnings
    );
}

#[test]
fn a_password_in_a_url_is_never_shown() {
    let error = read(&[("KEYDB_STORAGE_URL", r#"s3://key:se"cret@bucket"#)]).unwrap_err();
    assert!(
        !error.contains("cret") && error.contains("***@bucket"),
        "{error}"
    );
}

#[test]
fn a_client_takes_the_addresses_and_leaves_the_rest_to_nodes() {
    let read = |vars: &[(&str, &str)]| {
        let vars = vars
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        ClientSettings::read(vars).map_err(|error| error.to_string())
    };
    let settings = read(&[
        ("KEYDB_NODE_ADDRESSES", "a:1,b:1"),
        ("KEYDB_PORT", "tcp://10.0.0.1:50051"),
        ("KEYDB_SERVICE_HOST", "10.0.0.1"),
        ("PATH", "/bin"),
    ]);
    assert_eq!(settings.unwrap().addresses.unwrap(), ["a:1", "b:1"]);
    assert!(read(&[("KEYDB_NODE_ADRESSES", "a:1")]).is_err());
    assert!(read(&[("KEYDB_NODE_ADDRESSES", "a")]).is_err());
}

/// Variables that are contradictory or incomplete, and what is said of them.
#[test]
fn storage_settings_that_do_not_fit_each_other_are_refused() {
    let url = |value| ("KEYDB_STORAGE_URL", value);
    let bucket = |value| ("KEYDB_STORAGE_BUCKET", value);
    let endpoint = ("KEYDB_STORAGE_ENDPOINT", "http://minio:9000");
    let id = ("KEYDB_STORAGE_ACCESSKEYID", "minio");
    let key = ("KEYDB_STORAGE_ACCESSKEY", "hunter2");
    let region = ("KEYDB_STORAGE_REGION", "eu-central-1");
    for (vars, said) in [
        (vec![endpoint], "no bucket is set"),
        (vec![region], "no bucket is set"),
        (
            vec![url("file:///srv/keydb"), endpoint],
            "KEYDB_STORAGE_ENDPOINT is for S3",
        ),
        (
            vec![url("file:///srv/keydb"), bucket("keydb")],
            "give one of them",
        ),
        (vec![url("s3://other"), bucket("keydb")], "give one of them"),
        (vec![bucket("keydb"), id], "KEYDB_STORAGE_ACCESSKEY is not"),
        (
            vec![bucket("keydb"), key],
            "KEYDB_STORAGE_ACCESSKEYID is not",
        ),
        (
            vec![bucket("keydb"), ("KEYDB_STORAGE_ENDPOINT", "minio:9000")],
            "http://minio:9000",
        ),
        (
            vec![
                bucket("keydb"),
                ("KEYDB_STORAGE_ENDPOINT", "http://minio/a"),
            ],
            "without a path",
        ),
        (
            vec![bucket("keydb"), ("KEYDB_STORAGE_REGION", "")],
            "is empty",
        ),
        (
            vec![bucket("keydb"), id, ("KEYDB_STORAGE_ACCESSKEY", "a b")],
            "KEYDB_STORAGE_ACCESSKEY=(set): ",
        ),
    ] {
        let error = read(&vars).unwrap_err();
        assert!(error.contains(said), "{vars:?}: {error}");
        assert!(
            !error.contains("hunter2") && !error.contains("a b"),
            "{error}"
        );
    }
}

#[test]
fn s3_is_a_url_or_its_parts() {
    let parts = [
        ("KEYDB_STORAGE_BUCKET", "keydb"),
        ("KEYDB_STORAGE_REGION", "us-east-1"),
        ("KEYDB_STORAGE_ENDPOINT", "http://localhost:9000"),
        ("KEYDB_STORAGE_ACCESSKEYID", "minio"),
        ("KEYDB_STORAGE_ACCESSKEY", "hunter2"),
    ];
    let settings = read(&parts).unwrap();
    assert_eq!(settings.storage_text(), "s3://keydb");
    assert!(settings.storage_is_given());
    let same = [
        ("KEYDB_STORAGE_URL", "s3://keydb/a"),
        ("KEYDB_STORAGE_BUCKET", "keydb/a"),
    ];
    assert_eq!(read(&same).unwrap().storage_text(), "s3://keydb/a");

    let shown = settings.effective(Reader::Node);
    let value = |name| {
        &shown
            .iter()
            .find(|setting| setting.name == name)
            .unwrap()
            .value
    };
    assert_eq!(value("KEYDB_STORAGE_ACCESSKEY"), "(set)");
    assert_eq!(value("KEYDB_STORAGE_ENDPOINT"), "http://localhost:9000");
    assert!(!format!("{settings:?}").contains("hunter2"));
}

#[test]
fn the_secret_behind_a_mistyped_name_is_not_shown() {
    for name in ["KEYDB_STORAGE_ACESSKEY", "KEYDB_STORAGE_SECRET"] {
        let error = read(&[(name, "hunter2"), ("KEYDB_STORAGE_BUCKET", "keydb")]).unwrap_err();
        assert!(error.contains(&format!("{name}=(set): ")), "{error}");
    }
}

#[test]
fn every_setting_of_a_node_is_shown() {
    let shown: Vec<&str> = read(&[])
        .unwrap()
        .effective(Reader::Node)
        .iter()
        .map(|setting| setting.name)
        .collect();
    let names = DECLARED.iter().map(|declared| declared.name);
    let of_others = ["KEYDB_NAMESPACE", "KEYDB_OPERATOR_PORT"];
    let of_nodes = names.filter(|name| !of_others.contains(name));
    assert_eq!(shown, of_nodes.collect::<Vec<_>>());
}

#[test]
fn only_an_operator_minds_what_hides_its_port() {
    let read = |value: &str| {
        let var = || [("KEYDB_OPERATOR_PORT".to_owned(), value.to_owned())];
        let client = ClientSettings::read(var()).is_ok();
        let operator = OperatorSettings::read(var()).map(|it| it.listening.address.port());
        (client, operator.map_err(|error| error.to_string()))
    };
    assert_eq!(read("9090"), (true, Ok(9090)));
    let (client, operator) = read("tcp://10.96.0.7:8080");
    assert!(client && operator.unwrap_err().contains("enableServiceLinks"));
    assert!(read("no port").1.unwrap_err().contains("1 to 65535"));
}

/// A variable is found by the name of its field.
#[test]
fn every_setting_of_a_node_is_read() {
    for declared in DECLARED.iter().filter(|it| it.is_read_by(Reader::Node)) {
        let vars = vec![(declared.name.to_owned(), "x".to_owned())];
        let shown = Settings::parse(vars, |_, _, _| {}).effective(Reader::Node);
        let given = shown.into_iter().find(|setting| setting.given);
        assert_eq!(given.map(|setting| setting.name), Some(declared.name));
    }
}

#[test]
fn http_is_switched_off_or_has_a_port_of_its_own() {
    for off in ["off", "0"] {
        assert_eq!(
            read(&[("KEYDB_HTTP_PORT", off)]).unwrap().http_port.value,
            None
        );
    }
    let error = read(&[("KEYDB_PORT", "50080")]).unwrap_err();
    assert!(error.contains("a port of its own"), "{error}");
}

#[test]
fn a_relative_data_directory_is_below_the_working_directory() {
    let settings = read(&[("KEYDB_DATA_DIR", "data/0")]).unwrap();
    assert_eq!(settings.data_dir.value, Path::new("/somewhere/data/0"));
}
