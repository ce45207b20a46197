//! Removes the node's objects that no manifest names, now and then.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tracing::info;

use super::shared::Shared;

/// Objects that no manifest names are removed when they are this old.
pub(super) const GARBAGE_AGE: Duration = Duration::from_secs(3600);
const GARBAGE_INTERVAL: Duration = Duration::from_secs(3600);
/// The first time comes sooner: a node may be restarted before an hour has passed.
const GARBAGE_DELAY: Duration = Duration::from_secs(600);

/// Removes this node's garbage from time to time.
pub(super) async fn run(shared: Arc<Shared>) {
    let node = &shared.node;
    sleep(GARBAGE_DELAY).await;
    loop {
        let collecting = shared
            .store
            .collect_garbage(Some(node.id), GARBAGE_AGE, false);
        let problem = match timeout(GARBAGE_INTERVAL, collecting).await {
            Ok(Ok(collected)) => {
                info!(
                    objects = collected.removed.len(),
                    bytes = collected.removed_bytes,
                    failed = collected.failed.len(),
                    "removed objects that no manifest names"
                );
                let failed = collected.failed.first();
                failed.map(|(key, error)| {
                    let count = collected.failed.len();
                    format!("{count} of them; the first is {key:?}: {error}")
                })
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it takes longer than an hour".to_owned()),
        };
        let text = |problem| format!("objects that no manifest names cannot be removed: {problem}");
        node.warnings.set("garbage", problem.map(text));
        sleep(GARBAGE_INTERVAL).await;
    }
}
