//! The way to a cluster that all client commands share.

use std::time::Duration;

use keydb_client::{Client, ClientConfig, ConnectError};
use tokio::runtime::{self, Runtime};

use crate::{
    args::{Addresses, ConnectArgs, KeyspaceArgs},
    exit::Failure,
    logging,
    output::say,
    settings::{self, ClientSettings, Settings},
};

/// Where a cluster is looked for when nobody says.
const ADDRESS_DEFAULT: &str = "127.0.0.1:50051";

/// How long to wait before saying what is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The runtime that a command runs in.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start threads: {error}")))
}

/// The settings of a command that works on object storage, and logging by them.
pub(crate) fn settings() -> Result<Settings, Failure> {
    let settings = settings::load()?;
    announce(&settings);
    Ok(settings)
}

/// Starts logging, and says what is odd about the settings.
pub(crate) fn announce(settings: &Settings) {
    logging::start_client(&settings.logging());
    for warning in &settings.warnings {
        say(&format!("warning: {warning}"));
    }
}

/// Starts logging and reads how the cluster is found. The flag outranks the environment.
pub(crate) fn config(args: &ConnectArgs) -> Result<ClientConfig, Failure> {
    let settings = ClientSettings::read(settings::environment()?)?;
    logging::start_client(&settings.logging);
    Ok(config_by(args, settings))
}

/// How a cluster is found. The flag outranks the environment.
pub(crate) fn config_by(args: &ConnectArgs, settings: ClientSettings) -> ClientConfig {
    let addresses = match (&args.addresses, settings.addresses) {
        (Some(Addresses(flag)), _) => flag.clone(),
        (None, Some(environment)) => environment,
        (None, None) => vec![ADDRESS_DEFAULT.to_owned()],
    };
    if settings.outgoing.authorization().is_some() && !settings.outgoing.has_tls() {
        tracing::warn!(
            "KEYDB_TOKEN_FILE is set, but KEYDB_TLS_CA_FILE is not: the token is sent for everybody on the way to read"
        );
    }
    let mut config = ClientConfig::new(addresses);
    config.call_timeout = args.timeout;
    config.namespace = settings.namespace.unwrap_or_default();
    config.outgoing = settings.outgoing;
    config
}

/// [`config`] for a command that sends keys. The flag outranks the environment here, too.
pub(crate) fn key_config(args: &KeyspaceArgs) -> Result<ClientConfig, Failure> {
    let mut config = config(&args.connect)?;
    if let Some(namespace) = &args.namespace {
        config.namespace.clone_from(namespace);
    }
    Ok(config)
}

/// What to do about an error of the first contact.
fn hint(error: &ConnectError, addresses: &str) -> String {
    let said = error.to_string();
    let is_said = |words: &str| said.contains(words);
    let hint = if is_said("this port speaks TLS") {
        "KEYDB_TLS_CA_FILE says whose certificates to trust"
    } else if is_said("CertificateRequired") {
        "the node wants a client certificate: give KEYDB_TLS_CERT_FILE and KEYDB_TLS_KEY_FILE"
    } else if is_said("does not speak TLS") {
        "KEYDB_TLS_CA_FILE is set, but the node may be reached without TLS"
    } else if is_said("TLS handshake") {
        "KEYDB_TLS_CA_FILE says whose certificates to trust, KEYDB_TLS_CERT_FILE which one is shown"
    } else if matches!(error, ConnectError::Denied { .. }) {
        "KEYDB_TOKEN_FILE says which token is sent"
    } else {
        return format!(
            "is a cluster running at {addresses}? `keydb dev` starts one; --addresses or KEYDB_NODE_ADDRESSES says where it is"
        );
    };
    hint.to_owned()
}

/// Connects, or says what to do about it.
pub(crate) async fn connect(config: ClientConfig) -> Result<Client, Failure> {
    let addresses = config.addresses.join(",");
    let timeout = config.call_timeout;
    let mut connecting = std::pin::pin!(Client::connect(config));
    let connected = tokio::select! {
        connected = &mut connecting => connected,
        () = tokio::time::sleep(PATIENCE) => {
            say(&format!("keydb: no answer from {addresses} yet; waiting for up to {timeout:?}"));
            connecting.await
        }
    };
    connected.map_err(|error| {
        let hint = hint(&error, &addresses);
        Failure::from(error).with_line(&hint)
    })
}
