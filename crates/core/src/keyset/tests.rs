//! The key set against a plain map.

use std::{collections::BTreeMap, sync::Arc};

use proptest::{collection, prelude::*};

use super::{Arena, Entry, InsertError, KeySet, Provisioner, Sweep, Times};
use crate::{
    Bitmap, Expiry, FINGERPRINT_BYTES, Fingerprint, HashRange, PackedFingerprints, UnixSeconds,
};

/// What the key set must do, said as plainly as can be.
#[derive(Default)]
struct Model(BTreeMap<Fingerprint, Expiry>);

impl Model {
    fn is_live(&self, key: Fingerprint, times: Times) -> bool {
        self.0
            .get(&key)
            .is_some_and(|expiry| expiry.is_live(times.now))
    }

    fn put(&mut self, key: Fingerprint, expiry: Expiry) {
        let entry = self.0.entry(key).or_insert(expiry);
        *entry = expiry.max(*entry);
    }

    fn claim(&mut self, key: Fingerprint, expiry: Expiry, times: Times) -> bool {
        let first = !self.is_live(key, times);
        if first {
            self.0.insert(key, expiry);
        }
        first
    }
}

#[derive(Debug, Clone)]
enum Step {
    Get(Vec<u32>),
    Put(Vec<u32>, u32),
    Claim(Vec<u32>, u32),
    Merge(Vec<u32>, u32),
    Pass(u32),
    Sweep,
}

fn steps(batch_max: usize, steps_max: usize) -> impl Strategy<Value = Vec<Step>> {
    // Few enough different keys that batches meet each other's.
    let keys = move || collection::vec(0_u32..6000, 0..batch_max);
    let ttl = || prop_oneof![1_u32..30, 1_u32..20_000];
    let step = prop_oneof![
        3 => keys().prop_map(Step::Get),
        3 => (keys(), ttl()).prop_map(|(keys, ttl)| Step::Put(keys, ttl)),
        4 => (keys(), ttl()).prop_map(|(keys, ttl)| Step::Claim(keys, ttl)),
        2 => (keys(), ttl()).prop_map(|(keys, ttl)| Step::Merge(keys, ttl)),
        2 => (1_u32..6000).prop_map(Step::Pass),
        1 => Just(Step::Sweep),
    ];
    collection::vec(step, 1..steps_max)
}

/// A well-spread fingerprint in `range` for a number (SplitMix64's finaliser: Steele et al., OOPSLA 2014).
fn fingerprint(range: HashRange, number: u64) -> Fingerprint {
    let mut x = number
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^= x >> 31;
    let width = u128::from(range.last() - range.start()) + 1;
    Fingerprint::from_parts(
        range.start() + ((u128::from(x) * width) >> 64) as u64,
        x as u32,
    )
}

fn pack(keys: impl IntoIterator<Item = Fingerprint>) -> Vec<u8> {
    keys.into_iter().flat_map(Fingerprint::to_bytes).collect()
}

fn packed(bytes: &[u8]) -> PackedFingerprints<'_> {
    PackedFingerprints::new(bytes).unwrap()
}

fn bits(bitmap: &Bitmap) -> Vec<bool> {
    (0..bitmap.len()).map(|index| bitmap.get(index)).collect()
}

fn seconds(value: u32) -> Expiry {
    Expiry::from_unix_seconds(value).unwrap()
}

fn times(now: u32) -> Times {
    Times {
        now: UnixSeconds(now),
        purge_before: UnixSeconds(now.saturating_sub(3600)),
    }
}

/// The long time after which everything has been purged.
fn all_over() -> Times {
    Times {
        now: UnixSeconds(u32::MAX),
        purge_before: UnixSeconds(u32::MAX),
    }
}

fn sweep_all(set: &mut KeySet, times: Times) {
    let mut sweep = Some(Sweep::default());
    while let Some(from) = sweep {
        sweep = set.sweep(from, times);
    }
}

