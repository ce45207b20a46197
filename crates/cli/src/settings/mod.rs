//! Settings from the environment (`KEYDB_…`): read once, checked as a whole before anything else happens.
//!
//! Reading is a pure function of the variables and the working directory, so that tests need no process environment. Every
//! wrong value is reported, not only the first.

mod names;
mod parse;
mod show;
#[cfg(test)]
mod tests;

use std::{fmt::Display, path::Path, sync::Arc, time::Duration};

use keydb_core::{ClusterMap, Durability, HASH_RANGES_MAX, NodeId};
use keydb_node::Limits;
use keydb_storage::{ObjectStorage, StorageUrl};
use serde::Deserialize;

use crate::exit::Failure;

pub(crate) use parse::{addresses, duration};

/// The port of a node's gRPC service unless `KEYDB_PORT` says otherwise.
pub(crate) const PORT_DEFAULT: u16 = 50051;
/// How many hash ranges a new cluster gets unless `KEYDB_TOTAL_HASH_RANGES` says otherwise.
pub(crate) const HASH_RANGES_DEFAULT: u32 = 128;
/// Where the cluster map lies unless `KEYDB_STORAGE_URL` says otherwise: in the working directory.
const STORAGE_DIR_DEFAULT: &str = "keydb-storage";
/// More keys in one request would not fit a message anyway.
const REQUEST_KEYS_BOUND: u64 = 262_144;
/// A node that has more requests than this in flight only queues them.
const REQUESTS_IN_FLIGHT_BOUND: u64 = 65_536;
const PREFIX: &str = "KEYDB_";

/// A value, and whether the environment gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    /// The value in force.
    pub(crate) value: T,
    /// Whether it was set, rather than being the default.
    pub(crate) given: bool,
}

/// What a node and `init` go by.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Which node this is.
    pub(crate) node_id: Option<NodeId>,
    /// The members' addresses; a node's place in the list is its id.
    pub(crate) addresses: Option<Vec<String>>,
    /// How many nodes there are, where that was said.
    pub(crate) cluster_size: Option<u64>,
    /// The port of the gRPC service.
    pub(crate) port: Setting<u16>,
    /// How many hash ranges a new cluster gets.
    pub(crate) range_count: Setting<u32>,
    /// Where the cluster map lies.
    pub(crate) storage: Setting<StorageUrl>,
    /// Whether node 0 creates the cluster at its start.
    pub(crate) init: Setting<bool>,
    /// What a crash may cost in a new cluster.
    pub(crate) durability: Setting<Durability>,
    /// A node's limits; which of them were set is in `limits_given`.
    pub(crate) limits: Limits,
    /// The names of the limits that were set.
    pub(crate) limits_given: Vec<&'static str>,
    /// The log filter.
    pub(crate) log: Option<String>,
    /// What is odd but does no harm.
    pub(crate) warnings: Vec<String>,
}

/// The settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub(crate) struct SettingsError(Vec<String>);

/// What a client goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientSettings {
    /// The cluster's nodes.
    pub(crate) addresses: Option<Vec<String>>,
    /// The log filter.
    pub(crate) log: Option<String>,
}

/// The values as they stand in the environment.
#[derive(Debug, Default, Deserialize)]
struct Raw {
    node_id: Option<String>,
    node_addresses: Option<String>,
    cluster_size: Option<String>,
    port: Option<String>,
    total_hash_ranges: Option<String>,
    storage_url: Option<String>,
    init: Option<String>,
    durability: Option<String>,
    answer_memory_bytes: Option<String>,
    answer_memory_age: Option<String>,
    request_keys_max: Option<String>,
    requests_in_flight_max: Option<String>,
    log: Option<String>,
}

/// Every `KEYDB_` variable of this process.
pub(crate) fn environment() -> Result<Vec<(String, String)>, SettingsError> {
    let mut vars = Vec::new();
    let mut problems = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        match value.to_str() {
            Some(value) => vars.push((name.to_owned(), value.to_owned())),
            None => problems.push(format!("{name}={}: is not UTF-8", value.display())),
        }
    }
    if problems.is_empty() {
        Ok(vars)
    } else {
        Err(SettingsError(problems))
    }
}

