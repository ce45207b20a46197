//! Probes and metrics over real sockets.

use std::{net::SocketAddr, sync::Mutex};

use keydb_proto::shard::{ClaimReply, DiskStatus, RangeStatus, ReplyHeader};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use super::*;

/// A server whose status a test sets.
struct Probed {
    address: SocketAddr,
    status: Arc<Mutex<Stand>>,
    request_counters: Arc<RequestCounters>,
    stop: CancellationToken,
    ended: JoinHandle<()>,
}

#[derive(Default, Clone)]
struct Stand {
    states: Vec<RangeState>,
    disk: Option<DiskStatus>,
    not_serving: Option<String>,
    stopping: bool,
}

const NOW_MS: u64 = 1_700_000_100_000;
const STARTED_MS: u64 = 1_700_000_000_000;

impl Probed {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let status = Arc::new(Mutex::new(Stand::default()));
        let request_counters = Arc::new(RequestCounters::default());
        let stop = CancellationToken::new();
        let (stand, counts) = (Arc::clone(&status), Arc::clone(&request_counters));
        let now = move || {
            let stand = stand.lock().unwrap().clone();
            StatusSnapshot {
                reply: reply(&stand),
                not_serving: stand.not_serving,
                stopping: stand.stopping,
                disk_hangs: false,
                range_bytes: vec![100; stand.states.len()],
                request_counters: Arc::clone(&counts),
                storage_calls: Arc::default(),
                disk: stand.disk.as_ref().map(|_| DiskCounters::default()),
                moves: MoveCounts { come: 1, gone: 0 },
                copied_bytes: 5,
            }
        };
        let ended = tokio::spawn(serve(
            (listener, ListenerSecurity::default()),
            now,
            Guests::default(),
            stop.clone(),
        ));
        Self {
            address,
            status,
            request_counters,
            stop,
            ended,
        }
    }

    fn set(&self, change: impl FnOnce(&mut Stand)) {
        change(&mut self.status.lock().unwrap());
    }

    /// Code and body.
    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        (code, body.to_owned())
    }
}

fn reply(stand: &Stand) -> NodeStatusReply {
    let ranges = stand.states.iter().map(|state| RangeStatus {
        state: (*state).into(),
        ..RangeStatus::default()
    });
    NodeStatusReply {
        header: Some(ReplyHeader {
            node_id: 3,
            incarnation: vec![0xab; 16].into(),
            lineage: 1,
            epoch: 9,
            node_time_unix_ms: NOW_MS,
        }),
        durability: "journal".to_owned(),
        started_unix_ms: STARTED_MS,
        keys: 12,
        shed_keys: 4,
        ranges: ranges.collect(),
        disk: stand.disk.clone(),
        ..NodeStatusReply::default()
    }
}

#[tokio::test]
async fn a_node_that_is_not_registered_lives_and_has_not_started() {
    let probed = Probed::start().await;
    probed.set(|stand| stand.not_serving = Some("there is no map".to_owned()));
    assert_eq!(probed.get("/live").await.0, 200);
    for path in ["/startup", "/ready"] {
        let (code, body) = probed.get(path).await;
        assert_eq!(code, 503, "{path}");
        assert!(body.contains("there is no map"), "{body}");
    }
    assert_eq!(probed.get("/metrics").await.0, 200);
    assert_eq!(probed.get("/other").await.0, 404);
}

#[tokio::test]
async fn loading_ranges_delay_the_start_and_closed_ones_do_not() {
    let probed = Probed::start().await;
    let (ready, loading, closed) = (RangeState::Ready, RangeState::Loading, RangeState::Closed);
    probed.set(|stand| stand.states = vec![ready, loading, closed]);
    for path in ["/startup", "/ready"] {
        let (code, body) = probed.get(path).await;
        assert_eq!(code, 503, "{path}");
        assert!(
            body.contains("1 of 3 hash ranges are still being loaded"),
            "{body}"
        );
    }
    probed.set(|stand| stand.states = vec![ready, ready, closed]);
    for path in ["/startup", "/ready"] {
        let (code, body) = probed.get(path).await;
        assert_eq!(code, 200, "{path}");
        assert!(body.contains("1 of 3 hash ranges are closed"), "{body}");
    }
}

