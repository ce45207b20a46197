//! `keydb snapshot create`: every node, now.

use std::{fmt::Write, process::ExitCode};

use keydb_client::{AdminClient, AdminError, NodeEntry, SnapshotsCreated};
use serde_json::{Value, json};

use super::args::CreateArgs;
use crate::{
    connect,
    exit::{Code, Failure},
    output::{Stdout, bytes_text},
};

type Made = Vec<(NodeEntry, Result<SnapshotsCreated, AdminError>)>;

pub(super) fn run(args: &CreateArgs) -> Result<ExitCode, Failure> {
    let config = connect::config(&args.connect())?;
    let made = connect::runtime()?.block_on(async {
        let client = connect::connect(config).await?;
        let admin = AdminClient::from(client);
        let made = admin.create_snapshots(args.full).await;
        admin.close().await;
        Ok::<Made, Failure>(made)
    })?;
    let mut out = Stdout::open()?;
    if args.json {
        out.json(&json!({"nodes": made.iter().map(node_json).collect::<Vec<_>>()}))?;
    } else {
        out.write(as_text(&made).as_bytes())?;
    }
    if made.iter().all(|(_, made)| made.is_ok()) {
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::from(Code::Unreachable as u8))
    }
}

fn as_text(made: &Made) -> String {
    let mut text = String::new();
    for (node, made) in made {
        let _ = match made {
            Ok(made) => writeln!(
                text,
                "node {}  object storage is complete to {}  ({} objects, {} written)",
                node.id,
                made.complete_to,
                made.objects,
                bytes_text(made.object_bytes)
            ),
            Err(error) => writeln!(text, "node {}  no snapshot: {error}", node.id),
        };
    }
    text
}

fn node_json((node, made): &(NodeEntry, Result<SnapshotsCreated, AdminError>)) -> Value {
    match made {
        Ok(made) => json!({
            "node": node.id,
            "complete_to_unix_ms": made.complete_to,
            "complete_to": made.complete_to.to_string(),
            "lsn": made.lsn,
            "objects": made.objects,
            "object_bytes": made.object_bytes,
        }),
        Err(error) => json!({"node": node.id, "error": error.to_string()}),
    }
}
