//! Every setting, declared once: its name, default, parser and how it is shown. All else that is the same for each follows
//! from that.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use keydb_core::{Durability, HASH_RANGES_MAX, Namespace, NodeId};
use keydb_node::{Limits, MemoryPolicy, MoveBudget};
use keydb_storage::StorageUrl;
use serde::{Deserialize, Serialize};

use super::{
    log::LogFormat,
    memory::{self, MemoryLimit},
    parse::{self, duration_text},
    security::{self, file_text},
    storage::{self, Bucket, Secret},
};

/// What the names of all settings begin with.
pub(super) const PREFIX: &str = "KEYDB_";
/// The port of a node's gRPC service unless `KEYDB_PORT` says otherwise.
pub(crate) const PORT_DEFAULT: u16 = 50051;
/// Which setting says where a node answers probes.
pub(crate) const HTTP_PORT_SETTING: &str = "KEYDB_HTTP_PORT";
/// Which setting says where an operator listens, and where it does otherwise.
pub(crate) const OPERATOR_PORT_SETTING: &str = "KEYDB_OPERATOR_PORT";
pub(crate) const OPERATOR_PORT_DEFAULT: u16 = 8080;
/// Where a node listens for HTTP.
pub(crate) const HTTP_PORT_DEFAULT: u16 = 50080;
/// How many hash ranges a new cluster gets unless `KEYDB_TOTAL_HASH_RANGES` says otherwise.
pub(crate) const HASH_RANGES_DEFAULT: u32 = 128;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// More keys in one request would not fit a message anyway.
const REQUEST_KEYS_BOUND: usize = 262_144;
/// A node that has more requests than this in flight only queues them.
const REQUESTS_IN_FLIGHT_BOUND: usize = 65_536;

