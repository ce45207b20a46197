//! Records of CSV text: quoted fields may hold delimiters, doubled quotes and line ends (RFC 4180).

use std::io;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder, Terminator};

/// Which column has the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Column {
    /// The one at this index, from 0.
    Index(usize),
    /// The one that each input's first record calls so.
    Name(String),
}

/// Tells records apart as their bytes come in, and finds a column in each.
pub(crate) struct CsvScanner {
    reader: Reader,
    column: Column,
    /// Which column that is in this input, as soon as it is known.
    index: Option<usize>,
    /// The fields of the record that has begun, without quotes, one behind the other.
    fields: Vec<u8>,
    fields_len: usize,
    ends: Vec<usize>,
    ends_len: usize,
    /// The record is too long to be looked into.
    skips: bool,
}

impl CsvScanner {
    pub(crate) fn new(delimiter: u8, column: Column) -> Self {
        let reader = ReaderBuilder::new()
            .delimiter(delimiter)
            // What stands before it, such as a carriage return, is the record's.
            .terminator(Terminator::Any(b'\n'))
            .build();
        let mut scanner = Self {
            reader,
            column,
            index: None,
            fields: vec![0; 1024],
            fields_len: 0,
            ends: vec![0; 64],
            ends_len: 0,
            skips: false,
        };
        scanner.begin_input();
        scanner
    }

    /// Another input begins.
    pub(crate) fn begin_input(&mut self) {
        self.reader.reset();
        self.begin_record();
        self.index = match &self.column {
            Column::Index(index) => Some(*index),
            Column::Name(_) => None,
        };
    }

    /// Nothing of this record is wanted.
    pub(crate) fn skip_record(&mut self) {
        self.skips = true;
    }

    /// Takes in `bytes`, or with none of them the input's end. Returns how many of them the record that has begun took, if that
    /// ended it.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Option<usize> {
        let total = bytes.len();
        loop {
            if self.skips {
                (self.fields_len, self.ends_len) = (0, 0);
            }
            let (result, read, written, ended) = self.reader.read_record(
                bytes,
                &mut self.fields[self.fields_len..],
                &mut self.ends[self.ends_len..],
            );
            bytes = &bytes[read..];
            self.fields_len += written;
            self.ends_len += ended;
            match result {
                ReadRecordResult::InputEmpty | ReadRecordResult::End => return None,
                ReadRecordResult::OutputFull => self.fields.resize(self.fields.len() * 2, 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::Record => return Some(total - bytes.len()),
            }
        }
    }

    /// The fields of the record that has ended.
    fn record(&self) -> impl Iterator<Item = &[u8]> {
        let ends = &self.ends[..self.ends_len];
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let last = ends.len().wrapping_sub(1);
        ends.iter()
            .zip(starts)
            .enumerate()
            .map(move |(index, (end, start))| {
                let field = &self.fields[start..*end];
                // Of the line end, the carriage return.
                match index == last {
                    true => field.strip_suffix(b"\r").unwrap_or(field),
                    false => field,
                }
            })
    }

    /// The key of the record that has ended, if it has the column.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        match self.skips {
            true => None,
            false => self.record().nth(self.index?),
        }
    }

    /// The record that has ended was the header.
    ///
    /// # Errors
    /// When it does not have the column.
    pub(crate) fn take_header(&mut self) -> io::Result<()> {
        let Column::Name(name) = &self.column else {
            return Ok(());
        };
        // Spreadsheets write a byte order mark.
        let names: Vec<String> = self
            .record()
            .map(|field| {
                let text = String::from_utf8_lossy(field);
                text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned()
            })
            .collect();
        self.index = names.iter().position(|found| found == name);
        match self.index {
            Some(_) => Ok(()),
            None => Err(io::Error::other(format!(
                "its first line has no column {name:?}; its columns are {}",
                names.join(", ")
            ))),
        }
    }

    /// The next record begins.
    pub(crate) fn begin_record(&mut self) {
        (self.fields_len, self.ends_len, self.skips) = (0, 0, false);
    }
}
