//! What a call asks of its keys.

use keydb_core::{OperationId, Ttl};

/// What a call asks of its keys.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Get,
    Put {
        ttl: Ttl,
    },
    /// Each key until an expiry of its own, which the part knows.
    PutEach,
    Claim {
        ttl: Ttl,
        id: OperationId,
        /// How many earlier sendings may have been applied before this call.
        attempts_before: u32,
    },
    /// What a claim was told, where nodes remember it; nothing is applied. Of what they do not remember, every key is unknown.
    Recall {
        ttl: Ttl,
        id: OperationId,
    },
}

impl Kind {
    /// The same for part `index` of a call.
    pub(super) fn part(mut self, index: usize) -> Self {
        if let Self::Claim { id, .. } = &mut self {
            *id = id.part(index as u64);
        }
        self
    }

    pub(super) fn attempts_before(self) -> u32 {
        match self {
            Self::Claim {
                attempts_before, ..
            } => attempts_before,
            _ => 0,
        }
    }

    /// Of a claim: what it can be repeated as.
    pub(crate) fn operation(self) -> Option<OperationId> {
        match self {
            Self::Claim { id, .. } => Some(id),
            _ => None,
        }
    }

    /// What a request is called in traces.
    pub(super) fn method(self) -> &'static str {
        match self {
            Self::Get => "keydb.shard.v1.ShardService/Get",
            Self::Put { .. } | Self::PutEach => "keydb.shard.v1.ShardService/Put",
            Self::Claim { .. } | Self::Recall { .. } => "keydb.shard.v1.ShardService/Claim",
        }
    }

    pub(super) fn is_claim(self) -> bool {
        matches!(self, Self::Claim { .. })
    }
}
