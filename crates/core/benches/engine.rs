//! The key set beside `hashbrown` and beside plain random reads of cache lines, in one run.
//!
//! `cargo bench -p keydb-core --bench engine -- [--keys MILLIONS] [--skip-hashbrown] [--trace]`
//!
//! Keys go in and are looked up in random order, one thread, in batches of 1,000 whose addresses are known ahead, as a node gets
//! them. The random line reads are batched alike and set the scale: they are what the memory does without any data structure.
#![expect(
    clippy::print_stdout,
    reason = "a benchmark's result is what it prints"
)]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use keydb_core::{
    Arena, Bitmap, Expiry, FINGERPRINT_BYTES, Fingerprint, HashRange, KeySet, PackedFingerprints,
    Provisioner, Times, UnixMillis,
};

const BATCH: u64 = 1000;
const MILLION: u64 = 1_000_000;

/// A prime: steps of it visit all keys in an order that looks random.
const STRIDE: u64 = 982_451_653;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let millions = arguments
        .iter()
        .position(|argument| argument == "--keys")
        .map_or(100, |at| {
            arguments[at + 1]
                .parse()
                .expect("--keys takes a number of millions")
        });
    let keys = millions * MILLION;

    let lines = line_read_ns(keys);
    println!("random line read, batched        {lines:7.1} ns");
    let engine = engine(keys, arguments.iter().any(|argument| argument == "--trace"));
    println!("key set at {millions} M keys, per key (and in random line reads):");
    for (name, ns) in [
        ("insert (claim of a new key)", engine.insert_ns),
        ("get, hit", engine.hit_ns),
        ("get, miss", engine.miss_ns),
    ] {
        println!("  {name:<30} {ns:7.1} ns  {:5.2} x", ns / lines);
    }
    println!(
        "  bytes a key, resident, at every million from 10 M on: {:.2} to {:.2}",
        engine.bytes.0, engine.bytes.1
    );
    println!("  {} batches of {BATCH} inserts:", engine.stalls.batches);
    engine.stalls.print();
    println!(
        "    memory that was not ready and had to be waited for: {} chunks of 2 MiB",
        engine.stalls.inline_chunks
    );
    println!("  as many batches that overwrite present keys, where nothing grows or shifts:");
    engine.overwrites.print();
    println!(
        "  as many batches, as long, that only write to random memory (what the machine does by itself):"
    );
    let a_batch = Duration::from_nanos((engine.insert_ns * BATCH as f64) as u64);
    control(keys, a_batch, engine.stalls.batches).print();
    if !arguments
        .iter()
        .any(|argument| argument == "--skip-hashbrown")
    {
        let (insert, hit) = hashbrown_ns(keys);
        println!("hashbrown map of 16-byte entries, per key (key set / hashbrown):");
        println!(
            "  insert                         {insert:7.1} ns  {:5.2} x",
            engine.insert_ns / insert
        );
        println!(
            "  get, hit                       {hit:7.1} ns  {:5.2} x",
            engine.hit_ns / hit
        );
    }
}

/// A well-spread 96-bit number (SplitMix64's finaliser, twice).
fn fingerprint(number: u64) -> Fingerprint {
    let mix = |number: u64| {
        let mut x = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    };
    Fingerprint::from_parts(mix(number + 1), mix(number ^ 0xABCD_EF01) as u32)
}

fn fill(batch: &mut Vec<u8>, numbers: impl Iterator<Item = u64>) {
    batch.clear();
    numbers.for_each(|number| batch.extend(fingerprint(number).to_bytes()));
}

const WORDS_PER_LINE: usize = 8;

/// As much memory as the keys will take.
fn lines(keys: u64) -> Vec<u64> {
    (0..keys * 20 / 8).collect()
}

/// The index of the first word of a random line.
fn random_line(number: u64, words: usize) -> usize {
    let lines = (words / WORDS_PER_LINE) as u128;
    ((u128::from(fingerprint(number).top()) * lines) >> 64) as usize * WORDS_PER_LINE
}

