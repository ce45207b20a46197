//! The settings in force, for `keydb node --check`.

use serde::Serialize;

use super::{Settings, duration_text, parse::without_secrets};

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
                "KEYDB_TOTAL_HASH_RANGES",
                self.range_count.value.to_string(),
                self.range_count.given,
            ),
            setting(
                "KEYDB_STORAGE_URL",
                without_secrets(&self.storage.value.to_string()),
                self.storage.given,
            ),
            setting("KEYDB_INIT", self.init.value.to_string(), self.init.given),
            setting(
                "KEYDB_DURABILITY",
                self.durability.value.to_string(),
                self.durability.given,
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
