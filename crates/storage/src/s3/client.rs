//! The SDK's client, as this module wants it.

use std::{sync::Arc, time::Duration};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, RequestChecksumCalculation,
        ResponseChecksumValidation, StalledStreamProtectionConfig, retry::RetryConfig,
        timeout::TimeoutConfig,
    },
};
use tokio::sync::OnceCell;

use super::options::{REGION_DEFAULT, S3Options};
use crate::StorageError;

const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A client for the server that the options name.
pub(super) fn client(options: &S3Options) -> Result<Client, StorageError> {
    let endpoint = options.checked_endpoint()?;
    let region = Region::new(
        options
            .region
            .as_deref()
            .unwrap_or(REGION_DEFAULT)
            .to_owned(),
    );
    let credentials = match &options.access_key {
        Some((id, secret)) => {
            SharedCredentialsProvider::new(Credentials::new(id, secret, None, None, "settings"))
        }
        None => SharedCredentialsProvider::new(LazyChain {
            region: region.clone(),
            chain: Arc::default(),
        }),
    };
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(region)
        .credentials_provider(credentials)
        // One retry layer, this module's: only that knows that after a lost reply "precondition failed" may mean "done".
        .retry_config(RetryConfig::disabled())
        // Each attempt has its limit there too, and each chunk of a download.
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT_MAX)
                .build(),
        )
        .stalled_stream_protection(
            StalledStreamProtectionConfig::enabled()
                .upload_enabled(true)
                .download_enabled(false)
                .build(),
        )
        // Bodies are signed with their SHA-256, which every server checks; trailing checksums some do not understand.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    let config = match endpoint {
        Some(endpoint) => config.endpoint_url(endpoint).force_path_style(true),
        None => config,
    };
    Ok(Client::from_conf(config.build()))
}

/// The SDK's chain of credential sources, looked up when it is needed first: opening a storage does not wait for it.
#[derive(Debug)]
struct LazyChain {
    region: Region,
    chain: Arc<OnceCell<DefaultCredentialsChain>>,
}

impl LazyChain {
    async fn credentials(&self) -> provider::Result {
        let chain = self.chain.get_or_init(|| {
            DefaultCredentialsChain::builder()
                .region(self.region.clone())
                .build()
        });
        chain.await.provide_credentials().await
    }
}

impl ProvideCredentials for LazyChain {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.credentials())
    }
}
