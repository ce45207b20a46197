//! What the manifests and the Helm chart in `deploy/` give containers is what the binary takes, and wrong values are refused.
//!
//! The chart is rendered by Helm: `scripts/helm install` builds one. Without it those tests are skipped, but not in continuous
//! integration.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "kubernetes/chart.rs"]
mod chart;
#[path = "kubernetes/release.rs"]
mod release;
mod support;

use std::{path::Path, process::Command, time::Duration};

use chart::{DEPLOY, documents, environment, helm, pod, template};
use keydb_storage::testing::TestBucket;
use release::Release;
use serde_yaml_ng::Value;
use support::{assert_code, keydb, stderr, stdout};

/// The binary takes what each container of these resources gives it. Returns which commands they run.
fn check_containers(resources: &[Value]) -> Vec<String> {
    let secrets = Secrets::new();
    let mut commands = Vec::new();
    for (pod, pod_name) in resources.iter().filter_map(pod) {
        assert_eq!(pod["enableServiceLinks"], false, "{pod_name}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{pod_name}");
        for container in pod["containers"].as_sequence().unwrap() {
            let Some(command) = container["args"][0].as_str() else {
                panic!("{pod_name} has a container without a command");
            };
            let env = environment(container, &pod_name);
            let env: Vec<_> = env
                .into_iter()
                .map(|(name, value)| (name, secrets.here(value)))
                .collect();
            let asked: &[&str] = match command {
                "node" => &["node", "--check"],
                "operator" => &["operator", "--check"],
                // The test of the chart is a shell's.
                _ => continue,
            };
            let output = keydb().args(asked).envs(env.clone()).output().unwrap();
            assert_code(&output, 0);
            assert_eq!(stderr(&output), "", "{env:?}");
            if command == "node" {
                check_mounts(container, &env);
            }
            commands.push(command.to_owned());
        }
    }
    commands
}

/// What secrets hold that are mounted below `/etc/keydb`.
struct Secrets(tempfile::TempDir);

impl Secrets {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let mut certs = keydb();
        certs.args(["certs", "*.dedup-headless.keydb.svc", "--dir"]);
        assert_code(&certs.arg(at("tls")).output().unwrap(), 0);
        for (made, mounted) in [
            ("node.pem", "tls.crt"),
            ("node-key.pem", "tls.key"),
            ("keydb-ca.pem", "ca.crt"),
        ] {
            std::fs::rename(at("tls").join(made), at("tls").join(mounted)).unwrap();
        }
        std::fs::create_dir(at("tokens")).unwrap();
        let token = "a-token-of-sixteen-or-more";
        std::fs::write(at("tokens/accepted"), format!("admin {token}\n")).unwrap();
        std::fs::write(at("tokens/own"), token).unwrap();
        Self(directory)
    }

    fn here(&self, value: String) -> String {
        match value.strip_prefix("/etc/keydb/") {
            Some(file) => self.0.path().join(file).display().to_string(),
            None => value,
        }
    }
}

/// The data directory lies below something that is mounted, as must a directory that is object storage.
fn check_mounts(container: &Value, env: &[(String, String)]) {
    let mounts = container["volumeMounts"].as_sequence().unwrap();
    let paths = mounts.iter().map(|it| it["mountPath"].as_str().unwrap());
    let is_mounted = |path: &str| {
        paths
            .clone()
            .any(|mount| Path::new(path).starts_with(mount))
    };
    for (name, value) in env {
        let path = match &**name {
            "KEYDB_DATA_DIR" => value,
            "KEYDB_STORAGE_URL" => match value.strip_prefix("file://") {
                Some(path) => path,
                None => continue,
            },
            _ => continue,
        };
        assert!(is_mounted(path), "{name}={value}");
    }
}

#[test]
fn the_plain_manifests_give_containers_what_the_binary_takes() {
    let text = std::fs::read_to_string(Path::new(DEPLOY).join("kubernetes/keydb.yaml")).unwrap();
    assert_eq!(check_containers(&documents(&text)), ["operator", "node"]);
}

#[test]
fn the_chart_gives_containers_what_the_binary_takes_whatever_is_switched_on() {
    for (file, commands) in [
        (None, &["operator", "node"] as &[&str]),
        (Some("minimal"), &["node"]),
        (Some("everything"), &["operator", "node"]),
        (Some("file-storage"), &["operator", "node"]),
    ] {
        let Some(mut helm) = helm() else { return };
        let path = file.map(|file| format!("{DEPLOY}/helm/keydb/ci/{file}-values.yaml"));
        let output = template(&mut helm, path.as_ref().map(Path::new), &[]);
        assert_code(&output, 0);
        let resources = documents(&stdout(&output));
        assert_eq!(check_containers(&resources), commands, "{file:?}");
    }
}

#[test]
fn the_plain_manifests_are_the_chart_with_its_defaults() {
    if helm().is_none() {
        return;
    }
    let made = Command::new(format!("{DEPLOY}/../scripts/helm"))
        .arg("manifests")
        .output()
        .unwrap();
    assert_code(&made, 0);
    let committed = std::fs::read_to_string(format!("{DEPLOY}/kubernetes/keydb.yaml")).unwrap();
    assert!(
        stdout(&made) == committed,
        "deploy/kubernetes/keydb.yaml is not what the chart makes; `just manifests` writes it"
    );
}

