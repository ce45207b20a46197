//! What all calls work with.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use keydb_client::{AdminClient, Client};
use tokio::sync::Semaphore;

use crate::{
    config::{OperatorConfig, REQUESTS_MAX},
    problem::Problem,
};

/// An operator that runs.
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) config: OperatorConfig,
    /// A permit for each call that is worked on.
    pub(crate) room: Semaphore,
    connected: OnceLock<(Client, AdminClient)>,
    /// How many calls ended how, by path and status.
    answered: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

pub(crate) type Shared = Arc<Operator>;

impl Operator {
    pub(crate) fn new(config: OperatorConfig) -> Self {
        Self {
            config,
            room: Semaphore::new(REQUESTS_MAX),
            connected: OnceLock::new(),
            answered: Mutex::default(),
        }
    }

    /// From here on calls are served.
    pub(crate) fn connected(&self, client: Client) {
        let admin = AdminClient::from(client.clone());
        // There is one task that connects.
        let _ = self.connected.set((client, admin));
    }

    pub(crate) fn client(&self) -> Result<&Client, Problem> {
        self.both().map(|(client, _)| client)
    }

    pub(crate) fn admin(&self) -> Result<&AdminClient, Problem> {
        self.both().map(|(_, admin)| admin)
    }

    fn both(&self) -> Result<&(Client, AdminClient), Problem> {
        self.connected.get().ok_or_else(|| {
            Problem::unavailable(format!(
                "no node has answered with a cluster map yet; asked are {}",
                self.config.client.addresses.join(", ")
            ))
        })
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
