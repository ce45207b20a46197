//! The settings in force, for `keydb node --check`.

use serde::Serialize;

use super::{Settings, duration_text, memory::policy_text};

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

impl Settings {
    /// Every setting as it is in force, secrets hidden.
    pub(crate) fn effective(&self) -> Vec<Effective> {
        let optional = |name, value: Option<String>| Effective {
            name,
            given: value.is_some(),
            value: value.unwrap_or_default(),
        };
        let setting = |name, value: String, given| Effective { name, value, given };
        let limit = |name, value: String| Effective {
            name,
            value,
            given: self.limits_given.contains(&name),
        };
        let limits = &self.limits;
        let storage = &self.storage;
        let key = storage.s3.access_key.as_ref();
        vec![
            optional("KEYDB_NODE_ID", self.node_id.map(|id| id.to_string())),
            optional(
                "KEYDB_NODE_ADDRESSES",
                self.addresses.as_ref().map(|list| list.join(",")),
            ),
            optional(
                "KEYDB_CLUSTER_SIZE",
                self.cluster_size.map(|size| size.to_string()),
            ),
            setting("KEYDB_PORT", self.port.value.to_string(), self.port.given),
            setting(
                "KEYDB_HTTP_PORT",
                self.http_port
                    .value
                    .map_or_else(|| "off".to_owned(), |port| port.to_string()),
                self.http_port.given,
            ),
            setting(
                "KEYDB_TOTAL_HASH_RANGES",
                self.range_count.value.to_string(),
                self.range_count.given,
            ),
            setting(
                "KEYDB_STORAGE_URL",
                self.storage.text(),
                self.storage.url.given,
            ),
            optional("KEYDB_STORAGE_BUCKET", storage.bucket.clone()),
            optional("KEYDB_STORAGE_REGION", storage.s3.region.clone()),
            optional("KEYDB_STORAGE_ENDPOINT", storage.s3.endpoint.clone()),
            optional("KEYDB_STORAGE_ACCESSKEYID", key.map(|(id, _)| id.clone())),
            optional("KEYDB_STORAGE_ACCESSKEY", key.map(|_| "(set)".to_owned())),
            setting("KEYDB_INIT", self.init.value.to_string(), self.init.given),
            setting(
                "KEYDB_DURABILITY",
                self.durability.value.to_string(),
                self.durability.given,
            ),
            setting(
                "KEYDB_DATA_DIR",
                self.data_dir.value.display().to_string(),
                self.data_dir.given,
            ),
            setting(
                "KEYDB_SNAPSHOT_INTERVAL",
                duration_text(self.snapshot_interval.value),
                self.snapshot_interval.given,
            ),
            setting(
                "KEYDB_MAP_POLL_INTERVAL",
                duration_text(self.map_poll_interval.value),
                self.map_poll_interval.given,
            ),
            setting(
                "KEYDB_DISK_HANG_LIMIT",
                duration_text(self.disk_hang_limit.value),
                self.disk_hang_limit.given,
            ),
            setting(
                "KEYDB_MEMORY_LIMIT",
                self.memory_limit.value.to_string(),
                self.memory_limit.given,
            ),
            setting(
                "KEYDB_MEMORY_POLICY",
                policy_text(self.memory_policy.value).to_owned(),
                self.memory_policy.given,
            ),
            limit(
                "KEYDB_ANSWER_MEMORY_BYTES",
                limits.answer_memory_bytes.to_string(),
            ),
            limit(
                "KEYDB_ANSWER_MEMORY_AGE",
                duration_text(limits.answer_memory_age),
            ),
            limit(
                "KEYDB_REQUEST_KEYS_MAX",
                limits.request_keys_max.to_string(),
            ),
            limit(
                "KEYDB_REQUESTS_IN_FLIGHT_MAX",
                limits.requests_in_flight_max.to_string(),
            ),
            setting(
                "KEYDB_LOG",
                self.log.clone().unwrap_or_else(|| "info".to_owned()),
                self.log.is_some(),
            ),
        ]
    }
}
