//! Settings from the environment (`KEYDB_…`): read once, checked as a whole before anything else happens.
//!
//! Reading is a pure function of the variables and the working directory, so that tests need no process environment. Every
//! wrong value is reported, not only the first.

mod memory;
mod names;
mod parse;
mod show;
mod storage;
#[cfg(test)]
mod tests;

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use keydb_core::{ClusterMap, Durability, HASH_RANGES_MAX, Namespace, NodeId};
use keydb_node::{Limits, MemoryPolicy};
use keydb_storage::{ObjectStorage, StorageError};
use serde::Deserialize;

use crate::exit::Failure;

pub(crate) use memory::{MemoryLimit, available_bytes as available_memory_bytes};
pub(crate) use parse::{addresses, duration};
pub(crate) use storage::StorageSettings;

/// The port of a node's gRPC service unless `KEYDB_PORT` says otherwise.
pub(crate) const PORT_DEFAULT: u16 = 50051;
/// The port of a node's HTTP for probes and metrics unless `KEYDB_HTTP_PORT` says otherwise.
pub(crate) const HTTP_PORT_DEFAULT: u16 = 50080;
/// How many hash ranges a new cluster gets unless `KEYDB_TOTAL_HASH_RANGES` says otherwise.
pub(crate) const HASH_RANGES_DEFAULT: u32 = 128;
/// Where a node keeps its journal and snapshots unless `KEYDB_DATA_DIR` says otherwise: in the working directory.
const DATA_DIR_DEFAULT: &str = "keydb-data";
const MAP_POLL_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
/// So often at most, and at least.
const MAP_POLL_INTERVAL_BOUNDS: [Duration; 2] =
    [Duration::from_millis(100), Duration::from_secs(3600)];
const DISK_HANG_LIMIT_DEFAULT: Duration = Duration::from_secs(60);
/// Less than the least would be taken for a hang where a disk is only slow.
const DISK_HANG_LIMIT_BOUNDS: [Duration; 2] =
    [Duration::from_secs(10), Duration::from_secs(24 * 3600)];
const SNAPSHOT_INTERVAL_DEFAULT: Duration = Duration::from_secs(60);
/// Shorter and a node does little else; longer and the journal grows without need.
const SNAPSHOT_INTERVAL_BOUNDS: [Duration; 2] =
    [Duration::from_secs(1), Duration::from_secs(86_400)];
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
    /// The port of HTTP for probes and metrics; `None`: there is none.
    pub(crate) http_port: Setting<Option<u16>>,
    /// How many hash ranges a new cluster gets.
    pub(crate) range_count: Setting<u32>,
    /// Where the cluster map and the snapshots lie.
    pub(crate) storage: StorageSettings,
    /// Whether node 0 creates the cluster at its start.
    pub(crate) init: Setting<bool>,
    /// What a crash may cost in a new cluster.
    pub(crate) durability: Setting<Durability>,
    /// Where a node keeps its journal and snapshots.
    pub(crate) data_dir: Setting<PathBuf>,
    /// How long between two snapshots.
    pub(crate) snapshot_interval: Setting<Duration>,
    /// How long the disk may not answer.
    pub(crate) map_poll_interval: Setting<Duration>,
    pub(crate) disk_hang_limit: Setting<Duration>,
    /// How much memory the keys may take.
    pub(crate) memory_limit: Setting<MemoryLimit>,
    /// What happens then.
    pub(crate) memory_policy: Setting<MemoryPolicy>,
    /// A node's other limits; which of them were set is in `limits_given`.
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

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::usage(error.to_string())
    }
}

/// What a client goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientSettings {
    /// The cluster's nodes.
    pub(crate) addresses: Option<Vec<String>>,
    /// The key space.
    pub(crate) namespace: Option<Namespace>,
    /// The log filter.
    pub(crate) log: Option<String>,
}

