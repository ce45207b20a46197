use std::collections::BTreeMap;

use keydb_core::Fingerprint;
use proptest::prelude::*;

use super::*;

const NOW: UnixMillis = UnixMillis(1_000_000);
const AGE_MAX: Duration = Duration::from_secs(300);

fn memory() -> AnswerMemory {
    AnswerMemory::new(1 << 20, AGE_MAX)
}

fn id(name: &str) -> OperationId {
    OperationId::from_name(name)
}

/// Ten seconds after [`NOW`].
fn expiry() -> Expiry {
    Expiry::from_unix_seconds(1010).unwrap()
}

fn later(seconds: u64) -> UnixMillis {
    NOW.plus(Duration::from_secs(seconds))
}

/// The keys `from..from + count` of a range.
fn packed(from: u64, count: u64) -> Vec<u8> {
    (from..from + count)
        .flat_map(|key| Fingerprint::from_parts(key, 0).to_bytes())
        .collect()
}

fn keys(range: u32, from: u64, count: u64) -> ClaimedKeys {
    ClaimedKeys::new(
        RangeId(range),
        PackedFingerprints::new(&packed(from, count)).unwrap(),
    )
}

fn bits(text: &str) -> Bitmap {
    let mut bits = Bitmap::new(text.len());
    for (index, letter) in text.chars().enumerate() {
        bits.or(index, letter == '1');
    }
    bits
}

fn text(bits: &Bitmap) -> String {
    (0..bits.len())
        .map(|index| if bits.get(index) { '1' } else { '0' })
        .collect()
}

fn registered<'a>(memory: &'a AnswerMemory, name: &str, now: UnixMillis) -> Operation<'a> {
    match memory.begin(id(name), now, expiry()) {
        Begin::Registered(operation) => operation,
        Begin::InFlight(_) => panic!("{name} is in flight"),
    }
}

fn record(operation: &mut Operation<'_>, keys: ClaimedKeys, first: &str, unknown: &str) {
    operation.apply(keys.range);
    let unknown = unknown.contains('1').then(|| bits(unknown));
    operation.record(keys, &bits(first), unknown.as_ref(), 0);
}

/// A sending that is answered and over.
fn told(memory: &AnswerMemory, name: &str, keys: ClaimedKeys, first: &str, unknown: &str) {
    record(&mut registered(memory, name, NOW), keys, first, unknown);
}

/// The remembered first and unknown bits, or `doubt`, or `nothing`.
fn recalled(operation: &Operation<'_>, keys: ClaimedKeys) -> String {
    match operation.recall(keys) {
        Recall::Nothing => "nothing".to_owned(),
        Recall::Doubt => "doubt".to_owned(),
        Recall::Prefix(answers) => format!("the first {}", answers.count()),
        Recall::Same(answers) => {
            let mut first = Bitmap::new(keys.count + 3);
            let mut unknown = None;
            answers.answer(&mut first, &mut unknown, 3);
            let unknown =
                unknown.map_or_else(String::new, |unknown| text(&unknown)[3..].to_owned());
            format!("{}/{unknown}", &text(&first)[3..])
        }
    }
}

#[test]
fn the_same_keys_get_the_same_answers_again() {
    let memory = memory();
    told(&memory, "a", keys(7, 0, 5), "10110", "01000");
    for _ in 0..2 {
        let again = registered(&memory, "a", later(9));
        assert_eq!(recalled(&again, keys(7, 0, 5)), "10110/01000");
    }
    assert_eq!(memory.operations(), 1);
}

#[test]
fn nothing_is_remembered_of_another_operation_or_range() {
    let memory = memory();
    told(&memory, "a", keys(7, 0, 5), "10110", "");
    assert_eq!(
        recalled(&registered(&memory, "a", NOW), keys(8, 0, 5)),
        "nothing"
    );
    assert_eq!(
        recalled(&registered(&memory, "b", NOW), keys(7, 0, 5)),
        "nothing"
    );
}

