//! What `keydb dedup` can be told.

use std::{path::PathBuf, str::FromStr};

use clap::Args;
use keydb_core::OperationId;

use crate::{
    args::{KeyspaceArgs, TtlArg},
    exit::Failure,
    lines::{Column, Extract, Input, JsonPointer},
};

const EXAMPLES: &str = "\
A line's key is the line itself without its end (a carriage return belongs to it), a field, or a JSON value. The first line
with a key is written, later ones are not, for as long as the TTL lasts, across files, runs and processes. A line without a
usable key (empty, no such field, not JSON, a key over 65,536 bytes) is written and counted, and so is one whose answer is
unknown: nothing is dropped on a doubt.

Examples:
  keydb dedup events.log > unique.log
  keydb dedup --csv --column order_id orders.csv
  keydb dedup --field 2 orders.tsv                      fields as they stand, without quotes
  tail -F events.jsonl | keydb dedup --json-pointer /event/id --ttl 7d | ./consumer
  keydb dedup --embedded words.txt                      without a cluster, in this process's memory
  keydb dedup --run import-7 big.log > unique.log       a run that fails can be repeated from the start:
  keydb dedup --run import-7 --again big.log > unique.log

Every run through a cluster has an ID. A run that fails says with which command it is repeated: keys that it has claimed are first
again then, and what it has written so far is to be discarded. The ID is made up, unless --run gives one; then it must be another one
for each input (a date belongs into that of a nightly job), and one that was used is refused without --again. --again=N says that the
first N lines were sent before, a bare --again that any may have been. Nodes remember the answers of recent batches only
(KEYDB_ANSWER_MEMORY_AGE, 5 minutes, and KEYDB_ANSWER_MEMORY_BYTES). In a batch that is repeated and not remembered, because that was
long ago, or the first run did not come so far, keys that are there are unknown, so their lines are written, duplicates within the
input included: a bare --again loses nothing, and --again=N, as the failed run names it, doubles less. The same goes for lines that
came in other batches the first time, which is possible where the input is a pipe: of that, a part of a batch goes when nothing has
come for 100 ms. Input from files always makes the same batches.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DedupArgs {
    /// The files, one after the other; - is standard input, as is no file at all
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) ttl: TtlArg,
    /// The key is the Nth field of the line
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "json_pointer")]
    pub(crate) field: Option<u32>,
    /// The input is CSV: a field may be quoted, and have delimiters and line ends within. The key is what --column or --field says
    #[arg(long, conflicts_with = "json_pointer")]
    pub(crate) csv: bool,
    /// The key is the column that each file's first line calls NAME; that line is a header
    #[arg(long, value_name = "NAME", requires = "csv", conflicts_with = "field")]
    pub(crate) column: Option<String>,
    /// The byte between fields; \t for a tab, \0 for NUL [default: \t, with --csv a comma]
    #[arg(long, value_name = "C", value_parser = delimiter)]
    pub(crate) delimiter: Option<u8>,
    /// The key is the string, number or truth value that this JSON pointer names in the line
    #[arg(long, value_name = "POINTER", value_parser = JsonPointer::from_str)]
    pub(crate) json_pointer: Option<JsonPointer>,
    /// Fail at the first line without a key instead of writing it
    #[arg(long)]
    pub(crate) strict: bool,
    /// The first line is a header: it is written, whatever it is, and not claimed. So is the first line of each further file,
    /// unless it is the same
    #[arg(long)]
    pub(crate) header: bool,
    /// Write the lines that are dropped to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) duplicates: Option<PathBuf>,
    /// Remember the keys in this process's memory instead of a cluster
    #[arg(long, conflicts_with_all = ["addresses", "timeout", "run", "namespace"])]
    pub(crate) embedded: bool,
    /// The ID of this run, by which it can be repeated with --again; another one for each input [default: random]
    #[arg(long, value_name = "ID", value_parser = run_id)]
    pub(crate) run: Option<String>,
    /// Repeat the run with this ID: lines that it found to be first are written again. With =N, only the first N lines were sent
    #[arg(long, value_name = "N", requires = "run", require_equals = true, num_args = 0..=1, default_missing_value = "all", value_parser = again)]
    pub(crate) again: Option<Again>,
    /// Write the summary, on standard error, as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) keyspace: KeyspaceArgs,
}

