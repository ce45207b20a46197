//! `keydb operations`: the scaling operation that runs.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use keydb_client::{AdminClient, ClusterMap, NodeEntry, Phase, ScaleProgress};
use keydb_core::NodeState;
use serde_json::{Value, json};

use crate::{
    args::ConnectArgs,
    connect,
    exit::Failure,
    output::{answer, time_text},
};

#[derive(Debug, Args)]
pub(crate) struct OperationsArgs {
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

pub(crate) fn run(args: &OperationsArgs) -> Result<ExitCode, Failure> {
    let config = connect::config(&args.connect)?;
    let (progress, map) = connect::runtime()?.block_on(async {
        let admin = AdminClient::from(connect::connect(config).await?);
        let mut progress = admin.operation().await?;
        if let Some(progress) = &mut progress {
            progress.waits_for = admin.waits_for().await;
        }
        let map = admin.cluster_map();
        admin.close(Duration::ZERO).await;
        Ok::<_, Failure>((progress, map))
    })?;
    answer(
        args.json,
        || json!({"operation": progress.as_ref().map(as_json)}),
        || match &progress {
            Some(progress) => as_text(progress, &map),
            None => "no scaling operation runs\n".to_owned(),
        },
    )?;
    Ok(ExitCode::SUCCESS)
}

/// How far an operation is, in a line.
pub(crate) fn line(progress: &ScaleProgress) -> String {
    format!(
        "{} of {} hash ranges have moved{}{}{}",
        progress.moved(),
        progress.moves,
        match progress.handing_over {
            0 => String::new(),
            count => format!(", {count} are being handed over"),
        },
        match progress.phase {
            Phase::Copy =>
                "; ranges are copied, and change their owners after `keydb scale --to …` or a call of /scaleComplete",
            Phase::HandOver => "",
        },
        match &progress.waits_for[..] {
            [] => String::new(),
            nodes => format!("; {}", nodes.join(", ")),
        }
    )
}

fn as_text(progress: &ScaleProgress, map: &ClusterMap) -> String {
    let leaving = |node: &&NodeEntry| node.state == NodeState::Leaving;
    let leaving: Vec<&str> = map
        .nodes
        .iter()
        .filter(leaving)
        .map(|node| &*node.address)
        .collect();
    let mut text = format!(
        "operation  {}\nsince      {}\nto         {}\n",
        progress.operation,
        time_text(progress.started.0),
        progress.addresses.join(", ")
    );
    if !leaving.is_empty() {
        text.push_str(&format!("leaving    {}\n", leaving.join(", ")));
    }
    text.push_str(&format!("progress   {}\n", line(progress)));
    text
}

/// The same for programs.
pub(crate) fn as_json(progress: &ScaleProgress) -> Value {
    json!({
        "operation_id": progress.operation,
        "addresses": progress.addresses,
        "phase": progress.phase,
        "started_unix_ms": progress.started,
        "ranges": progress.moves,
        "ranges_moved": progress.moved(),
        "ranges_handing_over": progress.handing_over,
        "ranges_waiting": progress.waiting,
        "waits_for": progress.waits_for,
    })
}
