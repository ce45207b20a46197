//! Reading a snapshot file, from front to back, as its bytes come in.

use std::io;

use super::{
    BlockEntry, Footer, SectionEntry, SectionHeader, SnapshotError, SnapshotHeader, Totals,
    block::{self, BLOCK_BYTES_MAX},
    expiries::ExpiryDecoder,
    frame::{self, FrameHead, NO_SALT, Tag},
    header::{self, HEADER_BYTES_MAX, MAGIC},
    section::SECTION_BYTES,
};
use crate::{Entry, Fingerprint, bytes::Reader};

const BYTES_BEHIND_END: &str = "bytes follow its end";

/// What comes next in a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// First of all: what the file says of itself. A section that is read by itself has none.
    Header(&'a SnapshotHeader),
    /// A section begins, and the one before it was complete.
    Section(SectionHeader),
    /// Entries of the section, in ascending order, behind those that came before.
    Entries(&'a [Entry]),
    /// Last of all: nothing is missing.
    End(Totals),
}

/// Reads a snapshot file whose bytes come in portions of any size.
///
/// After each [`feed`](Self::feed), take [`next_event`](Self::next_event) until there is none: then no more than a block is kept.
/// Only [`finish`](Self::finish) says that nothing is missing.
///
/// ```
/// # use keydb_core::*;
/// # let header = SnapshotHeader {
/// #     kind: FileKind::Full, cluster_id: ClusterId::from_bytes([1; 16]), lineage: 1, seed_digest: 2, node: NodeId(0),
/// #     disk_id: Incarnation::from_bytes([2; 16]), incarnation: Incarnation::from_bytes([3; 16]), lsn_from: Lsn(0), lsn_to: Lsn(9),
/// #     created: UnixMillis(5), purge_before: UnixSeconds(0), parents: Vec::new(),
/// # };
/// let mut writer = SnapshotWriter::new(Vec::new(), &header)?;
/// writer.begin_section(SectionHeader { range: RangeId(7), generation: 1, bounds: HashRange::ALL })?;
/// let expiry = Expiry::from_unix_seconds(1_700_000_000).ok_or("0 is no expiry")?;
/// writer.entries(&[Entry::new(Fingerprint::from_parts(3, 4), expiry)])?;
/// let (file, _) = writer.finish()?;
///
/// let mut decoder = SnapshotDecoder::new()?;
/// let mut keys = 0;
/// for portion in file.chunks(10) {
///     decoder.feed(portion);
///     while let Some(event) = decoder.next_event()? {
///         if let Event::Entries(entries) = event {
///             keys += entries.len();
///         }
///     }
/// }
/// assert_eq!(decoder.finish()?.entries, 1);
/// assert_eq!(keys, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SnapshotDecoder {
    /// Bytes that came in, those before `taken` already used.
    buffer: Vec<u8>,
    taken: usize,
    /// Where in the file the byte at `taken` is.
    offset: u64,
    state: State,
    salt: u64,
    /// What was read so far, put together as the footer must have it.
    read: Option<Footer>,
    /// The section that is read by itself, as the footer has it.
    only: Option<SectionEntry>,
    last: Option<Fingerprint>,
    expiries: ExpiryDecoder,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// At the file's first bytes.
    Start,
    /// A section, or the end, comes next.
    BetweenSections,
    /// As well, or a block.
    InSection(SectionHeader),
    /// These bytes must come next: nothing else can follow what was read.
    Ending(Vec<u8>),
    /// Nothing may come any more.
    Ended(Totals),
    Failed(SnapshotError),
}

/// An [`Event`] before it borrows anything.
enum Step {
    Header,
    Section(SectionHeader),
    Entries,
    End(Totals),
}