#[test]
fn the_first_of_some_keys_are_remembered_for_these_keys_only() {
    let memory = memory();
    told(&memory, "a", keys(7, 0, 5).prefix(3), "101", "");
    let again = registered(&memory, "a", later(9));
    assert_eq!(recalled(&again, keys(7, 0, 5)), "the first 3");
    for other in [keys(7, 0, 3), keys(7, 0, 6), keys(7, 1, 5)] {
        assert_eq!(recalled(&again, other), "doubt");
    }
    drop(again);
    let expired = registered(&memory, "a", later(10));
    assert_eq!(recalled(&expired, keys(7, 0, 5)), "doubt");
}

#[test]
fn answers_of_which_some_are_older_expire_with_those() {
    let memory = memory();
    let mut operation = registered(&memory, "a", NOW);
    operation.expire_by(Expiry::from_unix_seconds(1005).unwrap());
    record(&mut operation, keys(7, 0, 5), "11111", "");
    drop(operation);
    let again = registered(&memory, "a", later(4));
    assert_eq!(recalled(&again, keys(7, 0, 5)), "11111/");
    drop(again);
    let expired = registered(&memory, "a", later(5));
    assert_eq!(recalled(&expired, keys(7, 0, 5)), "doubt");
}

#[test]
fn other_keys_under_the_same_operation_are_in_doubt() {
    let memory = memory();
    told(&memory, "a", keys(7, 0, 5), "11111", "");
    let again = registered(&memory, "a", NOW);
    assert_eq!(recalled(&again, keys(7, 1, 5)), "doubt");
    assert_eq!(recalled(&again, keys(7, 0, 4)), "doubt");
    assert_eq!(recalled(&again, keys(7, 0, 5)), "11111/");
}

#[test]
fn answers_are_in_doubt_from_the_recorded_expiry_on() {
    let memory = memory();
    told(&memory, "a", keys(7, 0, 5), "11111", "");
    assert_eq!(
        recalled(
            &registered(&memory, "a", UnixMillis(1_009_999)),
            keys(7, 0, 5)
        ),
        "11111/"
    );
    assert_eq!(
        recalled(
            &registered(&memory, "a", UnixMillis(1_010_000)),
            keys(7, 0, 5)
        ),
        "doubt"
    );
}

#[test]
fn ranges_of_later_sendings_come_to_the_same_entry_and_newer_answers_replace_older() {
    let memory = memory();
    {
        let mut operation = registered(&memory, "a", NOW);
        record(&mut operation, keys(1, 0, 3), "101", "");
        record(&mut operation, keys(2, 0, 9), "111111110", "000000001");
        record(&mut operation, keys(3, 0, 2), "01", "");
    }
    {
        let mut operation = registered(&memory, "a", later(1));
        record(&mut operation, keys(2, 50, 2), "11", "");
        record(&mut operation, keys(300, 0, 200), &"1".repeat(200), "");
    }
    assert_eq!(memory.operations(), 1);
    let again = registered(&memory, "a", later(2));
    assert_eq!(recalled(&again, keys(1, 0, 3)), "101/");
    assert_eq!(recalled(&again, keys(2, 50, 2)), "11/");
    assert_eq!(recalled(&again, keys(2, 0, 9)), "doubt");
    assert_eq!(recalled(&again, keys(3, 0, 2)), "01/");
    assert_eq!(
        recalled(&again, keys(300, 0, 200)),
        format!("{}/", "1".repeat(200))
    );
}

#[test]
fn a_range_that_was_left_half_way_is_in_doubt() {
    let memory = memory();
    {
        let mut operation = registered(&memory, "a", NOW);
        record(&mut operation, keys(1, 0, 3), "101", "");
        operation.apply(RangeId(2));
        // The key set refused it; the claim goes on with the next range and is then dropped in the middle of it.
        operation.apply(RangeId(3));
    }
    let again = registered(&memory, "a", NOW);
    assert_eq!(recalled(&again, keys(1, 0, 3)), "101/");
    assert_eq!(recalled(&again, keys(2, 0, 3)), "doubt");
    assert_eq!(recalled(&again, keys(3, 0, 3)), "doubt");
    assert_eq!(recalled(&again, keys(4, 0, 3)), "nothing");
}

