//! Backups as a user makes them, and a cluster that comes back from one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use keydb_storage::testing::TestBucket;
use serde_json::{Value, json};
use support::{
    Process, assert_code, assert_says,
    cluster::{Cluster, NODES, s3},
    stdout,
};

/// Where the storage is without a setting.
const STORAGE: &str = "keydb-storage";

/// In a directory.
fn in_a_directory() -> Cluster {
    create(Vec::new())
}

fn create(storage: Vec<(&'static str, String)>) -> Cluster {
    let own = [
        ("KEYDB_SNAPSHOT_INTERVAL", "1h".to_owned()),
        ("KEYDB_TOTAL_HASH_RANGES", "12".to_owned()),
    ];
    Cluster::create(storage.into_iter().chain(own).collect())
}

fn url(cluster: &Cluster, name: &str) -> String {
    format!("file://{}", cluster.path(name).display())
}

/// Brings the cluster back from what is its storage now.
fn recover(cluster: &Cluster) -> Vec<Process> {
    let verified = cluster.json(&["snapshot", "verify", "--json"]);
    assert_eq!(verified["whole"], true, "{verified}");
    for id in 0..NODES {
        cluster.answer(&["recover", "--node", &id.to_string(), "--accept-loss"]);
    }
    cluster.start(&[])
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_copy_of_a_backup_is_the_storage_of_a_cluster_that_has_lost_everything() {
    let cluster = in_a_directory();
    let nodes = cluster.start(&[]);
    cluster.put(0..30_000);
    cluster.answer(&["snapshot", "create", "--full"]);
    cluster.put(30_000..31_000);
    fs::create_dir(cluster.path("backups")).unwrap();
    let to = url(&cluster, "backups");
    let create = [
        "backup", "create", "--to", &to, "--name", "monday", "--json",
    ];
    let made = cluster.json(&create);
    assert_eq!(
        (&made["name"], &made["complete"]),
        (&json!("monday"), &json!(true))
    );
    assert_eq!(made["entries"], 31_000);
    cluster.put(31_000..31_100);
    // It is not changed any more.
    let before = fs::read(cluster.path("backups/monday/backup.json")).unwrap();
    assert_says(&cluster.run(&create), 1, &["\"monday\" is there already"]);
    let after = fs::read(cluster.path("backups/monday/backup.json")).unwrap();
    assert_eq!(before, after);

    cluster.lose(nodes);
    fs::remove_dir_all(cluster.path(STORAGE)).unwrap();
    copy_dir(&cluster.path("backups/monday"), &cluster.path(STORAGE));
    let _nodes = recover(&cluster);
    assert_eq!(cluster.present(0..1000), 1000);
    assert_eq!(cluster.present(29_000..31_000), 2000);
    assert_eq!(cluster.present(31_000..31_100), 0);
    // It is a cluster like any other.
    cluster.put(31_000..31_100);
    let again = cluster.answer(&["backup", "create", "--to", &to]);
    assert!(again.contains("is complete: "), "{again}");
}

#[test]
fn a_backup_goes_on_when_the_node_that_makes_it_is_killed() {
    let cluster = in_a_directory();
    let mut nodes = cluster.start(&[
        ("KEYDB_MOVE_BYTES_PER_SECOND", "1MiB"),
        ("KEYDB_MOVE_CPU_PERCENT", "1"),
    ]);
    cluster.put(0..200_000);
    cluster.answer(&["snapshot", "create", "--full"]);
    fs::create_dir(cluster.path("backups")).unwrap();
    let to = url(&cluster, "backups");
    let mut create = cluster.command(&["backup", "create", "--to", &to, "--name", "monday"]);
    let create = create.stdout(Stdio::piped()).stderr(Stdio::piped());
    let create = create.spawn().unwrap();
    let copied = || {
        let files = fs::read_dir(cluster.path("backups/monday"));
        let files = files.into_iter().flatten().flatten();
        files
            .filter(|file| file.file_name().to_string_lossy().starts_with("snapshots+"))
            .count()
    };
    let give_up = Instant::now() + Duration::from_secs(60);
    while copied() < 2 {
        assert!(Instant::now() < give_up);
        thread::sleep(Duration::from_millis(20));
    }
    // The first member is asked first.
    drop(nodes.remove(0));
    assert!(!cluster.path("backups/monday/backup.json").exists());
    let output = create.wait_with_output().unwrap();
    assert_code(&output, 0);
    assert!(
        stdout(&output).contains("200,000 entries"),
        "{}",
        stdout(&output)
    );

    cluster.lose(nodes);
    fs::remove_dir_all(cluster.path(STORAGE)).unwrap();
    copy_dir(&cluster.path("backups/monday"), &cluster.path(STORAGE));
    let _nodes = recover(&cluster);
    assert_eq!(cluster.present(0..2000), 2000);
    assert_eq!(cluster.present(198_000..200_000), 2000);
}

#[test]
fn a_backup_in_s3_is_itself_the_storage_of_a_cluster() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let Some(bucket) = runtime.block_on(TestBucket::new()) else {
        return;
    };
    let mut cluster = create(s3(&bucket, "/live"));
    let nodes = cluster.start(&[]);
    cluster.put(0..20_000);
    let url = |path: &str| format!("s3://{}{path}", bucket.name);
    for (to, words) in [
        (url("/live"), "the cluster's own storage"),
        (url("/live/backups"), "the cluster's own storage"),
        ("s3://no-such-bucket-here".to_owned(), "no-such-bucket-here"),
    ] {
        let refused = cluster.run(&["backup", "create", "--to", &to]);
        assert_says(&refused, 2, &[words]);
    }
    let made = cluster.json(&["backup", "create", "--to", &url("/backups"), "--json"]);
    let name = made["name"].as_str().unwrap();
    cluster.lose(nodes);
    cluster.settings[0].1 = format!("{}/backups/{name}", bucket.name);
    let _nodes = recover(&cluster);
    assert_eq!(cluster.present(0..2000), 2000);
    assert_eq!(cluster.present(18_000..20_000), 2000);
}

#[test]
fn wrong_places_and_names_are_refused_by_name() {
    let cluster = in_a_directory();
    let _nodes = cluster.start(&[]);
    let (own, missing) = (url(&cluster, STORAGE), url(&cluster, "missing"));
    let here = url(&cluster, "");
    for (args, words) in [
        (
            ["--to", &own, "--name", "monday"],
            "the cluster's own storage",
        ),
        (
            ["--to", &here, "--name", STORAGE],
            "the cluster's own storage",
        ),
        (["--to", &missing, "--name", "monday"], "/missing"),
        (["--to", "gs://bucket", "--name", "monday"], "gs://bucket"),
        (["--to", &here, "--name", "a b"], "\"a b\""),
        (["--to", &here, "--name", ""], "--name is empty"),
    ] {
        let refused = cluster.run(&[&["backup", "create"][..], &args].concat());
        assert_says(&refused, 2, &[words]);
    }
    assert!(!cluster.path("missing").exists() && !cluster.path(STORAGE).join("monday").exists());
}

/// Code and body of a call of an operator.
fn post(at: &str, path: &str, body: &Value) -> (u16, Value) {
    let mut stream = TcpStream::connect(at).unwrap();
    let body = body.to_string();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, serde_json::from_str(body).unwrap())
}

