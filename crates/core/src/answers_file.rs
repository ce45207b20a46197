//! The file with the answers that a node remembers: what it was told to recent operations, as of some LSN. Written whole, read
//! whole; `docs/formats.md` has every field.

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    ClusterId, Incarnation, Lsn, OperationAnswers, OperationId, UnixMillis, bytes::Reader,
};

const MAGIC: [u8; 8] = *b"KEYDBANS";
const FORMAT: u32 = 1;

/// What an entry takes besides its answers.
const ENTRY_BYTES: usize = 36;

/// The answers that a node remembered when everything up to an LSN was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswersFile {
    /// Which cluster.
    pub cluster_id: ClusterId,
    /// The disk whose LSNs these are.
    pub disk_id: Incarnation,
    /// The answers of records up to here are in the file, as far as they were still remembered. Those of later ones are in the
    /// journal, and may be in the file as well.
    pub lsn: Lsn,
    /// The operations, those that are forgotten first at the start.
    pub entries: Vec<AnswerEntry>,
}

/// What one operation was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerEntry {
    /// Which operation.
    pub operation: OperationId,
    /// When it was recorded.
    pub recorded: UnixMillis,
    /// The LSN of its newest record.
    pub lsn: Lsn,
    /// Its answers.
    pub answers: OperationAnswers,
}

/// Why a file of answers cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswersError {
    /// Its bytes are not those that were written.
    #[error("the file of remembered answers is damaged: {0}")]
    Damaged(String),
    /// Written by a build that is newer in a way that matters.
    #[error(
        "the file of remembered answers needs {what}, which this build does not have; upgrade it"
    )]
    Unsupported {
        /// The unknown format or feature.
        what: String,
    },
}