#[test]
fn the_oldest_are_forgotten_when_the_bytes_run_out() {
    let memory = AnswerMemory::new(10 * (ENTRY_OVERHEAD_BYTES + 20), AGE_MAX);
    for number in 0..100 {
        told(
            &memory,
            &format!("op {number}"),
            keys(1, 0, 8),
            "11111111",
            "",
        );
        assert!(memory.bytes() <= memory.bytes_max);
    }
    let remembered: Vec<u32> = (0..100)
        .filter(|number| {
            let again = registered(&memory, &format!("op {number}"), NOW);
            recalled(&again, keys(1, 0, 8)) == "11111111/"
        })
        .collect();
    let oldest = *remembered.first().unwrap();
    assert!((85..=95).contains(&oldest), "{oldest}");
    assert_eq!(remembered, (oldest..100).collect::<Vec<_>>());
    assert_eq!(memory.operations(), remembered.len());
}

#[test]
fn an_operation_that_is_recorded_again_is_the_youngest_again() {
    let memory = AnswerMemory::new(3 * (ENTRY_OVERHEAD_BYTES + 40), AGE_MAX);
    for name in ["a", "b", "c"] {
        told(&memory, name, keys(1, 0, 8), "11111111", "");
    }
    told(&memory, "a", keys(2, 0, 8), "11111111", "");
    told(&memory, "d", keys(1, 0, 8), "11111111", "");
    told(&memory, "e", keys(1, 0, 8), "11111111", "");
    assert_eq!(
        recalled(&registered(&memory, "a", NOW), keys(1, 0, 8)),
        "11111111/"
    );
    assert_eq!(
        recalled(&registered(&memory, "b", NOW), keys(1, 0, 8)),
        "nothing"
    );
}

#[test]
fn an_operation_larger_than_the_memory_is_not_remembered_and_pushes_nobody_out() {
    let memory = AnswerMemory::new(ENTRY_OVERHEAD_BYTES + 200, AGE_MAX);
    told(&memory, "small", keys(1, 0, 8), "11111111", "");
    told(&memory, "large", keys(1, 0, 4000), &"1".repeat(4000), "");
    assert_eq!(
        recalled(&registered(&memory, "large", NOW), keys(1, 0, 4000)),
        "nothing"
    );
    assert_eq!(
        recalled(&registered(&memory, "small", NOW), keys(1, 0, 8)),
        "11111111/"
    );
    // What was remembered of it before is in the way of the truth as well.
    told(&memory, "small", keys(2, 0, 4000), &"1".repeat(4000), "");
    assert_eq!(memory.operations(), 0);
    assert_eq!(memory.bytes(), 0);
}

#[test]
fn a_memory_without_bytes_remembers_nothing() {
    let memory = AnswerMemory::new(0, AGE_MAX);
    told(&memory, "a", keys(1, 0, 8), "11111111", "");
    assert_eq!(
        recalled(&registered(&memory, "a", NOW), keys(1, 0, 8)),
        "nothing"
    );
}

#[test]
fn what_is_too_old_is_forgotten() {
    let memory = memory();
    told(&memory, "a", keys(1, 0, 8), "11111111", "");
    memory.forget_old(later(299));
    assert_eq!(memory.operations(), 1);
    memory.forget_old(later(300));
    assert_eq!((memory.operations(), memory.bytes()), (0, 0));

    told(&memory, "a", keys(1, 0, 8), "11111111", "");
    let expired = registered(&memory, "a", later(300));
    assert_eq!(recalled(&expired, keys(1, 0, 8)), "nothing");
}

