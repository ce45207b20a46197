//! The server's time: the `Date` header of an answer.

use std::sync::{Arc, OnceLock};

use aws_sdk_s3::{
    config::{
        ConfigBag, Intercept, RuntimeComponents,
        interceptors::BeforeDeserializationInterceptorContextRef,
    },
    error::BoxError,
    primitives::{DateTime, DateTimeFormat},
};
use keydb_core::UnixMillis;

use super::{
    S3Storage,
    failure::{Failure, FailureKind},
    millis,
};

impl S3Storage {
    /// The server's time, in whole seconds, by its answer to a request about `full_key`.
    pub(super) async fn server_time(&self, full_key: &str) -> Result<UnixMillis, Failure> {
        let mut attempts = self.attempts();
        loop {
            let date = DateOfAnswer::default();
            let head = self.inner.client.head_object();
            let request = head
                .bucket(&self.inner.bucket)
                .key(full_key)
                .customize()
                .interceptor(date.clone())
                .send();
            let answer = attempts.attempt(request).await.map(drop);
            let failure = match (answer, date.0.get()) {
                // A refusal has the time too, and one for a wrong clock on this side more than any needs it.
                (Err(failure), _) if failure.kind == FailureKind::Retry => failure,
                (_, Some(date)) => return millis(Some(date)),
                (Err(failure), None) => failure,
                (Ok(()), None) => Failure::incomplete("date"),
            };
            if !failure.is_transient() || !attempts.again().await {
                return Err(failure);
            }
        }
    }
}

/// Keeps the date of the answer to one request.
#[derive(Debug, Clone, Default)]
struct DateOfAnswer(Arc<OnceLock<DateTime>>);

impl Intercept for DateOfAnswer {
    fn name(&self) -> &'static str {
        "date of answer"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok());
        if let Some(date) = date {
            // One request has one answer.
            let _ = self.0.set(date);
        }
        Ok(())
    }
}
