//! The journal, with real files in a temporary directory. A kill is played by a copy of the directory, taken while it is written.

mod commit;
mod cutting;
mod damage;
mod failing;
mod full;
mod identity;
mod order;
mod reopening;
mod torn;

use std::{fs, time::Duration};

use keydb_core::{
    Expiry, FINGERPRINT_BYTES, ManualClock, PackedFingerprints, RecordGroup, SEGMENT_HEADER_BYTES,
    SegmentHeader, UnixMillis, Write,
};
use tempfile::TempDir;

use super::{files::SegmentFile, replay::Replayed, *};

const START: UnixMillis = UnixMillis(1_700_000_000_000);
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const IDENTITY: Identity = Identity {
    cluster_id: ClusterId::from_bytes([1; 16]),
    node: NodeId(3),
    disk_id: Incarnation::from_bytes([7; 16]),
};

/// A record as a test remembers it: its LSN, and its keys, or `None` for an empty one.
type Kept = (u64, Option<Vec<u8>>);

/// A journal's directory.
struct Rig {
    dir: TempDir,
    clock: Arc<ManualClock>,
    segment_bytes: u64,
}

/// A record or mark in a segment's file.
#[derive(Debug, Clone)]
struct Place {
    lsn: u64,
    synced: u64,
    start: usize,
    end: usize,
    is_mark: bool,
}

/// A segment's file.
#[derive(Debug, Clone)]
struct Image {
    path: PathBuf,
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// No records, but those that will come behind `last`.
fn kept_behind(last: Lsn) -> Recent {
    Recent::new(last, RECENT_BYTES_MAX)
}

impl Rig {
    fn new(segment_bytes: u64) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            clock: Arc::new(ManualClock::new(START)),
            segment_bytes,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    fn config(&self) -> JournalConfig {
        let clock = Arc::clone(&self.clock);
        JournalConfig {
            segment_bytes: self.segment_bytes,
            ..JournalConfig::new(self.path(), IDENTITY, true, clock)
        }
    }

    /// Opens the journal behind what is in it, as a node does.
    fn open(&self) -> Journal {
        let last = self.replay_after(0).map_or_else(
            // Its first segments are gone.
            |_| self.replayed(self.segments()[0].first.0 - 1).last,
            |(replayed, _)| replayed.last,
        );
        Journal::open(self.config(), kept_behind(last)).unwrap()
    }

    fn replayed(&self, after: u64) -> Replayed {
        self.replay_after(after).unwrap().0
    }

    fn replay_after(&self, after: u64) -> Result<(Replayed, Vec<Kept>), JournalError> {
        let mut kept = Vec::new();
        let replayed = replay(&self.path(), &IDENTITY, Lsn(after), Lsn(after), |record| {
            kept.push(keep(record));
            Ok(())
        })?;
        Ok((replayed, kept))
    }

    /// All records.
    fn replay(&self) -> Result<Vec<Kept>, JournalError> {
        self.replay_after(0).map(|(_, kept)| kept)
    }

