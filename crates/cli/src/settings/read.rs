//! Reads the settings: each by itself, then how they fit each other.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use keydb_core::{ClusterMap, Namespace, NodeId};
use keydb_storage::{ObjectStorage, S3Options, StorageError, StorageUrl};
use keydb_transport::{ListenerSecurity, Outgoing};

use super::{
    declared::{Effective, Reader, Settings},
    environment::{environment, known},
    log::LogSettings,
    parse,
    problems::{Problems, SettingsError, missing},
    security::Listening,
};
use crate::exit::Failure;

/// What a client goes by.
#[derive(Debug, Clone)]
pub(crate) struct ClientSettings {
    /// The cluster's nodes.
    pub(crate) addresses: Option<Vec<String>>,
    /// The key space.
    pub(crate) namespace: Option<Namespace>,
    /// What is logged and traced.
    pub(crate) logging: LogSettings,
    /// How nodes are reached.
    pub(crate) outgoing: Outgoing,
}

/// What an operator goes by: it is a client that listens.
pub(crate) struct OperatorSettings {
    /// As of every client.
    pub(crate) client: ClientSettings,
    /// Where it listens.
    pub(crate) listening: Listening,
    /// What protects the listener.
    pub(crate) security: ListenerSecurity,
    /// Whether it need not be protected.
    pub(crate) insecure: bool,
    /// All of them, as they are in force.
    pub(crate) effective: Vec<Effective>,
    /// What is odd but does no harm.
    pub(crate) warnings: Vec<String>,
}

impl ClientSettings {
    /// Reads the settings of a client. Those of a node may be there as well, and so may what Kubernetes sets.
    pub(crate) fn read(
        vars: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        let mut problems = Problems::default();
        let settings = each(vars, Reader::Client, &mut problems);
        let outgoing = settings.outgoing(&mut problems);
        problems.into_result()?;
        Ok(Self::of(settings, outgoing))
    }

    fn of(settings: Settings, outgoing: Outgoing) -> Self {
        Self {
            logging: settings.logging(),
            addresses: settings.node_addresses.value,
            namespace: settings.namespace.value,
            outgoing,
        }
    }
}

impl OperatorSettings {
    /// Reads the settings of an operator.
    pub(crate) fn read(
        vars: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        let mut problems = Problems::default();
        let settings = each(vars, Reader::Operator, &mut problems);
        let security = settings.security_of_operator(&mut problems);
        problems.into_result()?;
        Ok(Self {
            listening: settings.operator_listening(),
            insecure: settings.insecure.value,
            effective: settings.effective(Reader::Operator),
            warnings: settings.warnings.clone(),
            security: security.listeners,
            client: ClientSettings::of(settings, security.outgoing),
        })
    }
}

/// How the HTTP listener of a process with these settings is asked.
pub(crate) struct HealthSettings {
    /// Where, if there is one.
    pub(crate) listening: Option<Listening>,
    /// Whether it speaks TLS.
    pub(crate) is_tls: bool,
    /// Whom to trust then.
    pub(crate) ca: Option<PathBuf>,
    /// The certificate that it shows.
    pub(crate) certificate: Option<PathBuf>,
}

/// How the node with these variables answers probes, or the operator.
pub(crate) fn of_health(
    vars: impl IntoIterator<Item = (String, String)>,
    is_operator: bool,
) -> Result<HealthSettings, SettingsError> {
    let mut problems = Problems::default();
    let reader = if is_operator {
        Reader::Operator
    } else {
        Reader::Node
    };
    let settings = each(vars, reader, &mut problems);
    problems.into_result()?;
    let listening = if is_operator {
        Some(settings.operator_listening())
    } else {
        settings.http_listening()
    };
    Ok(HealthSettings {
        listening,
        is_tls: settings.tls_cert_file.given,
        ca: settings.tls_ca_file.value,
        certificate: settings.tls_cert_file.value,
    })
}

/// The settings of this process.
pub(crate) fn load() -> Result<Settings, Failure> {
    let directory = std::env::current_dir()
        .map_err(|error| Failure::failed(format!("there is no working directory: {error}")))?;
    Ok(Settings::read(environment()?, &directory)?)
}