/// The values as they stand in the environment.
#[derive(Default, Deserialize)]
struct Raw {
    node_id: Option<String>,
    node_addresses: Option<String>,
    cluster_size: Option<String>,
    port: Option<String>,
    http_port: Option<String>,
    total_hash_ranges: Option<String>,
    storage_url: Option<String>,
    storage_bucket: Option<String>,
    storage_region: Option<String>,
    storage_endpoint: Option<String>,
    storage_accesskeyid: Option<String>,
    storage_accesskey: Option<String>,
    init: Option<String>,
    durability: Option<String>,
    data_dir: Option<String>,
    snapshot_interval: Option<String>,
    map_poll_interval: Option<String>,
    disk_hang_limit: Option<String>,
    memory_limit: Option<String>,
    memory_policy: Option<String>,
    answer_memory_bytes: Option<String>,
    answer_memory_age: Option<String>,
    request_keys_max: Option<String>,
    requests_in_flight_max: Option<String>,
    namespace: Option<String>,
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
        let http_port = check.given("KEYDB_HTTP_PORT", &raw.http_port, http_port);
        let range_count = check.given("KEYDB_TOTAL_HASH_RANGES", &raw.total_hash_ranges, |text| {
            parse::number(text, 1, u64::from(HASH_RANGES_MAX))
        });
        let storage = StorageSettings::read(&mut check, &raw, directory);
        let init = check.given("KEYDB_INIT", &raw.init, parse::truth);
        let durability = check.given("KEYDB_DURABILITY", &raw.durability, |text| {
            text.parse::<Durability>().map_err(|_| {
                "is not a durability mode; the modes are journal, snapshot and memory".to_owned()
            })
        });
        let data_dir = check.given("KEYDB_DATA_DIR", &raw.data_dir, |text| {
            parse::directory(text, directory)
        });
        let map_poll_interval = check.given(
            "KEYDB_MAP_POLL_INTERVAL",
            &raw.map_poll_interval,
            bounded(MAP_POLL_INTERVAL_BOUNDS),
        );
        let disk_hang_limit = check.given(
            "KEYDB_DISK_HANG_LIMIT",
            &raw.disk_hang_limit,
            bounded(DISK_HANG_LIMIT_BOUNDS),
        );
        let snapshot_interval = check.given(
            "KEYDB_SNAPSHOT_INTERVAL",
            &raw.snapshot_interval,
            bounded(SNAPSHOT_INTERVAL_BOUNDS),
        );
        let memory_limit = check.given("KEYDB_MEMORY_LIMIT", &raw.memory_limit, str::parse);
        let memory_policy = check.given("KEYDB_MEMORY_POLICY", &raw.memory_policy, memory::policy);
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
        let (port, http_port) = (
            Setting::of(port, PORT_DEFAULT),
            Setting::of(http_port, Some(HTTP_PORT_DEFAULT)),
        );
        if http_port.value == Some(port.value) {
            check.0.push(format!(
                "KEYDB_HTTP_PORT and KEYDB_PORT are both {}; each needs a port of its own",
                port.value
            ));
        }
        let (Some(storage), true) = (storage, check.0.is_empty()) else {
            return Err(check.into_error());
        };
        let settings = Self {
            node_id: node_id.map(NodeId),
            addresses,
            cluster_size,
            port,
            http_port,
            range_count: Setting::of(
                range_count.and_then(|count| u32::try_from(count).ok()),
                HASH_RANGES_DEFAULT,
            ),
            storage,
            init: Setting::of(init, false),
            durability: Setting::of(durability, Durability::Journal),
            data_dir: Setting::of(data_dir, directory.join(DATA_DIR_DEFAULT)),
            snapshot_interval: Setting::of(snapshot_interval, SNAPSHOT_INTERVAL_DEFAULT),
            map_poll_interval: Setting::of(map_poll_interval, MAP_POLL_INTERVAL_DEFAULT),
            disk_hang_limit: Setting::of(disk_hang_limit, DISK_HANG_LIMIT_DEFAULT),
            memory_limit: Setting::of(memory_limit, MemoryLimit::None),
            memory_policy: Setting::of(memory_policy, MemoryPolicy::Refuse),
            limits,
            limits_given,
            log,
            warnings,
        };
        Ok(settings.with_warnings())
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

    /// Opens the object storage.
    pub(crate) fn open_storage(&self) -> Result<Arc<dyn ObjectStorage>, Failure> {
        self.opened(self.storage.open(), "open")
    }

    /// Opens the object storage for whoever creates a cluster in it.
    pub(crate) fn create_storage(&self) -> Result<Arc<dyn ObjectStorage>, Failure> {
        self.opened(self.storage.create(), "create")
    }

    fn opened<T>(&self, opened: Result<T, StorageError>, action: &str) -> Result<T, Failure> {
        opened.map_err(|error| {
            Failure::failed(format!(
                "cannot {action} the storage {}: {error}",
                self.storage_text()
            ))
        })
    }

    /// The storage, as it can be shown.
    pub(crate) fn storage_text(&self) -> String {
        self.storage.text()
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
        let namespace = check.given("KEYDB_NAMESPACE", &raw.namespace, namespace);
        let log = check.given("KEYDB_LOG", &raw.log, log_filter);
        if check.0.is_empty() {
            Ok(Self {
                addresses,
                namespace,
                log,
            })
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
        let value = if storage::is_secret(name) {
            "(set)".to_owned()
        } else {
            parse::without_secrets(value)
        };
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

fn http_port(text: &str) -> Result<Option<u16>, String> {
    match text {
        "off" | "0" => Ok(None),
        _ => port(text).map(Some).map_err(|_| {
            "is not a port; a port is a number from 1 to 65535, and off switches HTTP off"
                .to_owned()
        }),
    }
}

/// A duration within bounds, both included.
fn bounded([least, most]: [Duration; 2]) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| {
        let value = duration(text)?;
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        Err(format!(
            "is out of bounds; give {} to {}",
            duration_text(least),
            duration_text(most)
        ))
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    // A word alone would be the name of a part of the program, of which everything is logged, and of others nothing.
    let is_level = |part: &str| {
        part.parse::<tracing_subscriber::filter::LevelFilter>()
            .is_ok()
    };
    let no_level = text
        .split(',')
        .map(str::trim)
        .find(|part| !part.contains(['=', '[']) && !is_level(part));
    let error = match no_level {
        Some(part) => format!("{part:?} is no level"),
        None => match tracing_subscriber::EnvFilter::try_new(text) {
            Ok(_) => return Ok(text.to_owned()),
            Err(error) => error.to_string(),
        },
    };
    Err(format!(
        "is not a log filter ({error}); give a level such as debug, or keydb_node=debug,info"
    ))
}

/// A key space by its name.
pub(crate) fn namespace(text: &str) -> Result<Namespace, String> {
    Namespace::new(text).map_err(|error| error.to_string())
}

/// A duration as settings write it, for messages.
pub(crate) fn duration_text(duration: Duration) -> String {
    parse::duration_text(duration)
}
