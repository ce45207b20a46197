//! The first map: any of the configured addresses that answers will do.

use futures_util::{StreamExt, stream::FuturesUnordered};
use keydb_proto::shard::{GetMapRequest, shard_service_client::ShardServiceClient};
use keydb_transport::Channel;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    node::{connection, describe, is_denied},
    routing::{Routing, read_map},
};
use crate::{
    config::ClientConfig,
    error::{ConnectError, MapRejected},
};

/// Checks the settings and gets the cluster map.
pub(crate) async fn connect(config: &ClientConfig) -> Result<Routing, ConnectError> {
    config
        .check()
        .map_err(|(setting, value, rule)| ConnectError::InvalidSetting {
            setting,
            value,
            rule,
        })?;
    if config.addresses.is_empty() {
        return Err(ConnectError::NoAddresses);
    }
    let mut asked = Vec::with_capacity(config.addresses.len());
    for address in &config.addresses {
        let connection = connection(address, config.outgoing_at_first()).map_err(|reason| {
            ConnectError::InvalidAddress {
                address: address.clone(),
                reason,
            }
        })?;
        asked.push(Asked {
            address,
            connection,
            last_error: "no answer".to_owned(),
        });
    }

    let deadline = Instant::now() + config.call_timeout;
    let routing = match timeout_at(deadline, first_map(config, &mut asked)).await {
        Ok(routing) => routing?,
        Err(_) => {
            let errors: Vec<String> = asked
                .iter()
                .map(|asked| format!("{}: {}", asked.address, asked.last_error))
                .collect();
            return Err(ConnectError::Unreachable {
                timeout: config.call_timeout,
                errors: errors.join("; "),
            });
        }
    };
    match config.total_hash_ranges {
        Some(configured) if configured as usize != routing.map.ranges.len() => {
            Err(ConnectError::HashRanges {
                configured,
                in_map: routing.map.ranges.len(),
            })
        }
        _ => Ok(routing),
    }
}

/// One configured address.
struct Asked<'a> {
    address: &'a str,
    connection: ShardServiceClient<Channel>,
    last_error: String,
}

/// The first map that comes. It need not be the newest: replies tell when a node has a newer one.
async fn first_map(
    config: &ClientConfig,
    asked: &mut [Asked<'_>],
) -> Result<Routing, ConnectError> {
    let mut answers: FuturesUnordered<_> = asked.iter_mut().map(|one| one.map(config)).collect();
    let mut denied = Err(ConnectError::NoAddresses);
    while let Some(answer) = answers.next().await {
        match answer {
            // Another node may let this client in.
            Err(ConnectError::Denied { .. }) => denied = answer,
            answer => return answer,
        }
    }
    denied
}

impl Asked<'_> {
    /// Asks until there is a map.
    async fn map(&mut self, config: &ClientConfig) -> Result<Routing, ConnectError> {
        for retry in 0.. {
            self.last_error = match self.connection.get_map(GetMapRequest::default()).await {
                Err(status) if is_denied(&status) => {
                    return Err(ConnectError::Denied {
                        address: self.address.to_owned(),
                        reason: describe(&status),
                    });
                }
                Err(status) => describe(&status),
                Ok(reply) => match read_map(reply.get_ref()) {
                    Ok(None) => "the node has no cluster map yet".to_owned(),
                    Ok(Some((map, clock))) => {
                        let (max, outgoing) = (config.requests_in_flight_max, &config.outgoing);
                        match Routing::new(map, None, max, outgoing, clock) {
                            Ok(routing) => return Ok(routing),
                            Err(error) => error.to_string(),
                        }
                    }
                    Err(MapRejected::Map(error)) => return Err(error.into()),
                    Err(error) => error.to_string(),
                },
            };
            sleep(config.pause_before(retry)).await;
        }
        unreachable!("the loop above counts further than anyone waits")
    }
}
