//! `keydb snapshot gc`: removes objects that no manifest names.

use std::process::ExitCode;

use keydb_storage::{Collected, GarbageError};
use serde_json::json;

use super::{args::GcArgs, store::Store};
use crate::{
    connect,
    exit::{Code, Failure},
    output::{answer, bytes_text, say},
};

pub(super) fn run(args: &GcArgs) -> Result<ExitCode, Failure> {
    let store = Store::open(&connect::settings()?)?;
    let collected = connect::runtime()?.block_on(async {
        // Where there is no cluster, these may be somebody else's objects.
        store.map().await?;
        store
            .snapshots
            .collect_garbage(None, args.older_than, args.dry_run)
            .await
            .map_err(|error| match error {
                GarbageError::Storage(error) => store.failure(&error),
                other => Failure::failed(other.to_string()),
            })
    })?;
    let as_json = || {
        json!({
            "dry_run": args.dry_run,
            "objects_seen": collected.seen,
            "removed": collected.removed,
            "removed_bytes": collected.removed_bytes,
            "failed": collected.failed.iter().map(|(key, error)| json!({
                "key": key,
                "error": error.to_string(),
            })).collect::<Vec<_>>(),
        })
    };
    answer(args.json, as_json, || as_text(&collected, args.dry_run))?;
    if !args.json {
        for (key, error) in &collected.failed {
            say(&format!("cannot remove {key}: {error}"));
        }
    }
    Ok(Code::Failed.unless(collected.failed.is_empty()))
}

fn as_text(collected: &Collected, dry_run: bool) -> String {
    let verb = match dry_run {
        true => "would remove",
        false => "removed",
    };
    let removed = collected.removed.iter();
    let mut text: String = removed.map(|key| format!("{verb} {key}\n")).collect();
    text.push_str(&format!(
        "{verb} {} of {} objects, {}\n",
        collected.removed.len(),
        collected.seen,
        bytes_text(collected.removed_bytes)
    ));
    text
}