#[test]
fn the_operator_has_a_backup_made_and_refuses_to_make_it_twice() {
    let directory = tempfile::tempdir().unwrap();
    let backups = directory.path().join("backups");
    fs::create_dir(&backups).unwrap();
    let home = directory.path().join("home");
    let dev = support::Dev::with_args(&["--dir", home.to_str().unwrap()]);
    dev.answer(["put", "--ttl", "1h", "a", "b"]);
    let lines = dev.greeting.lines();
    let mut lines = lines.filter_map(|line| line.trim_start().strip_prefix("operator  http://"));
    let operator = lines.next().unwrap();
    let call = json!({"to": format!("file://{}", backups.display()), "name": "monday"});
    let (code, made) = post(operator, "/backup", &call);
    assert_eq!(code, 200, "{made}");
    assert_eq!(
        (&made["success"], &made["complete"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(made["entries"], 2);
    assert!(backups.join("monday/backup.json").exists());
    let (code, refused) = post(operator, "/backup", &call);
    assert_eq!(code, 409, "{refused}");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("\"monday\" is there already"), "{detail}");
    let own = format!("file://{}", home.join("storage").display());
    let (code, refused) = post(operator, "/backup", &json!({"to": own}));
    assert_eq!(code, 400, "{refused}");
    // Without being waited for, it comes to its end all the same.
    let call = json!({"to": call["to"], "wait": false});
    let (code, begun) = post(operator, "/backup", &call);
    assert!([200, 202].contains(&code), "{begun}");
    let name = begun["name"].as_str().unwrap().to_owned();
    let give_up = Instant::now() + Duration::from_secs(60);
    while !backups.join(&name).join("backup.json").exists() {
        assert!(Instant::now() < give_up);
        thread::sleep(Duration::from_millis(50));
    }
}
