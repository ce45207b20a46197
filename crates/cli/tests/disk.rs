//! Nodes that keep their keys: snapshots, recovery, journals and bulk import, each as a user runs them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use keydb_core::{Entry, Event, Manifest, SnapshotDecoder};
use keydb_storage::{LocalStorage, ObjectStorage, Put};
use rustix::process::Signal;
use serde_json::Value;
use support::{
    Process, assert_code, assert_says, free_ports, keydb, node, stderr, stdout, wait_for_line,
    with_input,
};
use tempfile::TempDir;

/// A cluster of one node, whose directories are a test's.
struct Cluster {
    directory: TempDir,
    port: String,
    http_port: String,
    storage: String,
    data_dir: String,
}

impl Cluster {
    /// Created, and not started.
    fn create() -> Self {
        let ports = free_ports(2);
        let cluster = Self {
            directory: tempfile::tempdir().unwrap(),
            port: ports[0].to_string(),
            http_port: ports[1].to_string(),
            storage: "storage".to_owned(),
            data_dir: "data".to_owned(),
        };
        let created = cluster.run(["init"]);
        assert_code(&created, 0);
        assert!(
            stdout(&created).contains("durability journal: nothing that was acknowledged"),
            "{}",
            stdout(&created)
        );
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn env(&self) -> Vec<(&'static str, String)> {
        let storage = format!("file://{}", self.path(&self.storage).display());
        vec![
            ("KEYDB_STORAGE_URL", storage),
            ("KEYDB_NODE_ADDRESSES", format!("127.0.0.1:{}", self.port)),
            ("KEYDB_TOTAL_HASH_RANGES", "4".to_owned()),
        ]
    }

    fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = keydb();
        command
            .args(args)
            .current_dir(self.directory.path())
            .envs(self.env());
        command
    }

    fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    fn answer<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> String {
        let output = self.run(args);
        assert_code(&output, 0);
        stdout(&output)
    }

    #[track_caller]
    fn json<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Value {
        serde_json::from_str(&self.answer(args)).unwrap()
    }

    /// The node, which may or may not come to serve.
    fn launch(&self) -> Process {
        self.launch_with(&[])
    }

    fn launch_with<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Process {
        let env = self.env();
        let mut settings: Vec<(&str, &str)> = vec![
            ("KEYDB_NODE_ID", "0"),
            ("KEYDB_PORT", &self.port),
            ("KEYDB_HTTP_PORT", &self.http_port),
            ("KEYDB_DATA_DIR", &self.data_dir),
            // On demand only.
            ("KEYDB_SNAPSHOT_INTERVAL", "1h"),
        ];
        settings.extend(env.iter().map(|(name, value)| (*name, value.as_str())));
        settings.extend(more);
        node(self.directory.path(), &settings)
    }

    fn start(&self) -> Process {
        let mut node = self.launch();
        wait_for_line(&mut node, "keys are loaded");
        node
    }

    /// Code and body.
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{}", self.http_port)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            body.to_owned(),
        )
    }

    /// A file with so many keys, one a line.
    fn list(&self, name: &str, count: u32) {
        let keys: String = (0..count).map(|key| format!("key-{key}\n")).collect();
        fs::write(self.path(name), keys).unwrap();
    }

    /// The keys of the object storage's snapshot objects.
    fn objects(&self) -> Vec<String> {
        let list = self.json(["snapshot", "list", "--json"]);
        let files = list["nodes"][0]["files"].as_array().unwrap();
        let name = |file: &Value| format!("snapshots/node-0/{}", file["name"].as_str().unwrap());
        files.iter().map(name).collect()
    }

    /// Rewrites node 0's manifest in object storage.
    fn edit_manifest(&self, edit: impl FnOnce(&mut Manifest)) {
        let storage = LocalStorage::open(&self.path("storage")).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let key = "manifests/node-0.json";
            let object = storage.get(key).await.unwrap().unwrap();
            let mut manifest = Manifest::from_json(&object.bytes).unwrap();
            edit(&mut manifest);
            let json = manifest.to_json().into();
            let put = storage.put_if_match(key, json, &object.version).await;
            assert!(matches!(put, Ok(Put::Done(_))));
        });
    }

    /// The file in which the local directory storage has an object.
    fn object_file(&self, key: &str) -> PathBuf {
        let encoded = key.replace('/', "+");
        find(&self.path(&self.storage), &encoded).unwrap_or_else(|| panic!("no file for {key}"))
    }
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(dir).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, name)
        } else {
            (path.file_name().unwrap().to_str() == Some(name)).then_some(path)
        }
    })
}

fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

/// The entries of a snapshot file, section by section.
fn entries(path: &Path) -> Vec<Entry> {
    let mut decoder = SnapshotDecoder::new().unwrap();
    decoder.feed(&fs::read(path).unwrap());
    let mut all = Vec::new();
    while let Some(event) = decoder.next_event().unwrap() {
        if let Event::Entries(entries) = event {
            all.extend_from_slice(entries);
        }
    }
    decoder.finish().unwrap();
    all
}

#[test]
fn a_killed_node_comes_back_with_every_key_and_tells_how_it_stands() {
    let cluster = Cluster::create();
    let running = cluster.start();
    assert_eq!(cluster.answer(["claim", "a", "b"]), "first\ta\nfirst\tb\n");
    for probe in ["/live", "/startup", "/ready"] {
        assert_eq!(cluster.get(probe).0, 200, "{probe}");
    }
    drop(running);
    let _running = cluster.start();
    assert_eq!(
        cluster.answer(["claim", "a", "c"]),
        "duplicate\ta\nfirst\tc\n"
    );
    let (_, metrics) = cluster.get("/metrics");
    for line in [
        "keydb_keys 3",
        "keydb_requests_total{operation=\"claim\"} 1",
        "keydb_hash_ranges{state=\"ready\"} 4",
        "keydb_disk_full 0",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} in {metrics}"
        );
    }
    let status = cluster.answer(["status"]);
    assert!(status.contains("durability  journal"), "{status}");
    assert!(status.contains("nothing in object storage yet"), "{status}");
    cluster.answer(["snapshot", "create"]);
    let status = cluster.answer(["status"]);
    assert!(status.contains("object storage complete to "), "{status}");
    let json = cluster.json(["status", "--json"]);
    let disk = &json["nodes"][0]["disk"];
    assert_eq!(disk["uploaded_lsn"], disk["lsn"], "{disk}");
    assert_eq!(json["nodes"][0]["ranges"][0]["state"], "ready");
}

#[test]
fn snapshots_are_made_shown_and_verified_and_damage_is_named() {
    let cluster = Cluster::create();
    let running = cluster.start();
    cluster.list("keys.txt", 20_000);
    let imported = cluster.json(["import", "keys.txt", "--ttl", "1h", "--json"]);
    assert_eq!(imported["imported"], 20_000);
    let made = cluster.json(["snapshot", "create", "--full", "--json"]);
    assert!(
        made["nodes"][0]["complete_to_unix_ms"].as_u64() > Some(0),
        "{made}"
    );
    assert!(made["nodes"][0]["objects"].as_u64() >= Some(4), "{made}");

    let objects = cluster.objects();
    let full = objects.iter().find(|key| key.contains("-full-")).unwrap();
    let shown = cluster.json(["snapshot", "inspect", full, "--json"]);
    assert_eq!(shown["kind"], "full");
    assert_eq!(shown["sections"].as_array().unwrap().len(), 1);
    let manifest = cluster.answer(["snapshot", "inspect", "manifests/node-0.json"]);
    assert!(manifest.contains("complete to"), "{manifest}");
    let missing = cluster.run(["snapshot", "inspect", "snapshots/node-0/none.keydb"]);
    assert_says(&missing, 1, &["neither a file here nor an object"]);

    let verified = cluster.json(["snapshot", "verify", "--json"]);
    assert_eq!(verified["whole"], true, "{verified}");
    // Nothing of this needs a node.
    drop(running);
    let file = cluster.object_file(full);
    flip(&file, fs::metadata(&file).unwrap().len() / 2);
    let verified = cluster.run(["snapshot", "verify", "--node", "0"]);
    assert_code(&verified, 1);
    assert!(
        stdout(&verified).contains(&format!("{full}: ")),
        "{}",
        stdout(&verified)
    );
    fs::remove_file(file).unwrap();
    let verified = cluster.run(["snapshot", "verify"]);
    assert_code(&verified, 1);
    assert!(
        stdout(&verified).contains(&format!("{full}: it is missing")),
        "{}",
        stdout(&verified)
    );
    let exported = cluster.run(["snapshot", "export", "--out", "out.keydb"]);
    assert_says(&exported, 1, &[full]);
    assert!(!cluster.path("out.keydb").exists() && !cluster.path("out.keydb.tmp").exists());
}

