//! What docker-compose.yml says. A field that is not listed here is an error: it would be said and not tried.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use serde_yaml_ng::Value;

#[derive(Debug, Deserialize)]
pub(crate) struct File {
    pub(crate) services: BTreeMap<String, Service>,
    volumes: BTreeMap<String, Option<Value>>,
    /// The comment that the file begins with.
    #[serde(skip)]
    pub(crate) header: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    pub(crate) image: String,
    pub(crate) entrypoint: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, String>,
    #[serde(default)]
    volumes: Vec<String>,
    #[serde(default)]
    pub(crate) depends_on: BTreeMap<String, Dependency>,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    pub(crate) profiles: Vec<String>,
    pub(crate) healthcheck: Option<Healthcheck>,
    // What is of containers alone.
    #[serde(rename = "build")]
    _build: Option<String>,
    #[serde(rename = "restart")]
    _restart: Option<String>,
    #[serde(rename = "read_only")]
    _read_only: Option<bool>,
    #[serde(rename = "cap_drop")]
    _cap_drop: Option<Vec<String>>,
    #[serde(rename = "security_opt")]
    _security_opt: Option<Vec<String>>,
    #[serde(rename = "stop_grace_period")]
    _stop_grace_period: Option<String>,
    #[serde(rename = "network_mode")]
    _network_mode: Option<String>,
    #[serde(rename = "tmpfs")]
    _tmpfs: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dependency {
    pub(crate) condition: Condition,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Condition {
    ServiceHealthy,
    ServiceCompletedSuccessfully,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Healthcheck {
    test: Vec<String>,
}

impl Healthcheck {
    pub(crate) fn command(&self) -> &[String] {
        let (kind, command) = self.test.split_first().unwrap();
        assert_eq!(kind, "CMD");
        command
    }
}

impl Service {
    /// What is mounted where: named volumes, and files of the repository.
    pub(crate) fn mounts(&self) -> Vec<(&str, &str)> {
        let parts = self.volumes.iter().map(|volume| {
            let (source, rest) = volume.split_once(':').unwrap();
            (source, rest.strip_suffix(":ro").unwrap_or(rest))
        });
        parts.collect()
    }

    /// Which port of this machine is which of the container.
    pub(crate) fn published(&self) -> Vec<(u16, u16)> {
        let local = self.ports.iter().map(|port| {
            let local = port.strip_prefix("127.0.0.1:");
            let (outside, inside) = local
                .and_then(|ports| ports.split_once(':'))
                .unwrap_or_else(|| panic!("{port} is published to others than this machine"));
            (outside.parse().unwrap(), inside.parse().unwrap())
        });
        local.collect()
    }
}

impl File {
    /// Reads and checks the file, with no variable of the environment set.
    pub(crate) fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let mut value: Value = serde_yaml_ng::from_str(&interpolate(&text)).unwrap();
        // What is merged may have to be merged into itself.
        let mut before = Value::Null;
        while before != value {
            before.clone_from(&value);
            value.apply_merge().unwrap();
        }
        let mut file: Self = serde_yaml_ng::from_value(value).unwrap();
        let header = text.lines().map_while(|line| line.strip_prefix('#'));
        file.header = header.map(|line| line.trim().to_owned()).collect();
        file.check(path.parent().unwrap());
        file
    }

    /// That all it names is there.
    fn check(&self, repository: &Path) {
        for (name, service) in &self.services {
            for (source, _) in service.mounts() {
                match source.strip_prefix("./") {
                    Some(path) => assert!(repository.join(path).exists(), "{name}: {source}"),
                    None => assert!(self.volumes.contains_key(source), "{name}: {source}"),
                }
            }
            for (on, dependency) in &service.depends_on {
                let on_service = &self.services[on];
                let can = match dependency.condition {
                    Condition::ServiceHealthy => on_service.healthcheck.is_some(),
                    Condition::ServiceCompletedSuccessfully => on_service.healthcheck.is_none(),
                };
                assert!(can, "{name} waits for {on} in vain");
                assert!(
                    on_service.profiles.is_empty(),
                    "{name} waits for {on}, which is not always there"
                );
            }
            if let Some(directory) = service.environment.get("KEYDB_DATA_DIR")
                && service.command == ["node"]
            {
                let mut mounts = service.mounts().into_iter();
                let is_kept = mounts.any(|(_, target)| Path::new(directory).starts_with(target));
                assert!(is_kept, "{name} keeps its keys in no volume");
            }
            service.published();
        }
    }
}

/// `${NAME:-default}` is the default.
fn interpolate(text: &str) -> String {
    let mut parts = text.split("${");
    let mut result = parts.next().unwrap().to_owned();
    for part in parts {
        let (variable, rest) = part.split_once('}').unwrap();
        let (_, default) = variable
            .split_once(":-")
            .unwrap_or_else(|| panic!("{variable} has no default"));
        result.push_str(default);
        result.push_str(rest);
    }
    result
}
