//! Abandoned uploads: begun by a process that died before it could complete or abort them. Their parts are invisible and cost space.

use std::{sync::PoisonError, time::Duration};

use keydb_core::UnixMillis;
use tokio::time::Instant;

use super::{
    S3Storage,
    failure::{Failure, FailureKind},
    millis,
};
use crate::MAP_KEY;

/// An upload that began this long ago, by the server's clock, is taken for abandoned.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// How often one process looks.
const INTERVAL: Duration = Duration::from_secs(60 * 60);

impl S3Storage {
    /// Aborts abandoned uploads beside `key`, at most once an hour. What fails is left for the next time. Beside it only, because
    /// the rest of the bucket may be other programs'.
    ///
    /// Some servers (MinIO among them) list no uploads by prefix; they have a time of their own after which they remove them.
    pub(super) async fn sweep_abandoned_uploads(&self, key: &str) {
        let Some((folder, _)) = key.rsplit_once('/') else {
            return;
        };
        {
            let mut swept = self
                .inner
                .swept
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if swept.is_some_and(|at| at.elapsed() < INTERVAL) {
                return;
            }
            *swept = Some(Instant::now());
        }
        let swept = async {
            let now = self.server_time(&self.full_key(MAP_KEY)).await?;
            let age_ms = u64::try_from(ABANDONED_AFTER.as_millis()).unwrap_or(u64::MAX);
            let time = UnixMillis(now.0.saturating_sub(age_ms));
            self.abort_uploads_begun_before(folder, time).await
        };
        match swept.await {
            Ok(0) => {}
            Ok(uploads) => tracing::info!(uploads, "aborted abandoned uploads"),
            Err(failure) => {
                tracing::debug!(
                    reason = failure.reason,
                    "abandoned uploads were not looked for"
                );
            }
        }
    }

    /// Aborts uploads in a folder that began before this, by the server's clock; how many.
    pub(super) async fn abort_uploads_begun_before(
        &self,
        folder: &str,
        time: UnixMillis,
    ) -> Result<usize, Failure> {
        let request = || {
            let list = self.inner.client.list_multipart_uploads();
            list.bucket(&self.inner.bucket)
                .prefix(format!("{}/", self.full_key(folder)))
                .send()
        };
        // A page of a thousand is enough for one time.
        let page = self.attempts().run(request).await?;
        let mut aborted = 0;
        for upload in page.uploads() {
            let (Some(full_key), Some(id)) = (upload.key(), upload.upload_id()) else {
                continue;
            };
            if millis(upload.initiated())? < time {
                self.abort_upload(full_key, id).await;
                aborted += 1;
            }
        }
        Ok(aborted)
    }

    pub(super) async fn abort_upload(&self, full_key: &str, id: &str) {
        let request = || {
            let abort = self.inner.client.abort_multipart_upload();
            abort
                .bucket(&self.inner.bucket)
                .key(full_key)
                .upload_id(id)
                .send()
        };
        match self.attempts().run(request).await {
            Ok(_) => {}
            // Completed or aborted already.
            Err(failure) if failure.kind == FailureKind::NotFound => {}
            Err(failure) => {
                tracing::warn!(
                    full_key,
                    reason = failure.reason,
                    "an upload was not aborted"
                );
            }
        }
    }
}
