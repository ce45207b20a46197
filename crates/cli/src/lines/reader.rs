//! Reads inputs, splits them into records and adds those to the exchange.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
};

use super::{
    Format, Input, InputError,
    batch::{Form, KeyAt, Record},
    exchange::{Abandoned, Exchange},
};

/// How much is read at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Reads all inputs to their end, or up to the first failure.
pub(crate) fn run(inputs: &[Input], format: &Format, exchange: &Exchange) {
    let mut splitter = Splitter::new(format, exchange);
    for input in inputs {
        let opened = open(input).inspect(|file| {
            let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
            exchange.input_begins(!is_file);
        });
        match opened.and_then(|file| splitter.split(file)) {
            Ok(Ok(())) => {}
            Ok(Err(Abandoned)) => return,
            Err(error) => return exchange.end(Err(input.error(error))),
        }
    }
    exchange.end(Ok::<(), InputError>(()));
}

fn open(input: &Input) -> io::Result<File> {
    match input {
        Input::Stdin => Ok(File::from(io::stdin().as_fd().try_clone_to_owned()?)),
        Input::File(path) => File::open(path),
    }
}

/// Turns bytes into records.
struct Splitter<'a> {
    format: &'a Format,
    exchange: &'a Exchange,
    /// What was read and not yet added, from the front.
    buffer: Vec<u8>,
    filled: usize,
    /// Pieces of the line that `buffer` begins with have been added already.
    in_long_line: bool,
    records: Vec<Record>,
    decoded: Vec<u8>,
    /// The first input's header.
    header: Option<Vec<u8>>,
    /// The next line is an input's first one.
    at_header: bool,
}

impl<'a> Splitter<'a> {
    fn new(format: &'a Format, exchange: &'a Exchange) -> Self {
        Self {
            format,
            exchange,
            buffer: vec![0; CHUNK_BYTES],
            filled: 0,
            in_long_line: false,
            records: Vec::new(),
            decoded: Vec::new(),
            header: None,
            at_header: false,
        }
    }

    /// Splits one input; a last line without terminator gets one.
    fn split(&mut self, mut input: impl Read) -> io::Result<Result<(), Abandoned>> {
        self.at_header = self.format.has_header;
        loop {
            let searched = self.filled;
            if self.buffer.len() - self.filled < CHUNK_BYTES / 2 {
                self.buffer.resize(self.filled + CHUNK_BYTES, 0);
            }
            match input.read(&mut self.buffer[self.filled..]) {
                Ok(0) => break,
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if let Err(abandoned) = self.add_lines(searched) {
                return Ok(Err(abandoned));
            }
        }
        if self.filled > 0 || self.in_long_line {
            if self.buffer.len() == self.filled {
                self.buffer.push(0);
            }
            self.buffer[self.filled] = self.format.terminator;
            self.filled += 1;
            return Ok(self.add_lines(self.filled - 1));
        }
        Ok(Ok(()))
    }

    /// Adds every line that is complete; before `searched` there is no terminator.
    fn add_lines(&mut self, searched: usize) -> Result<(), Abandoned> {
        self.records.clear();
        self.decoded.clear();
        let mut start = 0;
        let mut from = searched;
        while let Some(found) =
            memchr::memchr(self.format.terminator, &self.buffer[from..self.filled])
        {
            let end = from + found;
            start = self.add_pieces(start, end);
            let content = &self.buffer[start..end];
            let (form, key) = if self.in_long_line {
                (Form::LongMore, KeyAt::Nowhere)
            } else if self.at_header {
                let is_same = self.header.as_deref() == Some(content);
                self.header.get_or_insert_with(|| content.to_vec());
                let form = if is_same {
                    Form::HeaderAgain
                } else {
                    Form::Header
                };
                (form, KeyAt::Nowhere)
            } else {
                let key = self.format.extract.key(content, &mut self.decoded);
                (Form::Line, key)
            };
            self.records.push(Record {
                len: (content.len() + 1) as u32,
                form,
                key,
            });
            (self.in_long_line, self.at_header) = (false, false);
            start = end + 1;
            from = start;
        }
        start = self.add_pieces(start, self.filled);
        self.exchange
            .add(&self.records, &self.buffer[..start], &self.decoded)?;
        self.buffer.copy_within(start..self.filled, 0);
        self.filled -= start;
        Ok(())
    }

    /// Cuts pieces of exactly the longest length off the line that stands in `start..end`, as long as more follows; returns
    /// where the rest begins.
    fn add_pieces(&mut self, mut start: usize, end: usize) -> usize {
        while end - start > self.format.line_bytes_max {
            self.records.push(Record {
                len: self.format.line_bytes_max as u32,
                form: if self.in_long_line {
                    Form::LongMore
                } else {
                    Form::LongFirst
                },
                key: KeyAt::Nowhere,
            });
            self.in_long_line = true;
            start += self.format.line_bytes_max;
        }
        start
    }
}