/// Reads the settings of `reader`, each by itself; the others have their defaults.
fn each(
    vars: impl IntoIterator<Item = (String, String)>,
    reader: Reader,
    problems: &mut Problems,
) -> Settings {
    let (known, warning) = known(vars, reader, problems);
    let mut settings = Settings::parse(known, |name, value, problem| {
        problems.of(name, value, problem);
    });
    settings.warnings.extend(warning);
    settings
}

/// Whether a host of an address means the machine itself.
fn is_of_this_machine(host: &str) -> bool {
    let ip = host.trim_start_matches('[').trim_end_matches(']');
    let ip = ip.parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

impl Settings {
    /// Reads and checks the settings of a node; `directory` is where relative paths begin.
    pub(crate) fn read(
        vars: impl IntoIterator<Item = (String, String)>,
        directory: &Path,
    ) -> Result<Self, SettingsError> {
        let mut problems = Problems::default();
        let mut settings = each(vars, Reader::Node, &mut problems);
        settings.check_cluster(&mut problems);
        settings.check_storage(&mut problems);
        settings.storage_url.value = settings.storage_or_default(directory, &mut problems);
        problems.into_result()?;
        settings.data_dir.value = directory.join(&settings.data_dir.value);
        settings.warn_of_own_address();
        Ok(settings)
    }

    fn check_cluster(&self, problems: &mut Problems) {
        if let (Some(size), Some(list)) = (self.cluster_size.value, &self.node_addresses.value)
            && usize::try_from(size) != Ok(list.len())
        {
            problems.of(
                "KEYDB_CLUSTER_SIZE",
                &size.to_string(),
                format!(
                    "KEYDB_NODE_ADDRESSES lists {} addresses; give that number, or leave KEYDB_CLUSTER_SIZE out",
                    list.len()
                ),
            );
        }
        let port = self.port.value;
        if self.http_port.value == Some(port) {
            problems.add(format!(
                "KEYDB_HTTP_PORT and KEYDB_PORT are both {port}; each needs a port of its own"
            ));
        }
    }

    fn check_storage(&self, problems: &mut Problems) {
        let (url, bucket) = (&self.storage_url.value, &self.storage_bucket.value);
        if let (Some(url), Some(bucket)) = (url, bucket)
            && *url != bucket.url
        {
            problems.add(format!(
                "KEYDB_STORAGE_BUCKET means {}, but KEYDB_STORAGE_URL is {url}; give one of them",
                bucket.url
            ));
        }
        let (has_id, has_key) = (self.storage_accesskeyid.given, self.storage_accesskey.given);
        let for_s3 = [
            ("KEYDB_STORAGE_REGION", self.storage_region.given),
            ("KEYDB_STORAGE_ENDPOINT", self.storage_endpoint.given),
            ("KEYDB_STORAGE_ACCESSKEYID", has_id),
            ("KEYDB_STORAGE_ACCESSKEY", has_key),
        ];
        let is_s3 = bucket.is_some() || url.as_ref().is_some_and(StorageUrl::is_s3);
        for (name, _) in for_s3.into_iter().filter(|(_, given)| *given && !is_s3) {
            match url {
                Some(url) => problems.add(format!(
                    "{name} is for S3, but KEYDB_STORAGE_URL is {url}; leave one of them out"
                )),
                None if !self.storage_is_given() => problems.add(format!(
                    "{name} is for S3, but no bucket is set; give KEYDB_STORAGE_BUCKET, or KEYDB_STORAGE_URL=s3://bucket/prefix"
                )),
                // What is wrong with the URL or the bucket was said.
                None => {}
            }
        }
        if has_id != has_key {
            let [.., id, key] = for_s3;
            let [(given, _), (missing, _)] = if has_id { [id, key] } else { [key, id] };
            problems.add(format!(
                "{given} is set, but {missing} is not; give both, or neither to use the credentials of the environment"
            ));
        }
    }

    /// The storage that was said, or else the one in `directory`.
    fn storage_or_default(&self, directory: &Path, problems: &mut Problems) -> Option<StorageUrl> {
        let of_bucket = self.storage_bucket.value.as_ref();
        let given = self.storage_url.value.as_ref();
        if let Some(url) = given.or(of_bucket.map(|bucket| &bucket.url)) {
            return Some(url.clone());
        }
        let default = StorageUrl::local(&directory.join("keydb-storage"));
        default
            .map_err(|error| {
                problems.add(format!(
                    "KEYDB_STORAGE_URL is not set, and its default cannot be used: {error}"
                ));
            })
            .ok()
    }

    /// Which node this is.
    pub(crate) fn required_node_id(&self) -> Result<NodeId, SettingsError> {
        self.node_id.value.ok_or_else(|| {
            missing(
                "KEYDB_NODE_ID",
                "a number such as 0, or a host name such as keydb-0",
            )
        })
    }

    /// The members of a new cluster.
    pub(crate) fn required_addresses(&self) -> Result<&[String], SettingsError> {
        self.node_addresses.value.as_deref().ok_or_else(|| {
            missing(
                "KEYDB_NODE_ADDRESSES",
                r#"the nodes' addresses, such as "keydb-0:50051,keydb-1:50051" or ["keydb-0:50051","keydb-1:50051"]"#,
            )
        })
    }

    /// Whether a setting said which storage.
    pub(crate) const fn storage_is_given(&self) -> bool {
        self.storage_url.given || self.storage_bucket.given
    }

    /// Opens the object storage.
    pub(crate) fn open_storage(&self) -> Result<Arc<dyn ObjectStorage>, Failure> {
        self.opened("open", StorageUrl::open)
    }

    /// Opens the object storage for whoever creates a cluster in it.
    pub(crate) fn create_storage(&self) -> Result<Arc<dyn ObjectStorage>, Failure> {
        self.opened("create", StorageUrl::create)
    }

    fn opened<T>(
        &self,
        action: &str,
        open: impl FnOnce(&StorageUrl, &S3Options) -> Result<T, StorageError>,
    ) -> Result<T, Failure> {
        open(self.storage(), &self.s3_options()).map_err(|error| {
            Failure::failed(format!(
                "cannot {action} the storage {}: {error}",
                self.storage()
            ))
        })
    }

    /// How S3 is reached.
    pub(crate) fn s3_options(&self) -> S3Options {
        let id = self.storage_accesskeyid.value.clone();
        let key = self.storage_accesskey.value.clone();
        S3Options {
            endpoint: self.storage_endpoint.value.clone(),
            region: self.storage_region.value.clone(),
            access_key: id.zip(key.map(|key| key.0)),
        }
    }

    /// The storage, as it can be shown.
    pub(crate) fn storage_text(&self) -> String {
        self.storage().to_string()
    }

    /// What the storage is called.
    pub(crate) fn storage(&self) -> &StorageUrl {
        let url = self.storage_url.value.as_ref();
        url.expect("the settings of a node have one, be it the default")
    }

    /// What was set and is otherwise in the cluster map, which wins.
    pub(crate) fn differences(&self, map: &ClusterMap) -> Vec<String> {
        let mut found = Vec::new();
        let in_map: Vec<&str> = map.nodes.iter().map(|node| node.address.as_str()).collect();
        if let Some(addresses) = &self.node_addresses.value
            && *addresses != in_map
        {
            found.push(format!(
                "KEYDB_NODE_ADDRESSES is {}, but the cluster map has {}; the map wins",
                addresses.join(","),
                in_map.join(",")
            ));
        }
        if self.total_hash_ranges.given && self.total_hash_ranges.value as usize != map.ranges.len()
        {
            found.push(format!(
                "KEYDB_TOTAL_HASH_RANGES is {}, but the cluster map has {}; the map wins",
                self.total_hash_ranges.value,
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

    fn warn_of_own_address(&mut self) {
        if let (Some(NodeId(id)), Some(addresses)) =
            (self.node_id.value, &self.node_addresses.value)
        {
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
                Some((own, Ok((host, _))))
                    if self.bind_address.value.is_loopback() && !is_of_this_machine(host) =>
                {
                    self.warnings.push(format!(
                        "KEYDB_NODE_ADDRESSES gives node {id} as {own}, but it will listen on {} (KEYDB_BIND_ADDRESS), where only this machine reaches it",
                        self.bind_address.value
                    ));
                }
                Some(_) => {}
            }
        }
    }
}
