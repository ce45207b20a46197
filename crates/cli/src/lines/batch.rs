//! Many lines in one buffer, with the key of each.

/// Where a line's key lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyAt {
    /// There is no usable key.
    Nowhere,
    /// In the line, as it stands.
    InLine {
        /// Bytes from the line's beginning.
        start: u32,
        /// Bytes.
        len: u32,
    },
    /// In the batch's decoded text, after the decoded keys before it.
    Decoded {
        /// Bytes.
        len: u32,
    },
}

/// What a record of a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A whole line.
    Line,
    /// The first piece of a line that is too long to hold as a whole. It has no key.
    LongFirst,
    /// A further piece of such a line.
    LongMore,
    /// The header. It has no key.
    Header,
    /// The same header again, of a further input. It has no key.
    HeaderAgain,
}

impl Form {
    /// Whether it is a line, or the first piece of one. A header is none.
    pub(crate) const fn begins_line(self) -> bool {
        matches!(self, Self::Line | Self::LongFirst)
    }
}

/// A line or a piece of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// Bytes, the terminator included.
    pub(crate) len: u32,
    /// Whole or in pieces.
    pub(crate) form: Form,
    /// Its key.
    pub(crate) key: KeyAt,
}

impl Record {
    /// How many bytes of decoded text are its key.
    pub(crate) const fn decoded_len(&self) -> usize {
        match self.key {
            KeyAt::Decoded { len } => len as usize,
            KeyAt::Nowhere | KeyAt::InLine { .. } => 0,
        }
    }
}

/// Lines in order, in one buffer.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    decoded: Vec<u8>,
    records: Vec<Record>,
    key_count: usize,
}

/// One record with its bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    /// All bytes, the terminator included (a piece of a long line may have none).
    pub(crate) raw: &'a [u8],
    /// Whole or in pieces.
    pub(crate) form: Form,
    /// The key, where there is a usable one.
    pub(crate) key: Option<&'a [u8]>,
}

impl Batch {
    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many records.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// How many of the records have a key.
    pub(crate) fn key_count(&self) -> usize {
        self.key_count
    }

    /// All bytes of all records.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds records whose bytes are `bytes` and whose decoded keys are `decoded`.
    pub(crate) fn extend(&mut self, records: &[Record], bytes: &[u8], decoded: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.decoded.extend_from_slice(decoded);
        self.records.extend_from_slice(records);
        self.key_count += records
            .iter()
            .filter(|record| record.key != KeyAt::Nowhere)
            .count();
    }

    /// Takes everything out and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.decoded.clear();
        self.records.clear();
        self.key_count = 0;
    }

    /// The records in order.
    pub(crate) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let mut bytes = self.bytes.as_slice();
        let mut decoded = self.decoded.as_slice();
        self.records.iter().map(move |record| {
            let raw;
            (raw, bytes) = bytes.split_at(record.len as usize);
            let key = match record.key {
                KeyAt::Nowhere => None,
                KeyAt::InLine { start, len } => Some(&raw[start as usize..][..len as usize]),
                KeyAt::Decoded { len } => {
                    let key;
                    (key, decoded) = decoded.split_at(len as usize);
                    Some(key)
                }
            };
            Line {
                raw,
                form: record.form,
                key,
            }
        })
    }

    /// The keys of the records that have one, in order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.lines().filter_map(|line| line.key)
    }
}