impl KeySet {
    /// Asserts what must hold between calls.
    fn check(&self) {
        let mut entries = 0;
        for directory in &self.directories {
            let mut index = 0;
            while index < directory.len() {
                let segment = &self.segments[directory.segment(index)];
                let span = directory.span(index, segment.depth());
                assert_eq!(span.start, index);
                assert!(
                    span.clone()
                        .all(|at| directory.segment(at) == directory.segment(index))
                );
                segment.check(|slot| self.layout.place(slot.top()));
                entries += segment.entries();
                index = span.end;
            }
        }
        assert_eq!(entries, self.len());
        assert!(
            self.iter()
                .is_sorted_by(|a, b| a.fingerprint() < b.fingerprint())
        );
    }
}

fn run(range: HashRange, steps: Vec<Step>) {
    let mut set = KeySet::new(range, &Arena::new());
    let mut model = Model::default();
    let mut now = 1_000_000;
    for step in steps {
        let at = times(now);
        let keys_of = |numbers: &[u32]| -> Vec<Fingerprint> {
            numbers
                .iter()
                .map(|number| fingerprint(range, u64::from(*number)))
                .collect()
        };
        match step {
            Step::Get(numbers) => {
                let keys = keys_of(&numbers);
                let mut present = Bitmap::new(keys.len());
                set.get(packed(&pack(keys.iter().copied())), at, &mut present, 0);
                let expected: Vec<bool> = keys.iter().map(|key| model.is_live(*key, at)).collect();
                assert_eq!(bits(&present), expected);
            }
            Step::Put(numbers, ttl) => {
                let keys = keys_of(&numbers);
                set.put(packed(&pack(keys.iter().copied())), seconds(now + ttl), at)
                    .unwrap();
                keys.iter()
                    .for_each(|key| model.put(*key, seconds(now + ttl)));
            }
            Step::Claim(numbers, ttl) => {
                let keys = keys_of(&numbers);
                // With an offset, as when a request spans several ranges.
                let mut first = Bitmap::new(keys.len() + 5);
                let bytes = pack(keys.iter().copied());
                set.claim(packed(&bytes), seconds(now + ttl), at, &mut first, 5)
                    .unwrap();
                let expected: Vec<bool> = keys
                    .iter()
                    .map(|key| model.claim(*key, seconds(now + ttl), at))
                    .collect();
                assert_eq!(bits(&first)[5..], expected);
                assert!(!bits(&first)[..5].contains(&true));
            }
            Step::Merge(numbers, ttl) => {
                let mut entries: Vec<Entry> = keys_of(&numbers)
                    .into_iter()
                    .map(|fingerprint| Entry::new(fingerprint, seconds(now + ttl)))
                    .collect();
                // As a snapshot has them, or as nobody should hand them in.
                if ttl % 4 > 0 {
                    entries.sort_unstable();
                }
                set.merge(&entries, at).unwrap();
                for entry in entries {
                    model.put(entry.fingerprint(), entry.expiry());
                }
            }
            Step::Pass(passed) => now += passed,
            Step::Sweep => {
                sweep_all(&mut set, at);
                model
                    .0
                    .retain(|_, expiry| expiry.as_unix_seconds() > at.purge_before.0);
                assert_eq!(
                    set.len(),
                    model.0.len(),
                    "a sweep reclaims all that may go, and nothing else"
                );
            }
        }
        set.check();
    }
    let live = |expiry: Expiry| expiry.is_live(UnixSeconds(now));
    let found: Vec<Entry> = set.iter().filter(|entry| live(entry.expiry())).collect();
    let expected: Vec<Entry> = model
        .0
        .into_iter()
        .filter(|(_, expiry)| live(*expiry))
        .map(|(fingerprint, expiry)| Entry::new(fingerprint, expiry))
        .collect();
    assert_eq!(found, expected);
}

fn narrow() -> HashRange {
    HashRange::new(0x0e00_0000_0000_0001, 0x0f12_3456_789a_bcde).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 3 } else { 96 }, ..ProptestConfig::default() })]

    #[test]
    fn it_answers_as_a_plain_map_does(
        whole: bool,
        steps in steps(if cfg!(miri) { 60 } else { 3000 }, if cfg!(miri) { 8 } else { 24 }),
    ) {
        run(if whole { HashRange::ALL } else { narrow() }, steps);
    }
}