/// Reads one word of random lines.
fn line_read_ns(keys: u64) -> f64 {
    let memory = lines(keys);
    let reads = 20 * MILLION;
    let start = Instant::now();
    let mut sum = 0_u64;
    let mut indexes = Vec::with_capacity(BATCH as usize);
    for batch in 0..reads / BATCH {
        indexes.clear();
        indexes.extend((0..BATCH).map(|at| random_line(batch * BATCH + at, memory.len())));
        // The indexes are independent of what is read, so the processor overlaps the reads by itself.
        sum = indexes
            .iter()
            .fold(sum, |sum, index| sum.wrapping_add(memory[*index]));
    }
    black_box(sum);
    start.elapsed().as_nanos() as f64 / reads as f64
}

struct Engine {
    insert_ns: f64,
    hit_ns: f64,
    miss_ns: f64,
    bytes: (f64, f64),
    stalls: Stalls,
    overwrites: Stalls,
}

fn engine(keys: u64, trace: bool) -> Engine {
    let arena = Arena::new();
    let _provisioner = Provisioner::start(&arena);
    let mut set = KeySet::new(HashRange::ALL, &arena);
    let times = Times::at(NOW);
    let expiry = Expiry::after(NOW, "30d".parse().unwrap()).unwrap();
    let before = resident_bytes();
    let mut batch = Vec::with_capacity(BATCH as usize * FINGERPRINT_BYTES);
    let mut bits = Bitmap::new(BATCH as usize);
    let mut bytes = (f64::INFINITY, 0_f64);
    let mut insert = Duration::ZERO;
    let mut stalls = Stalls::default();
    for million in 0..keys / MILLION {
        let inserted = insert;
        for start in (million * MILLION..(million + 1) * MILLION).step_by(BATCH as usize) {
            fill(&mut batch, start..start + BATCH);
            bits.clear();
            let worked_before = worked();
            let begin = Instant::now();
            set.claim(
                PackedFingerprints::new(&batch).unwrap(),
                expiry,
                times,
                &mut bits,
                0,
            )
            .unwrap();
            let took = begin.elapsed();
            insert += took;
            stalls.add(took, worked() - worked_before, arena.inline_chunks());
            assert_eq!(bits.count(), BATCH as usize);
        }
        let last_million = insert - inserted;
        let held = (million + 1) * MILLION;
        let a_key = (resident_bytes() - before) as f64 / held as f64;
        if million >= 9 {
            bytes = (bytes.0.min(a_key), bytes.1.max(a_key));
        }
        if trace {
            println!(
                "{held:>11} keys: {a_key:.2} bytes, {:.1} ns an insert",
                last_million.as_nanos() as f64 / MILLION as f64
            );
        }
    }
    let mut overwrites = Stalls::default();
    for start in (0..keys).step_by(BATCH as usize) {
        fill(
            &mut batch,
            (start..start + BATCH).map(|at| at.wrapping_mul(STRIDE) % keys),
        );
        let worked_before = worked();
        let begin = Instant::now();
        set.put(PackedFingerprints::new(&batch).unwrap(), expiry, times)
            .unwrap();
        overwrites.add(
            begin.elapsed(),
            worked() - worked_before,
            arena.inline_chunks(),
        );
    }
    let lookups = (keys / 5).min(20 * MILLION);
    let mut get = |first: u64, expected: bool| {
        let mut took = Duration::ZERO;
        for start in (0..lookups).step_by(BATCH as usize) {
            // In another random order than they came in: a stride that is coprime to the number of keys.
            fill(
                &mut batch,
                (start..start + BATCH).map(|at| first + at.wrapping_mul(STRIDE) % keys),
            );
            bits.clear();
            let begin = Instant::now();
            set.get(
                PackedFingerprints::new(&batch).unwrap(),
                times,
                &mut bits,
                0,
            );
            took += begin.elapsed();
            assert_eq!(bits.count(), if expected { BATCH as usize } else { 0 });
        }
        took.as_nanos() as f64 / lookups as f64
    };
    let (hit_ns, miss_ns) = (get(0, true), get(keys, false));
    Engine {
        insert_ns: insert.as_nanos() as f64 / keys as f64,
        hit_ns,
        miss_ns,
        bytes,
        stalls,
        overwrites,
    }
}

