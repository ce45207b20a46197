//! Every series.

use super::series::{Kind, Label, Section, Series, Source};

const OPERATION: Label = Label {
    name: "operation",
    values: "`get`, `put`, `claim`",
};
const ANSWER: Label = Label {
    name: "answer",
    values: "of `get` `present`, `absent`; of `put` `stored`; of `claim` `first`, `duplicate`, `unknown`",
};
const STATE: Label = Label {
    name: "state",
    values: "`ready`, `loading`, `closed`, `arriving`, `secured`, `handed_over`",
};
const CALL: Label = Label {
    name: "call",
    values: "`get`, `get_range`, `put`, `upload`, `head`, `list`, `delete`, `now`",
};
const PROTOCOL: Label = Label {
    name: "protocol",
    values: "`grpc`, `http`, `ndjson`",
};

const fn label(name: &'static str, values: &'static str) -> Label {
    Label { name, values }
}

/// Declares the series of each section, and [`SECTIONS`] with all of them:
///
/// ```text
/// "Title" {
///     /// What its values mean.
///     NAME: Kind "keydb_name" [labels] Source;
/// }
/// ```
macro_rules! series {
    ($( $title:literal {
        $( #[doc = $help:literal] $name:ident: $kind:ident $text:literal [$($label:expr),*] $source:ident; )*
    } )*) => {
        $($(
            #[doc = $help]
            pub const $name: Series = Series {
                name: $text,
                kind: Kind::$kind,
                help: $help.trim_ascii(),
                labels: &[$($label),*],
                source: Source::$source,
            };
        )*)*

        /// All series, in the order in which they are shown.
        pub const SECTIONS: &[Section] = &[$(Section {
            title: $title,
            series: &[$($name),*],
        }),*];
    };
}

series! {
    "The process" {
        /// Which build runs.
        BUILD_INFO: Gauge "keydb_build_info" [label("version", "the release")] Both;
        /// When the process was started, in seconds since the Unix epoch.
        START_TIME_SECONDS: Gauge "keydb_start_time_seconds" [] Node;
        /// Bytes resident of the whole process.
        PROCESS_RESIDENT_MEMORY_BYTES: Gauge "keydb_process_resident_memory_bytes" [] Node;
        /// How many things the node warns of; keydb status shows them.
        WARNINGS: Gauge "keydb_warnings" [] Node;
    }
    "The node and its hash ranges" {
        /// Which node of which cluster this is.
        NODE_INFO: Gauge "keydb_node_info" [
            label("node", "the node's number"), label("cluster", "the cluster's id"),
            label("durability", "`journal`, `snapshot`, `memory`"), label("incarnation", "drawn at each start")
        ] Node;
        /// Whether the node is registered in the cluster map and answers for its hash ranges.
        SERVING: Gauge "keydb_serving" [] Node;
        /// Whether the node is on its way down.
        STOPPING: Gauge "keydb_stopping" [] Node;
        /// The lineage of the cluster map in force.
        MAP_LINEAGE: Gauge "keydb_map_lineage" [] Node;
        /// The epoch of the cluster map in force.
        MAP_EPOCH: Gauge "keydb_map_epoch" [] Node;
        /// Hash ranges that are here, by state. Those that arrive are not answered for yet, those that were handed over not any more.
        HASH_RANGES: Gauge "keydb_hash_ranges" [STATE] Node;
        /// Keys of the hash ranges that are here, by the ranges' state.
        HASH_RANGE_KEYS: Gauge "keydb_hash_range_keys" [STATE] Node;
        /// Bytes that those keys take, without what is kept ready for more.
        HASH_RANGE_KEY_BYTES: Gauge "keydb_hash_range_key_bytes" [STATE] Node;
    }
    "Keys and memory" {
        /// Keys held, those that have expired but are not reclaimed yet included.
        KEYS: Gauge "keydb_keys" [] Node;
        /// Bytes that the keys take from the system.
        KEY_MEMORY_BYTES: Gauge "keydb_key_memory_bytes" [] Node;
        /// The limit on the keys' memory; 0 when there is none.
        MEMORY_LIMIT_BYTES: Gauge "keydb_memory_limit_bytes" [] Node;
        /// Keys that were dropped before their time because of the memory limit: each is a loss.
        SHED_KEYS: Counter "keydb_shed_keys_total" [] Node;
        /// Bytes that the memory of recent claims' answers takes.
        ANSWER_MEMORY_BYTES: Gauge "keydb_answer_memory_bytes" [] Node;
        /// Recent claims whose answers are remembered.
        ANSWER_OPERATIONS: Gauge "keydb_answer_operations" [] Node;
    }
    "Requests to a node (ShardService)" {
        /// Requests for keys that are being worked on.
        REQUESTS_IN_FLIGHT: Gauge "keydb_requests_in_flight" [] Node;
        /// Requests for keys, refused ones included.
        REQUESTS: Counter "keydb_requests_total" [OPERATION] Node;
        /// Keys in requests, refused ones included.
        REQUEST_KEYS: Counter "keydb_request_keys_total" [OPERATION] Node;
        /// Keys that were answered, by answer.
        ANSWERS: Counter "keydb_answers_total" [OPERATION, ANSWER] Node;
        /// How long requests for keys took, refused ones included: from their last byte until their answer was ready.
        REQUEST_DURATION_SECONDS: Histogram "keydb_request_duration_seconds" [OPERATION] Node;
        /// Requests that were refused as a whole, by reason.
        REFUSALS: Counter "keydb_refusals_total" [label("reason", "the codes of the wire's `ErrorCode`, such as `overloaded`, `disk_full`; `other`")] Node;
        /// Hash ranges of requests that were refused while others may have been answered, by reason.
        RANGE_REFUSALS: Counter "keydb_range_refusals_total" [label("reason", "the codes of the wire's `RefusalCode`, such as `not_owner`, `loading`; `other`")] Node;
    }
    "Keys as text (gRPC `keydb.NodeService`, HTTP)" {
        /// Calls for keys as text that have ended, by outcome.
        TEXT_CALLS: Counter "keydb_text_calls_total" [PROTOCOL, OPERATION, label("outcome", "`ok`, `client_error`, `server_error`")] Both;
        /// How long calls for keys as text took, from their first byte until their answer was ready, of ndjson until its last line.
        TEXT_CALL_DURATION_SECONDS: Histogram "keydb_text_call_duration_seconds" [PROTOCOL, OPERATION] Both;
        /// Keys as text that were answered, by answer.
        TEXT_ANSWERS: Counter "keydb_text_answers_total" [OPERATION, ANSWER] Both;
        /// Keys that were passed on for callers, those that were sent again included: to the node itself, or to others.
        FORWARDED_KEYS: Counter "keydb_forwarded_keys_total" [label("to", "`self`, `other`; of an operator only `other`")] Both;
        /// Keys that were passed on once more because an answer did not come or was a refusal.
        FORWARD_RETRIED_KEYS: Counter "keydb_forward_retried_keys_total" [] Both;
    }
    "Journal and snapshots" {
        /// The last write, the last one synced to the journal, in local snapshot files, and in object storage.
        LSN: Gauge "keydb_lsn" [label("stage", "`appended`, `synced`, `local`, `uploaded`")] NodeDisk;
        /// How long syncs of the journal took; each commits all records that waited.
        JOURNAL_SYNC_DURATION_SECONDS: Histogram "keydb_journal_sync_duration_seconds" [] NodeDisk;
        /// Bytes of the journal's files.
        JOURNAL_BYTES: Gauge "keydb_journal_bytes" [] NodeDisk;
        /// Whether the disk has no room for the journal, so that writes are refused.
        DISK_FULL: Gauge "keydb_disk_full" [] NodeDisk;
        /// Age of what object storage has: what was acknowledged earlier is there. Without anything there, since the start.
        SNAPSHOT_AGE_SECONDS: Gauge "keydb_snapshot_age_seconds" [] NodeDisk;
        /// The same of the local snapshot files.
        LOCAL_SNAPSHOT_AGE_SECONDS: Gauge "keydb_local_snapshot_age_seconds" [] NodeDisk;
        /// Bytes of the local snapshot files.
        SNAPSHOT_BYTES: Gauge "keydb_snapshot_bytes" [] NodeDisk;
        /// Objects that snapshots have written to object storage.
        SNAPSHOT_UPLOADED_OBJECTS: Counter "keydb_snapshot_uploaded_objects_total" [] NodeDisk;
        /// Bytes of these.
        SNAPSHOT_UPLOADED_BYTES: Counter "keydb_snapshot_uploaded_bytes_total" [] NodeDisk;
        /// Attempts at a snapshot that failed, and are made again.
        SNAPSHOT_FAILURES: Counter "keydb_snapshot_failures_total" [label("stage", "`local`, `uploaded`")] NodeDisk;
    }
    "Object storage" {
        /// Calls of object storage that have ended, retries within a call not counted. A stream counts when it begins.
        STORAGE_CALLS: Counter "keydb_storage_calls_total" [
            CALL, label("outcome", "`ok`, `conflict`, `unavailable`, `outcome_unknown`, `refused`")
        ] Node;
        /// How long calls of object storage took.
        STORAGE_CALL_DURATION_SECONDS: Histogram "keydb_storage_call_duration_seconds" [CALL] Node;
    }
    "Moving hash ranges" {
        /// Hash ranges that have come to this node from another one, and that have gone from it to another.
        MOVES: Counter "keydb_moves_total" [label("direction", "`in`, `out`")] Node;
        /// Bytes of keys that this node has copied for moves and backups, as far as KEYDB_MOVE_BYTES_PER_SECOND bounds it.
        COPIED_BYTES: Counter "keydb_copied_bytes_total" [] Node;
    }
    "The operator" {
        /// Whether the cluster has been found.
        OPERATOR_READY: Gauge "keydb_operator_ready" [] Operator;
        /// The epoch of the newest cluster map that the operator has heard of; 0 until then.
        OPERATOR_MAP_EPOCH: Gauge "keydb_operator_map_epoch" [] Operator;
        /// Calls that were answered, by path and HTTP status.
        OPERATOR_REQUESTS: Counter "keydb_operator_requests_total" [
            label("path", "a path that there is, such as `/scale`; `other`"), label("status", "the status code")
        ] Operator;
    }
}

/// All series.
pub fn all() -> impl Iterator<Item = &'static Series> {
    SECTIONS.iter().flat_map(|section| section.series)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_by_convention_and_each_is_there_once() {
        let mut names = BTreeSet::new();
        for Series {
            name,
            kind,
            help,
            labels,
            ..
        } in all()
        {
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.starts_with("keydb_"), "{name}");
            let is_counter = *kind == Kind::Counter;
            assert_eq!(name.ends_with("_total"), is_counter, "{name}");
            let is_histogram = *kind == Kind::Histogram;
            assert_eq!(name.ends_with("_duration_seconds"), is_histogram, "{name}");
            assert!(
                help.ends_with('.') && !help.contains('\n'),
                "{name}: {help}"
            );
            let of_labels: BTreeSet<&str> = labels.iter().map(|label| label.name).collect();
            assert_eq!(of_labels.len(), labels.len(), "{name}");
        }
    }
}
