//! `keydb recover --range`: opens a closed hash range with what is left of it.

use std::{process::ExitCode, time::Duration};

use keydb_client::{AdminClient, AdminError, ClientConfig, RangeOpened, RangeState};
use keydb_core::RangeId;
use serde_json::json;

use super::args::RecoverArgs;
use crate::{
    connect,
    exit::{Code, Failure},
    output::{answer, thousands},
    settings::Settings,
};

/// How long the owner may take: it makes a full snapshot of the range.
const TIMEOUT: Duration = Duration::from_secs(600);

pub(super) fn run(
    range: RangeId,
    args: &RecoverArgs,
    settings: &Settings,
) -> Result<ExitCode, Failure> {
    let addresses = settings.node_addresses.value.clone().ok_or_else(|| {
        Failure::usage(
            "KEYDB_NODE_ADDRESSES is not set: a range is opened by the node that owns it, which must run",
        )
    })?;
    let config = ClientConfig::new(addresses).with_call_timeout(TIMEOUT);
    let opened = connect::runtime()?.block_on(async {
        let admin = AdminClient::from(connect::connect(config).await?);
        let opened = open(&admin, range, args.accept_loss).await;
        admin.close(Duration::ZERO).await;
        opened
    })?;
    let RangeOpened {
        node, keys, reason, ..
    } = &opened;
    answer(
        args.json,
        || json!({"range": range, "node": node, "lost": reason, "keys": keys}),
        || {
            format!(
                "hash range {range} is open: node {node} answers for it with the {} keys that are left.\n\
                 What is lost: {reason}\n",
                thousands(*keys)
            )
        },
    )?;
    Ok(ExitCode::SUCCESS)
}

async fn open(
    admin: &AdminClient,
    range: RangeId,
    accept_loss: bool,
) -> Result<RangeOpened, Failure> {
    if !accept_loss {
        return Err(what_would_be_lost(admin, range).await);
    }
    admin.open_range(range).await.map_err(|error| {
        let code = match error {
            AdminError::Refused { .. } => Code::Failed,
            _ => Code::Uncertain,
        };
        Failure::new(code, error.to_string())
    })
}

async fn what_would_be_lost(admin: &AdminClient, range: RangeId) -> Failure {
    let map = admin.cluster_map();
    let Some(entry) = map.ranges.iter().find(|entry| entry.id == range) else {
        return Failure::usage(format!(
            "the cluster has no hash range {range}; it has {} of them, from 0 on",
            map.ranges.len()
        ));
    };
    let statuses = admin.node_info().await;
    let Some((_, status)) = statuses
        .into_iter()
        .find(|(member, _)| member.id == entry.owner)
    else {
        return Failure::failed(format!("the owner of hash range {range} is no member"));
    };
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            return Failure::new(
                Code::Unreachable,
                format!(
                    "node {}, which owns hash range {range}, must run: {error}",
                    entry.owner
                ),
            );
        }
    };
    match status.ranges.iter().find(|status| status.id == range) {
        Some(status) => match &status.state {
            RangeState::Closed { reason } => Failure::usage(format!(
                "hash range {range} of node {} would be answered for with the {} keys that are left of it, without what is missing: {reason}\n\
                 Nothing was changed. Bring what is missing back if you can, and restart the node. If it is lost for good: keydb recover --range {range} --accept-loss",
                entry.owner,
                thousands(status.keys)
            )),
            RangeState::Loading => Failure::failed(format!(
                "hash range {range} is still loading; wait until it is ready or closed"
            )),
            _ => Failure::usage(format!(
                "hash range {range} is not closed: nothing of it is missing"
            )),
        },
        None => Failure::failed(format!(
            "node {} does not have hash range {range} yet",
            entry.owner
        )),
    }
}
