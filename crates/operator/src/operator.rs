//! What all calls work with.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use keydb_client::{AdminClient, Client};
use keydb_gateway::{Cluster, Problem};
use tokio::sync::Semaphore;

use crate::config::{OperatorConfig, REQUESTS_MAX};

/// An operator that runs.
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) cluster: Arc<Cluster>,
    /// A permit for each call that is worked on.
    pub(crate) room: Semaphore,
    /// How many calls ended how, by path and status.
    answered: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

pub(crate) type Shared = Arc<Operator>;

impl Operator {
    pub(crate) fn new(config: OperatorConfig) -> Self {
        Self {
            cluster: Arc::new(Cluster::new(config.client)),
            room: Semaphore::new(REQUESTS_MAX),
            answered: Mutex::default(),
        }
    }

    pub(crate) fn client(&self) -> Result<&Client, Problem> {
        self.cluster.client()
    }

    pub(crate) fn admin(&self) -> Result<&AdminClient, Problem> {
        self.cluster.admin()
    }

    /// A call of `path` was answered.
    pub(crate) fn count(&self, path: &'static str, status: u16) {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        *answered.entry((path, status)).or_default() += 1;
    }

    /// Calls so far, by path and status.
    pub(crate) fn answered(&self) -> BTreeMap<(&'static str, u16), u64> {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.clone()
    }
}
