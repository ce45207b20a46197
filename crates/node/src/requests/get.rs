//! Which of the keys exist?

use std::ops::ControlFlow;

use keydb_core::{Bitmap, PackedFingerprints, Times};
use keydb_proto::shard::{GetReply, GetRequest, RangeRefusal};
use tonic::Status;

use crate::{
    node::Node,
    ranges::owned::OwnedRange,
    requests::admit::{admit, plan, table},
    requests::commit::Commit,
    requests::steps::{Work, work_on},
};

/// Which of the keys exist?
pub(crate) async fn get(node: &Node, request: &GetRequest) -> Result<GetReply, Status> {
    let _permit = node.in_flight.enter()?;
    let (membership_state, now) = admit(node, request.header.as_ref())?;
    let table = table(node, &membership_state)?;
    let mut plan = plan(node, table, &request.ranges, &request.fingerprints)?;
    let mut getting = Getting {
        commit: Commit::of_read(node.journal()),
        times: node.clock.times_at(now),
        present: Bitmap::new(plan.fingerprints.len()),
        refused: plan.refused.split_off(0),
    };
    work_on(node, table, &plan, &mut getting).await;
    getting.commit.committed().await?;
    Ok(GetReply {
        header: Some(node.reply_header(membership_state.map())),
        present: getting.present.into_bytes().into(),
        refused: getting.refused,
    })
}

struct Getting<'a> {
    commit: Commit<'a>,
    times: Times,
    present: Bitmap,
    refused: Vec<RangeRefusal>,
}

impl Work for Getting<'_> {
    fn step(
        &mut self,
        range: &OwnedRange,
        keys: PackedFingerprints<'_>,
        start: usize,
    ) -> ControlFlow<()> {
        let set = range.read();
        set.get(keys, self.times, &mut self.present, start);
        let present = |index| self.present.get(start + index);
        self.commit.found(range, keys, present);
        ControlFlow::Continue(())
    }

    fn refuse(&mut self, refusal: RangeRefusal) {
        self.refused.push(refusal);
    }
}