/// The settings of this process.
pub(crate) fn load() -> Result<Settings, Failure> {
    let directory = std::env::current_dir()
        .map_err(|error| Failure::failed(format!("there is no working directory: {error}")))?;
    Ok(Settings::read(environment()?, &directory)?)
}

impl Settings {
    /// Reads and checks the settings of a node; `directory` is where a relative default begins.
    pub(crate) fn read(
        vars: impl IntoIterator<Item = (String, String)>,
        directory: &Path,
    ) -> Result<Self, SettingsError> {
        let mut check = Check::default();
        let mut warnings = Vec::new();
        let vars = check.known(vars, Some(&mut warnings));
        let raw = raw(vars);

        let node_id = check.given("KEYDB_NODE_ID", &raw.node_id, parse::node_id);
        let addresses = check.given("KEYDB_NODE_ADDRESSES", &raw.node_addresses, addresses);
        let cluster_size = check.given("KEYDB_CLUSTER_SIZE", &raw.cluster_size, |text| {
            parse::number(text, 1, u64::from(u32::MAX))
        });
        let port = check.given("KEYDB_PORT", &raw.port, port);
        let range_count = check.given("KEYDB_TOTAL_HASH_RANGES", &raw.total_hash_ranges, |text| {
            parse::number(text, 1, u64::from(HASH_RANGES_MAX))
        });
        let storage = check.given("KEYDB_STORAGE_URL", &raw.storage_url, |text| {
            text.parse::<StorageUrl>().map_err(|error| {
                // The library's message may hold the URL, and the URL a password.
                let hidden = parse::without_secrets(text);
                error
                    .to_string()
                    .replace(&format!("{text:?}"), &format!("{hidden:?}"))
            })
        });
        let init = check.given("KEYDB_INIT", &raw.init, parse::truth);
        let durability = check.given("KEYDB_DURABILITY", &raw.durability, |text| {
            text.parse::<Durability>().map_err(|_| {
                "is not a durability mode that this build has; it has: memory".to_owned()
            })
        });
        let (limits, limits_given) = check.limits(&raw);
        let log = check.given("KEYDB_LOG", &raw.log, log_filter);

        if let (Some(size), Some(list)) = (cluster_size, &addresses)
            && usize::try_from(size) != Ok(list.len())
        {
            check.problem(
                "KEYDB_CLUSTER_SIZE",
                &size.to_string(),
                format!(
                    "KEYDB_NODE_ADDRESSES lists {} addresses; give that number, or leave KEYDB_CLUSTER_SIZE out",
                    list.len()
                ),
            );
        }
        let storage = match storage {
            Some(value) => Setting { value, given: true },
            None => match StorageUrl::local(&directory.join(STORAGE_DIR_DEFAULT)) {
                Ok(value) => Setting {
                    value,
                    given: false,
                },
                Err(error) => {
                    check.0.push(format!(
                        "KEYDB_STORAGE_URL is not set, and its default cannot be used: {error}"
                    ));
                    return Err(check.into_error());
                }
            },
        };
        let settings = Self {
            node_id: node_id.map(NodeId),
            addresses,
            cluster_size,
            port: Setting::of(port, PORT_DEFAULT),
            range_count: Setting::of(
                range_count.and_then(|count| u32::try_from(count).ok()),
                HASH_RANGES_DEFAULT,
            ),
            storage,
            init: Setting::of(init, false),
            durability: Setting::of(durability, Durability::Memory),
            limits,
            limits_given,
            log,
            warnings,
        };
        if check.0.is_empty() {
            Ok(settings.with_warnings())
        } else {
            Err(check.into_error())
        }
    }

    /// Which node this is.
    pub(crate) fn required_node_id(&self) -> Result<NodeId, SettingsError> {
        self.node_id.ok_or_else(|| {
            missing(
                "KEYDB_NODE_ID",
                "a number such as 0, or a host name such as keydb-0",
            )
        })
    }