/// Batches that took long, by the clock and by the time that the processor worked for this thread (kernel included). What only the
/// clock saw, somebody else had the processor.
#[derive(Default)]
struct Stalls {
    batches: u64,
    longest: Duration,
    longest_worked: Duration,
    over_2ms: u64,
    worked_over_2ms: u64,
    inline_chunks: u64,
}

impl Stalls {
    fn add(&mut self, took: Duration, worked: Duration, inline_chunks: u64) {
        const LIMIT: Duration = Duration::from_millis(2);
        self.batches += 1;
        self.longest = self.longest.max(took);
        self.longest_worked = self.longest_worked.max(worked);
        self.over_2ms += u64::from(took > LIMIT);
        self.worked_over_2ms += u64::from(worked > LIMIT);
        self.inline_chunks = inline_chunks;
    }

    fn print(&self) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        println!(
            "    by the clock          longest {:6.2} ms, over 2 ms: {}",
            ms(self.longest),
            self.over_2ms
        );
        println!(
            "    by processor time     longest {:6.2} ms, over 2 ms: {}",
            ms(self.longest_worked),
            self.worked_over_2ms
        );
    }
}

/// What the machine does by itself: batches of about `a_batch` that only add to random words of as much memory as the keys take.
fn control(keys: u64, a_batch: Duration, batches: u64) -> Stalls {
    let mut memory = lines(keys);
    let mut next = 0;
    let mut touch = |words: u64| {
        for _ in 0..words {
            next += 1;
            let index = random_line(next, memory.len());
            memory[index] = memory[index].wrapping_add(next);
        }
    };
    const TRIAL_WORDS: u64 = MILLION;
    let begin = Instant::now();
    touch(TRIAL_WORDS);
    let words = TRIAL_WORDS * a_batch.as_nanos() as u64 / begin.elapsed().as_nanos() as u64;
    let mut stalls = Stalls::default();
    for _ in 0..batches {
        let worked_before = worked();
        let begin = Instant::now();
        touch(words);
        stalls.add(begin.elapsed(), worked() - worked_before, 0);
    }
    black_box(&memory);
    stalls
}

/// Processor time of this thread.
fn worked() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn hashbrown_ns(keys: u64) -> (f64, f64) {
    type Map = hashbrown::HashMap<[u32; 3], u32, std::hash::BuildHasherDefault<TopBits>>;
    let key = |number: u64| {
        let fingerprint = fingerprint(number);
        [
            fingerprint.top() as u32,
            (fingerprint.top() >> 32) as u32,
            fingerprint.low(),
        ]
    };
    let mut map = Map::default();
    let begin = Instant::now();
    for number in 0..keys {
        map.entry(key(number)).or_insert(1);
    }
    let insert = begin.elapsed().as_nanos() as f64 / keys as f64;
    let lookups = (keys / 5).min(20 * MILLION);
    let begin = Instant::now();
    let found = (0..lookups)
        .filter(|at| map.contains_key(&key(at.wrapping_mul(STRIDE) % keys)))
        .count();
    assert_eq!(found as u64, lookups);
    (insert, begin.elapsed().as_nanos() as f64 / lookups as f64)
}

/// Fingerprints are hashes already.
#[derive(Default)]
struct TopBits(u64);

impl std::hash::Hasher for TopBits {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some((word, _)) = bytes.split_first_chunk() {
            self.0 ^= u64::from_le_bytes(*word);
        }
    }
}

/// Resident bytes of this process (Linux), less file pages.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let fields: Vec<u64> = statm
        .split_whitespace()
        .map(|field| field.parse().unwrap())
        .collect();
    (fields[1] - fields[2]) * 4096
}
