//! Which part of a line is its key.

use keydb_core::KEY_BYTES_MAX;

use super::{Column, KeyAt, json_pointer::JsonPointer};

/// How a line's key is found.
#[derive(Debug, Clone)]
pub(crate) enum Extract {
    /// The whole line, without its terminator.
    WholeLine,
    /// The field at `index` (from 0) of those that `delimiter` separates.
    Field {
        /// From 0.
        index: usize,
        /// The byte between fields.
        delimiter: u8,
    },
    /// The value that the pointer names in the JSON document that the line is: a string's text, or a number or a truth value as
    /// it is written.
    Json(JsonPointer),
    /// A column of CSV text, whose records are told apart by its rules.
    Csv {
        /// Which one.
        column: Column,
        /// The byte between fields.
        delimiter: u8,
    },
}

impl Extract {
    /// Where the key of a line with this content is. What is decoded goes to the end of `decoded`.
    pub(crate) fn key(&self, content: &[u8], decoded: &mut Vec<u8>) -> KeyAt {
        match self {
            // A record's fields are known when its end is.
            Self::WholeLine | Self::Csv { .. } => in_line(content, content),
            Self::Field { index, delimiter } => field(content, *index, *delimiter)
                .map_or(KeyAt::Nowhere, |field| in_line(content, field)),
            Self::Json(pointer) => match pointer.scalar(content) {
                Some(std::borrow::Cow::Borrowed(text)) => in_line(content, text.as_bytes()),
                Some(std::borrow::Cow::Owned(text)) => decoded_key(text.as_bytes(), decoded),
                None => KeyAt::Nowhere,
            },
        }
    }
}

/// A key that does not stand in the line as it is.
pub(super) fn decoded_key(key: &[u8], decoded: &mut Vec<u8>) -> KeyAt {
    if !usable(key.len()) {
        return KeyAt::Nowhere;
    }
    decoded.extend_from_slice(key);
    KeyAt::Decoded {
        len: key.len() as u32,
    }
}

const fn usable(len: usize) -> bool {
    0 < len && len <= KEY_BYTES_MAX
}

/// `part` is a slice of `content`.
fn in_line(content: &[u8], part: &[u8]) -> KeyAt {
    if !usable(part.len()) {
        return KeyAt::Nowhere;
    }
    KeyAt::InLine {
        start: (part.as_ptr().addr() - content.as_ptr().addr()) as u32,
        len: part.len() as u32,
    }
}

fn field(content: &[u8], index: usize, delimiter: u8) -> Option<&[u8]> {
    let mut start = 0;
    let mut ends = memchr::memchr_iter(delimiter, content);
    for _ in 0..index {
        start = ends.next()? + 1;
    }
    Some(&content[start..ends.next().unwrap_or(content.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(extract: &Extract, content: &[u8]) -> Option<Vec<u8>> {
        let mut decoded = Vec::new();
        match extract.key(content, &mut decoded) {
            KeyAt::Nowhere => None,
            KeyAt::InLine { start, len } => {
                Some(content[start as usize..][..len as usize].to_vec())
            }
            KeyAt::Decoded { len } => {
                assert_eq!(decoded.len(), len as usize);
                Some(decoded)
            }
        }
    }

    #[test]
    fn the_whole_line_is_a_key_unless_it_is_empty_or_too_long() {
        assert_eq!(key(&Extract::WholeLine, b"a\r").unwrap(), b"a\r");
        assert_eq!(key(&Extract::WholeLine, b""), None);
        assert_eq!(
            key(&Extract::WholeLine, &vec![b'x'; KEY_BYTES_MAX + 1]),
            None
        );
        assert!(key(&Extract::WholeLine, &vec![b'x'; KEY_BYTES_MAX]).is_some());
    }

    #[test]
    fn a_field_is_counted_from_its_delimiters_and_may_be_missing_or_empty() {
        let field = |index| Extract::Field {
            index,
            delimiter: b',',
        };
        assert_eq!(key(&field(0), b"a,b,,d").unwrap(), b"a");
        assert_eq!(key(&field(1), b"a,b,,d").unwrap(), b"b");
        assert_eq!(key(&field(2), b"a,b,,d"), None);
        assert_eq!(key(&field(3), b"a,b,,d").unwrap(), b"d");
        assert_eq!(key(&field(4), b"a,b,,d"), None);
        assert_eq!(key(&field(0), b"only").unwrap(), b"only");
        assert_eq!(key(&field(0), b""), None);
    }

    #[test]
    fn a_json_value_is_taken_as_it_stands_or_decoded() {
        let id = Extract::Json("/id".parse().unwrap());
        assert_eq!(key(&id, br#"{"x":1,"id":"abc"}"#).unwrap(), b"abc");
        assert_eq!(key(&id, br#"{"id":"a\u0062\n"}"#).unwrap(), b"ab\n");
        assert_eq!(key(&id, br#"{"id":17.50}"#).unwrap(), b"17.50");
        assert_eq!(key(&id, br#"{"id":""}"#), None);
        assert_eq!(key(&id, br#"{"id":null}"#), None);
    }
}
