//! stub
use crate::{NodeError, data_dir::DataDir, node::Node};
use keydb_core::UnixMillis;
use keydb_storage::ObjectStorage;
use std::sync::Arc;
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) node: Arc<Node>,
    pub(crate) storage: Arc<dyn ObjectStorage>,
    pub(crate) data_dir: Arc<DataDir>,
}
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) lost_after: Option<UnixMillis>,
}
impl Recovery {
    pub(crate) async fn run(self) -> Result<Recovered, NodeError> {
        todo!()
    }
}