impl AnswersFile {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let no_features = 0_u32;
        let lengths = self
            .entries
            .iter()
            .map(|entry| entry.answers.as_bytes().len());
        let answers_bytes: usize = lengths.sum();
        let mut out = Vec::with_capacity(80 + self.entries.len() * ENTRY_BYTES + answers_bytes);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&no_features.to_le_bytes());
        out.extend_from_slice(&self.cluster_id.to_bytes());
        out.extend_from_slice(&self.disk_id.to_bytes());
        out.extend_from_slice(&self.lsn.0.to_le_bytes());
        out.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        for entry in &self.entries {
            out.extend_from_slice(&entry.operation.to_bytes());
            out.extend_from_slice(&entry.recorded.0.to_le_bytes());
            out.extend_from_slice(&entry.lsn.0.to_le_bytes());
            let answers = entry.answers.as_bytes();
            out.extend_from_slice(&(answers.len() as u32).to_le_bytes());
            out.extend_from_slice(answers);
        }
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it is damaged, cut short, or needs what this build does not have.
    pub fn decode(file: &[u8]) -> Result<Self, AnswersError> {
        let damaged = |what: &str| AnswersError::Damaged(what.to_owned());
        if !file.starts_with(&MAGIC) {
            return Err(damaged("it does not begin as one does"));
        }
        let (content, sum) = file
            .split_last_chunk()
            .ok_or_else(|| damaged("it is too short"))?;
        if xxh3_64(content) != u64::from_le_bytes(*sum) {
            return Err(damaged("its checksum does not match, or it is cut short"));
        }
        let mut reader = Reader::new(content);
        reader.take(MAGIC.len());
        let (Some(format), Some(features)) = (reader.u32(), reader.u32()) else {
            return Err(damaged("it ends early"));
        };
        if format != FORMAT || features != 0 {
            return Err(AnswersError::Unsupported {
                what: format!("format {format} with features {features:#x}"),
            });
        }
        Self::read(&mut reader)
            .filter(|_| reader.rest().is_empty())
            .ok_or_else(|| damaged("its content contradicts its length"))
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let cluster_id = ClusterId::from_bytes(reader.array()?);
        let disk_id = Incarnation::from_bytes(reader.array()?);
        let lsn = Lsn(reader.u64()?);
        let count = usize::try_from(reader.u64()?).ok()?;
        if count > reader.rest().len() / ENTRY_BYTES {
            return None;
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let operation = OperationId::from_bytes(reader.array()?);
            let recorded = UnixMillis(reader.u64()?);
            let lsn = Lsn(reader.u64()?);
            let length = usize::try_from(reader.u32()?).ok()?;
            entries.push(AnswerEntry {
                operation,
                recorded,
                lsn,
                answers: OperationAnswers::decode(reader.take(length)?)?,
            });
        }
        Some(Self {
            cluster_id,
            disk_id,
            lsn,
            entries,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;
    use crate::{AnswersDraft, Expiry, RangeId};

    fn file(entries: Vec<AnswerEntry>) -> AnswersFile {
        AnswersFile {
            cluster_id: ClusterId::from_bytes([1; 16]),
            disk_id: Incarnation::from_bytes([2; 16]),
            lsn: Lsn(3),
            entries,
        }
    }

    /// So many ranges that were applied in part.
    fn answers(ranges: u32) -> OperationAnswers {
        let mut draft = AnswersDraft::new(Expiry::from_unix_seconds(9).unwrap());
        (0..ranges).for_each(|range| draft.group_partially_applied(RangeId(range)));
        draft.encode()
    }

    fn entry(operation: u8, answers: OperationAnswers) -> AnswerEntry {
        AnswerEntry {
            operation: OperationId::from_bytes([operation; 16]),
            recorded: UnixMillis(u64::from(operation) << 40),
            lsn: Lsn(u64::MAX - u64::from(operation)),
            answers,
        }
    }

    fn sealed(mut bytes: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
        bytes[at] = value;
        if let Some((content, sum)) = bytes.split_last_chunk_mut() {
            *sum = xxh3_64(content).to_le_bytes();
        }
        bytes
    }

    proptest! {
        #[test]
        fn a_file_reads_back_as_it_was_written(
            entries in collection::vec((any::<u8>(), 0_u32..100), 0..20),
        ) {
            let file = file(entries.into_iter().map(|(operation, ranges)| entry(operation, answers(ranges))).collect());
            prop_assert_eq!(AnswersFile::decode(&file.encode()), Ok(file));
        }

        #[test]
        fn any_bytes_with_a_checksum_are_an_error_or_a_file(content in collection::vec(any::<u8>(), 0..200), count in 0_u64..4) {
            let mut bytes = [&MAGIC[..], &[1, 0, 0, 0, 0, 0, 0, 0], &[0; 40], &count.to_le_bytes(), &content[..], &[0; 8]].concat();
            bytes = sealed(bytes, 0, MAGIC[0]);
            let _ = AnswersFile::decode(&bytes);
        }
    }

    #[test]
    fn a_file_that_is_cut_or_flipped_anywhere_is_refused() {
        let bytes = file(vec![entry(1, answers(1)), entry(2, answers(0))]).encode();
        for at in 0..bytes.len() {
            assert!(AnswersFile::decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x08;
            assert!(AnswersFile::decode(&flipped).is_err(), "flipped at {at}");
        }
    }

    #[test]
    fn counts_that_do_not_fit_the_file_are_refused() {
        // Expiry, number of groups, range, count: 7 bytes.
        let bytes = file(vec![entry(1, answers(1))]).encode();
        let refusal = |at, value| {
            AnswersFile::decode(&sealed(bytes.clone(), at, value))
                .unwrap_err()
                .to_string()
        };
        assert!(refusal(8, 2).contains("format 2"));
        assert!(refusal(12, 2).contains("features 0x2"));
        for (at, value) in [(56, 0), (56, 2), (63, 0xff), (96, 6), (96, 8), (99, 0xff)] {
            assert!(refusal(at, value).contains("contradicts"), "{at}: {value}");
        }
    }
}