/// Enough keys that segments grow to 8 extents, split and, after a sweep, merge.
const MANY: u64 = if cfg!(miri) { 5_000 } else { 400_000 };

fn claim_numbers(set: &mut KeySet, numbers: std::ops::Range<u64>, expiry: u32, at: Times) -> usize {
    let bytes = pack(numbers.map(|number| fingerprint(set.bounds(), number)));
    let keys = packed(&bytes);
    let mut first = Bitmap::new(keys.len());
    set.claim(keys, seconds(expiry), at, &mut first, 0).unwrap();
    first.count()
}

#[test]
fn every_key_of_many_is_first_once_and_found_afterwards() {
    let mut set = KeySet::new(narrow(), &Arena::new());
    let at = times(10_000);
    assert_eq!(claim_numbers(&mut set, 0..MANY, 20_000, at), MANY as usize);
    set.check();
    assert_eq!(claim_numbers(&mut set, 0..MANY, 20_000, at), 0);
    assert_eq!(set.len(), MANY as usize);
    assert_eq!(set.iter().count(), MANY as usize);
    let mut present = Bitmap::new(1000);
    let absent = pack((MANY..MANY + 1000).map(|number| fingerprint(narrow(), number)));
    set.get(packed(&absent), at, &mut present, 0);
    assert!(!present.any());
}

#[test]
fn memory_is_given_back_to_the_arena_when_keys_expire_and_used_again() {
    let arena = Arena::new();
    let mut set = KeySet::new(HashRange::ALL, &arena);
    claim_numbers(&mut set, 0..MANY, 20_000, times(10_000));
    let (full, resident) = (set.memory_bytes(), arena.resident_bytes());
    // One key in 50 lives longer.
    let longer = pack(
        (0..MANY)
            .step_by(50)
            .map(|number| fingerprint(HashRange::ALL, number)),
    );
    set.put(packed(&longer), seconds(90_000), times(10_000))
        .unwrap();
    sweep_all(&mut set, times(25_000));
    set.check();
    assert_eq!(set.len(), longer.len() / FINGERPRINT_BYTES);
    sweep_all(&mut set, times(25_001));
    assert!(
        set.memory_bytes() < full / 4,
        "{} of {full} bytes",
        set.memory_bytes()
    );
    claim_numbers(&mut set, MANY..2 * MANY * 9 / 10, 50_000, times(25_000));
    assert_eq!(
        arena.resident_bytes(),
        resident,
        "nothing new was taken from the system"
    );
    sweep_all(&mut set, all_over());
    assert!(set.is_empty());
    assert!(
        set.memory_bytes() < full / 50,
        "an empty set takes directories only"
    );
    claim_numbers(&mut set, 0..1000, 50_000, times(25_000));
    set.check();
}

#[test]
fn entries_are_kept_for_an_hour_after_they_expired() {
    let mut set = KeySet::new(HashRange::ALL, &Arena::new());
    claim_numbers(&mut set, 0..100, 10_000, times(9_000));
    sweep_all(&mut set, times(13_599));
    assert_eq!(set.len(), 100);
    sweep_all(&mut set, times(13_600));
    assert_eq!(set.len(), 0);
}

#[test]
fn growth_reclaims_what_has_expired_before_it_takes_memory() {
    let mut set = KeySet::new(HashRange::ALL, &Arena::new());
    let batch = MANY / 10;
    claim_numbers(&mut set, 0..batch, 10_000, times(9_000));
    let once = set.memory_bytes();
    for round in 1..10_u32 {
        let now = 10_000 * (round + 1);
        claim_numbers(
            &mut set,
            u64::from(round) * batch..u64::from(round + 1) * batch,
            now + 1000,
            times(now),
        );
    }
    set.check();
    assert!(
        set.memory_bytes() < once * 5 / 2,
        "ten generations take the room of about two"
    );
}

