//! How long a large cluster takes to publish a scaling operation when every node writes the cluster map itself, and what it asks of
//! object storage meanwhile.
//!
//! `cargo bench -p keydb-storage --bench map_writers -- [--nodes N] [--to N] [--ranges N] [--get-ms N] [--put-ms N]`
//!
//! The new nodes write as real ones do, at most once a second each: they register, publish what they have, eight ranges at first, and
//! take `from` out of what they published the second before. Storage answers after fixed times, and time is simulated; what the
//! writers take of a processor is not counted.
#![expect(
    clippy::print_stdout,
    reason = "a benchmark's result is what it prints"
)]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::{
    convert::Infallible,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use keydb_core::{
    ClusterMap, CopyId, Durability, Incarnation, ManualClock, NewCluster, NodeId, OperationId,
    UnixMillis,
    moving::{Assignment, Change},
    random,
    scaling::{Member, hand_over, plan_scale},
};
use keydb_storage::{
    ListPage, MapStore, MemoryStorage, Object, ObjectInfo, ObjectStorage, ObjectStream, Put,
    StorageError, Version,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
/// So many ranges a node has copied when it publishes for the first time, and so many more each second.
const RANGES_A_SECOND: usize = 8;
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Prices of Amazon S3 Standard in us-east-1, 2026: dollars for a thousand requests.
const GET_PRICE: f64 = 0.0004;
const PUT_PRICE: f64 = 0.005;

fn number_of(name: &str, otherwise: u32) -> u32 {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == name);
    at.map_or(otherwise, |at| {
        arguments[at + 1].parse().expect("a number follows")
    })
}

fn main() {
    let (nodes, to) = (number_of("--nodes", 1000), number_of("--to", 1100));
    let ranges = number_of("--ranges", 16_384);
    let [get_ms, put_ms] = [number_of("--get-ms", 60), number_of("--put-ms", 100)];
    println!("{nodes} nodes to {to}, {ranges} hash ranges; GET {get_ms} ms, PUT {put_ms} ms\n");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(publish(nodes, to, ranges, get_ms, put_ms));

    // A node looks at the map once a second, and uploads a manifest and one file a minute where keys come.
    let (gets, puts) = (f64::from(nodes) * 3600.0, f64::from(nodes) * 2.0 * 60.0);
    let price = (gets * GET_PRICE + puts * PUT_PRICE) / 1000.0;
    println!(
        "\nsteady state, an hour: {gets:.0} GET (304, without a body), {puts:.0} PUT with one delta a minute a node: {price:.2} dollars"
    );
}

async fn publish(nodes: u32, to: u32, ranges: u32, get_ms: u32, put_ms: u32) {
    let members: Vec<Member> = (0..to).map(member).collect();
    let map = cluster(nodes, ranges);
    let planned = plan_scale(&map, &members, OperationId::random(), NOW).unwrap();
    let moves = planned.moves.len();
    let going = hand_over(&planned.map.unwrap(), None).unwrap().unwrap();
    let storage = Arc::new(Slow {
        inner: MemoryStorage::new(Arc::new(ManualClock::new(NOW))),
        get: Duration::from_millis(get_ms.into()),
        put: Duration::from_millis(put_ms.into()),
        gets: AtomicU64::new(0),
        puts: AtomicU64::new(0),
        conflicts: AtomicU64::new(0),
    });
    let json = going.to_json();
    let put = storage.inner.put_if_absent("cluster-map.json", json.into());
    assert!(matches!(put.await, Ok(Put::Done(_))));
    let begun = Instant::now();
    let mut writers = JoinSet::new();
    for id in nodes..to {
        let store = MapStore::new(Arc::clone(&storage) as Arc<dyn ObjectStorage>);
        writers.spawn(async move {
            // They are not started at the same moment.
            sleep(Duration::from_millis(random::u64() % 1000)).await;
            write_until_done(&store, NodeId(id)).await
        });
    }
    let mut times = Vec::new();
    let mut failed = 0;
    while let Some(done) = writers.join_next().await {
        failed += done.unwrap();
        times.push(begun.elapsed());
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!("{moves} ranges move to {} nodes", to - nodes);
    println!(
        "the first node is done after {:.1} s, half of them after {:.1} s, all after {:.1} s",
        times[0].as_secs_f64(),
        times[times.len() / 2].as_secs_f64(),
        times[times.len() - 1].as_secs_f64()
    );
    println!(
        "{} GET and {} PUT of the map, {} of which came too late; {failed} calls were given up and made again",
        count(&storage.gets),
        count(&storage.puts),
        count(&storage.conflicts)
    );
}

/// Registers a node and publishes its ranges. Returns how often it had to begin a write anew.
async fn write_until_done(store: &MapStore, me: NodeId) -> u64 {
    let mut failed = 0;
    let mut secured = 0;
    loop {
        let began = Instant::now();
        secured += RANGES_A_SECOND;
        let updated = store
            .update(|map| Ok::<_, Infallible>(wanted(map, me, secured)))
            .await;
        match updated {
            Ok(map) if is_done(&map, me) => return failed,
            Ok(_) => {}
            Err(_) => failed += 1,
        }
        sleep(WRITE_INTERVAL.saturating_sub(began.elapsed())).await;
    }
}

/// What a node wants of the map that has copied so many ranges.
fn wanted(map: &ClusterMap, me: NodeId, secured: usize) -> Option<ClusterMap> {
    let mut next = map.successor();
    let entry = next.nodes.iter_mut().find(|node| node.id == me).unwrap();
    if entry.disk_id.is_none() {
        entry.disk_id = Some(Incarnation::random());
        return Some(next);
    }
    let mut changes = 0;
    let mut own = 0;
    for index in 0..map.ranges.len() {
        let stored = Assignment::of(map, index);
        let change = if stored.owner == me && stored.from.is_some() {
            own += 1;
            Change::ClearFrom
        } else if stored.successor == Some(me) {
            own += 1;
            if own > secured {
                continue;
            }
            let copy = CopyId::random();
            Change::Publish { copy }
        } else {
            continue;
        };
        change.apply(me, &stored, &mut next.ranges[index]);
        changes += 1;
    }
    (changes > 0).then_some(next)
}

fn is_done(map: &ClusterMap, me: NodeId) -> bool {
    let is_open = |index: usize| {
        let stored = Assignment::of(map, index);
        stored.successor == Some(me) || stored.owner == me && stored.from.is_some()
    };
    let is_member = map
        .nodes
        .iter()
        .any(|it| it.id == me && it.disk_id.is_some());
    is_member && !(0..map.ranges.len()).any(is_open)
}

fn member(id: u32) -> Member {
    Member {
        id: NodeId(id),
        address: format!("keydb-{id}.keydb.default.svc.cluster.local:50051"),
        zone: String::new(),
    }
}

fn cluster(nodes: u32, ranges: u32) -> ClusterMap {
    let mut map = ClusterMap::create(&NewCluster {
        addresses: (0..nodes).map(|id| member(id).address).collect(),
        range_count: ranges,
        durability: Durability::Journal,
    })
    .unwrap();
    for node in &mut map.nodes {
        node.disk_id = Some(Incarnation::random());
    }
    map
}

/// Storage that answers after fixed times.
#[derive(Debug)]
struct Slow {
    inner: MemoryStorage,
    get: Duration,
    put: Duration,
    gets: AtomicU64,
    puts: AtomicU64,
    conflicts: AtomicU64,
}

#[async_trait]
impl ObjectStorage for Slow {
    async fn get(&self, key: &str) -> Result<Option<Object>, StorageError> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        let found = self.inner.get(key).await;
        sleep(self.get).await;
        found
    }

    async fn put_if_match(
        &self,
        key: &str,
        bytes: Bytes,
        version: &Version,
    ) -> Result<Put, StorageError> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        sleep(self.put).await;
        let put = self.inner.put_if_match(key, bytes, version).await;
        if matches!(put, Ok(Put::Conflict)) {
            self.conflicts.fetch_add(1, Ordering::Relaxed);
        }
        put
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, StorageError> {
        self.inner.put_if_absent(key, bytes).await
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<Put, StorageError> {
        self.inner.put_file(key, file).await
    }

    async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError> {
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, StorageError> {
        self.inner.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.inner.delete(key).await
    }

    async fn now(&self) -> Result<UnixMillis, StorageError> {
        self.inner.now().await
    }
}
