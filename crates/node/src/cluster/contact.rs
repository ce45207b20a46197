//! How the node stands with object storage, and with the clock there.

use std::{path::Path, sync::Arc};

use keydb_core::UnixMillis;
use keydb_storage::ObjectStorage;
use tokio::task::spawn_blocking;
use tracing::{debug, info};

use crate::{
    NodeError,
    cluster::clock_check::{ClockWatch, KnownClock},
    node::Node,
};

/// Whether the storage answers, and what its clock says.
#[derive(Debug)]
pub(super) struct Contact {
    node: Arc<Node>,
    has_failed: bool,
    clock: ClockWatch,
    /// The confirmation of the clock that the disk knows of.
    clock_kept: Option<UnixMillis>,
}

impl Contact {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            has_failed: false,
            clock: ClockWatch::default(),
            clock_kept: None,
        }
    }

    /// The storage has answered with a map, which allows clocks to be so wrong.
    ///
    /// # Errors
    /// When this one is, and the node does not serve yet.
    pub(super) async fn found_map(
        &mut self,
        storage: &dyn ObjectStorage,
        clock_error_max_ms: u64,
    ) -> Result<(), NodeError> {
        self.works();
        self.clock
            .look(&self.node, storage, clock_error_max_ms)
            .await
    }

    /// Writes down in the data directory `root` that the clock is right, where it was found to be since the last time.
    pub(super) async fn keep_clock(&mut self, root: &Path) {
        let Some(confirmed) = self.clock.confirmed() else {
            return;
        };
        if self.clock_kept.replace(confirmed) == Some(confirmed) {
            return;
        }
        let known = KnownClock::of(&*self.node.clock);
        let root = root.to_owned();
        let saved = spawn_blocking(move || known.save(&root)).await;
        if let Ok(Err(error)) = saved {
            debug!("when the clock was right is not kept: {error}");
        }
    }

    /// The storage does not answer as it should.
    pub(super) fn fails(&mut self, error: &str) {
        self.clock.cannot_look(&self.node);
        // Once: the reason may have another number in it each time.
        if std::mem::replace(&mut self.has_failed, true) {
            return;
        }
        let text = match self.node.membership.state().map() {
            Some(map) => format!(
                "going on with the last cluster map (epoch {}), trying again: {error}",
                map.epoch
            ),
            None => format!("waiting for object storage, which has the cluster map: {error}"),
        };
        self.node.warnings.set("storage", Some(text));
    }

    /// It answers.
    pub(super) fn works(&mut self) {
        if std::mem::replace(&mut self.has_failed, false) {
            info!(node = %self.node.config.id, "the storage answers again");
            self.node.warnings.set("storage", None);
        }
    }
}