#[test]
fn a_hash_range_that_its_owners_manifest_does_not_have_is_not_exported_as_an_empty_one() {
    let cluster = Cluster::create();
    let running = cluster.start();
    cluster.answer(["put", "a"]);
    cluster.answer(["snapshot", "create"]);
    let export = ["snapshot", "export", "--out", "all.keydb"];
    cluster.answer(export);
    drop(running);
    fs::remove_file(cluster.path("all.keydb")).unwrap();
    cluster.edit_manifest(|manifest| {
        let without = manifest.ranges.remove(2).id;
        for file in &mut manifest.files {
            file.ranges.retain(|id| *id != without);
        }
    });
    let refused = cluster.run(export);
    assert_says(
        &refused,
        1,
        &["does not have hash range 2, which node 0 owns"],
    );
    assert!(!cluster.path("all.keydb").exists());
}

#[test]
fn a_closed_range_is_given_up_by_itself_and_what_is_lost_is_said() {
    let cluster = Cluster::create();
    let running = cluster.start();
    cluster.list("keys.txt", 1000);
    cluster.answer(["import", "keys.txt", "--ttl", "1h"]);
    cluster.answer(["snapshot", "create", "--full"]);
    let objects = cluster.objects();
    let full = objects.iter().find(|key| key.contains("-full-3.")).unwrap();
    let name = full.rsplit('/').next().unwrap();
    drop(running);
    fs::remove_file(cluster.path("data").join("snapshots").join(name)).unwrap();
    fs::remove_file(cluster.object_file(full)).unwrap();
    let _running = cluster.start();

    let looked = cluster.run(["recover", "--range", "3"]);
    assert_says(&looked, 2, &[name, "Nothing was changed"]);
    for (range, why) in [("0", "is not closed"), ("999", "has no hash range 999")] {
        for consent in [&[][..], &["--accept-loss"]] {
            let refused = cluster.run(
                ["recover", "--range", range]
                    .into_iter()
                    .chain(consent.iter().copied()),
            );
            assert!(!refused.status.success());
            assert!(stderr(&refused).contains(why), "{}", stderr(&refused));
        }
    }
    let keys = fs::read(cluster.path("keys.txt")).unwrap();
    // Of a command that fails for this range, the other keys' answers are there.
    for (command, answer) in [("get", "present\t"), ("claim", "duplicate\t")] {
        let asked = with_input(&mut cluster.command([command]), &keys);
        assert!(!asked.status.success());
        let answers = stdout(&asked);
        let answered = answers.lines().count();
        assert!((500..1000).contains(&answered), "{answered}");
        assert!(answers.lines().all(|line| line.starts_with(answer)));
    }
    let opened = cluster.json(["recover", "--range", "3", "--accept-loss", "--json"]);
    assert_eq!((&opened["range"], &opened["node"]), (&3.into(), &0.into()));
    assert!(opened["lost"].as_str().unwrap().contains(name), "{opened}");
    let claimed = with_input(&mut cluster.command(["claim", "--ttl", "1h"]), &keys);
    assert_code(&claimed, 0);
    let again = cluster.run(["recover", "--range", "3"]);
    assert!(
        stderr(&again).contains("is not closed"),
        "{}",
        stderr(&again)
    );
}

