//! The chart, rendered, and what it says of containers.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde::Deserialize;
use serde_yaml_ng::Value;

pub(crate) const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");

/// Helm's program; `None`, said loudly, where there is none.
pub(crate) fn helm() -> Option<Command> {
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
pub(crate) fn template(helm: &mut Command, file: Option<&Path>, set: &[&str]) -> Output {
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

pub(crate) fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let documents = documents.map(|it| Value::deserialize(it).unwrap());
    documents.filter(|it| !it.is_null()).collect()
}

/// The pod that a resource describes, and the name of its first one.
pub(crate) fn pod(resource: &Value) -> Option<(&Value, String)> {
    let name = resource["metadata"]["name"].as_str().unwrap();
    match resource["kind"].as_str().unwrap() {
        "StatefulSet" => Some((&resource["spec"]["template"]["spec"], format!("{name}-0"))),
        "Deployment" => Some((&resource["spec"]["template"]["spec"], format!("{name}-x"))),
        "Pod" => Some((&resource["spec"], name.to_owned())),
        _ => None,
    }
}

/// A container's variables, with something in the place of secrets.
pub(crate) fn environment(container: &Value, pod_name: &str) -> Vec<(String, String)> {
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
