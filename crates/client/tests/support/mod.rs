//! What tests have in common; none uses all of it.

#![allow(dead_code, unreachable_pub)]

pub mod cluster;
pub mod fake;
pub mod proxy;

use std::{ops::Range, time::Duration};

use keydb_client::{Claim, KeyOutcome, MaybeApplied, Operation, Ttl, WriteError};

/// Far more than any call of a test may take.
pub const LONG: Duration = Duration::from_secs(60);

pub fn hour() -> Ttl {
    "1h".parse().unwrap()
}

pub fn keys(range: Range<u32>) -> Vec<String> {
    range.map(|number| format!("key-{number}")).collect()
}

#[track_caller]
pub fn maybe_applied(error: &WriteError) -> &MaybeApplied {
    match error {
        WriteError::MaybeApplied(maybe) => maybe,
        WriteError::NotApplied(reason) => panic!("{reason}"),
    }
}

/// Of a repeat that failed: that its keys may be stored, and that it can be repeated once more.
#[track_caller]
pub fn may_be_stored(result: Result<Vec<Claim>, WriteError>, operation: Operation) {
    let error = result.unwrap_err();
    let maybe = maybe_applied(&error);
    assert!(
        maybe
            .outcomes
            .iter()
            .all(|it| *it == KeyOutcome::MaybeApplied),
        "{error}"
    );
    assert_eq!(maybe.operation, Some(operation.id()));
}