impl std::fmt::Debug for SnapshotDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotDecoder")
            .field("state", &self.state)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl SnapshotDecoder {
    /// A decoder of a whole file.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            buffer: Vec::new(),
            taken: 0,
            offset: 0,
            state: State::Start,
            salt: NO_SALT,
            read: None,
            only: None,
            last: None,
            expiries: ExpiryDecoder::new()?,
            entries: Vec::new(),
        })
    }

    /// A decoder of one section of the file that `footer` was read from; it is fed the section's bytes only.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn of_section(footer: &Footer, section: &SectionEntry) -> io::Result<Self> {
        Ok(Self {
            offset: section.bytes.start,
            state: State::BetweenSections,
            salt: footer.salt(),
            only: Some(section.clone()),
            read: Some(Footer {
                header: footer.header.clone(),
                sections: Vec::new(),
                blocks: Vec::new(),
                totals: Totals::default(),
            }),
            ..Self::new()?
        })
    }

    /// Takes in the file's next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// What comes next; `None` when more bytes are needed for that, or nothing comes any more.
    ///
    /// # Errors
    /// When the file cannot be used; from then on always the same error.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>, SnapshotError> {
        let step = match self.step() {
            Ok(Some(step)) => step,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.state = State::Failed(error.clone());
                return Err(error);
            }
        };
        Ok(match (step, &self.read) {
            (Step::Header, read) => read.as_ref().map(|read| Event::Header(&read.header)),
            (Step::Section(section), _) => Some(Event::Section(section)),
            (Step::Entries, _) => Some(Event::Entries(&self.entries)),
            (Step::End(totals), _) => Some(Event::End(totals)),
        })
    }

    /// Says how much was read, when nothing is missing.
    ///
    /// # Errors
    /// When the file ended early, or cannot be used, or events were not taken.
    pub fn finish(self) -> Result<Totals, SnapshotError> {
        match self.state {
            State::Ended(totals) if self.waiting().is_empty() => Ok(totals),
            State::Ended(_) => Err(self.damaged(BYTES_BEHIND_END)),
            State::Failed(error) => Err(error),
            _ => Err(SnapshotError::Truncated {
                bytes: self.offset + self.waiting().len() as u64,
            }),
        }
    }

    /// Bytes of memory that are kept between calls.
    #[cfg(test)]
    pub(super) fn memory_bytes(&self) -> usize {
        self.buffer.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    /// The bytes that were not used yet.
    fn waiting(&self) -> &[u8] {
        &self.buffer[self.taken..]
    }

    fn advance(&mut self, bytes: usize) {
        self.taken += bytes;
        self.offset += bytes as u64;
    }

    fn damaged(&self, what: impl Into<String>) -> SnapshotError {
        SnapshotError::Damaged {
            offset: self.offset,
            what: what.into(),
        }
    }

    fn step(&mut self) -> Result<Option<Step>, SnapshotError> {
        match &self.state {
            State::Start => self.read_header(),
            State::BetweenSections | State::InSection(_) => self.read_frame(),
            State::Ending(_) => self.read_end(),
            State::Ended(_) if self.waiting().is_empty() => Ok(None),
            State::Ended(_) => Err(self.damaged(BYTES_BEHIND_END)),
            State::Failed(error) => Err(error.clone()),
        }
    }

    fn read_header(&mut self) -> Result<Option<Step>, SnapshotError> {
        let Some((magic, rest)) = self.waiting().split_first_chunk() else {
            return Ok(None);
        };
        if *magic != MAGIC {
            return Err(self.damaged("it does not begin as a snapshot file does"));
        }
        let Some(head) = FrameHead::read(rest) else {
            return Ok(None);
        };
        if head.tag != Some(Tag::Header) || head.payload_bytes > HEADER_BYTES_MAX {
            return Err(self.damaged("no header follows its first bytes"));
        }
        let Some(frame) = rest.get(..head.frame_bytes()) else {
            return Ok(None);
        };
        let Some(payload) = frame::payload(frame, NO_SALT) else {
            return Err(self.damaged("the header's checksum does not match"));
        };
        let header = SnapshotHeader::decode(payload, self.offset)?;
        let bytes = MAGIC.len() + frame.len();
        self.salt = header::salt(payload);
        self.read = Some(Footer {
            header,
            sections: Vec::new(),
            blocks: Vec::new(),
            totals: Totals {
                bytes: bytes as u64,
                ..Totals::default()
            },
        });
        self.advance(bytes);
        self.state = State::BetweenSections;
        Ok(Some(Step::Header))
    }

    fn read_frame(&mut self) -> Result<Option<Step>, SnapshotError> {
        if let Some(only) = &self.only
            && self.offset == only.bytes.end
        {
            return self.end_section();
        }
        let Some(head) = FrameHead::read(self.waiting()) else {
            return Ok(None);
        };
        let section = match &self.state {
            State::InSection(section) => Some(*section),
            _ => None,
        };
        match (head.tag, section, &self.only) {
            (Some(Tag::Section), None, _) | (Some(Tag::Section), _, None) => {
                self.read_section(head)
            }
            (Some(Tag::Block), Some(section), _) => self.read_block(head, section),
            (Some(Tag::Footer), _, None) => {
                let mut end = Vec::new();
                if let Some(read) = &mut self.read {
                    read.encode(&mut end);
                }
                self.state = State::Ending(end);
                self.read_end()
            }
            _ => Err(self.damaged("no section, block or footer that could come here begins here")),
        }
    }

    fn read_section(&mut self, head: FrameHead) -> Result<Option<Step>, SnapshotError> {
        if head.payload_bytes != SECTION_BYTES {
            return Err(self.damaged("no section has this length"));
        }
        let Some(frame) = self.waiting().get(..head.frame_bytes()) else {
            return Ok(None);
        };
        let Some(payload) = frame::payload(frame, self.salt) else {
            return Err(self.damaged("the section's checksum does not match"));
        };
        let frame_bytes = frame.len();
        let header = SectionHeader::read(&mut Reader::new(payload))
            .ok_or_else(|| self.damaged("its range's bounds make no sense"))?;
        if let Some(read) = &mut self.read {
            if read.section(header.range).is_some() {
                let what = format!("range {} has a second section", header.range);
                return Err(self.damaged(what));
            }
            let first_block = read.blocks.len();
            let end = self.offset + frame_bytes as u64;
            read.sections.push(SectionEntry {
                header,
                bytes: self.offset..end,
                entries: 0,
                blocks: first_block..first_block,
            });
            read.totals.sections += 1;
            read.totals.bytes += frame_bytes as u64;
        }
        self.advance(frame_bytes);
        self.last = None;
        self.state = State::InSection(header);
        Ok(Some(Step::Section(header)))
    }

    fn read_block(
        &mut self,
        head: FrameHead,
        section: SectionHeader,
    ) -> Result<Option<Step>, SnapshotError> {
        if head.payload_bytes > BLOCK_BYTES_MAX {
            return Err(self.damaged("no block has this length"));
        }
        let frame_bytes = head.frame_bytes();
        let Some(frame) = self.buffer.get(self.taken..self.taken + frame_bytes) else {
            return Ok(None);
        };
        let Some(payload) = frame::payload(frame, self.salt) else {
            return Err(self.damaged("the block's checksum does not match"));
        };
        block::decode(
            payload,
            section.bounds,
            self.last,
            &mut self.expiries,
            &mut self.entries,
        )
        .map_err(|what| SnapshotError::Damaged {
            offset: self.offset,
            what: what.to_owned(),
        })?;
        let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) else {
            return Err(self.damaged("the block has no entries"));
        };
        self.last = Some(last.fingerprint());
        let count = self.entries.len();
        if let Some(read) = &mut self.read {
            read.blocks.push(BlockEntry {
                first: first.fingerprint(),
                count: count as u32,
                offset: self.offset,
            });
            read.totals.entries += count as u64;
            read.totals.bytes += frame_bytes as u64;
            if let Some(section) = read.sections.last_mut() {
                section.entries += count as u64;
                section.blocks.end += 1;
                section.bytes.end = self.offset + frame_bytes as u64;
            }
        }
        self.advance(frame_bytes);
        Ok(Some(Step::Entries))
    }

    fn read_end(&mut self) -> Result<Option<Step>, SnapshotError> {
        let State::Ending(expected) = &self.state else {
            return Ok(None);
        };
        let waiting = self.waiting();
        let compared = waiting.len().min(expected.len());
        if waiting[..compared] != expected[..compared] {
            return Err(self.damaged("the footer does not name what was read"));
        }
        if compared < expected.len() {
            return Ok(None);
        }
        let totals = self
            .read
            .as_ref()
            .map(|read| read.totals)
            .unwrap_or_default();
        self.advance(compared);
        self.state = State::Ended(totals);
        Ok(Some(Step::End(totals)))
    }

    /// Ends the section that is read by itself.
    fn end_section(&mut self) -> Result<Option<Step>, SnapshotError> {
        let read = self.read.as_ref().and_then(|read| {
            let section = read.sections.first()?;
            Some((section, read.totals))
        });
        match (read, &self.only) {
            (Some((section, totals)), Some(only))
                if section.header == only.header && section.entries == only.entries =>
            {
                self.state = State::Ended(totals);
                Ok(Some(Step::End(totals)))
            }
            _ => Err(self.damaged("the section is not the one that the footer names")),
        }
    }
}