#[tokio::test]
async fn a_stopping_node_is_not_ready_and_has_started() {
    let probed = Probed::start().await;
    probed.set(|stand| stand.stopping = true);
    assert_eq!(probed.get("/ready").await.0, 503);
    assert_eq!(probed.get("/startup").await.0, 200);
    assert_eq!(probed.get("/live").await.0, 200);
}

#[tokio::test]
async fn metrics_are_the_status_in_prometheus_text() {
    let probed = Probed::start().await;
    probed.set(|stand| {
        stand.states = vec![RangeState::Ready, RangeState::Ready, RangeState::Closed];
        stand.disk = Some(DiskStatus {
            lsn: 20,
            uploaded_lsn: 11,
            uploaded_complete_to_unix_ms: NOW_MS - 14_500,
            journal_bytes: 4096,
            full: true,
            ..DiskStatus::default()
        });
    });
    let answered = Ok(ClaimReply {
        first: vec![0b111].into(),
        ..ClaimReply::default()
    });
    probed
        .request_counters
        .count(&[], 1000, Duration::from_millis(3), &answered);
    let (_, text) = probed.get("/metrics").await;
    for line in [
        "keydb_keys 12",
        "keydb_shed_keys_total 4",
        "keydb_serving 1",
        "keydb_map_epoch 9",
        "keydb_hash_ranges{state=\"ready\"} 2",
        "keydb_hash_ranges{state=\"closed\"} 1",
        "keydb_requests_total{operation=\"claim\"} 1",
        "keydb_request_keys_total{operation=\"claim\"} 1000",
        "keydb_requests_total{operation=\"get\"} 0",
        "keydb_answers_total{operation=\"claim\",answer=\"first\"} 3",
        "keydb_answers_total{operation=\"claim\",answer=\"duplicate\"} 997",
        "keydb_request_duration_seconds_count{operation=\"claim\"} 1",
        "keydb_hash_range_key_bytes{state=\"ready\"} 200",
        "keydb_moves_total{direction=\"in\"} 1",
        "keydb_copied_bytes_total 5",
        "keydb_journal_sync_duration_seconds_count 0",
        "keydb_snapshot_failures_total{stage=\"local\"} 0",
        "keydb_lsn{stage=\"appended\"} 20",
        "keydb_lsn{stage=\"uploaded\"} 11",
        "keydb_snapshot_age_seconds 14.5",
        // Nothing local yet: since the start.
        "keydb_local_snapshot_age_seconds 100",
        "keydb_journal_bytes 4096",
        "keydb_disk_full 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    // Every sample has its type, and no metric is there twice.
    let mut types = std::collections::BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(types.insert(rest.split(' ').next().unwrap()), "{line}");
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let of_histogram = ["_bucket", "_sum", "_count"].map(|it| name.strip_suffix(it));
            let is_known = |name| types.contains(name);
            let is_described = is_known(name) || of_histogram.into_iter().flatten().any(is_known);
            assert!(is_described, "{line}");
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}

#[tokio::test]
async fn a_node_without_a_disk_has_no_metrics_of_one() {
    let probed = Probed::start().await;
    let (_, text) = probed.get("/metrics").await;
    assert!(
        !text.contains("keydb_lsn") && !text.contains("snapshot"),
        "{text}"
    );
}

#[tokio::test]
async fn a_connection_that_never_finishes_its_request_does_not_hold_up_the_end() {
    let probed = Probed::start().await;
    let mut stream = TcpStream::connect(probed.address).await.unwrap();
    stream.write_all(b"GET /live HTTP/1.1\r\n").await.unwrap();
    assert_eq!(probed.get("/live").await.0, 200);
    probed.stop.cancel();
    probed.ended.await.unwrap();
}