#[test]
fn every_file_of_values_passes_the_linter() {
    let files = std::fs::read_dir(format!("{DEPLOY}/helm/keydb/ci")).unwrap();
    for file in files {
        let Some(mut helm) = helm() else { return };
        helm.args(["lint", "--strict", "--kube-version", "1.34.0", "--values"]);
        helm.arg(file.unwrap().path());
        helm.arg(format!("{DEPLOY}/helm/keydb"));
        assert_code(&helm.output().unwrap(), 0);
    }
}

#[test]
fn wrong_values_are_refused_with_what_would_be_right() {
    // Each with words of the message.
    for (set, words) in [
        (&["replicas=0"] as &[&str], "replicas"),
        (&["replicas=\"three\""], "replicas"),
        (&["replicaCount=5"], "replicaCount"),
        (&["cluster.durability=\"none\""], "durability"),
        (&["storage.url=\"s3:/keydb\""], "url"),
        (&["storage.url=\"s3://id:secret@keydb\""], "url"),
        (&["storage.endpoint=\"minio:9000\""], "endpoint"),
        (&["persistence.size=\"ten\""], "size"),
        (
            &["persistence.accessModes=[\"ReadWriteMany\"]"],
            "accessModes",
        ),
        (
            &["node.settings.SNAPSHOT_INTERVAL=\"60s\""],
            "SNAPSHOT_INTERVAL",
        ),
        (&["image.digest=\"latest\""], "digest"),
        (&["podDisruptionBudget.maxUnavailable=0"], "maxUnavailable"),
        (
            &["security.tokensSecret=\"tokens\""],
            "tokens would be sent for everybody to read",
        ),
        (
            &[
                "security.tlsSecret=\"tls\"",
                "security.clientCertificates=false",
            ],
            "says who may come in",
        ),
        (
            &[
                "security.tlsSecret=\"tls\"",
                "metrics.serviceMonitor.enabled=true",
            ],
            "which certificate Prometheus shows",
        ),
        // Right each by itself.
        (&["replicas=2"], "set cluster.init to false"),
        (
            &["persistence.enabled=false"],
            "Enable persistence, or take durability memory",
        ),
        (
            &["storage.url=\"file:///srv/keydb\""],
            "set storage.existingSecret to",
        ),
        (
            &[
                "storage.url=\"file:///srv/keydb\"",
                "storage.existingSecret=\"\"",
            ],
            "every node must mount the same volume",
        ),
        (
            &[
                "storage.url=\"file:///srv/keydb\"",
                "storage.endpoint=\"http://minio:9000\"",
            ],
            "leave one of them out",
        ),
        (
            &["node.preStopSeconds=50"],
            "terminationGracePeriodSeconds is 60",
        ),
        (&["serviceAccount.create=false"], "serviceAccount.name"),
        (
            &["node.settings.KEYDB_PORT=50052"],
            "KEYDB_PORT, which the chart sets",
        ),
        (
            &["node.extraEnv=[{\"name\":\"KEYDB_MEMORY_LIMIT\",\"value\":\"1GiB\"}]"],
            "node.extraEnv has KEYDB_MEMORY_LIMIT, which the chart sets already",
        ),
        (
            &["operator.extraEnv=[{\"name\":\"KEYDB_NODE_ADDRESSES\",\"value\":\"a:1\"}]"],
            "operator.extraEnv has KEYDB_NODE_ADDRESSES",
        ),
    ] {
        let Some(mut helm) = helm() else { return };
        let output = template(&mut helm, None, set);
        assert_code(&output, 1);
        let said = stderr(&output);
        assert!(said.contains(words), "{set:?}: {said}");
    }
    // And what those messages advise is taken.
    for set in [
        &["replicas=2", "cluster.init=false"] as &[&str],
        &["persistence.enabled=false", "cluster.durability=\"memory\""],
        &[
            "node.preStopSeconds=50",
            "node.terminationGracePeriodSeconds=70",
        ],
    ] {
        let Some(mut helm) = helm() else { return };
        assert_code(&template(&mut helm, None, set), 0);
    }
}

#[tokio::test]
async fn a_release_as_processes_creates_its_cluster_passes_its_test_and_scales_to_a_pod_that_waits()
{
    let (Some(mut helm), Some(bucket)) = (helm(), TestBucket::new().await) else {
        return;
    };
    let storage = &bucket.options;
    let url = format!("storage.url=\"s3://{}/a-release\"", bucket.name);
    let endpoint = format!(
        "storage.endpoint=\"{}\"",
        storage.endpoint.as_ref().unwrap()
    );
    let set = ["replicas=3", "cluster.initialNodes=2", &url, &endpoint];
    let output = template(&mut helm, None, &set);
    assert_code(&output, 0);
    let resources = documents(&stdout(&output));
    let release = Release::start(resources, storage.access_key.clone().unwrap());

    for pod in ["keydb-0", "keydb-1", "keydb-operator-x"] {
        release.wait_for(pod, &["startupProbe", "readinessProbe", "livenessProbe"]);
    }
    // Alive, so that it is not started again, and sent nothing.
    release.wait_for("keydb-2", &["startupProbe", "livenessProbe"]);
    assert!(!release.passes("keydb-2", "readinessProbe"));
    release.run_to_end("keydb-test");

    let members = [0, 1, 2].map(|id| format!("keydb-{id}.keydb-headless.keydb.svc:50051"));
    let scale = release.client("keydb-0", &["scale", "--yes", "--to", &members.join(",")]);
    assert_code(&scale, 0);
    release.wait_for("keydb-2", &["readinessProbe"]);
    release.run_to_end("keydb-test");

    // As the kubelet does it; what the pre-stop hook takes of the time is no longer there.
    for (pod, time_left) in release.stop() {
        assert!(time_left > Duration::from_secs(1), "{pod}");
    }
}