#[tokio::test]
async fn a_repeat_waits_for_the_sending_in_work_and_then_finds_its_answers() {
    let memory = memory();
    let mut operation = registered(&memory, "a", NOW);
    let Begin::InFlight(mut first_waiter) = memory.begin(id("a"), NOW, expiry()) else {
        panic!("registered twice");
    };
    let Begin::InFlight(mut second_waiter) = memory.begin(id("a"), NOW, expiry()) else {
        panic!("registered twice");
    };
    let _other = registered(&memory, "b", NOW);
    assert!(futures_util::poll!(std::pin::pin!(first_waiter.changed())).is_pending());
    record(&mut operation, keys(1, 0, 2), "10", "");
    drop(operation);
    assert!(first_waiter.changed().await.is_err());
    assert!(second_waiter.changed().await.is_err());
    assert_eq!(
        recalled(&registered(&memory, "a", NOW), keys(1, 0, 2)),
        "10/"
    );
}

#[test]
fn an_operation_that_did_nothing_is_released_and_leaves_nothing() {
    let memory = memory();
    drop(registered(&memory, "a", NOW));
    drop(registered(&memory, "a", NOW));
    assert_eq!((memory.operations(), memory.bytes()), (0, 0));
    assert!(memory.state().in_flight.is_empty());
}

#[test]
fn a_thousand_keys_over_128_ranges_take_less_than_two_bytes_each() {
    let memory = memory();
    {
        let mut operation = registered(&memory, "a", NOW);
        for range in 0..128 {
            record(&mut operation, keys(range, 0, 8), "11111111", "");
        }
    }
    assert!(memory.bytes() <= 2 * 1000, "{}", memory.bytes());
}

#[derive(Debug, Clone)]
struct Answered {
    range: u32,
    /// Empty: left half-way.
    answers: Vec<(bool, bool)>,
}

fn sending() -> impl Strategy<Value = Vec<Answered>> {
    let answers = proptest::collection::vec(any::<(bool, bool)>(), 0..20);
    let range = prop_oneof![0_u32..6, Just(200), Just(u32::MAX)];
    let ranges = proptest::collection::btree_map(range, answers, 0..6);
    ranges.prop_map(|ranges| {
        ranges
            .into_iter()
            .map(|(range, answers)| Answered { range, answers })
            .collect()
    })
}

proptest! {
    #[test]
    fn after_any_sendings_each_range_has_its_newest_answers(
        sendings in proptest::collection::vec((sending(), 1_u32..5), 1..8)
    ) {
        let memory = memory();
        let mut model = BTreeMap::new();
        for (sending, ttl) in sendings {
            let expiry = Expiry::from_unix_seconds(1000 + ttl).unwrap();
            let Begin::Registered(mut operation) = memory.begin(id("a"), NOW, expiry) else {
                panic!("in flight");
            };
            for answered in &sending {
                operation.apply(RangeId(answered.range));
                let count = answered.answers.len();
                if count > 0 {
                    let column = |bit: fn(&(bool, bool)) -> bool| -> String {
                        answered.answers.iter().map(|answer| if bit(answer) { '1' } else { '0' }).collect()
                    };
                    let (first, unknown) = (column(|answer| answer.0), column(|answer| answer.1));
                    let unknown_bits = unknown.contains('1').then(|| bits(&unknown));
                    operation.record(
                        keys(answered.range, 0, count as u64),
                        &bits(&first),
                        unknown_bits.as_ref(),
                        0,
                    );
                    let unknown = if unknown_bits.is_some() { unknown } else { String::new() };
                    model.insert(answered.range, (count as u64, ttl, format!("{first}/{unknown}")));
                } else {
                    model.insert(answered.range, (1, ttl, "doubt".to_owned()));
                }
            }
        }
        for at in 0..5 {
            let again = registered(&memory, "a", later(at));
            for (range, (count, ttl, answers)) in &model {
                let expected = if u64::from(*ttl) > at { answers } else { "doubt" };
                prop_assert_eq!(recalled(&again, keys(*range, 0, *count)), expected);
            }
        }
    }
}