#[test]
fn fingerprints_that_are_no_hashes_are_refused_and_nothing_is_lost() {
    let mut set = KeySet::new(HashRange::ALL, &Arena::new());
    let at = times(10_000);
    claim_numbers(&mut set, 0..1000, 20_000, at);
    let mut stored = 0;
    let error = loop {
        let key = pack([Fingerprint::from_parts(u64::MAX / 3, stored)]);
        match set.put(packed(&key), seconds(20_000), at) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 1_000_000);
    };
    assert_eq!(error, InsertError::Skewed);
    set.check();
    assert_eq!(set.len(), 1000 + stored as usize);
    assert_eq!(claim_numbers(&mut set, 0..1000, 20_000, at), 0);
}

#[test]
fn smallest_and_largest_fingerprints_are_ordinary_keys() {
    let mut set = KeySet::new(HashRange::ALL, &Arena::new());
    let at = times(10_000);
    let keys = pack([
        Fingerprint::from_parts(0, 0),
        Fingerprint::from_parts(0, 1),
        Fingerprint::from_parts(u64::MAX, u32::MAX),
        Fingerprint::from_parts(0, 0),
    ]);
    let mut first = Bitmap::new(4);
    set.claim(packed(&keys), seconds(20_000), at, &mut first, 0)
        .unwrap();
    assert_eq!(bits(&first), [true, true, true, false]);
    set.check();
}

#[test]
fn a_provisioner_keeps_memory_ready_and_stops() {
    let arena = Arena::new();
    let provisioner = Provisioner::start(&arena);
    while arena.resident_bytes() == 0 {
        std::thread::yield_now();
    }
    let mut set = KeySet::new(HashRange::ALL, &arena);
    claim_numbers(&mut set, 0..1000, 20_000, times(10_000));
    assert_eq!(arena.inline_chunks(), 0);
    drop(provisioner);
    assert_eq!(Arc::strong_count(&arena), 2, "this test and the set");
}

/// Entries of well-spread keys, in order.
fn ascending(range: HashRange, numbers: std::ops::Range<u64>, expiry: u32) -> Vec<Entry> {
    let mut entries: Vec<Entry> = numbers
        .map(|number| Entry::new(fingerprint(range, number), seconds(expiry)))
        .collect();
    entries.sort_unstable();
    entries
}

#[test]
fn a_merge_in_order_takes_as_little_memory_as_inserts_in_any_order() {
    for range in [HashRange::ALL, narrow()] {
        let mut inserted = KeySet::new(range, &Arena::new());
        claim_numbers(&mut inserted, 0..MANY, 20_000, times(10_000));
        let mut merged = KeySet::new(range, &Arena::new());
        for block in ascending(range, 0..MANY, 20_000).chunks(8192) {
            merged.merge(block, times(10_000)).unwrap();
        }
        merged.check();
        assert!(merged.iter().eq(inserted.iter()));
        assert!(
            merged.memory_bytes() <= inserted.memory_bytes(),
            "{} bytes, {} by inserts",
            merged.memory_bytes(),
            inserted.memory_bytes()
        );
    }
}

#[test]
fn a_merge_of_few_entries_into_many_and_of_many_into_few_keeps_the_later_expiry() {
    let some = ascending(HashRange::ALL, MANY / 2..MANY / 2 + MANY / 50, 30_000);
    let most = ascending(HashRange::ALL, 0..MANY, 20_000);
    for [first, second] in [[&some, &most], [&most, &some]] {
        let mut set = KeySet::new(HashRange::ALL, &Arena::new());
        set.merge(first, times(10_000)).unwrap();
        set.merge(second, times(10_000)).unwrap();
        set.check();
        assert_eq!(set.len(), most.len());
        let later: Vec<Entry> = set
            .iter()
            .filter(|entry| entry.expiry() == seconds(30_000))
            .collect();
        assert_eq!(later, some);
    }
}

#[test]
fn entries_that_may_be_reclaimed_are_not_taken_over_in_runs() {
    let mut set = KeySet::new(HashRange::ALL, &Arena::new());
    let entries = ascending(HashRange::ALL, 0..1000, 10_000);
    set.merge(&entries, times(13_599)).unwrap();
    assert_eq!(set.len(), 1000);
    set.merge(&entries, times(13_600)).unwrap();
    assert_eq!(set.len(), 0);
}

