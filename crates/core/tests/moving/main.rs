//! The moving of a range, explored exhaustively: what may go wrong together, and whether planted mistakes are found.
//!
//! `cargo test --release -p keydb-core --test moving -- --ignored --nocapture` explores more of it, and says how many states there are.

mod explore;
mod fault;
mod model;

use explore::explore;
use fault::Fault;
use model::{Budget, Config};

const NOTHING: Budget = Budget {
    crashes: 0,
    losses: 0,
    breaks: 0,
    late_writes: 0,
    late_words: 0,
    outages: 0,
    plans: 1,
    aborts: 0,
    timeouts: 0,
    operations: 0,
};

fn passes(nodes: usize, budget: Budget, is_leaving: bool) {
    let config = Config {
        nodes,
        budget,
        is_leaving,
        fault: None,
    };
    let explored = explore(&config, usize::MAX);
    println!(
        "{nodes} nodes, {budget:?}: {} states, {} transitions, {} settled",
        explored.states, explored.transitions, explored.settled
    );
    if let Some(violation) = explored.violation {
        panic!("{violation}");
    }
    assert!(explored.settled > 0);
}

/// The mistake is found where this may go wrong, and nothing is where it is not made.
fn finds(fault: Fault, nodes: usize, budget: Budget, is_leaving: bool) -> Option<Fault> {
    let config = Config {
        nodes,
        budget,
        is_leaving,
        fault: Some(fault),
    };
    let explored = explore(&config, 3_000_000);
    let found = match &explored.violation {
        Some(violation) => violation.lines().next().unwrap_or_default(),
        None => "NOT FOUND",
    };
    println!(
        "{fault:?}: {found} ({} states, all: {})",
        explored.states, explored.is_complete
    );
    explored.violation.is_none().then_some(fault)
}

#[test]
fn a_move_under_operations_and_their_repeats() {
    passes(
        2,
        Budget {
            operations: 0b011,
            ..NOTHING
        },
        false,
    );
    passes(
        2,
        Budget {
            operations: 0b001,
            crashes: 1,
            ..NOTHING
        },
        false,
    );
    passes(
        2,
        Budget {
            operations: 0b001,
            breaks: 1,
            timeouts: 1,
            ..NOTHING
        },
        true,
    );
}

#[test]
fn two_faults_at_once() {
    for budget in [
        Budget {
            crashes: 2,
            ..NOTHING
        },
        Budget {
            crashes: 1,
            breaks: 1,
            late_writes: 1,
            ..NOTHING
        },
        Budget {
            crashes: 1,
            outages: 1,
            late_writes: 1,
            ..NOTHING
        },
        Budget {
            crashes: 1,
            late_words: 1,
            timeouts: 1,
            ..NOTHING
        },
        Budget {
            crashes: 1,
            losses: 1,
            ..NOTHING
        },
        Budget {
            losses: 2,
            ..NOTHING
        },
        Budget {
            losses: 1,
            breaks: 1,
            late_words: 1,
            ..NOTHING
        },
        Budget {
            plans: 2,
            aborts: 1,
            late_writes: 1,
            breaks: 1,
            ..NOTHING
        },
    ] {
        passes(2, budget, false);
        passes(2, budget, true);
    }
}

#[test]
fn there_and_back_again() {
    passes(
        2,
        Budget {
            plans: 2,
            crashes: 1,
            operations: 0b001,
            ..NOTHING
        },
        false,
    );
    passes(
        2,
        Budget {
            plans: 2,
            crashes: 1,
            outages: 1,
            ..NOTHING
        },
        false,
    );
    passes(
        3,
        Budget {
            plans: 2,
            crashes: 1,
            aborts: 1,
            ..NOTHING
        },
        false,
    );
}

#[test]
#[ignore = "takes minutes"]
fn all_together() {
    passes(
        2,
        Budget {
            operations: 0b111,
            ..NOTHING
        },
        false,
    );
    passes(
        2,
        Budget {
            operations: 0b011,
            crashes: 1,
            ..NOTHING
        },
        false,
    );
    passes(
        2,
        Budget {
            operations: 0b011,
            breaks: 1,
            ..NOTHING
        },
        false,
    );
}

#[test]
fn planted_mistakes_are_found() {
    use Fault::*;
    let one = Budget {
        operations: 0b001,
        ..NOTHING
    };
    let two = Budget {
        operations: 0b011,
        ..NOTHING
    };
    let crash = Budget {
        crashes: 1,
        operations: 0b001,
        ..NOTHING
    };
    let broken = Budget {
        breaks: 1,
        operations: 0b001,
        ..NOTHING
    };
    let missed = [
        finds(CopyBeforeTap, 2, one, false),
        finds(BeginBeforeDrained, 2, one, false),
        finds(CopyAcrossIncarnations, 2, crash, false),
        finds(UncommittedForwarded, 2, Budget { crashes: 1, ..two }, false),
        finds(SealedNotKept, 2, crash, false),
        finds(TakenBackWithoutAsking, 2, broken, false),
        finds(LateTakeBack, 2, one, false),
        finds(AbortAfterPublication, 2, Budget { aborts: 1, ..one }, false),
        finds(AnswersLeftBehind, 2, two, false),
        finds(ReadyWithoutBegun, 2, crash, false),
        finds(
            RoundCutsForwarded,
            2,
            Budget {
                crashes: 1,
                operations: 0b101,
                ..NOTHING
            },
            false,
        ),
        finds(OldBegin, 2, broken, false),
        finds(
            StaleManifest,
            2,
            Budget {
                plans: 2,
                crashes: 1,
                operations: 0b101,
                ..NOTHING
            },
            false,
        ),
        finds(TapWithGap, 2, broken, false),
        finds(CopyAcrossSessions, 2, broken, false),
        finds(VoidedThenBegun, 2, Budget { breaks: 1, ..one }, false),
        finds(BegunInJournal, 2, crash, false),
        finds(BegunNotKept, 2, crash, false),
        finds(
            SuccessorWhileFrom,
            3,
            Budget {
                plans: 2,
                crashes: 1,
                ..one
            },
            false,
        ),
        finds(RemovedWhileFrom, 2, one, true),
        finds(OwnersLsnKept, 2, one, false),
        finds(
            OtherCopySealed,
            2,
            Budget {
                plans: 2,
                aborts: 1,
                late_writes: 1,
                ..one
            },
            false,
        ),
        finds(DroppedByMap, 2, one, false),
    ];
    let missed_map = finds(MapNotKept, 2, crash, false);
    assert_eq!(
        missed_map,
        Some(MapNotKept),
        "decisions alone are not enough"
    );
    let missed: Vec<Fault> = missed.into_iter().flatten().collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
