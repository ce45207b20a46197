//! Conditional writes of small objects, and what becomes of one whose reply was lost.

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::SdkError,
    operation::put_object::{PutObjectError, PutObjectOutput},
};
use bytes::Bytes;
use keydb_core::OperationId;

use super::{
    S3Storage,
    attempts::Attempts,
    failure::{Failure, FailureKind},
};
use crate::{Put, StorageError, Version, check_key};

/// Where in an object's metadata the nonce of the write is that made it.
pub(super) const NONCE_NAME: &str = "keydb-write";
/// How often an object is looked at to find out who wrote it; what follows a failed call is not to take as long again.
const RECOGNITION_ATTEMPTS_MAX: u32 = 2;

/// What is larger gets the time of a transfer.
const SMALL_BYTES_MAX: usize = 256 << 10;

/// Under which condition an object is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Condition<'a> {
    Absent,
    Match(&'a Version),
}

impl S3Storage {
    pub(super) async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        condition: Condition<'_>,
    ) -> Result<Put, StorageError> {
        check_key(key)?;
        let nonce = OperationId::random().to_string();
        let limits = &self.inner.limits;
        let mut attempts = limits.attempts(if bytes.len() > SMALL_BYTES_MAX {
            limits.transfer
        } else {
            limits.attempt
        });
        let request = || self.send_put(key, bytes.clone(), condition, &nonce);
        let failure = match attempts.run(request).await {
            Ok(output) => match output.e_tag() {
                Some(etag) => return Ok(Put::Done(Version::new(etag))),
                None => Failure::incomplete("ETag"),
            },
            Err(failure) => failure,
        };
        self.settle(key, &nonce, failure, "write").await
    }

    fn send_put(
        &self,
        key: &str,
        bytes: Bytes,
        condition: Condition<'_>,
        nonce: &str,
    ) -> impl Future<Output = Result<PutObjectOutput, SdkError<PutObjectError, HttpResponse>>> + use<>
    {
        let put = self.inner.client.put_object();
        let put = match condition {
            Condition::Absent => put.if_none_match("*"),
            Condition::Match(version) => put.if_match(version.tag()),
        };
        put.bucket(&self.inner.bucket)
            .key(self.full_key(key))
            .metadata(NONCE_NAME, nonce)
            .body(bytes.into())
            .send()
    }

    /// How a conditional write ends that failed in this way.
    pub(super) async fn settle(
        &self,
        key: &str,
        nonce: &str,
        mut failure: Failure,
        action: &str,
    ) -> Result<Put, StorageError> {
        let condition_failed = matches!(
            failure.kind,
            // Of an object that is to be replaced and is not there, servers say one or the other.
            FailureKind::ConditionFailed | FailureKind::NotFound
        );
        if !failure.in_doubt && condition_failed {
            return Ok(Put::Conflict);
        }
        if failure.in_doubt {
            match self.recognise(key, nonce).await {
                Ok(Some(version)) => {
                    tracing::info!(key, "an object was written although the reply was lost");
                    return Ok(Put::Done(version));
                }
                Ok(None) => {}
                Err(looking) => {
                    failure.reason +=
                        &format!("; looking at the object failed too: {}", looking.reason);
                }
            }
        }
        Err(failure.of_write(&self.what(action, key)))
    }

    /// The version of the object when the write with this nonce made it.
    async fn recognise(&self, key: &str, nonce: &str) -> Result<Option<Version>, Failure> {
        let mut limits = self.inner.limits;
        limits.attempts_max = limits.attempts_max.min(RECOGNITION_ATTEMPTS_MAX);
        let mut attempts: Attempts = limits.attempts(limits.attempt);
        let Some(head) = self.look_at(key, &mut attempts).await? else {
            return Ok(None);
        };
        let own = head
            .metadata()
            .and_then(|metadata| metadata.get(NONCE_NAME))
            .is_some_and(|found| found == nonce);
        Ok(head.e_tag().filter(|_| own).map(Version::new))
    }
}
