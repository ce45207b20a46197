//! Object storage behind one small trait, and the cluster map in it.

mod error;
mod local;
mod map_store;
mod memory;
mod url;

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use keydb_core::UnixMillis;
