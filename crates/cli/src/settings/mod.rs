//! Settings from the environment (`KEYDB_…`): read once, checked as a whole before anything else happens.
//!
//! Reading is a pure function of the variables and the working directory, so that tests need no process environment. Every
//! wrong value is reported, not only the first. A new setting is declared in [`declared`], and used.

mod declared;
mod environment;
mod log;
mod memory;
mod names;
mod parse;
mod problems;
mod read;
#[cfg(test)]
mod reference;
mod security;
mod storage;
#[cfg(test)]
mod tests;

pub(crate) use declared::{
    Effective, HASH_RANGES_DEFAULT, HTTP_PORT_DEFAULT, HTTP_PORT_SETTING, OPERATOR_PORT_DEFAULT,
    OPERATOR_PORT_SETTING, PORT_DEFAULT, Reader, Settings, help,
};
pub(crate) use environment::environment;
pub(crate) use log::{LogFormat, LogSettings};
pub(crate) use memory::available_bytes as available_memory_bytes;
pub(crate) use parse::{addresses, duration, host_and_port, log_filter, namespace};
pub(crate) use read::{ClientSettings, HealthSettings, OperatorSettings, load, of_health};
pub(crate) use security::{Listening, Security, warn_insecure};
pub(crate) use storage::url as storage_url;