/// Makes [`DECLARED`] and [`Settings`] of declarations:
///
/// ```text
/// /// what `keydb node --help` says, unless that speaks of it elsewhere
/// READER "KEYDB_NAME" field: Type = default, parse, show,
///     "what docs/settings.md says";
/// ```
///
/// The field is called after the variable. `parse` makes the value of the text, or says what would be right; `show` makes text
/// of the value.
macro_rules! settings {
    ($(
        $(#[doc = $help:literal])?
        $reader:ident $name:literal $field:ident: $type:ty = $default:expr, $parse:expr, $show:expr, $about:literal;
    )*) => {
        /// Every setting, in the order in which they are shown.
        pub(super) const DECLARED: &[Declared] = &[$(Declared {
            name: $name,
            reader: Reader::$reader,
            help: concat!($($help)?),
            #[cfg(test)]
            about: $about,
            #[cfg(test)]
            default: || {
                let default: $type = $default;
                shown(&default, $show)
            },
        },)*];

        /// The values as they stand in the environment.
        #[derive(Deserialize)]
        struct Raw {
            $($field: Option<String>,)*
        }

        /// What a node and `init` go by.
        #[derive(Debug, Clone)]
        pub(crate) struct Settings {
            $($(#[doc = $help])? pub(crate) $field: Setting<$type>,)*
            /// What is odd but does no harm.
            pub(crate) warnings: Vec<String>,
        }

        impl Settings {
            /// Reads each of `vars` by itself; `wrong` is called with the name and the value of one that cannot be used, and why.
            pub(super) fn parse(
                vars: Vec<(String, String)>,
                mut wrong: impl FnMut(&str, &str, String),
            ) -> Self {
                let raw: Raw = envy::prefixed(PREFIX)
                    .from_iter(vars)
                    .expect("every field is optional text, which any value is");
                Self {
                    $($field: Setting::read(raw.$field, $default, $parse, |value, problem| {
                        wrong($name, value, problem);
                    }),)*
                    warnings: Vec::new(),
                }
            }

            /// Every setting of `reader` as it is in force, secrets hidden.
            pub(crate) fn effective(&self, reader: Reader) -> Vec<Effective> {
                let all = [$(self.$field.effective($name, $show),)*];
                let is_its = DECLARED.iter().map(|declared| declared.is_read_by(reader));
                let shown = all.into_iter().zip(is_its);
                shown.filter_map(|(setting, is_shown)| is_shown.then_some(setting)).collect()
            }
        }
    };
}

settings! {
    /// a number, or a host name that ends in -N
    Node "KEYDB_NODE_ID" node_id: Option<NodeId> = None, parse::node_id, if_set,
        "Which node this is: a number, or a host name that ends in `-N`, such as a pod's.";
    // Together with the others that describe a new cluster, in the help's last lines.
    Both "KEYDB_NODE_ADDRESSES" node_addresses: Option<Vec<String>> = None, parse::addresses,
        |list| list.as_deref().unwrap_or_default().join(","),
        "The nodes' addresses, `host:port`: a list with commas between, or a JSON array of strings. For `keydb init` a node's place in the list is its id. For clients, any nodes of the cluster; one that answers is enough.";
    Node "KEYDB_CLUSTER_SIZE" cluster_size: Option<u64> = None, parse::number(1..=u64::from(u32::MAX)), if_set,
        "How many nodes there are. It is only checked against `KEYDB_NODE_ADDRESSES`.";
    /// gRPC (50051)
    Node "KEYDB_PORT" port: u16 = PORT_DEFAULT, parse::port, ToString::to_string,
        "Where a node listens for gRPC: clients, and the other nodes.";
    /// /v1, /startup, /ready, /live and /metrics (50080; off)
    Node "KEYDB_HTTP_PORT" http_port: Option<u16> = Some(HTTP_PORT_DEFAULT), parse::http_port,
        |port| port.map_or_else(|| "off".to_owned(), |port| port.to_string()),
        "Where a node listens for HTTP: keys (`/v1`), probes (`/startup`, `/ready`, `/live`) and `/metrics`. `off`: nowhere.";
    /// the IP address of both: 127.0.0.1, or :: and 0.0.0.0 for all; of HTTP alone
    Server "KEYDB_BIND_ADDRESS" bind_address: IpAddr = security::BIND_DEFAULT, security::bind_address, ToString::to_string,
        "The IP address to listen on, with every port: `127.0.0.1` for this machine alone, `::` or `0.0.0.0` for every interface, or the address of one of them. What others can reach has to be [protected](security.md) by TLS, and by client certificates or tokens, or the start is refused without `KEYDB_INSECURE=true`.";
    /// (as above)
    Node "KEYDB_HTTP_BIND_ADDRESS" http_bind_address: Option<IpAddr> = None, security::bind_address, if_set,
        "The same for the HTTP port alone. Without it: `KEYDB_BIND_ADDRESS`.";
    /// PEM: what this node shows, and its key; TLS on both ports
    Both "KEYDB_TLS_CERT_FILE" tls_cert_file: Option<PathBuf> = None, security::file, file_text,
        "A PEM file with the certificate that this process shows: a node or an operator to its callers, for TLS on all of its ports; a client to nodes.";
    /// PEM
    Both "KEYDB_TLS_KEY_FILE" tls_key_file: Option<PathBuf> = None, security::file, file_text,
        "A PEM file with the certificate's private key.";
    /// PEM: the CA of the other nodes
    Both "KEYDB_TLS_CA_FILE" tls_ca_file: Option<PathBuf> = None, security::file, file_text,
        "A PEM file with the CA that has signed the nodes' certificates. With it, connections to nodes use TLS.";
    /// PEM: callers have to show a certificate of this CA
    Server "KEYDB_TLS_CLIENT_CA_FILE" tls_client_ca_file: Option<PathBuf> = None, security::file, file_text,
        "A PEM file with a CA. Callers have to show a certificate that it has signed.";
    /// callers have to send one of these tokens: lines of ROLE TOKEN; roles: read, write, admin
    Server "KEYDB_ACCEPTED_TOKENS_FILE" accepted_tokens_file: Option<PathBuf> = None, security::file, file_text,
        "A file with lines of `ROLE TOKEN`, the role being `read`, `write` or `admin`. Callers have to send one of these tokens.";
    /// the token that this node sends to others: one of the role admin
    Both "KEYDB_TOKEN_FILE" token_file: Option<PathBuf> = None, security::file, file_text,
        "A file with the token that this process sends to nodes. A node's has to have the role `admin`.";
    /// true: listen without TLS, tokens or certificates where others can reach it
    Server "KEYDB_INSECURE" insecure: bool = false, parse::truth, ToString::to_string,
        "`true`: listen where others can reach it, without TLS, tokens or certificates.";
    Node "KEYDB_TOTAL_HASH_RANGES" total_hash_ranges: u32 = HASH_RANGES_DEFAULT, parse::number(1..=HASH_RANGES_MAX),
        ToString::to_string,
        "How many hash ranges a new cluster gets, 1 to 65536. It stays as it is.";
    /// s3://bucket/prefix or file:///dir (./keydb-storage); or, for S3, instead of it:
    Node "KEYDB_STORAGE_URL" storage_url: Option<StorageUrl> = None, storage::url, if_set,
        "Where object storage is: `s3://bucket/prefix`, or `file:///path` for a directory that all nodes see. Without it and without a bucket: the directory `keydb-storage` in the working directory.";
    /// bucket, or bucket/prefix; and for either:
    Node "KEYDB_STORAGE_BUCKET" storage_bucket: Option<Bucket> = None, storage::bucket, if_set,
        "An S3 bucket, or `bucket/prefix`, instead of `KEYDB_STORAGE_URL`.";
    /// (us-east-1)
    Node "KEYDB_STORAGE_REGION" storage_region: Option<String> = None, storage::word, if_set,
        "The bucket's region; `us-east-1` where nothing says another one.";
    /// of an S3-compatible server, such as http://minio:9000
    Node "KEYDB_STORAGE_ENDPOINT" storage_endpoint: Option<String> = None, storage::endpoint, if_set,
        "The URL of a server that speaks S3, such as `http://minio:9000`. Without it: Amazon's.";
    /// without these two, the credentials of the environment are used, as other AWS programs do
    Node "KEYDB_STORAGE_ACCESSKEYID" storage_accesskeyid: Option<String> = None, storage::word, if_set,
        "The id of the access key. Without both parts of the key, the AWS credentials of the environment are used: variables, profile, or the machine's role.";
    /// its secret
    Node "KEYDB_STORAGE_ACCESSKEY" storage_accesskey: Option<Secret> = None, storage::secret, if_set,
        "The secret part of the access key. It is never shown.";
    Node "KEYDB_INIT" init: bool = false, parse::truth, ToString::to_string,
        "`true`: node 0 creates the cluster at its start, if there is none.";
    Node "KEYDB_DURABILITY" durability: Durability = Durability::Journal, parse::durability, ToString::to_string,
        "What a new cluster survives. `journal`: nothing acknowledged is lost. `snapshot`: a crash loses what came since the last snapshot. `memory`: nothing is kept. It stays as it is.";
    /// journal and snapshots of this node (./keydb-data)
    Node "KEYDB_DATA_DIR" data_dir: PathBuf = PathBuf::from("keydb-data"), parse::directory,
        |dir| dir.display().to_string(),
        "The node's own directory, for its journal and snapshot files.";
    // Shorter and a node does little else; longer and the journal grows without need.
    /// 1s to 24h (60s)
    Node "KEYDB_SNAPSHOT_INTERVAL" snapshot_interval: Duration = MINUTE,
        parse::bounded(Duration::from_secs(1)..=DAY), duration_text,
        "How often changes go to snapshot files and object storage, `1s` to `24h`.";
    /// how often the cluster map in object storage is looked at, 100ms to 1h (1s)
    Node "KEYDB_MAP_POLL_INTERVAL" map_poll_interval: Duration = Duration::from_secs(1),
        parse::bounded(Duration::from_millis(100)..=HOUR), duration_text,
        "How often the cluster map in object storage is looked at, `100ms` to `1h`. Of a changed map a node also hears from clients.";
    // Less than the least would be taken for a hang where a disk is only slow.
    /// how long the disk may not answer before the process ends, 10s to 24h (60s)
    Node "KEYDB_DISK_HANG_LIMIT" disk_hang_limit: Duration = MINUTE,
        parse::bounded(Duration::from_secs(10)..=DAY), duration_text,
        "How long the disk may not answer before the process ends, `10s` to `24h`. After a sixth of that the node warns.";
    /// of the keys: 8GiB, 70% of the machine or container (0: none)
    Node "KEYDB_MEMORY_LIMIT" memory_limit: MemoryLimit = MemoryLimit::None, str::parse::<MemoryLimit>,
        ToString::to_string,
        "How much memory the keys may take: bytes, such as `8GiB`, or a share of what the machine or container has, such as `70%`. `0`: there is no limit.";
    /// at the limit: refuse new keys, or shed those that would expire soonest (refuse)
    Node "KEYDB_MEMORY_POLICY" memory_policy: MemoryPolicy = MemoryPolicy::Refuse, memory::policy, memory::policy_text,
        "What happens to new keys at the limit. `refuse`: they are refused. `shed`: the keys that would expire soonest are forgotten instead.";
    /// remembered answers to claims (64MiB), and KEYDB_ANSWER_MEMORY_AGE (5m)
    Node "KEYDB_ANSWER_MEMORY_BYTES" answer_memory_bytes: usize = Limits::default().answer_memory_bytes, parse::bytes,
        ToString::to_string,
        "How much memory a node spends on remembering what it answered to claims: for claims of 1,000 keys some 50 million keys, which is 30 s at 1.7 million claims a second.";
    Node "KEYDB_ANSWER_MEMORY_AGE" answer_memory_age: Duration = Limits::default().answer_memory_age, parse::duration,
        duration_text,
        "How long such an answer is remembered at most. Within that time a claim can be sent again.";
    /// (65536), and KEYDB_REQUESTS_IN_FLIGHT_MAX (1024)
    Node "KEYDB_REQUEST_KEYS_MAX" request_keys_max: usize = Limits::default().request_keys_max,
        parse::number(1..=REQUEST_KEYS_BOUND), ToString::to_string,
        "How many keys a request of the Rust client, or of another node, may have, 1 to 262144.";
    Node "KEYDB_REQUESTS_IN_FLIGHT_MAX" requests_in_flight_max: usize = Limits::default().requests_in_flight_max,
        parse::number(1..=REQUESTS_IN_FLIGHT_BOUND), ToString::to_string,
        "How many such requests a node works on at a time, 1 to 65536; it refuses more than that, unapplied.";
    /// what moving ranges may take of one core, 1 to 6400 (25), and
    Node "KEYDB_MOVE_CPU_PERCENT" move_cpu_percent: u32 = MoveBudget::default().cpu_percent, parse::number(1..=6400_u32),
        ToString::to_string,
        "How much of one core moving hash ranges and copying backups may take, in per cent, 1 to 6400.";
    /// how much of them a second, 1MiB or more (32MiB)
    Node "KEYDB_MOVE_BYTES_PER_SECOND" move_bytes_per_second: u64 = MoveBudget::default().bytes_per_second,
        parse::bytes_from(1 << 20), ToString::to_string,
        "How many bytes of keys a second they may take, `1MiB` or more.";
    Operator "KEYDB_OPERATOR_PORT" operator_port: u16 = OPERATOR_PORT_DEFAULT, parse::port, ToString::to_string,
        "Where an operator listens for HTTP.";
    Client "KEYDB_NAMESPACE" namespace: Option<Namespace> = None, parse::namespace, |_| String::new(),
        "The key space of client commands. Without it: the one that has no name.";
    /// (info)
    Both "KEYDB_LOG" log: Option<String> = None, parse::log_filter,
        |log| log.clone().unwrap_or_else(|| "info".to_owned()),
        "What is logged to standard error: `error`, `warn`, `info`, `debug`, `trace`, or by part, such as `keydb_node=debug,info`.";
    /// text, or json for an object a line (text)
    Both "KEYDB_LOG_FORMAT" log_format: LogFormat = LogFormat::Text, parse::log_format, ToString::to_string,
        "How it is logged: `text`, or `json` for an object a line.";
    /// where spans go, by OTLP over gRPC, such as http://localhost:4317 (none); and of calls without a trace of
    Both "KEYDB_TRACES_ENDPOINT" traces_endpoint: Option<String> = None, parse::traces_endpoint, if_set,
        "An OpenTelemetry collector that takes [traces](operations.md#what-to-look-at) by OTLP over gRPC, such as `http://localhost:4317`. Without it none are made.";
    /// their own, one in so many is traced (1)
    Both "KEYDB_TRACES_ONE_IN" traces_one_in: u64 = 1, parse::number(1..=1_000_000_000_u64), ToString::to_string,
        "Of calls that have no trace of their own, one in so many is traced, 1 to 1000000000.";
}

/// What is known of a setting before it is read.
pub(super) struct Declared {
    /// The variable.
    pub(super) name: &'static str,
    /// Who goes by it.
    pub(super) reader: Reader,
    /// What `keydb node --help` says; empty where that speaks of it elsewhere.
    pub(super) help: &'static str,
    /// What the reference says.
    #[cfg(test)]
    pub(super) about: &'static str,
    /// The default, as it is shown.
    #[cfg(test)]
    pub(super) default: fn() -> String,
}

#[cfg(test)]
fn shown<T>(value: &T, show: impl FnOnce(&T) -> String) -> String {
    show(value)
}

/// Who goes by a setting.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Nodes, and commands that work on a cluster's storage.
    Node,
    /// Clients of a cluster.
    Client,
    /// Operators.
    Operator,
    /// Whoever listens: nodes and operators.
    Server,
    /// All of them.
    Both,
}

impl Declared {
    pub(super) fn is_read_by(&self, reader: Reader) -> bool {
        let serves = matches!(reader, Reader::Node | Reader::Operator);
        self.reader == reader
            || self.reader == Reader::Both
            || (self.reader == Reader::Server && serves)
    }
}

/// A value, and whether the environment gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    /// The value in force.
    pub(crate) value: T,
    /// Whether it was set, rather than being the default.
    pub(crate) given: bool,
}

impl<T> Setting<T> {
    /// What was given, or, without that or where that is `wrong`, the default.
    fn read<V: Into<T>>(
        given: Option<String>,
        default: T,
        parse: impl FnOnce(&str) -> Result<V, String>,
        wrong: impl FnOnce(&str, String),
    ) -> Self {
        let parsed = given
            .as_deref()
            .map(|text| parse(text).map_err(|problem| wrong(text, problem)));
        Self {
            given: given.is_some(),
            value: parsed.and_then(Result::ok).map_or(default, Into::into),
        }
    }

    fn effective(&self, name: &'static str, show: impl FnOnce(&T) -> String) -> Effective {
        Effective {
            name,
            value: show(&self.value),
            given: self.given,
        }
    }
}

/// One setting as it is in force.
#[derive(Debug, Serialize)]
pub(crate) struct Effective {
    /// The variable.
    pub(crate) name: &'static str,
    /// Its value, without secrets; empty for one that is not set and has no default.
    pub(crate) value: String,
    /// Whether the environment gave it.
    pub(crate) given: bool,
}

/// The settings of a node, one a line, for `keydb node --help`.
pub(crate) fn help() -> String {
    let lines = DECLARED.iter().filter(|declared| !declared.help.is_empty());
    lines
        .map(|declared| format!("  {:<29}{}\n", declared.name, declared.help))
        .collect()
}

/// A value that may not be there, as it is shown.
fn if_set(value: &Option<impl ToString>) -> String {
    value.as_ref().map(ToString::to_string).unwrap_or_default()
}