    /// The members of a new cluster.
    pub(crate) fn required_addresses(&self) -> Result<&[String], SettingsError> {
        self.addresses.as_deref().ok_or_else(|| {
            missing(
                "KEYDB_NODE_ADDRESSES",
                r#"the nodes' addresses, such as "keydb-0:50051,keydb-1:50051" or ["keydb-0:50051","keydb-1:50051"]"#,
            )
        })
    }

    /// Opens the storage of the cluster map.
    pub(crate) fn open_storage(&self) -> Result<Arc<dyn ObjectStorage>, Failure> {
        self.storage.value.open().map_err(|error| {
            Failure::failed(format!(
                "cannot open the storage {} (KEYDB_STORAGE_URL): {error}",
                self.storage_text()
            ))
        })
    }

    /// The storage, as it can be shown.
    pub(crate) fn storage_text(&self) -> String {
        parse::without_secrets(&self.storage.value.to_string())
    }

    /// What was set and is otherwise in the cluster map, which wins.
    pub(crate) fn differences(&self, map: &ClusterMap) -> Vec<String> {
        let mut found = Vec::new();
        let in_map: Vec<&str> = map.nodes.iter().map(|node| node.address.as_str()).collect();
        if let Some(addresses) = &self.addresses
            && *addresses != in_map
        {
            found.push(format!(
                "KEYDB_NODE_ADDRESSES is {}, but the cluster map has {}; the map wins",
                addresses.join(","),
                in_map.join(",")
            ));
        }
        if self.range_count.given && self.range_count.value as usize != map.ranges.len() {
            found.push(format!(
                "KEYDB_TOTAL_HASH_RANGES is {}, but the cluster map has {}; the map wins",
                self.range_count.value,
                map.ranges.len()
            ));
        }
        if self.durability.given && self.durability.value != map.durability {
            found.push(format!(
                "KEYDB_DURABILITY is {}, but the cluster map has {}; the map wins",
                self.durability.value, map.durability
            ));
        }
        found
    }

    fn with_warnings(mut self) -> Self {
        if let (Some(NodeId(id)), Some(addresses)) = (self.node_id, &self.addresses) {
            match addresses.get(id as usize).map(|own| (own, parse::host_and_port(own))) {
                None => self.warnings.push(format!(
                    "KEYDB_NODE_ADDRESSES lists {} addresses, for the nodes 0 to {}: node {id} is not among them",
                    addresses.len(),
                    addresses.len() - 1
                )),
                Some((own, Ok((_, port)))) if port != self.port.value => self.warnings.push(format!(
                    "KEYDB_NODE_ADDRESSES gives node {id} as {own}, but it will listen on port {} (KEYDB_PORT)",
                    self.port.value
                )),
                Some(_) => {}
            }
        }
        self
    }
}

impl ClientSettings {
    /// Reads the settings of a client. Those of a node may be there as well, and so may what Kubernetes sets.
    pub(crate) fn read(
        vars: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        let mut check = Check::default();
        let raw = raw(check.known(vars, None));
        let addresses = check.given("KEYDB_NODE_ADDRESSES", &raw.node_addresses, addresses);
        let log = check.given("KEYDB_LOG", &raw.log, log_filter);
        if check.0.is_empty() {
            Ok(Self { addresses, log })
        } else {
            Err(check.into_error())
        }
    }
}

impl<T> Setting<T> {
    fn of(given: Option<T>, default: T) -> Self {
        Self {
            given: given.is_some(),
            value: given.unwrap_or(default),
        }
    }
}

/// Gathers what is wrong.
#[derive(Debug, Default)]
struct Check(Vec<String>);

impl Check {
    fn problem(&mut self, name: &str, value: &str, problem: impl Display) {
        let value = parse::without_secrets(value);
        self.0.push(format!("{name}={value}: {problem}"));
    }

    /// The value, if it was given and is right.
    fn given<T>(
        &mut self,
        name: &str,
        value: &Option<String>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = value.as_deref()?;
        parse(text)
            .map_err(|problem| self.problem(name, text, problem))
            .ok()
    }

