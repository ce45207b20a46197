//! What the manifests and the Helm chart in `deploy/` give containers is what the binary takes, and wrong values are refused.
//!
//! The chart is rendered by Helm: `scripts/helm install` builds one. Without it those tests are skipped, but not in continuous
//! integration.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde::Deserialize;
use serde_yaml_ng::Value;
use support::{assert_code, keydb, stderr, stdout};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");

/// Helm's program; `None`, said loudly, where there is none.
fn helm() -> Option<Command> {
    let program = match std::env::var_os("TEST_HELM") {
        Some(program) => PathBuf::from(program),
        None => {
            assert!(
                std::env::var_os("CI").is_none(),
                "TEST_HELM is not set; continuous integration renders the chart: TEST_HELM=$(scripts/helm install)"
            );
            eprintln!(
                "SKIPPED: there is no Helm. To run this test: TEST_HELM=$(scripts/helm install) cargo test"
            );
            return None;
        }
    };
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    Some(command)
}

/// `helm template` with a file of `ci/` and single values.
fn template(helm: &mut Command, file: Option<&Path>, set: &[&str]) -> Output {
    helm.arg("template").arg("keydb");
    helm.arg(Path::new(DEPLOY).join("helm/keydb"));
    helm.args(["--namespace", "keydb", "--kube-version", "1.34.0"]);
    if let Some(file) = file {
        helm.arg("--values").arg(file);
    }
    for value in set {
        helm.args(["--set-json", value]);
    }
    helm.output().unwrap()
}

fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let documents = documents.map(|it| Value::deserialize(it).unwrap());
    documents.filter(|it| !it.is_null()).collect()
}

/// The pod that a resource describes, and the name of its first one.
fn pod(resource: &Value) -> Option<(&Value, String)> {
    let name = resource["metadata"]["name"].as_str().unwrap();
    match resource["kind"].as_str().unwrap() {
        "StatefulSet" => Some((&resource["spec"]["template"]["spec"], format!("{name}-0"))),
        "Deployment" => Some((&resource["spec"]["template"]["spec"], format!("{name}-x"))),
        "Pod" => Some((&resource["spec"], name.to_owned())),
        _ => None,
    }
}

/// A container's variables, with something in the place of secrets.
fn environment(container: &Value, pod_name: &str) -> Vec<(String, String)> {
    let Some(variables) = container["env"].as_sequence() else {
        return Vec::new();
    };
    let value = |variable: &Value| {
        let from = &variable["valueFrom"];
        if let Some(path) = from["fieldRef"]["fieldPath"].as_str() {
            assert_eq!(path, "metadata.name");
            return pod_name.to_owned();
        }
        if !from["secretKeyRef"].is_null() {
            return "a-secret".to_owned();
        }
        variable["value"].as_str().unwrap().to_owned()
    };
    let name = |variable: &Value| variable["name"].as_str().unwrap().to_owned();
    variables.iter().map(|it| (name(it), value(it))).collect()
}

/// The binary takes what each container of these resources gives it. Returns which commands they run.
fn check_containers(resources: &[Value]) -> Vec<String> {
    let mut commands = Vec::new();
    for (pod, pod_name) in resources.iter().filter_map(pod) {
        assert_eq!(pod["enableServiceLinks"], false, "{pod_name}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{pod_name}");
        for container in pod["containers"].as_sequence().unwrap() {
            let Some(command) = container["args"][0].as_str() else {
                panic!("{pod_name} has a container without a command");
            };
            let env = environment(container, &pod_name);
            let asked: &[&str] = match command {
                "node" => &["node", "--check"],
                // There is no check of an operator's settings; this reads them, and asks nobody here.
                "operator" => &["health", "--operator"],
                // The test of the chart is a shell's.
                _ => continue,
            };
            let mut check = keydb();
            check.args(asked).envs(env.clone());
            if command == "operator" {
                check.env("KEYDB_OPERATOR_PORT", "1");
            }
            let output = check.output().unwrap();
            let code = if command == "operator" { 3 } else { 0 };
            assert_code(&output, code);
            if command == "node" {
                assert_eq!(stderr(&output), "", "{env:?}");
                check_mounts(container, &env);
            }
            commands.push(command.to_owned());
        }
    }
    commands
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