#[test]
fn what_came_with_a_copy_of_ranges_adds_to_what_is_remembered_and_replaces_nothing() {
    let owner = memory();
    told(&owner, "a", keys(7, 0, 5), "10110", "01000");
    told(&owner, "a", keys(8, 0, 2), "11", "");
    told(&owner, "a", keys(9, 0, 1), "1", "");
    told(&owner, "b", keys(9, 0, 3), "111", "");
    let part = owner.entries(|| {}).remove(0).answers;
    owner.add(
        id("c"),
        NOW,
        Lsn(40),
        part.only(|range| range == RangeId(8)),
    );
    let (entries, newest) = owner.of_ranges(&|range| range != RangeId(9), || {});
    assert_eq!(newest, Lsn(40));
    let operations: Vec<_> = entries.iter().map(|entry| entry.operation).collect();
    assert_eq!(operations, [id("a"), id("c")]);
    let none = owner.of_ranges(&|range| range == RangeId(1), || {});
    assert_eq!(none, (Vec::new(), Lsn::ZERO));

    let successor = memory();
    // As the stream of records brought it, later.
    told(&successor, "a", keys(8, 0, 2), "01", "");
    for _ in 0..2 {
        for entry in entries.clone() {
            successor.restore_older(entry, Lsn(3));
        }
    }
    assert_eq!(successor.operations(), 2);
    let operation = registered(&successor, "a", NOW);
    assert_eq!(recalled(&operation, keys(7, 0, 5)), "10110/01000");
    assert_eq!(recalled(&operation, keys(8, 0, 2)), "01/");
    assert_eq!(recalled(&operation, keys(9, 0, 1)), "nothing");
    // The owner's records mean nothing here.
    assert_eq!(operation.remembered_lsn(), Lsn(3));
    drop(operation);
    let operation = registered(&successor, "c", NOW);
    assert_eq!(recalled(&operation, keys(8, 0, 2)), "11/");
    assert_eq!(operation.remembered_lsn(), Lsn(3));
}

#[test]
fn nobody_waits_for_a_record_that_is_behind_the_journals_last_one() {
    let memory = memory();
    told(&memory, "a", keys(7, 0, 1), "1", "");
    let answers = memory.entries(|| {}).remove(0).answers;
    memory.add(id("b"), NOW, Lsn(5), answers.clone());
    memory.add(id("c"), NOW, Lsn(9), answers);
    memory.committed_to(Lsn(7));
    let lsns: Vec<_> = memory
        .entries(|| {})
        .iter()
        .map(|entry| entry.lsn.0)
        .collect();
    assert_eq!(lsns, [0, 5, 7]);
}

#[test]
fn a_range_is_forgotten_and_others_are_not() {
    let memory = memory();
    told(&memory, "both", keys(1, 0, 1), "1", "0");
    told(&memory, "both", keys(2, 5, 1), "1", "0");
    told(&memory, "one", keys(1, 0, 1), "1", "0");
    memory.forget_range(RangeId(1));
    // Also where more is told of the operation later.
    told(&memory, "both", keys(3, 9, 1), "1", "0");
    let both = registered(&memory, "both", NOW);
    assert!(matches!(both.recall(keys(1, 0, 1)), Recall::Nothing));
    assert!(matches!(both.recall(keys(2, 5, 1)), Recall::Same(_)));
    assert!(matches!(both.recall(keys(3, 9, 1)), Recall::Same(_)));
    assert!(!registered(&memory, "one", NOW).is_remembered());
    let entries = memory.entries(|| {});
    assert_eq!(entries.len(), 1);
    assert!(!entries[0].answers.has_any(|range| range == RangeId(1)));
    // What is told from then on is known.
    told(&memory, "one", keys(1, 0, 1), "1", "0");
    let one = registered(&memory, "one", NOW);
    assert!(matches!(one.recall(keys(1, 0, 1)), Recall::Same(_)));
}
