//! `keydb snapshot gc`: removes objects that no manifest names.

use std::process::ExitCode;

use keydb_node::{Collected, GarbageError, collect_garbage};
use serde_json::json;

use super::{args::GcArgs, store::Store};
use crate::{
    connect,
    exit::Failure,
    output::{Stdout, bytes_text, say},
};

pub(super) fn run(args: &GcArgs) -> Result<ExitCode, Failure> {
    let store = Store::open(&connect::settings()?)?;
    let collected = connect::runtime()?.block_on(async {
        // Where there is no cluster, these may be somebody else's objects.
        store.map().await?;
        collect_garbage(&*store.storage, None, args.older_than, args.dry_run)
            .await
            .map_err(|error| match error {
                GarbageError::Storage(error) => store.failure(&error),
                other => Failure::failed(other.to_string()),
            })
    })?;
    let mut out = Stdout::open()?;
    if args.json {
        out.json(&json!({
            "dry_run": args.dry_run,
            "objects_seen": collected.seen,
            "removed": collected.removed,
            "removed_bytes": collected.removed_bytes,
            "failed": collected.failed.iter().map(|(key, error)| json!({
                "key": key,
                "error": error.to_string(),
            })).collect::<Vec<_>>(),
        }))?;
        return Ok(exit_code(&collected));
    }
    let verb = if args.dry_run {
        "would remove"
    } else {
        "removed"
    };
    for key in &collected.removed {
        out.write(format!("{verb} {key}\n").as_bytes())?;
    }
    let summary = format!(
        "{verb} {} of {} objects, {}\n",
        collected.removed.len(),
        collected.seen,
        bytes_text(collected.removed_bytes)
    );
    out.write(summary.as_bytes())?;
    for (key, error) in &collected.failed {
        say(&format!("cannot remove {key}: {error}"));
    }
    Ok(exit_code(&collected))
}

fn exit_code(collected: &Collected) -> ExitCode {
    match collected.failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
