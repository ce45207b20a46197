//! Snapshots of a node's keys: local files first, then object storage.
//!
//! **A round** is made every interval, on demand, and when the journal grows large (`rounds`). It takes what was written since the
//! last one as a delta file, or, where that is cheaper or the records were too many to keep, makes full files of ranges by
//! scanning their key sets. A file is written under another name, synced and renamed; then the local manifest names it; then the
//! memory of answers is written; and only then the journal is cut. So at each moment the disk has everything, and it never has more
//! than the size of the state and the writes of a round or two.
//!
//! **What is not committed stays out of use.** A full file may hold keys whose record is not synced, or not even appended, yet. It
//! is named by the manifest only after every LSN that was taken until its scan ended is committed; otherwise a crash could keep
//! keys that nobody was told of.
//!
//! **Ranges that come and go.** A range that comes in from another node is named when it is complete, with a full file. One that has
//! left is not named from the next round on; when it comes back, it is another one, and so it is when another copy takes the place of
//! one that broke off (`rounds::naming`).
//!
//! **Failure.** A round that fails changes nothing: what it had made stays, what was to be written is kept for the next one, and
//! where it grows too much for that, full files take its place.
//!
//! **Uploading** is a task of its own (`upload`), through which slow storage cannot hold up rounds: it uploads the files that the
//! local manifest names, and then publishes that manifest. Meanwhile those files stay, so that uploading comes to an end however
//! fast they are replaced: the disk has at most twice the state. While storage fails they go as soon as they are not needed.
//!
//! **Pacing.** Encoding takes a quarter of one core at most, in slices of some hundred microseconds, and a lock for some thousand
//! keys at once.

mod error;
mod garbage;
mod local;
mod published;
mod room;
mod rounds;
mod shared;
mod snapshotter;
#[cfg(test)]
mod tests;
mod upload;

pub(crate) use local::{
    file_path, local_manifest, manifest_path, open, save, skip_lost, take_clean_flag,
};
pub(crate) use published::Published;
pub(crate) use room::room_at_start;
pub(crate) use rounds::Replayed;
pub(in crate::disk) use rounds::is_of;
pub(crate) use shared::NodeParts;
pub(crate) use snapshotter::{Inputs, SnapshotCounters, Snapshotter};
