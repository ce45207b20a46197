//! stub
use keydb_core::{Lsn, UnixMillis};
use tokio::time::Instant;
#[derive(Debug)]
pub(crate) struct Snapshotter;
#[derive(Debug, Default)]
pub(crate) struct Reach {
    pub lsn: Lsn,
    pub complete_to: UnixMillis,
}
#[derive(Debug, Default)]
pub(crate) struct SnapStatus {
    pub local: Reach,
    pub uploaded: Reach,
    pub file_bytes: u64,
}
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub lsn: Lsn,
    pub complete_to: UnixMillis,
    pub objects: u64,
    pub object_bytes: u64,
}
impl Snapshotter {
    pub(crate) fn status(&self) -> SnapStatus {
        todo!()
    }
    pub(crate) async fn close(&self, _d: Instant) -> Result<(), String> {
        todo!()
    }
    pub(crate) async fn request(&self, _f: bool) -> Result<Made, String> {
        todo!()
    }
}