#[test]
fn a_merge_of_fingerprints_that_are_no_hashes_is_refused_and_nothing_is_lost() {
    let mut set = KeySet::new(HashRange::ALL, &Arena::new());
    claim_numbers(&mut set, 0..1000, 20_000, times(10_000));
    let crowded: Vec<Entry> = (0..20_000)
        .map(|low| Entry::new(Fingerprint::from_parts(u64::MAX / 3, low), seconds(20_000)))
        .collect();
    assert_eq!(set.merge(&crowded, times(10_000)), Err(InsertError::Skewed));
    set.check();
    assert_eq!(claim_numbers(&mut set, 0..1000, 20_000, times(10_000)), 0);
}

fn scan_all(set: &KeySet, entries_max: usize) -> Vec<Entry> {
    let mut out = Vec::new();
    let mut from = Some(Fingerprint::MIN);
    while let Some(start) = from {
        let before = out.len();
        from = set.scan(start, entries_max, &mut out);
        assert!(out.len() - before <= entries_max);
    }
    out
}

#[test]
fn a_scan_returns_all_entries_in_order_whatever_the_portions() {
    for range in [HashRange::ALL, narrow()] {
        let mut set = KeySet::new(range, &Arena::new());
        assert_eq!(scan_all(&set, 10), []);
        claim_numbers(&mut set, 0..MANY / 20, 20_000, times(10_000));
        let all: Vec<Entry> = set.iter().collect();
        for entries_max in [1, 7, 4096, usize::MAX / 2] {
            assert_eq!(scan_all(&set, entries_max), all);
        }
    }
    let mut ends = KeySet::new(HashRange::ALL, &Arena::new());
    let entries = [Fingerprint::MIN, Fingerprint::MAX].map(|key| Entry::new(key, seconds(20_000)));
    ends.merge(&entries, times(10_000)).unwrap();
    assert_eq!(scan_all(&ends, 1), entries);
}

#[test]
fn a_scan_from_outside_of_the_bounds_begins_or_ends_there() {
    let mut set = KeySet::new(narrow(), &Arena::new());
    claim_numbers(&mut set, 0..100, 20_000, times(10_000));
    let mut out = Vec::new();
    assert_eq!(set.scan(Fingerprint::MIN, 1000, &mut out), None);
    assert_eq!(out.len(), 100);
    let behind = Fingerprint::from_parts(narrow().last(), u32::MAX).successor();
    assert_eq!(set.scan(behind.unwrap(), 1000, &mut out), None);
    assert_eq!(out.len(), 100);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 48 }, ..ProptestConfig::default() })]

    #[test]
    fn a_scan_returns_what_stays_exactly_once_while_the_set_changes(
        portion in 1_usize..5000,
        stay in 0_u64..(if cfg!(miri) { 300 } else { 30_000 }),
        changes in collection::vec((any::<bool>(), 0_u64..(if cfg!(miri) { 200 } else { 20_000 })), 1..20),
    ) {
        const STAYING: u32 = 90_000;
        let mut set = KeySet::new(narrow(), &Arena::new());
        claim_numbers(&mut set, 0..stay, STAYING, times(10_000));
        let mut changes = changes.iter();
        let mut next = stay;
        let mut out = Vec::new();
        let mut from = Some(Fingerprint::MIN);
        while let Some(start) = from {
            from = set.scan(start, portion.max(stay as usize / 20), &mut out);
            let Some((sweeps, count)) = changes.next() else {
                continue;
            };
            // Those that come in the meantime expire at once and go with the next sweep, and segments split and merge.
            claim_numbers(&mut set, next..next + count, 10_001, times(10_000));
            next += count;
            if *sweeps {
                sweep_all(&mut set, times(20_000));
                prop_assert_eq!(set.len(), stay as usize);
            }
        }
        prop_assert!(out.is_sorted_by(|a, b| a.fingerprint() < b.fingerprint()));
        let stayed: Vec<Entry> = out.into_iter().filter(|entry| entry.expiry() == seconds(STAYING)).collect();
        prop_assert_eq!(stayed, ascending(narrow(), 0..stay, STAYING));
    }
}
