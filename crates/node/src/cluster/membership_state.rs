//! How the node stands with its cluster.

use std::sync::{Arc, PoisonError, RwLock};

use keydb_core::ClusterMap;

use crate::ranges::owned::{CurrentMap, OwnedRanges};

/// How the node stands with its cluster.
#[derive(Debug)]
pub(crate) enum MembershipState {
    /// There is no map yet.
    NoMap,
    /// The map does not list this node.
    NotListed(Arc<CurrentMap>),
    /// The map lists this node, which has not registered itself in it yet.
    NotRegistered(Arc<CurrentMap>),
    /// The node answers for its ranges.
    Serving(OwnedRanges),
}

impl MembershipState {
    /// The map that the node goes by.
    pub(crate) fn current_map(&self) -> Option<&Arc<CurrentMap>> {
        match self {
            Self::NoMap => None,
            Self::NotListed(current_map) | Self::NotRegistered(current_map) => Some(current_map),
            Self::Serving(table) => Some(&table.current_map),
        }
    }

    pub(crate) fn map(&self) -> Option<&ClusterMap> {
        self.current_map().map(|current_map| &current_map.map)
    }

    /// The ranges that the node answers for.
    pub(crate) fn table(&self) -> Option<&OwnedRanges> {
        match self {
            Self::Serving(table) => Some(table),
            _ => None,
        }
    }
}

/// How the node stands now.
#[derive(Debug)]
pub(crate) struct CurrentMembership(RwLock<Arc<MembershipState>>);

impl Default for CurrentMembership {
    fn default() -> Self {
        Self(RwLock::new(Arc::new(MembershipState::NoMap)))
    }
}

impl CurrentMembership {
    /// How the node stands. A request takes this once and goes by it to its end.
    pub(crate) fn state(&self) -> Arc<MembershipState> {
        // Only whole values are ever stored, so a panic elsewhere leaves nothing half-done.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set(&self, state: MembershipState) {
        let new = Arc::new(state);
        let old = std::mem::replace(
            &mut *self.0.write().unwrap_or_else(PoisonError::into_inner),
            new,
        );
        // Outside the lock: this may be the last owner of whole key sets.
        drop(old);
    }
}
