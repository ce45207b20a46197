//! The node's metrics, for Prometheus.

use keydb_core::{MetricsText, hex};
use keydb_proto::shard::{DiskStatus, RangeState};

use super::StatusSnapshot;

/// Everything that is measured.
pub(super) fn text(status: &StatusSnapshot) -> String {
    let mut out = MetricsText::default();
    let reply = &status.reply;
    let header = reply.header.clone().unwrap_or_default();
    out.metric("keydb_build_info", "gauge", "Which build runs.");
    out.sample(&[("version", &env!("CARGO_PKG_VERSION"))], 1);
    out.metric(
        "keydb_node_info",
        "gauge",
        "Which node of which cluster this is.",
    );
    out.sample(
        &[
            ("node", &header.node_id),
            ("cluster", &hex(&reply.cluster_id)),
            ("durability", &reply.durability),
            ("incarnation", &hex(&header.incarnation)),
        ],
        1,
    );
    out.gauge(
        "keydb_start_time_seconds",
        "When the node was started, in seconds since the Unix epoch.",
        seconds(reply.started_unix_ms),
    );
    out.gauge(
        "keydb_serving",
        "Whether the node is registered in the cluster map and answers for its hash ranges.",
        u8::from(status.not_serving.is_none()),
    );
    out.gauge(
        "keydb_stopping",
        "Whether the node is on its way down.",
        u8::from(status.stopping),
    );
    out.gauge(
        "keydb_map_lineage",
        "The lineage of the cluster map in force.",
        header.lineage,
    );
    out.gauge(
        "keydb_map_epoch",
        "The epoch of the cluster map in force.",
        header.epoch,
    );
    out.gauge(
        "keydb_warnings",
        "How many things the node warns of; keydb status shows them.",
        reply.warnings.len(),
    );
    out.metric(
        "keydb_hash_ranges",
        "gauge",
        "Hash ranges that are here, by state. Those that arrive are not answered for yet, those that were handed over not any more.",
    );
    for (state, name) in [
        (RangeState::Ready, "ready"),
        (RangeState::Loading, "loading"),
        (RangeState::Closed, "closed"),
        (RangeState::Arriving, "arriving"),
        (RangeState::Secured, "secured"),
        (RangeState::HandedOver, "handed_over"),
    ] {
        out.sample(&[("state", &name)], status.ranges(state));
    }
    memory(&mut out, status);
    request_counters(&mut out, status);
    if let Some(disk) = &reply.disk {
        let now_ms = header.node_time_unix_ms;
        self::disk(&mut out, disk, reply.started_unix_ms, now_ms);
    }
    out.into_text()
}

fn memory(out: &mut MetricsText, status: &StatusSnapshot) {
    let reply = &status.reply;
    out.gauge(
        "keydb_keys",
        "Keys held, those that have expired but are not reclaimed yet included.",
        reply.keys,
    );
    out.gauge(
        "keydb_key_memory_bytes",
        "Bytes that the keys take from the system.",
        reply.key_bytes,
    );
    out.gauge(
        "keydb_memory_limit_bytes",
        "The limit on the keys' memory; 0 when there is none.",
        reply.memory_limit_bytes,
    );
    out.counter(
        "keydb_shed_keys_total",
        "Keys that were dropped before their time because of the memory limit: each is a loss.",
        reply.shed_keys,
    );
    out.gauge(
        "keydb_process_resident_memory_bytes",
        "Bytes resident of the whole process.",
        reply.process_bytes,
    );
    out.gauge(
        "keydb_answer_memory_bytes",
        "Bytes that the memory of recent claims' answers takes.",
        reply.answer_bytes,
    );
    out.gauge(
        "keydb_answer_operations",
        "Recent claims whose answers are remembered.",
        reply.answer_operations,
    );
}

fn request_counters(out: &mut MetricsText, status: &StatusSnapshot) {
    let request_counters = &status.request_counters;
    out.gauge(
        "keydb_requests_in_flight",
        "Requests for keys that are being worked on.",
        status.reply.requests_in_flight,
    );
    out.metric(
        "keydb_requests_total",
        "counter",
        "Requests for keys, refused ones included.",
    );
    for (operation, requests, _) in request_counters.operations() {
        out.sample(&[("operation", &operation.name())], requests);
    }
    out.metric(
        "keydb_request_keys_total",
        "counter",
        "Keys in requests, refused ones included.",
    );
    for (operation, _, keys) in request_counters.operations() {
        out.sample(&[("operation", &operation.name())], keys);
    }
    out.metric(
        "keydb_refusals_total",
        "counter",
        "Requests that were refused as a whole, by reason.",
    );
    for (reason, count) in request_counters.refused() {
        out.sample(&[("reason", &reason)], count);
    }
    out.metric(
        "keydb_range_refusals_total",
        "counter",
        "Hash ranges of requests that were refused while others may have been answered, by reason.",
    );
    for (reason, count) in request_counters.refused_ranges() {
        out.sample(&[("reason", &reason)], count);
    }
}

fn disk(out: &mut MetricsText, disk: &DiskStatus, started_ms: u64, now_ms: u64) {
    // Until something is there, its age counts from the node's start.
    let age = |complete_to_ms: u64| {
        let from = if complete_to_ms == 0 {
            started_ms
        } else {
            complete_to_ms
        };
        seconds(now_ms.saturating_sub(from))
    };
    out.metric(
        "keydb_lsn",
        "gauge",
        "The last write, the last one synced to the journal, in local snapshot files, and in object storage.",
    );
    for (stage, lsn) in [
        ("appended", disk.lsn),
        ("synced", disk.synced_lsn),
        ("local", disk.local_lsn),
        ("uploaded", disk.uploaded_lsn),
    ] {
        out.sample(&[("stage", &stage)], lsn);
    }
    out.gauge(
        "keydb_snapshot_age_seconds",
        "Age of what object storage has: what was acknowledged earlier is there. Without anything there, since the start.",
        age(disk.uploaded_complete_to_unix_ms),
    );
    out.gauge(
        "keydb_local_snapshot_age_seconds",
        "The same of the local snapshot files.",
        age(disk.local_complete_to_unix_ms),
    );
    out.gauge(
        "keydb_journal_bytes",
        "Bytes of the journal's files.",
        disk.journal_bytes,
    );
    out.gauge(
        "keydb_snapshot_bytes",
        "Bytes of the local snapshot files.",
        disk.snapshot_bytes,
    );
    out.gauge(
        "keydb_disk_full",
        "Whether the disk has no room for the journal, so that writes are refused.",
        u8::from(disk.full),
    );
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
