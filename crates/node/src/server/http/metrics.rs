//! The node's metrics, for Prometheus.

use keydb_core::{
    hex,
    metrics::{MetricsText, registry},
};
use keydb_proto::shard::{DiskStatus, RangeState};

use super::StatusSnapshot;
use crate::disk::DiskCounters;

/// Writes everything that is measured.
pub(super) fn write(out: &mut MetricsText, status: &StatusSnapshot) {
    process(out, status);
    ranges(out, status);
    memory(out, status);
    requests(out, status);
    if let (Some(disk), Some(counters)) = (&status.reply.disk, &status.disk) {
        let header = status.reply.header.as_ref();
        let now_ms = header.map_or(0, |header| header.node_time_unix_ms);
        self::disk(out, disk, counters, status.reply.started_unix_ms, now_ms);
    }
    status.storage_calls.write(out);
    let mut samples = out.begin(&registry::MOVES);
    samples.add(&[&"in"], status.moves.come);
    samples.add(&[&"out"], status.moves.gone);
    out.value(&registry::COPIED_BYTES, status.copied_bytes);
}

fn process(out: &mut MetricsText, status: &StatusSnapshot) {
    let reply = &status.reply;
    out.begin(&registry::BUILD_INFO)
        .add(&[&env!("CARGO_PKG_VERSION")], 1);
    out.value(
        &registry::START_TIME_SECONDS,
        seconds(reply.started_unix_ms),
    );
    out.value(
        &registry::PROCESS_RESIDENT_MEMORY_BYTES,
        reply.process_bytes,
    );
    out.value(&registry::WARNINGS, reply.warnings.len());
    let header = reply.header.clone().unwrap_or_default();
    out.begin(&registry::NODE_INFO).add(
        &[
            &header.node_id,
            &hex(&reply.cluster_id),
            &reply.durability,
            &hex(&header.incarnation),
        ],
        1,
    );
    let is_serving = status.not_serving.is_none();
    out.value(&registry::SERVING, u8::from(is_serving));
    out.value(&registry::STOPPING, u8::from(status.stopping));
    out.value(&registry::MAP_LINEAGE, header.lineage);
    out.value(&registry::MAP_EPOCH, header.epoch);
}

/// The states of hash ranges, as metrics name them.
const STATES: [(RangeState, &str); 6] = [
    (RangeState::Ready, "ready"),
    (RangeState::Loading, "loading"),
    (RangeState::Closed, "closed"),
    (RangeState::Arriving, "arriving"),
    (RangeState::Secured, "secured"),
    (RangeState::HandedOver, "handed_over"),
];

/// By state: one series a range would be thousands.
fn ranges(out: &mut MetricsText, status: &StatusSnapshot) {
    let ranges = || status.reply.ranges.iter().zip(&status.range_bytes);
    let sums = STATES.map(|(state, name)| {
        let in_state = ranges().filter(|(range, _)| range.state() == state);
        let sum = in_state.fold((0_u64, 0, 0), |sum, (range, bytes)| {
            (sum.0 + 1, sum.1 + range.keys, sum.2 + bytes)
        });
        (name, sum)
    });
    let mut samples = out.begin(&registry::HASH_RANGES);
    for (name, (ranges, _, _)) in sums {
        samples.add(&[&name], ranges);
    }
    let mut samples = out.begin(&registry::HASH_RANGE_KEYS);
    for (name, (_, keys, _)) in sums {
        samples.add(&[&name], keys);
    }
    let mut samples = out.begin(&registry::HASH_RANGE_KEY_BYTES);
    for (name, (_, _, bytes)) in sums {
        samples.add(&[&name], bytes);
    }
}

fn memory(out: &mut MetricsText, status: &StatusSnapshot) {
    let reply = &status.reply;
    out.value(&registry::KEYS, reply.keys);
    out.value(&registry::KEY_MEMORY_BYTES, reply.key_bytes);
    out.value(&registry::MEMORY_LIMIT_BYTES, reply.memory_limit_bytes);
    out.value(&registry::SHED_KEYS, reply.shed_keys);
    out.value(&registry::ANSWER_MEMORY_BYTES, reply.answer_bytes);
    out.value(&registry::ANSWER_OPERATIONS, reply.answer_operations);
}

fn requests(out: &mut MetricsText, status: &StatusSnapshot) {
    let in_flight = status.reply.requests_in_flight;
    out.value(&registry::REQUESTS_IN_FLIGHT, in_flight);
    let counters = &status.request_counters;
    let mut samples = out.begin(&registry::REQUESTS);
    for (operation, requests, _) in counters.operations() {
        samples.add(&[&operation.name()], requests);
    }
    let mut samples = out.begin(&registry::REQUEST_KEYS);
    for (operation, _, keys) in counters.operations() {
        samples.add(&[&operation.name()], keys);
    }
    let mut samples = out.begin(&registry::ANSWERS);
    for (operation, answer, count) in counters.answers() {
        samples.add(&[&operation.name(), &answer], count);
    }
    let mut samples = out.begin(&registry::REQUEST_DURATION_SECONDS);
    for (operation, durations) in counters.durations() {
        samples.add_durations(&[&operation.name()], &durations);
    }
    let mut samples = out.begin(&registry::REFUSALS);
    for (reason, count) in counters.refused() {
        samples.add(&[&reason], count);
    }
    let mut samples = out.begin(&registry::RANGE_REFUSALS);
    for (reason, count) in counters.refused_ranges() {
        samples.add(&[&reason], count);
    }
}

fn disk(
    out: &mut MetricsText,
    disk: &DiskStatus,
    counters: &DiskCounters,
    started_ms: u64,
    now_ms: u64,
) {
    // Until something is there, its age counts from the node's start.
    let age = |complete_to_ms: u64| {
        let from = match complete_to_ms {
            0 => started_ms,
            complete_to_ms => complete_to_ms,
        };
        seconds(now_ms.saturating_sub(from))
    };
    let mut samples = out.begin(&registry::LSN);
    for (stage, lsn) in [
        ("appended", disk.lsn),
        ("synced", disk.synced_lsn),
        ("local", disk.local_lsn),
        ("uploaded", disk.uploaded_lsn),
    ] {
        samples.add(&[&stage], lsn);
    }
    out.begin(&registry::JOURNAL_SYNC_DURATION_SECONDS)
        .add_durations(&[], &counters.journal_syncs);
    out.value(&registry::JOURNAL_BYTES, disk.journal_bytes);
    out.value(&registry::DISK_FULL, u8::from(disk.full));
    let uploaded_to = disk.uploaded_complete_to_unix_ms;
    out.value(&registry::SNAPSHOT_AGE_SECONDS, age(uploaded_to));
    let local_to = disk.local_complete_to_unix_ms;
    out.value(&registry::LOCAL_SNAPSHOT_AGE_SECONDS, age(local_to));
    out.value(&registry::SNAPSHOT_BYTES, disk.snapshot_bytes);
    let snapshots = &counters.snapshots;
    out.value(&registry::SNAPSHOT_UPLOADED_OBJECTS, snapshots.objects);
    out.value(&registry::SNAPSHOT_UPLOADED_BYTES, snapshots.object_bytes);
    let mut samples = out.begin(&registry::SNAPSHOT_FAILURES);
    samples.add(&[&"local"], snapshots.rounds_failed);
    samples.add(&[&"uploaded"], snapshots.uploads_failed);
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
