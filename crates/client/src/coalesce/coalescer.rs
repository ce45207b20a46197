//! What small calls gather in, and how each kind of them does.

use std::sync::Arc;

use keydb_core::{Claim, OperationId, Ttl};

use super::{queue::Queues, repeat::RepeatableClaims};
use crate::{
    call::{Answer, Kind},
    shared::Shared,
};

/// The queues of a client, and what it remembers of the claims that were in them.
#[derive(Debug)]
pub(crate) struct Coalescer {
    gets: Arc<Queues<bool>>,
    puts: Arc<Queues<()>>,
    claims: Arc<Queues<Claim>>,
    pub(crate) repeatable: RepeatableClaims,
    pub(super) shared: Arc<Shared>,
}

impl Coalescer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            gets: Arc::default(),
            puts: Arc::default(),
            claims: Arc::default(),
            repeatable: RepeatableClaims::default(),
            shared,
        }
    }
}

/// An answer of a call that can travel with others.
pub(crate) trait Coalesced: Answer {
    /// Where such calls wait.
    fn queues(coalescer: &Coalescer) -> &Arc<Queues<Self>>;
    /// What to ask of a batch.
    fn kind(ttl: Option<Ttl>) -> Kind;
    /// Whether its caller must hear it, or equal keys' answers change.
    fn is_first(self) -> bool {
        false
    }
    /// Whether it may mean that another caller in the batch was told that it is first.
    fn follows_first(self) -> bool {
        false
    }
    /// What an equal key is told when nobody heard that the first one was first.
    fn when_first_is_unheard(self) -> Self {
        self
    }
}

impl Coalesced for bool {
    fn queues(coalescer: &Coalescer) -> &Arc<Queues<Self>> {
        &coalescer.gets
    }
    fn kind(_: Option<Ttl>) -> Kind {
        Kind::Get
    }
}

impl Coalesced for () {
    fn queues(coalescer: &Coalescer) -> &Arc<Queues<Self>> {
        &coalescer.puts
    }
    fn kind(ttl: Option<Ttl>) -> Kind {
        Kind::Put {
            ttl: ttl.expect("a put has a TTL"),
        }
    }
}

impl Coalesced for Claim {
    fn queues(coalescer: &Coalescer) -> &Arc<Queues<Self>> {
        &coalescer.claims
    }
    fn kind(ttl: Option<Ttl>) -> Kind {
        Kind::Claim {
            ttl: ttl.expect("a claim has a TTL"),
            id: OperationId::random(),
            attempts_before: 0,
        }
    }
    fn is_first(self) -> bool {
        self == Self::First
    }
    fn follows_first(self) -> bool {
        self == Self::Duplicate
    }
    fn when_first_is_unheard(self) -> Self {
        match self {
            Self::Duplicate => Self::Unknown,
            other => other,
        }
    }
}
