//! Calls of a batch that a node refused because there is no room for those of its keys that are new.
//!
//! Nothing of such a batch was applied, and a node answers for keys that it has. So it is asked which those are, and the calls with
//! none but such keys become a batch of their own, under an operation of its own. The others were refused for new keys of theirs.
//! However many calls there are, that makes two requests more, or three: nothing is looked into twice.

use std::sync::Arc;

use keydb_core::Ttl;
use tokio::join;

use super::{
    callers::Callers,
    coalescer::{Coalesced, Coalescer},
    queue::Batch,
    told::Told,
};
use crate::{
    call::{Kind, Outcome, outcomes_of, run_part, run_part_for},
    error::{ErrorKind, NotApplied},
    shared::Deadline,
};

/// Calls that were refused together, and how.
#[derive(Debug)]
pub(super) struct NoRoom<A> {
    pub(super) batch: Batch<A>,
    pub(super) reason: NotApplied,
}

impl<A: Coalesced> NoRoom<A> {
    pub(super) async fn run(
        self,
        coalescer: &Arc<Coalescer>,
        ttl: Option<Ttl>,
        deadline: Deadline,
    ) {
        let shared = &coalescer.shared;
        let keys = &self.batch.keys;
        let asked = run_part::<bool>(shared, Kind::Get, keys, &[], deadline).await;
        let (_, present) = outcomes_of(asked);
        let (mut known, mut new) = (Batch::empty(), Batch::empty());
        let mut keys = self.batch.keys.into_iter().zip(present);
        for call in self.batch.calls {
            let own: Vec<_> = keys.by_ref().take(call.keys).collect();
            let is_known = own.iter().all(|(_, is)| *is == Outcome::Answered(true));
            let batch = if is_known { &mut known } else { &mut new };
            batch.push(call, own.into_iter().map(|(key, _)| key));
        }
        let kind = self.reason.kind();
        shared.observe(|it| it.retry(kind, known.keys.len()));
        let known = again(coalescer, ttl, known, deadline);
        // There may be room on the disk before the calls' time is up.
        if kind == ErrorKind::DiskFull {
            join!(known, again(coalescer, ttl, new, deadline));
            return;
        }
        for call in new.calls {
            let told = Told::failed(self.reason.clone(), Outcome::NotApplied, call.keys);
            call.tell(told);
        }
        known.await;
    }
}

/// Sends a batch as another one than that which was refused.
async fn again<A: Coalesced>(
    coalescer: &Arc<Coalescer>,
    ttl: Option<Ttl>,
    batch: Batch<A>,
    deadline: Deadline,
) {
    let batch = batch.without_gone();
    if batch.calls.is_empty() {
        return;
    }
    let kind = A::kind(ttl);
    let mut callers = Callers::new(batch, kind, Arc::clone(coalescer));
    let keys = callers.keys();
    run_part_for(&mut callers, &coalescer.shared, kind, &keys, &[], deadline).await;
}