/// Which lines of a run may have been sent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// Any of them.
    All,
    /// The first so many.
    Through(u64),
}

/// A run that can be repeated.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// As it is said on the command line.
    pub(crate) id: String,
    /// What the batches' operation ids are derived from.
    pub(crate) operation: OperationId,
    /// Which lines are repeats.
    pub(crate) again: Option<Again>,
}

impl DedupArgs {
    /// Where the lines come from.
    pub(crate) fn inputs(&self) -> Vec<Input> {
        if self.files.is_empty() {
            return vec![Input::Stdin];
        }
        let input = |path: &PathBuf| {
            if path.as_os_str() == "-" {
                Input::Stdin
            } else {
                Input::File(path.clone())
            }
        };
        self.files.iter().map(input).collect()
    }

    /// How a line's key is found.
    pub(crate) fn extract(&self) -> Extract {
        let index = self.field.map(|number| number as usize - 1);
        match (index, &self.json_pointer, &self.column) {
            (Some(index), ..) if self.csv => self.csv_column(Column::Index(index)),
            (Some(index), ..) => Extract::Field {
                index,
                delimiter: self.delimiter.unwrap_or(b'\t'),
            },
            (None, Some(pointer), _) => Extract::Json(pointer.clone()),
            (None, None, Some(name)) => self.csv_column(Column::Name(name.clone())),
            (None, None, None) => Extract::WholeLine,
        }
    }

    fn csv_column(&self, column: Column) -> Extract {
        Extract::Csv {
            column,
            delimiter: self.delimiter.unwrap_or(b','),
        }
    }

    /// Whether the first line of each input is a header.
    pub(crate) fn has_header(&self) -> bool {
        self.header || self.column.is_some()
    }

    /// What no single argument shows to be wrong.
    ///
    /// # Errors
    /// What would be right.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let names_no_field = self.field.is_none() && self.column.is_none();
        let wrong = if self.csv && names_no_field {
            "--csv needs --column NAME or --field N: which column has the key?"
        } else if self.delimiter.is_some() && names_no_field {
            "--delimiter stands between the fields of --field or --column"
        } else if self.csv && self.delimiter == Some(b'"') {
            "--delimiter \": that quotes fields in CSV"
        } else {
            return Ok(());
        };
        Err(Failure::usage(wrong))
    }

    /// The run; of one that is not through a cluster there is nothing to repeat.
    pub(crate) fn run(&self) -> Option<Run> {
        if self.embedded {
            return None;
        }
        let id = self.run.clone();
        let id = id.unwrap_or_else(|| OperationId::random().to_string());
        Some(Run {
            operation: OperationId::from_name(&id),
            id,
            again: self.again,
        })
    }
}

impl Run {
    /// Whether a batch whose first line is `line`, counted from 0, may have been sent before, in part or as a whole.
    pub(crate) const fn is_repeat(&self, line: u64) -> bool {
        match self.again {
            None => false,
            Some(Again::All) => true,
            Some(Again::Through(sent)) => line < sent,
        }
    }

    /// Which lines may have been sent by now, if this one has `sent` these.
    pub(crate) fn sent_through(&self, sent: Again) -> Again {
        match (self.again, sent) {
            (Some(Again::All), _) | (_, Again::All) => Again::All,
            (None, Again::Through(sent)) => Again::Through(sent),
            (Some(Again::Through(before)), Again::Through(sent)) => {
                Again::Through(before.max(sent))
            }
        }
    }
}

fn run_id(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a run's ID has at least one character, such as import-7".to_owned());
    }
    Ok(text.to_owned())
}

fn again(text: &str) -> Result<Again, String> {
    match text {
        "all" => Ok(Again::All),
        _ => text.parse().map(Again::Through).map_err(|_| {
            "not a number of lines; give the one that the failed run named, or --again alone"
                .to_owned()
        }),
    }
}

