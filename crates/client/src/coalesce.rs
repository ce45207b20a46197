//! Single keys of many tasks become one batch.

use std::sync::Arc;

use keydb_core::{Fingerprint, Ttl};

use crate::{
    call::{Answer, Failure},
    client::Shared,
};

#[derive(Debug)]
pub(crate) struct Coalescer<A>(std::marker::PhantomData<A>);

impl<A> Default for Coalescer<A> {
    fn default() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<A: Answer> Coalescer<A> {
    pub(crate) async fn one(
        &self,
        shared: &Arc<Shared>,
        ttl: Option<Ttl>,
        key: Fingerprint,
    ) -> Result<A, Failure> {
        let _ = (shared, ttl, key);
        unreachable!()
    }
}
