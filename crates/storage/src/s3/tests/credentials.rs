//! Credentials that are not in the options. They come from the environment, so each test reads in a process of its own, which is this
//! program again with another environment.

use std::process::Command;

use super::*;

const ENDPOINT: &str = "TEST_CHILD_ENDPOINT";

/// Runs the test `name` of this file again, in an environment that has these variables and no credentials besides.
async fn run_again(name: &str, bucket: &TestBucket, variables: &[(&str, &str)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let empty = tempfile::tempdir().unwrap();
    command
        .args(["--exact", &format!("s3::tests::credentials::{name}")])
        .env_clear()
        .env("HOME", empty.path())
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env(ENDPOINT, bucket.options.endpoint.as_ref().unwrap())
        .envs(variables.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = output.await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 passed"), "{text}");
}

/// In the second process: what a read without credentials in the options gives.
async fn read_in_child() -> Option<Result<Option<Object>, StorageError>> {
    let options = S3Options {
        endpoint: Some(std::env::var(ENDPOINT).ok()?),
        ..S3Options::default()
    };
    let storage = S3Storage::with_limits("bucket", "", &options, LIMITS, PART_BYTES_MIN);
    Some(storage.unwrap().get("key").await)
}

#[tokio::test]
async fn credentials_come_from_the_environment_when_the_options_have_none() {
    if let Some(read) = read_in_child().await {
        // The server knows the key and looked for the bucket.
        assert!(read.unwrap_err().to_string().contains("NoSuchBucket"));
        return;
    }
    let bucket = TestBucket::in_process().await;
    let (id, secret) = bucket.options.access_key.clone().unwrap();
    run_again(
        "credentials_come_from_the_environment_when_the_options_have_none",
        &bucket,
        &[
            ("AWS_ACCESS_KEY_ID", &id),
            ("AWS_SECRET_ACCESS_KEY", &secret),
        ],
    )
    .await;
}

#[tokio::test]
async fn without_any_credentials_a_call_is_refused() {
    if let Some(read) = read_in_child().await {
        let error = read.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("credential"), "{error}");
        return;
    }
    let bucket = TestBucket::in_process().await;
    run_again("without_any_credentials_a_call_is_refused", &bucket, &[]).await;
}
