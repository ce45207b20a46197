//! Reading snapshot objects: whole ones, and one section of a delta.

use futures_util::StreamExt;
use keydb_core::{
    Event, Footer, FooterError, ManifestFile, NodeId, Origin, RangeId, SnapshotDecoder, Totals,
};

use super::{error::SnapshotReadError, names::object_key, store::SnapshotStore};
use crate::ObjectStream;

/// How much of an object's end is read for its footer, unless that is longer.
const FOOTER_BYTES: u64 = 64 << 10;

impl SnapshotStore {
    /// Reads `node`'s snapshot object `file` of a cluster from front to back, and shows `each` what is in it. Without an error it is
    /// the file that the manifest names, and nothing of it is missing.
    ///
    /// # Errors
    /// When it is not, or `each` fails.
    pub async fn read(
        &self,
        node: NodeId,
        file: &ManifestFile,
        origin: Origin,
        mut each: impl FnMut(Event<'_>) -> Result<(), SnapshotReadError>,
    ) -> Result<Totals, SnapshotReadError> {
        let totals = self
            .read_any(&object_key(node, &file.name), |event| {
                if let Event::Header(header) = &event {
                    origin.check_header(header, file)?;
                }
                each(event)
            })
            .await?;
        file.check_totals(totals)?;
        Ok(totals)
    }

    /// Reads the snapshot object `key`, whatever it is, from front to back, and shows `each` what is in it.
    ///
    /// # Errors
    /// When something of it is missing or damaged, or `each` fails.
    pub async fn read_any(
        &self,
        key: &str,
        each: impl FnMut(Event<'_>) -> Result<(), SnapshotReadError>,
    ) -> Result<Totals, SnapshotReadError> {
        let stream = self.storage().get_range(key, 0..u64::MAX).await?;
        let decoder = SnapshotDecoder::new().map_err(no_memory)?;
        decode(stream.ok_or(SnapshotReadError::Missing)?, decoder, each).await
    }

    /// The footer of `node`'s snapshot object `file` of a cluster.
    ///
    /// # Errors
    /// When it is not the file that the manifest names, or cannot be read.
    pub async fn footer(
        &self,
        node: NodeId,
        file: &ManifestFile,
        origin: Origin,
    ) -> Result<Footer, SnapshotReadError> {
        let key = object_key(node, &file.name);
        let size_bytes = file.size_bytes;
        let mut tail_bytes = FOOTER_BYTES.min(size_bytes);
        loop {
            let range = size_bytes - tail_bytes..size_bytes;
            let stream = self.storage().get_range(&key, range).await?;
            let mut stream = stream.ok_or(SnapshotReadError::Missing)?;
            if stream.size_bytes != size_bytes {
                return Err(SnapshotReadError::Damaged(format!(
                    "it has {} bytes, and the manifest says {size_bytes}",
                    stream.size_bytes
                )));
            }
            let mut tail = Vec::new();
            while let Some(chunk) = stream.bytes.next().await {
                tail.extend_from_slice(&chunk?);
            }
            match Footer::decode(&tail, size_bytes) {
                Ok(footer) => {
                    origin.check_header(&footer.header, file)?;
                    file.check_totals(footer.totals)?;
                    return Ok(footer);
                }
                Err(FooterError::TailTooShort { needed_bytes }) if needed_bytes > tail_bytes => {
                    tail_bytes = needed_bytes.min(size_bytes);
                }
                Err(error) => return Err(SnapshotReadError::Damaged(error.to_string())),
            }
        }
    }

    /// Reads the section of `range` in `node`'s snapshot object `name`, whose footer is `footer`.
    ///
    /// # Errors
    /// When it has none, something of it is missing or damaged, or `each` fails.
    pub async fn read_section(
        &self,
        node: NodeId,
        name: &str,
        footer: &Footer,
        range: RangeId,
        each: impl FnMut(Event<'_>) -> Result<(), SnapshotReadError>,
    ) -> Result<Totals, SnapshotReadError> {
        let section = footer.section(range).ok_or_else(|| {
            SnapshotReadError::Damaged(format!(
                "it has no section of hash range {range}, and the manifest says that it has one"
            ))
        })?;
        let key = object_key(node, name);
        let stream = self
            .storage()
            .get_range(&key, section.bytes.clone())
            .await?;
        let decoder = SnapshotDecoder::of_section(footer, section).map_err(no_memory)?;
        decode(stream.ok_or(SnapshotReadError::Missing)?, decoder, each).await
    }
}

async fn decode(
    mut stream: ObjectStream,
    mut decoder: SnapshotDecoder,
    mut each: impl FnMut(Event<'_>) -> Result<(), SnapshotReadError>,
) -> Result<Totals, SnapshotReadError> {
    while let Some(chunk) = stream.bytes.next().await {
        decoder.feed(&chunk?);
        while let Some(event) = decoder.next_event()? {
            each(event)?;
        }
    }
    Ok(decoder.finish()?)
}

pub(super) fn no_memory(error: std::io::Error) -> SnapshotReadError {
    SnapshotReadError::Damaged(format!("no memory to read it: {error}"))
}