fn delimiter(text: &str) -> Result<u8, String> {
    match (text, text.as_bytes()) {
        ("\\t", _) => Ok(b'\t'),
        ("\\0", _) => Ok(0),
        (_, [b'\n']) => Err("a line end cannot stand between the fields of a line".to_owned()),
        (_, [byte]) => Ok(*byte),
        (_, bytes) => Err(format!(
            "has {} bytes; a delimiter is one byte, such as , or \\t",
            bytes.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Dedup {
        #[command(flatten)]
        args: DedupArgs,
    }

    fn parse(args: &[&str]) -> Result<DedupArgs, String> {
        let parsed = Dedup::try_parse_from(["dedup"].iter().chain(args));
        parsed
            .map(|dedup| dedup.args)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_field_has_a_number_from_one_and_a_delimiter_of_one_byte() {
        let args = parse(&["--field", "3", "--delimiter", ","]).unwrap();
        assert!(matches!(
            args.extract(),
            Extract::Field {
                index: 2,
                delimiter: b','
            }
        ));
        let tab = parse(&["--field", "1"]).unwrap();
        assert!(matches!(
            tab.extract(),
            Extract::Field {
                delimiter: b'\t',
                ..
            }
        ));
        let csv = parse(&["--csv", "--column", "id"]).unwrap();
        assert!(csv.has_header());
        assert!(matches!(
            csv.extract(),
            Extract::Csv {
                delimiter: b',',
                ..
            }
        ));
        assert_eq!(
            parse(&["--field", "1", "--delimiter", "\\0"])
                .unwrap()
                .delimiter,
            Some(0)
        );
        for wrong in [
            &["--field", "0"][..],
            &["--field", "1", "--delimiter", "ab"],
            &["--field", "1", "--delimiter", "é"],
            &["--field", "1", "--delimiter", ""],
            &["--csv", "--json-pointer", "/id"],
            &["--column", "id"],
            &["--csv", "--column", "id", "--field", "1"],
            &["--field", "1", "--json-pointer", "/id"],
            &["--json-pointer", "id"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        for wrong in [
            &["--delimiter", ","][..],
            &["--csv"],
            &["--csv", "--delimiter", ";"],
            &["--csv", "--field", "1", "--delimiter", "\""],
        ] {
            assert!(parse(wrong).unwrap().check().is_err(), "{wrong:?}");
        }
        parse(&["--csv", "--field", "1", "--delimiter", ";"])
            .unwrap()
            .check()
            .unwrap();
    }

    #[test]
    fn again_needs_a_run_and_a_run_needs_a_cluster() {
        assert!(parse(&["--again"]).is_err());
        assert!(parse(&["--run", "x", "--embedded"]).is_err());
        assert!(parse(&["--run", ""]).is_err());
        assert_eq!(
            parse(&["--run", "x", "--again", "f"]).unwrap().again,
            Some(Again::All)
        );
        assert_eq!(
            parse(&["--run", "x", "--again=7"]).unwrap().again,
            Some(Again::Through(7))
        );
        assert!(parse(&["--run", "x", "--again=x"]).is_err());
    }

    #[test]
    fn a_repeat_covers_what_any_earlier_run_may_have_sent() {
        let run = |again| Run {
            id: String::new(),
            operation: OperationId::from_name("x"),
            again,
        };
        assert_eq!(run(None).sent_through(Again::Through(5)), Again::Through(5));
        assert_eq!(
            run(Some(Again::Through(9))).sent_through(Again::Through(5)),
            Again::Through(9)
        );
        assert_eq!(
            run(Some(Again::All)).sent_through(Again::Through(5)),
            Again::All
        );
        assert!(run(Some(Again::Through(9))).is_repeat(8));
        assert!(!run(Some(Again::Through(9))).is_repeat(9));
    }

    #[test]
    fn wrong_ttls_are_refused_by_name_and_limit() {
        for ttl in ["0s", "-1s", "1.5s", "60y", "5"] {
            let error = parse(&["--ttl", ttl]).unwrap_err();
            assert!(
                error.contains("--ttl") && error.contains("50 years"),
                "{error}"
            );
        }
    }
}
