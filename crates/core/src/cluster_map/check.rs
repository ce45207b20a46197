//! What must hold in every cluster map.

use std::collections::{BTreeMap, BTreeSet};

use super::{ClusterMap, HASH_ALGORITHM, HASH_BITS, MapError, RangeEntry};
use crate::NodeId;

impl ClusterMap {
    /// Refuses a map that contradicts itself, or whose hash this build does not have.
    pub(super) fn check(&self) -> Result<(), MapError> {
        if self.hash.algorithm != HASH_ALGORITHM || self.hash.bits != HASH_BITS {
            return Err(MapError::Unsupported {
                what: format!("hash {} with {} bits", self.hash.algorithm, self.hash.bits),
            });
        }
        if self.nodes.is_empty() {
            return Err(MapError::NoNodes);
        }
        let members = self.check_nodes()?;
        self.check_bounds()?;
        let mut range_ids = BTreeSet::new();
        for range in &self.ranges {
            if !range_ids.insert(range.id) {
                return inconsistent(format!("range {} is listed twice", range.id));
            }
            range.check(&members, self.target.is_some())?;
        }
        Ok(())
    }

    /// The members' ids.
    fn check_nodes(&self) -> Result<BTreeSet<NodeId>, MapError> {
        let mut addresses = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for node in &self.nodes {
            if !ids.insert(node.id) {
                return inconsistent(format!("node {} is listed twice", node.id));
            }
            if let Some(other) = addresses.insert(&node.address, node.id) {
                return inconsistent(format!(
                    "nodes {other} and {} have the same address {:?}",
                    node.id, node.address
                ));
            }
        }
        Ok(ids)
    }

    fn check_bounds(&self) -> Result<(), MapError> {
        if self.ranges.first().is_none_or(|first| first.start != 0) {
            return inconsistent("the first range does not start at 0".to_owned());
        }
        match self
            .ranges
            .windows(2)
            .find(|pair| pair[0].start >= pair[1].start)
        {
            Some(pair) => inconsistent(format!(
                "range {} does not start after range {}",
                pair[1].id, pair[0].id
            )),
            None => Ok(()),
        }
    }
}

impl RangeEntry {
    fn check(&self, members: &BTreeSet<NodeId>, has_target: bool) -> Result<(), MapError> {
        let Self { id, owner, .. } = self;
        if !members.contains(owner) {
            return inconsistent(format!(
                "range {id} is owned by node {owner}, which is not a member"
            ));
        }
        if let Some(successor) = self.successor {
            if !members.contains(&successor) {
                return inconsistent(format!(
                    "range {id} has node {successor} as its successor, which is not a member"
                ));
            }
            if successor == *owner {
                return inconsistent(format!(
                    "range {id} has its owner, node {owner}, as its successor"
                ));
            }
            if !has_target {
                return inconsistent(format!(
                    "range {id} has node {successor} as its successor, but there is no target"
                ));
            }
        }
        let Some(from) = &self.from else {
            return Ok(());
        };
        if !members.contains(&from.node) {
            return inconsistent(format!(
                "range {id} is handed over from node {}, which is not a member",
                from.node
            ));
        }
        if from.node == *owner {
            return inconsistent(format!(
                "range {id} is handed over from its owner, node {owner}"
            ));
        }
        if from.generation >= self.generation {
            return inconsistent(format!(
                "range {id} is handed over from generation {}, which is not below its own, {}",
                from.generation, self.generation
            ));
        }
        if let Some(successor) = self.successor {
            return inconsistent(format!(
                "range {id} has node {successor} as its successor, but is still handed over from node {}",
                from.node
            ));
        }
        Ok(())
    }
}

fn inconsistent<T>(what: String) -> Result<T, MapError> {
    Err(MapError::Inconsistent(what))
}