    /// What a kill at this moment would leave.
    fn killed(&self) -> Self {
        let copy = Self::new(self.segment_bytes);
        fs::create_dir(copy.path()).unwrap();
        for entry in fs::read_dir(self.path()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            match fs::copy(&path, copy.path().join(name)) {
                Ok(_) => {}
                // It was prepared, and has become a segment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        copy
    }

    fn segments(&self) -> Vec<SegmentFile> {
        files::list(&self.path()).unwrap()
    }

    /// The segments' files, and what is where in them.
    fn images(&self) -> Vec<Image> {
        let mut images: Vec<Image> = Vec::new();
        inspect(&self.path(), |found| match found {
            Found::Segment { path, .. } => images.push(Image {
                bytes: fs::read(&path).unwrap(),
                path,
                places: Vec::new(),
            }),
            Found::Record {
                offset,
                lsn,
                synced,
                kind,
                ..
            } => {
                let image = images.last_mut().unwrap();
                let start = usize::try_from(offset).unwrap();
                // As the record itself says it, behind its magic.
                let length = image.bytes[start + 4..start + 8].try_into().unwrap();
                image.places.push(Place {
                    lsn: lsn.0,
                    synced: synced.0,
                    start,
                    end: start + u32::from_le_bytes(length) as usize,
                    is_mark: kind == "mark",
                });
            }
            Found::End { .. } => {}
        })
        .unwrap();
        images
    }
}

impl Image {
    /// Where its last record ends; a mark is none.
    fn end(&self) -> usize {
        let records = self.places.iter().filter(|place| !place.is_mark);
        records.map(|place| place.end).max().unwrap()
    }

    fn restore(&self) {
        fs::write(&self.path, &self.bytes).unwrap();
    }
}

fn keep(record: &keydb_core::Record<'_>) -> Kept {
    let keys = match &record.body {
        keydb_core::RecordBody::Write(write) => Some(write.fingerprints.as_bytes().to_vec()),
        keydb_core::RecordBody::Empty => None,
        keydb_core::RecordBody::Mark => panic!("a mark is nothing that was applied"),
    };
    (record.lsn.0, keys)
}

/// So many keys, different for each number.
fn keys(number: u64, count: usize) -> Vec<u8> {
    let byte = |at: usize| (number.wrapping_mul(0x9E37_79B9) >> (at % 4 * 8)) as u8 ^ at as u8;
    (0..count * FINGERPRINT_BYTES).map(byte).collect()
}

/// Puts keys into the journal under an LSN that was taken.
fn put(reservation: Reservation, keys: &[u8]) -> Kept {
    put_by(Reservation::append, reservation, keys)
}

fn put_by(
    append: fn(Reservation, &Write<'_>, UnixMillis),
    reservation: Reservation,
    keys: &[u8],
) -> Kept {
    let lsn = reservation.lsn().0;
    let groups = [RecordGroup {
        range: keydb_core::RangeId(0),
        generation: 1,
        count: (keys.len() / FINGERPRINT_BYTES) as u32,
    }];
    let write = Write {
        expiry: Expiry::from_unix_seconds(1_800_000_000).unwrap(),
        operation: None,
        answers: &[],
        groups: (&groups[..]).into(),
        fingerprints: PackedFingerprints::new(keys).unwrap(),
    };
    append(reservation, &write, START);
    (lsn, Some(keys.to_vec()))
}

/// What a record of so many keys takes at most.
const fn size_of_record(keys: usize) -> usize {
    keydb_core::record_bytes_max(1, keys, 0)
}

/// Appends a record, not yet committed.
async fn append(journal: &Journal, keys: &[u8]) -> Kept {
    let bytes = size_of_record(keys.len() / FINGERPRINT_BYTES);
    let space = journal.admit(bytes).await.unwrap();
    put(space.begin(), keys)
}

/// Appends a record and waits for it.
async fn commit(journal: &Journal, keys: &[u8]) -> Kept {
    let kept = append(journal, keys).await;
    journal.wait_committed(Lsn(kept.0)).await.unwrap();
    kept
}

/// Commits so many records, one after the other.
async fn fill(journal: &Journal, records: u64) -> Vec<Kept> {
    let mut kept = Vec::new();
    for number in 0..records {
        kept.push(commit(journal, &keys(number, 2)).await);
    }
    kept
}

/// When this returns, the writer has done everything that it was told to before, and the preparer what the writer has told it.
async fn writer_is_done(journal: &Journal) -> Vec<Kept> {
    // It commits a record before it cuts. With the second one it has begun anew.
    let kept = fill(journal, 2).await;
    eventually(async || journal.shared.room.has_removed()).await;
    kept
}

/// Waits for what another thread does.
async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(waiting).await;
}

/// What would hang if it went wrong.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it happens in a minute")
}