    /// Keeps the variables that are settings. Others are errors, but for those that Kubernetes sets: they become warnings, or
    /// nothing where nobody listens. The ones that stand in the place of a setting are errors only where that is used.
    fn known(
        &mut self,
        vars: impl IntoIterator<Item = (String, String)>,
        mut warnings: Option<&mut Vec<String>>,
    ) -> Vec<(String, String)> {
        let mut known = Vec::new();
        let mut from_kubernetes = Vec::new();
        for (name, value) in vars {
            if !name.starts_with(PREFIX) {
                continue;
            }
            if names::is_from_kubernetes(&name, &value) {
                if names::NAMES.contains(&name.as_str()) && warnings.is_some() {
                    self.problem(&name, &value, format!("was set by Kubernetes for a Service, and hides the setting of that name; {KUBERNETES_CURE}"));
                } else {
                    from_kubernetes.push(name);
                }
            } else if names::NAMES.contains(&name.as_str()) {
                known.push((name, value));
            } else {
                let hint = names::nearest(&name).map_or_else(
                    || format!("the settings are {}", names::NAMES.join(", ")),
                    |nearest| format!("did you mean {nearest}?"),
                );
                self.problem(
                    &name,
                    &value,
                    format!("there is no setting of this name; {hint}"),
                );
            }
        }
        if let (Some(warnings), false) = (warnings.as_mut(), from_kubernetes.is_empty()) {
            from_kubernetes.sort();
            warnings.push(format!(
                "{} set by Kubernetes for a Service, and ignored; {KUBERNETES_CURE}",
                match from_kubernetes.as_slice() {
                    [one] => format!("{one} was"),
                    several => format!("{} were", several.join(", ")),
                }
            ));
        }
        known
    }

    fn limits(&mut self, raw: &Raw) -> (Limits, Vec<&'static str>) {
        let mut limits = Limits::default();
        let mut given = Vec::new();
        let name = "KEYDB_ANSWER_MEMORY_BYTES";
        if let Some(bytes) = self.given(name, &raw.answer_memory_bytes, parse::bytes) {
            limits.answer_memory_bytes = bytes;
            given.push(name);
        }
        let name = "KEYDB_ANSWER_MEMORY_AGE";
        if let Some(age) = self.given(name, &raw.answer_memory_age, duration) {
            limits.answer_memory_age = age;
            given.push(name);
        }
        let name = "KEYDB_REQUEST_KEYS_MAX";
        let keys = self.given(name, &raw.request_keys_max, |text| {
            parse::number(text, 1, REQUEST_KEYS_BOUND)
        });
        if let Some(keys) = keys {
            limits.request_keys_max = keys as usize;
            given.push(name);
        }
        let name = "KEYDB_REQUESTS_IN_FLIGHT_MAX";
        let requests = self.given(name, &raw.requests_in_flight_max, |text| {
            parse::number(text, 1, REQUESTS_IN_FLIGHT_BOUND)
        });
        if let Some(requests) = requests {
            limits.requests_in_flight_max = requests as usize;
            given.push(name);
        }
        (limits, given)
    }

    fn into_error(self) -> SettingsError {
        SettingsError(self.0)
    }
}

const KUBERNETES_CURE: &str = "set enableServiceLinks: false in the pod's spec";

fn raw(known: Vec<(String, String)>) -> Raw {
    envy::prefixed(PREFIX)
        .from_iter(known)
        .expect("every field is optional text, which any value is")
}

fn missing(name: &str, right: &str) -> SettingsError {
    SettingsError(vec![format!("{name} is not set; give {right}")])
}

fn port(text: &str) -> Result<u16, String> {
    parse::number(text, 1, u64::from(u16::MAX))
        .map(|port| port as u16)
        .map_err(|_| "is not a port; a port is a number from 1 to 65535".to_owned())
}

fn log_filter(text: &str) -> Result<String, String> {
    tracing_subscriber::EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| {
            format!("is not a log filter ({error}); give a level such as debug, or keydb_node=debug,info")
        })
}

/// The age that answers are remembered for, for messages.
pub(crate) fn duration_text(duration: Duration) -> String {
    parse::duration_text(duration)
}
