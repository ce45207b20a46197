//! What a program can learn of its client's work, for its metrics.

use std::{fmt::Debug, sync::Arc, time::Duration};

use keydb_core::NodeId;

use crate::error::ErrorKind;

/// What a call asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallKind {
    /// [`get`](crate::Client::get) and its siblings.
    Get,
    /// [`put`](crate::Client::put) and its siblings.
    Put,
    /// [`claim`](crate::Client::claim) and its siblings.
    Claim,
}

/// Is told what a client does, for whatever metrics library a program has. Its methods are called by the tasks that do it, so they
/// must be quick. Each does nothing by default.
///
/// ```
/// use std::{sync::{Arc, atomic::{AtomicU64, Ordering}}, time::Duration};
/// use keydb_client::{CallKind, ClientConfig, ErrorKind, Observer};
///
/// #[derive(Debug, Default)]
/// struct Failures(AtomicU64);
///
/// impl Observer for Failures {
///     fn call(&self, _: CallKind, _: usize, _: Duration, failed: Option<ErrorKind>) {
///         self.0.fetch_add(failed.is_some().into(), Ordering::Relaxed);
///     }
/// }
///
/// let failures = Arc::new(Failures::default());
/// let config = ClientConfig::new(["localhost:50051"]).with_observer(failures.clone());
/// # let _ = config;
/// ```
pub trait Observer: Debug + Send + Sync {
    /// A call of `keys` keys has ended after `took`, and what it failed for, if it did. A call that is dropped is not told of.
    fn call(&self, kind: CallKind, keys: usize, took: Duration, failed: Option<ErrorKind>) {
        let _ = (kind, keys, took, failed);
    }

    /// A request for `keys` keys goes to a node.
    fn request(&self, node: NodeId, keys: usize) {
        let _ = (node, keys);
    }

    /// `keys` keys are sent again, after an error of this kind.
    fn retry(&self, after: ErrorKind, keys: usize) {
        let _ = (after, keys);
    }

    /// `calls` small calls travel together to a node, with so many keys altogether. A call with keys of several nodes is in a batch to
    /// each of them.
    fn batch(&self, calls: usize, keys: usize) {
        let _ = (calls, keys);
    }
}

/// An observer in a configuration. Two are equal when they are the same one.
#[derive(Debug, Clone)]
pub(crate) struct SharedObserver(pub(crate) Arc<dyn Observer>);

impl PartialEq for SharedObserver {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for SharedObserver {}
