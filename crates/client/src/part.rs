//! One part of a call: split by node, sent, and what got no answer sent again until the deadline.

use keydb_core::Fingerprint;
use tokio::time::Instant;

use crate::{
    call::{Answer, Failure, Kind},
    client::Shared,
};

pub(crate) async fn run_part<A: Answer>(
    shared: &Shared,
    kind: Kind,
    batch: &[Fingerprint],
    deadline: Instant,
) -> Result<Vec<A>, Failure> {
    let _ = (shared, kind, batch, deadline);
    unreachable!()
}
