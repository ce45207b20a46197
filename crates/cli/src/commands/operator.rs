//! `keydb operator`: scaling, snapshots and keys over HTTP.

use std::process::ExitCode;

use clap::Args;
use keydb_operator::{OperatorConfig, OperatorError};

use super::node::{check, listen};
use crate::{
    args::ConnectArgs,
    connect,
    exit::{Code, Failure},
    logging::Logging,
    settings::{self, OperatorSettings},
    signals::StopSignals,
};

const EXAMPLES: &str = "\
It holds no state and no credentials of the object storage: the cluster's nodes do what is asked. Any number may run.
KEYDB_OPERATOR_PORT says where it listens (8080), KEYDB_NODE_ADDRESSES or --addresses where the cluster is.

Examples:
  keydb operator --check
  KEYDB_NODE_ADDRESSES=keydb-0:50051,keydb-1:50051 keydb operator
  curl localhost:8080/info
  curl localhost:8080/autoScale -d '{\"addresses\":[\"keydb-0:50051\",\"keydb-1:50051\",\"keydb-2:50051\"]}'";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct OperatorArgs {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
    /// Check the settings, print the ones in force, and do nothing else
    #[arg(long)]
    pub(crate) check: bool,
    /// Print the settings as JSON
    #[arg(long, requires = "check")]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &OperatorArgs) -> Result<ExitCode, Failure> {
    let settings = OperatorSettings::read(settings::environment()?)?;
    if args.check {
        return check(&settings.effective, &settings.warnings, args.json);
    }
    connect::runtime()?.block_on(async {
        let logging = Logging::start(&settings.client.logging, "info", "keydb-operator")?;
        let mut signals = StopSignals::listen()?;
        if settings.insecure && !settings.security.is_protected() {
            settings::warn_insecure();
        }
        let listener = listen(&settings.listening).await?;
        let config = OperatorConfig {
            client: connect::config_by(&args.connect, settings.client),
            guests: logging.router(),
        };
        let stopped = async {
            let name = signals.next().await;
            tracing::info!("{name}: stopping");
        };
        let ended = keydb_operator::run(config, (listener, settings.security), stopped).await;
        logging.stop().await;
        ended.map_err(|error| failure(&error))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Why an operator ended.
pub(super) fn failure(error: &OperatorError) -> Failure {
    let code = match error {
        OperatorError::Connect(_) => Code::Usage,
        OperatorError::Server(_) => Code::Failed,
    };
    Failure::new(code, error.to_string())
}