#[test]
fn objects_that_no_manifest_names_are_removed_when_they_are_old() {
    let cluster = Cluster::create();
    let _running = cluster.start();
    cluster.answer(["put", "a"]);
    cluster.answer(["snapshot", "create", "--full"]);
    let first = cluster.objects();
    cluster.answer(["put", "b"]);
    cluster.answer(["snapshot", "create", "--full"]);
    let second = cluster.objects();
    let unnamed: Vec<&String> = first.iter().filter(|key| !second.contains(key)).collect();
    assert!(!unnamed.is_empty());

    let young = cluster.json(["snapshot", "gc", "--json"]);
    assert_eq!(young["removed"].as_array().unwrap().len(), 0, "{young}");
    let refused = cluster.run(["snapshot", "gc", "--older-than", "19m"]);
    assert_says(&refused, 2, &["at least 20m"]);
    let long_ago = std::time::SystemTime::UNIX_EPOCH;
    for key in first.iter().chain(&second) {
        let file = fs::File::options()
            .write(true)
            .open(cluster.object_file(key));
        file.unwrap().set_modified(long_ago).unwrap();
    }
    let old = ["snapshot", "gc", "--older-than", "20m", "--json"];
    let dry = cluster.json(old.into_iter().chain(["--dry-run"]));
    let named: Vec<&str> = dry["removed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key.as_str().unwrap())
        .collect();
    assert!(
        unnamed.iter().all(|key| named.contains(&key.as_str())),
        "{dry}"
    );
    assert!(
        second.iter().all(|key| !named.contains(&key.as_str())),
        "{dry}"
    );
    for key in &unnamed {
        cluster.object_file(key);
    }
    cluster.answer(old);
    assert!(find(&cluster.path("storage"), &unnamed[0].replace('/', "+")).is_none());
    assert_eq!(
        cluster.json(["snapshot", "verify", "--json"])["whole"],
        true
    );
}

#[test]
fn an_export_goes_into_a_cluster_with_the_same_seed_with_every_expiry() {
    let mut cluster = Cluster::create();
    // The same cluster once more, before it had any keys.
    fs::create_dir(cluster.path("storage-2")).unwrap();
    copy_dir(&cluster.path("storage"), &cluster.path("storage-2"));
    let running = cluster.start();
    cluster.list("keys.txt", 30_000);
    cluster.answer(["import", "keys.txt", "--ttl", "30d"]);
    cluster.answer(["put", "--ttl", "1h", "short"]);
    cluster.answer(["put", "--ttl", "50y", "long"]);
    // Nothing of a range is in object storage before there is a snapshot.
    let early = cluster.run(["snapshot", "export", "--out", "early.keydb"]);
    assert_says(&early, 1, &["keydb snapshot create"]);
    // A base and deltas.
    cluster.answer(["snapshot", "create", "--full"]);
    cluster.answer(["put", "--ttl", "2h", "later", "short"]);
    cluster.answer(["snapshot", "create"]);
    let told = cluster.json(["snapshot", "export", "--out", "all.keydb", "--json"]);
    assert_eq!(told["entries"], 30_003, "{told}");
    let one = cluster.json([
        "snapshot",
        "export",
        "--out",
        "one.keydb",
        "--range",
        "2",
        "--json",
    ]);
    assert_eq!(one["ranges"], 1);
    let all = entries(&cluster.path("all.keydb"));
    assert!(all.is_sorted() && all.len() == 30_003);
    let of_one = entries(&cluster.path("one.keydb"));
    assert!(!of_one.is_empty() && of_one.iter().all(|entry| all.contains(entry)));
    drop(running);

    cluster.storage = "storage-2".to_owned();
    cluster.data_dir = "data-2".to_owned();
    let _running = cluster.start();
    assert_eq!(cluster.answer(["get", "long"]), "absent\tlong\n");
    let export = fs::read(cluster.path("all.keydb")).unwrap();
    let cut = with_input(
        &mut cluster.command(["snapshot", "import", "-"]),
        &export[..export.len() - 1],
    );
    assert_code(&cut, 1);
    let imported = cluster.json(["snapshot", "import", "all.keydb", "--json"]);
    assert_eq!(imported["imported"], 30_003, "{imported}");
    assert_eq!(
        cluster.answer(["get", "long", "key-29999", "none"]),
        "present\tlong\npresent\tkey-29999\nabsent\tnone\n"
    );
    cluster.answer(["snapshot", "create"]);
    cluster.answer(["snapshot", "export", "--out", "again.keydb"]);
    assert_eq!(entries(&cluster.path("again.keydb")), all);

    let other = Cluster::create();
    let _other = other.start();
    let file = cluster.path("all.keydb");
    let refused = other.run(["snapshot", "import", file.to_str().unwrap()]);
    assert_says(&refused, 1, &["another hash seed"]);
    assert_eq!(other.answer(["get", "long"]), "absent\tlong\n");
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_lost_disk_is_given_up_by_name_and_the_node_comes_back_from_object_storage() {
    let cluster = Cluster::create();
    let running = cluster.start();
    cluster.answer(["put", "kept"]);
    let made = cluster.json(["snapshot", "create", "--json"]);
    let complete_to = made["nodes"][0]["complete_to"].as_str().unwrap().to_owned();
    cluster.answer(["put", "lost"]);

    let recover = ["recover", "--node", "0", "--accept-loss"];
    let refused = cluster.run(recover);
    assert_says(&refused, 1, &["node 0 answers at"]);
    assert_code(&cluster.run(["recover", "--node", "7"]), 2);

    drop(running);
    fs::remove_dir_all(cluster.path("data")).unwrap();
    let mut stranger = cluster.launch();
    let line = wait_for_line(&mut stranger, "keydb recover --node 0 --accept-loss");
    assert!(line.contains("node 0"), "{line}");
    assert_eq!(stranger.child.wait().unwrap().code(), Some(1));

    let asked = cluster.run(["recover", "--node", "0"]);
    assert_says(
        &asked,
        2,
        &[&format!("up to {complete_to}"), "Nothing was changed"],
    );
    let given_up = cluster.answer(recover);
    assert!(
        given_up.contains(&format!("up to {complete_to}")),
        "{given_up}"
    );
    assert_code(&cluster.run(recover), 2);

    let mut node = cluster.launch();
    let line = wait_for_line(&mut node, "fetched the snapshot files");
    assert!(line.contains("files=1 bytes="), "{line}");
    wait_for_line(&mut node, "keys are loaded");
    assert_eq!(
        cluster.answer(["get", "kept", "lost"]),
        "present\tkept\nabsent\tlost\n"
    );
    let status = cluster.answer(["status"]);
    assert!(status.contains("once, last at 20"), "{status}");
}

#[test]
fn a_manifest_that_was_removed_stops_a_new_disk_and_garbage_collection_until_the_keys_are_given_up()
{
    let cluster = Cluster::create();
    let running = cluster.start();
    cluster.answer(["put", "lost"]);
    cluster.json(["snapshot", "create", "--json"]);
    drop(running);
    fs::remove_dir_all(cluster.path("data")).unwrap();
    let recover = ["recover", "--node", "0", "--accept-loss"];
    cluster.answer(recover);
    let manifest = cluster.path("storage").join("manifests+node-0.json");
    let bytes = fs::read(&manifest).unwrap();
    fs::remove_file(&manifest).unwrap();

    let mut new_disk = cluster.launch();
    let line = wait_for_line(&mut new_disk, "it was removed");
    for words in [
        "manifests/node-0.json",
        "snapshots/node-0/",
        "keydb recover",
    ] {
        assert!(line.contains(words), "{words:?} in {line}");
    }
    assert_eq!(new_disk.child.wait().unwrap().code(), Some(1));
    let refused = cluster.run(["snapshot", "gc", "--older-than", "1h"]);
    assert_says(&refused, 1, &["manifests/node-0.json"]);

    // Put back, it is all there.
    fs::write(&manifest, &bytes).unwrap();
    let running = cluster.start();
    assert_eq!(cluster.answer(["get", "lost"]), "present\tlost\n");
    drop(running);

    fs::remove_dir_all(cluster.path("data")).unwrap();
    fs::remove_file(&manifest).unwrap();
    let asked = cluster.run(["recover", "--node", "0"]);
    assert_says(&asked, 2, &["it was removed", "Nothing was changed"]);
    assert!(!manifest.exists());
    cluster.answer(recover);
    let _running = cluster.start();
    assert_eq!(cluster.answer(["get", "lost"]), "absent\tlost\n");
}

#[test]
fn a_cluster_map_that_was_removed_is_put_back_from_a_data_directory_or_a_running_node() {
    let cluster = Cluster::create();
    let running = cluster.start();
    cluster.answer(["put", "kept"]);
    cluster.json(["snapshot", "create", "--json"]);
    drop(running);
    let stored = cluster.path("storage").join("cluster-map.json");
    fs::remove_file(&stored).unwrap();

    let refused = cluster.run(["init"]);
    assert_says(&refused, 1, &["keydb recover --map"]);
    let mut node = cluster.launch_with(&[("KEYDB_INIT", "true")]);
    wait_for_line(&mut node, "starting by the cluster map that was kept");
    wait_for_line(&mut node, "keys are loaded");
    assert_eq!(cluster.answer(["get", "kept"]), "present\tkept\n");
    let status = cluster.answer(["status"]);
    assert!(status.contains("no cluster map any more"), "{status}");

    let from_node = cluster.answer(["recover", "--map"]);
    assert!(
        from_node.contains("as the node at 127.0.0.1"),
        "{from_node}"
    );
    assert!(stored.exists());
    drop(node);
    fs::remove_file(&stored).unwrap();

    let refused = cluster.run(["recover", "--map"]);
    assert_says(&refused, 2, &["--data-dir"]);
    let wrong = cluster.run(["recover", "--map", "--data-dir", "storage"]);
    assert_says(&wrong, 2, &["map.json"]);
    let recover = ["recover", "--map", "--data-dir", "data", "--json"];
    assert_eq!(cluster.json(recover)["restored"], true);
    assert_eq!(cluster.json(recover)["restored"], false);
    let _running = cluster.start();
    assert_eq!(cluster.answer(["get", "kept"]), "present\tkept\n");
}

#[test]
fn a_memory_cluster_has_no_disk_to_recover_and_no_snapshots() {
    let cluster = Cluster::create();
    let memory = |args: &[&str]| {
        let mut command = cluster.command(args.iter().copied());
        let storage = format!("file://{}", cluster.path("memory").display());
        command
            .env("KEYDB_STORAGE_URL", storage)
            .env("KEYDB_DURABILITY", "memory");
        command.output().unwrap()
    };
    assert_code(&memory(&["init"]), 0);
    let refused = memory(&["recover", "--node", "0", "--accept-loss"]);
    assert_says(&refused, 2, &["durability is memory"]);
    let refused = memory(&["snapshot", "export", "--out", "x.keydb"]);
    assert_says(&refused, 1, &["durability is memory"]);
}

#[test]
fn a_journal_is_shown_and_damage_in_it_is_named_with_file_and_offset() {
    let cluster = Cluster::create();
    let running = cluster.start();
    for key in ["a", "b", "c"] {
        cluster.answer(["claim", key]);
    }
    // While the node runs, of its directory or the journal in it.
    for dir in ["data", "data/journal"] {
        let verified = cluster.json(["journal", "verify", dir, "--json"]);
        assert_eq!(
            (&verified["whole"], &verified["keys"]),
            (&true.into(), &3.into()),
            "{verified}"
        );
    }
    drop(running);
    let shown = cluster.answer(["journal", "inspect", "data", "--json"]);
    let lines: Vec<Value> = shown
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let writes: Vec<&Value> = lines
        .iter()
        .filter(|line| line["kind"] == "write")
        .collect();
    assert_eq!(writes.len(), 3, "{shown}");
    assert!(writes.iter().all(|write| write["operation"].is_string()));

    let segment = PathBuf::from(lines[0]["segment"].as_str().unwrap());
    let offset = writes[1]["offset"].as_u64().unwrap();
    flip(&cluster.path(segment.to_str().unwrap()), offset + 45);
    for command in ["verify", "inspect"] {
        let damaged = cluster.run(["journal", command, "data"]);
        assert_code(&damaged, 1);
        let error = stderr(&damaged);
        let file = segment.file_name().unwrap().to_str().unwrap();
        assert!(
            error.contains(file) && error.contains(&offset.to_string()),
            "{error}"
        );
    }
    // The node does not start with it either.
    let mut broken = cluster.launch();
    wait_for_line(&mut broken, &format!("byte {offset}"));
    assert_eq!(broken.child.wait().unwrap().code(), Some(1));
    assert_code(&cluster.run(["journal", "verify", "nowhere"]), 2);
}

#[test]
fn a_list_of_keys_is_imported_in_bulk_and_again_without_harm() {
    let cluster = Cluster::create();
    let running = cluster.start();
    cluster.list("keys.txt", 50_000);
    for _ in 0..2 {
        let imported = cluster.json(["import", "keys.txt", "--json"]);
        assert_eq!(imported["imported"], 50_000);
    }
    assert_eq!(cluster.json(["status", "--json"])["keys"], 50_000);
    let bad = with_input(&mut cluster.command(["import", "-"]), b"x\n\ny\n");
    assert_says(&bad, 1, &["standard input, line 2: "]);
    assert_code(&cluster.run(["import", "nowhere.txt"]), 1);
    let stopped = running;
    stopped.signal(Signal::TERM);
    let mut stopped = stopped;
    assert!(stopped.child.wait().unwrap().success());
    let late = cluster.run(["import", "keys.txt", "--timeout", "500ms"]);
    assert_code(&late, 3);
}
