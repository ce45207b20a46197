//! Reads inputs, splits them into records and adds those to the exchange.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
};

use super::{
    Format, Input, InputError,
    batch::{Form, KeyAt, Record},
    csv::CsvScanner,
    exchange::{Abandoned, Exchange},
    extract::{Extract, decoded_key},
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
    /// Where records are not lines.
    csv: Option<CsvScanner>,
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
            csv: match &format.extract {
                Extract::Csv { column, delimiter } => {
                    Some(CsvScanner::new(*delimiter, column.clone()))
                }
                _ => None,
            },
        }
    }

    /// Splits one input; a last line without terminator gets one.
    fn split(&mut self, mut input: impl Read) -> io::Result<Result<(), Abandoned>> {
        self.at_header = self.format.has_header;
        if let Some(csv) = &mut self.csv {
            csv.begin_input();
        }
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
            if let Err(abandoned) = self.add_records(searched)? {
                return Ok(Err(abandoned));
            }
        }
        let is_ended = self.buffer[..self.filled].ends_with(&[self.format.terminator]);
        if (self.filled > 0 || self.in_long_line) && !is_ended {
            if self.buffer.len() == self.filled {
                self.buffer.push(0);
            }
            self.buffer[self.filled] = self.format.terminator;
            self.filled += 1;
            if let Err(abandoned) = self.add_records(self.filled - 1)? {
                return Ok(Err(abandoned));
            }
        }
        if self.filled > 0 {
            // In CSV text a quote that is never closed takes in everything behind it.
            return Ok(self.add_rest());
        }
        Ok(Ok(()))
    }

    /// Adds every record that is complete; before `searched` none ends.
    fn add_records(&mut self, searched: usize) -> io::Result<Result<(), Abandoned>> {
        match self.csv.take() {
            None => Ok(self.add_lines(searched)),
            Some(mut csv) => {
                let added = self.add_csv(searched, &mut csv);
                self.csv = Some(csv);
                added
            }
        }
    }

    /// Adds the rest of an input as a line without a key.
    fn add_rest(&mut self) -> Result<(), Abandoned> {
        self.records.clear();
        self.decoded.clear();
        let start = self.add_pieces(0, self.filled);
        let form = match std::mem::take(&mut self.in_long_line) {
            true => Form::LongMore,
            false => Form::Line,
        };
        self.records.push(Record {
            len: (self.filled - start) as u32,
            form,
            key: KeyAt::Nowhere,
        });
        self.hand_over(self.filled)
    }

    /// [`add_lines`](Self::add_lines) for CSV text. An empty line is a record by itself.
    fn add_csv(
        &mut self,
        searched: usize,
        csv: &mut CsvScanner,
    ) -> io::Result<Result<(), Abandoned>> {
        self.records.clear();
        self.decoded.clear();
        let (mut start, mut from) = (0, searched);
        while from < self.filled {
            let is_empty_line = from == start && !self.in_long_line && self.buffer[from] == b'\n';
            if is_empty_line {
                self.records.push(Record {
                    len: 1,
                    form: Form::Line,
                    key: KeyAt::Nowhere,
                });
                start += 1;
                from = start;
                continue;
            }
            let Some(taken) = csv.take(&self.buffer[from..self.filled]) else {
                break;
            };
            let end = from + taken;
            start = self.add_pieces(start, end);
            let (form, key) = if self.in_long_line {
                (Form::LongMore, KeyAt::Nowhere)
            } else if self.at_header {
                csv.take_header()?;
                (self.header_form(start, end), KeyAt::Nowhere)
            } else {
                let key = csv.key().unwrap_or_default();
                (Form::Line, decoded_key(key, &mut self.decoded))
            };
            self.records.push(Record {
                len: (end - start) as u32,
                form,
                key,
            });
            (self.in_long_line, self.at_header) = (false, false);
            csv.begin_record();
            start = end;
            from = end;
        }
        start = self.add_pieces(start, self.filled);
        if self.in_long_line {
            csv.skip_record();
        }
        Ok(self.hand_over(start))
    }

    /// Whether the header in `start..end` of the buffer is the first one.
    fn header_form(&mut self, start: usize, end: usize) -> Form {
        let content = &self.buffer[start..end];
        let is_same = self.header.as_deref() == Some(content);
        self.header.get_or_insert_with(|| content.to_vec());
        match is_same {
            true => Form::HeaderAgain,
            false => Form::Header,
        }
    }

    /// Adds the records, which end at `end`.
    fn hand_over(&mut self, end: usize) -> Result<(), Abandoned> {
        self.exchange
            .add(&self.records, &self.buffer[..end], &self.decoded)?;
        self.buffer.copy_within(end..self.filled, 0);
        self.filled -= end;
        Ok(())
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
            let (form, key) = if self.in_long_line {
                (Form::LongMore, KeyAt::Nowhere)
            } else if self.at_header {
                (self.header_form(start, end), KeyAt::Nowhere)
            } else {
                let content = &self.buffer[start..end];
                let key = self.format.extract.key(content, &mut self.decoded);
                (Form::Line, key)
            };
            self.records.push(Record {
                len: (end + 1 - start) as u32,
                form,
                key,
            });
            (self.in_long_line, self.at_header) = (false, false);
            start = end + 1;
            from = start;
        }
        start = self.add_pieces(start, self.filled);
        self.hand_over(start)
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
