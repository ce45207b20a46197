//! What clients were told, and whether it can all be true.
//!
//! The rules, for keys whose TTL is longer than the run:
//!
//! - (a) What was acknowledged is there: after a put, or a claim that was told `First`, no later call finds the key absent or is
//!   told `First`.
//! - (b) `Duplicate` or present is told only of keys that somebody may have stored before the answer.
//! - (c) `First` is told once.

use std::collections::BTreeMap;

/// What a call was told of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// A put was acknowledged.
    Stored,
    First,
    Duplicate,
    /// A claim found it there, but not through whom.
    Unknown,
    Present,
    Absent,
    /// A write failed, and was certainly not applied.
    NotApplied,
    /// A write failed, and may have been applied.
    MaybeApplied,
}

/// One key of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) key: u64,
    /// When the call began and ended, in an order that all calls share.
    pub(crate) began: u64,
    pub(crate) ended: u64,
    pub(crate) told: Told,
}

/// What cannot be true, a line each.
pub(crate) fn violations(events: &[Event]) -> Vec<String> {
    let mut by_key: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
    for event in events {
        by_key.entry(event.key).or_default().push(*event);
    }
    by_key
        .values()
        .flat_map(|events| violations_of_key(events))
        .collect()
}

fn violations_of_key(events: &[Event]) -> Vec<String> {
    let mut found = Vec::new();
    let firsts: Vec<&Event> = events
        .iter()
        .filter(|event| event.told == Told::First)
        .collect();
    if firsts.len() > 1 {
        found.push(format!("(c) First was told twice: {firsts:?}"));
    }
    let acknowledged = events
        .iter()
        .filter(|event| matches!(event.told, Told::Stored | Told::First))
        .min_by_key(|event| event.ended);
    if let Some(stored) = acknowledged {
        let forgotten = events.iter().find(|event| {
            event.began > stored.ended && matches!(event.told, Told::Absent | Told::First)
        });
        if let Some(forgotten) = forgotten {
            found.push(format!("(a) {stored:?} was forgotten: {forgotten:?}"));
        }
    }
    for seen in events {
        if !matches!(seen.told, Told::Duplicate | Told::Present) {
            continue;
        }
        // Whoever was told `Unknown` may have stored it with a sending whose reply was lost.
        let explained = events.iter().any(|event| {
            event.began < seen.ended
                && matches!(
                    event.told,
                    Told::Stored | Told::First | Told::MaybeApplied | Told::Unknown
                )
        });
        if !explained {
            found.push(format!("(b) nobody stored what was found: {seen:?}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(began: u64, ended: u64, told: Told) -> Event {
        Event {
            key: 1,
            began,
            ended,
            told,
        }
    }

    fn found(events: &[Event]) -> String {
        violations(events)
            .iter()
            .map(|violation| &violation[..3])
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_planted_lost_write_is_found() {
        let put = event(1, 2, Told::Stored);
        assert_eq!(found(&[put, event(3, 4, Told::Absent)]), "(a)");
        assert_eq!(found(&[put, event(3, 4, Told::First)]), "(a)");
        let first = event(1, 2, Told::First);
        assert_eq!(found(&[first, event(3, 4, Told::Absent)]), "(a)");
        // A call that ran at the same time may have come before.
        assert_eq!(found(&[put, event(1, 4, Told::Absent)]), "");
    }

    #[test]
    fn a_planted_double_first_is_found() {
        let events = [event(1, 4, Told::First), event(2, 3, Told::First)];
        assert_eq!(found(&events), "(c)");
    }

    #[test]
    fn a_planted_duplicate_of_nothing_is_found() {
        for told in [Told::Duplicate, Told::Present] {
            assert_eq!(found(&[event(1, 2, told)]), "(b)");
            assert_eq!(found(&[event(1, 2, told), event(3, 4, Told::First)]), "(b)");
            let failed = event(0, 1, Told::NotApplied);
            assert_eq!(found(&[failed, event(2, 3, told)]), "(b)");
            let unclear = event(0, 1, Told::MaybeApplied);
            assert_eq!(found(&[unclear, event(2, 3, told)]), "");
            assert_eq!(found(&[event(1, 5, Told::First), event(2, 3, told)]), "");
        }
    }
}
