//! Writing: data to standard output, words to standard error.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
};

use keydb_core::UnixMillis;
use serde::Serialize;
use serde_json::Value;

use crate::exit::Failure;

/// Writes a line to standard error. Where that cannot be written, there is nobody to tell.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Standard output, unbuffered: what was written has been handed over.
#[derive(Debug)]
pub(crate) struct Stdout(File);

impl Stdout {
    /// Takes standard output over.
    pub(crate) fn open() -> Result<Self, Failure> {
        match io::stdout().as_fd().try_clone_to_owned() {
            Ok(fd) => Ok(Self(File::from(fd))),
            Err(error) => Err(stdout_failure(&error)),
        }
    }

    /// The file behind it.
    pub(crate) const fn file(&self) -> &File {
        &self.0
    }

    /// The file itself.
    pub(crate) fn into_file(self) -> File {
        self.0
    }

    /// Writes all of `bytes`.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0
            .write_all(bytes)
            .map_err(|error| stdout_failure(&error))
    }

    /// Writes all of `bytes`; false when the reader has closed the pipe.
    pub(crate) fn write_unless_closed(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        match self.0.write_all(bytes) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(stdout_failure(&error)),
        }
    }

    /// Writes `value` as one line of JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let mut line = json_line(value)?;
        line.push('\n');
        self.write(line.as_bytes())
    }
}

/// Answers as JSON or as text, as it is asked for.
pub(crate) fn answer(
    as_json: bool,
    json: impl FnOnce() -> Value,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    let mut out = Stdout::open()?;
    if as_json {
        out.json(&json())
    } else {
        out.write(text().as_bytes())
    }
}

fn stdout_failure(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Failure::failed("cannot write to standard output: its reader has closed the pipe")
    } else {
        Failure::failed(format!("cannot write to standard output: {error}"))
    }
}

/// `value` as JSON without line breaks.
pub(crate) fn json_line(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value)
        .map_err(|error| Failure::failed(format!("cannot write the answer as JSON: {error}")))
}

/// Rows as columns; numbers read better to the right, so each column says where it goes.
pub(crate) fn table(header: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].0.len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut out = String::new();
    let names: Vec<String> = header.iter().map(|(name, _)| (*name).to_owned()).collect();
    for row in [&names].into_iter().chain(rows) {
        let mut line = String::new();
        for ((cell, (_, align)), width) in row.iter().zip(header).zip(&widths) {
            match align {
                Align::Left => line.push_str(&format!("{cell:<width$}  ")),
                Align::Right => line.push_str(&format!("{cell:>width$}  ")),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Where a column's cells stand.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Align {
    /// For text.
    Left,
    /// For numbers.
    Right,
}

/// A number with commas between thousands.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number of bytes in the largest unit that leaves at least 1.
pub(crate) fn bytes_text(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    units
        .into_iter()
        .find(|(shift, _)| bytes >> shift > 0)
        .map_or_else(
            || format!("{bytes} B"),
            |(shift, unit)| format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64),
        )
}

/// Milliseconds since the Unix epoch as `2025-06-01T12:00:00Z`.
pub(crate) fn time_text(unix_ms: u64) -> String {
    let text = UnixMillis(unix_ms).to_string();
    let seconds = text.split_once('.').map_or(&*text, |(seconds, _)| seconds);
    format!("{seconds}Z")
}

/// A word that a POSIX shell reads back as it is.
pub(crate) fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes_are_readable() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1000), "1,000");
        assert_eq!(thousands(12_345_678), "12,345,678");
        assert_eq!(bytes_text(512), "512 B");
        assert_eq!(bytes_text(1536), "1.5 KiB");
    }

    #[test]
    fn times_are_utc_dates() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00Z");
        assert_eq!(time_text(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(time_text(1_767_225_599_999), "2025-12-31T23:59:59Z");
    }

    #[test]
    fn a_shell_reads_words_back_as_they_are() {
        assert_eq!(shell_word("a-b/c.d"), "a-b/c.d");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("a b\t$x"), "'a b\t$x'");
    }

    #[test]
    fn a_table_has_columns_as_wide_as_their_widest_cell() {
        let rows = [vec!["1".to_owned(), "long".to_owned()]];
        let text = table(&[("KEYS", Align::Right), ("X", Align::Left)], &rows);
        assert_eq!(text, "KEYS  X\n   1  long\n");
    }
}
