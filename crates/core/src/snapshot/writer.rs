//! Writing a snapshot file, from front to back.

use std::io::{self, Write};

use super::{
    BLOCK_ENTRIES, BlockEntry, Footer, SectionEntry, SectionHeader, SnapshotHeader, Totals, block,
    expiries::ExpiryEncoder,
    frame::{self, FRAME_BYTES, NO_SALT, Tag},
    header::{HEADER_BYTES_MAX, MAGIC},
};
use crate::{Entry, Fingerprint};

/// Writes a snapshot file. What is written is a file only after [`finish`](Self::finish).
///
/// It keeps a block's entries, and 24 bytes for each block that it has written.
pub struct SnapshotWriter<W> {
    target: W,
    salt: u64,
    /// What was written so far; its total of bytes is the offset.
    footer: Footer,
    /// The entries of the block in the making.
    pending: Vec<Entry>,
    last: Option<Fingerprint>,
    expiries: ExpiryEncoder,
    frame: Vec<u8>,
}

impl<W> std::fmt::Debug for SnapshotWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotWriter")
            .field("header", &self.footer.header)
            .field("written", &self.footer.totals)
            .finish_non_exhaustive()
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

impl<W: Write> SnapshotWriter<W> {
    /// Begins a file on `target`, which should buffer: it gets a block at a time.
    ///
    /// # Errors
    /// When the target fails, or the parents' names are longer than a header may be.
    pub fn new(mut target: W, header: &SnapshotHeader) -> io::Result<Self> {
        let mut frame = Vec::new();
        frame::begin(&mut frame, Tag::Header);
        header.encode(&mut frame);
        let salt = frame::seal(&mut frame, NO_SALT);
        if frame.len() - FRAME_BYTES > HEADER_BYTES_MAX {
            return Err(invalid(format!(
                "the names of the file's {} parents take more than {HEADER_BYTES_MAX} bytes",
                header.parents.len()
            )));
        }
        target.write_all(&MAGIC)?;
        target.write_all(&frame)?;
        let footer = Footer {
            header: header.clone(),
            sections: Vec::new(),
            blocks: Vec::new(),
            totals: Totals {
                bytes: (MAGIC.len() + frame.len()) as u64,
                ..Totals::default()
            },
        };
        Ok(Self {
            target,
            salt,
            footer,
            pending: Vec::with_capacity(BLOCK_ENTRIES),
            last: None,
            expiries: ExpiryEncoder::new()?,
            frame,
        })
    }

    /// Begins the section of a range; it may stay empty.
    ///
    /// # Errors
    /// When the target fails, or the range has a section already.
    pub fn begin_section(&mut self, header: SectionHeader) -> io::Result<()> {
        self.flush()?;
        if self.footer.section(header.range).is_some() {
            return Err(invalid(format!(
                "range {} has a section already",
                header.range
            )));
        }
        let offset = self.footer.totals.bytes;
        frame::begin(&mut self.frame, Tag::Section);
        header.encode(&mut self.frame);
        self.write_frame()?;
        let first_block = self.footer.blocks.len();
        self.footer.sections.push(SectionEntry {
            header,
            bytes: offset..self.footer.totals.bytes,
            entries: 0,
            blocks: first_block..first_block,
        });
        self.footer.totals.sections += 1;
        self.last = None;
        Ok(())
    }

    /// Adds entries to the section that was begun last. They ascend, over all calls for the section.
    ///
    /// # Errors
    /// When the target fails, or an entry is out of order or out of its range's bounds.
    pub fn entries(&mut self, entries: &[Entry]) -> io::Result<()> {
        let Some(section) = self.footer.sections.last() else {
            return Err(invalid("entries need a section".to_owned()));
        };
        let header = section.header;
        for entry in entries {
            let fingerprint = entry.fingerprint();
            if self.last.is_some_and(|last| fingerprint <= last) {
                return Err(invalid(format!(
                    "entry {fingerprint:?} of range {} is out of order",
                    header.range
                )));
            }
            if !header.bounds.contains(fingerprint.top()) {
                return Err(invalid(format!(
                    "entry {fingerprint:?} does not belong to range {}",
                    header.range
                )));
            }
            self.last = Some(fingerprint);
            self.pending.push(*entry);
            if self.pending.len() == BLOCK_ENTRIES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// How many bytes were written so far.
    pub const fn bytes(&self) -> u64 {
        self.footer.totals.bytes
    }

    /// Writes what makes it a file, and gives the target back, unflushed.
    ///
    /// # Errors
    /// When the target fails.
    pub fn finish(mut self) -> io::Result<(W, Totals)> {
        self.flush()?;
        self.footer.encode(&mut self.frame);
        self.target.write_all(&self.frame)?;
        Ok((self.target, self.footer.totals))
    }

    /// Writes the block in the making.
    fn flush(&mut self) -> io::Result<()> {
        let (Some(first), Some(section)) = (self.pending.first(), self.footer.sections.last_mut())
        else {
            return Ok(());
        };
        let count = self.pending.len() as u64;
        section.entries += count;
        section.blocks.end += 1;
        self.footer.totals.entries += count;
        self.footer.blocks.push(BlockEntry {
            first: first.fingerprint(),
            count: count as u32,
            offset: self.footer.totals.bytes,
        });
        frame::begin(&mut self.frame, Tag::Block);
        block::encode(&self.pending, &mut self.expiries, &mut self.frame)?;
        self.pending.clear();
        self.write_frame()?;
        if let Some(section) = self.footer.sections.last_mut() {
            section.bytes.end = self.footer.totals.bytes;
        }
        Ok(())
    }

    fn write_frame(&mut self) -> io::Result<()> {
        frame::seal(&mut self.frame, self.salt);
        self.target.write_all(&self.frame)?;
        self.footer.totals.bytes += self.frame.len() as u64;
        Ok(())
    }
}
