//! One scalar out of a JSON document, without building the document (RFC 6901 pointers).

use std::{borrow::Cow, fmt, str::FromStr};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A JSON pointer such as `/id` or `/event/ids/0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JsonPointer(Vec<String>);

impl FromStr for JsonPointer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            format!(
                "{text:?} {what}; a JSON pointer is / and a name, once or more, such as /id or /event/id (~1 stands for / and ~0 for ~ in a name)"
            )
        };
        let rest = text
            .strip_prefix('/')
            .ok_or_else(|| wrong("does not start with /"))?;
        rest.split('/')
            .map(|token| {
                let escapes = token.split('~').skip(1);
                if escapes.into_iter().all(|rest| rest.starts_with(['0', '1'])) {
                    Ok(token.replace("~1", "/").replace("~0", "~"))
                } else {
                    Err(wrong("has a ~ without 0 or 1 behind it"))
                }
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl JsonPointer {
    /// The text of the string, or the number or truth value as written, that the pointer names in `document`. `None` when the
    /// document is not JSON, has no such place, or has something else there. Of equal names in an object the last counts.
    pub(crate) fn scalar<'a>(&self, document: &'a [u8]) -> Option<Cow<'a, str>> {
        let mut deserializer = serde_json::Deserializer::from_slice(document);
        let found = Seek(&self.0).deserialize(&mut deserializer).ok()?;
        deserializer.end().ok()?;
        let raw = found?.get();
        match raw.as_bytes().first()? {
            b'"' => match memchr::memchr(b'\\', raw.as_bytes()) {
                None => Some(Cow::Borrowed(&raw[1..raw.len() - 1])),
                Some(_) => serde_json::from_str(raw).ok().map(Cow::Owned),
            },
            b'{' | b'[' | b'n' => None,
            _ => Some(Cow::Borrowed(raw)),
        }
    }
}

/// Follows the rest of a pointer into a value.
struct Seek<'p>(&'p [String]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        if self.0.is_empty() {
            serde::Deserialize::deserialize(deserializer).map(Some)
        } else {
            deserializer.deserialize_any(self)
        }
    }
}

/// A scalar where the pointer goes on: the place does not exist.
macro_rules! nothing_inside {
    ($($visit:ident($type:ty)),*) => {
        $(fn $visit<E: Error>(self, _: $type) -> Result<Self::Value, E> {
            Ok(None)
        })*
    };
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    nothing_inside!(
        visit_bool(bool),
        visit_i64(i64),
        visit_u64(u64),
        visit_f64(f64),
        visit_str(&str)
    );

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = map.next_key_seed(NameIs(&self.0[0]))? {
            if is_it {
                found = map.next_value_seed(Seek(&self.0[1..]))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        // An index has no leading zeros (RFC 6901, section 4).
        let token = &self.0[0];
        let wanted: Option<usize> = Some(token)
            .filter(|token| token.as_str() == "0" || !token.starts_with(['0', '+']))
            .and_then(|token| token.parse().ok());
        let mut found = None;
        for index in 0.. {
            if Some(index) == wanted {
                match seq.next_element_seed(Seek(&self.0[1..]))? {
                    Some(inside) => found = inside,
                    None => break,
                }
            } else if seq.next_element::<IgnoredAny>()?.is_none() {
                break;
            }
        }
        Ok(found)
    }
}

/// Compares an object's name without keeping it.
struct NameIs<'p>(&'p str);

impl<'de> DeserializeSeed<'de> for NameIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(pointer: &str, document: &str) -> Option<String> {
        let pointer: JsonPointer = pointer.parse().unwrap();
        pointer.scalar(document.as_bytes()).map(Cow::into_owned)
    }

    #[test]
    fn a_pointer_finds_scalars_at_any_depth() {
        let document = r#" {"a":{"b":[10,{"c":"x"},true]},"id":"i","a/b":1,"~":2,"":3} "#;
        assert_eq!(scalar("/id", document).unwrap(), "i");
        assert_eq!(scalar("/a/b/0", document).unwrap(), "10");
        assert_eq!(scalar("/a/b/1/c", document).unwrap(), "x");
        assert_eq!(scalar("/a/b/2", document).unwrap(), "true");
        assert_eq!(scalar("/a~1b", document).unwrap(), "1");
        assert_eq!(scalar("/~0", document).unwrap(), "2");
        assert_eq!(scalar("/", document).unwrap(), "3");
    }

    #[test]
    fn what_is_not_a_scalar_or_not_there_is_nothing() {
        let document = r#"{"a":{"b":[10]},"n":null,"s":"text"}"#;
        for pointer in [
            "/a", "/a/b", "/n", "/x", "/a/b/1", "/a/b/00", "/a/b/-", "/s/0", "/n/x",
        ] {
            assert_eq!(scalar(pointer, document), None, "{pointer}");
        }
        for broken in [
            "",
            "{",
            r#"{"s":"text""#,
            r#"{"s":"text"} x"#,
            "[1,]",
            "\"\u{1}\"",
        ] {
            assert_eq!(scalar("/s", broken), None, "{broken}");
        }
        let id: JsonPointer = "/id".parse().unwrap();
        assert_eq!(id.scalar(b"{\"id\":\"\xff\"}"), None, "not UTF-8");
    }

    #[test]
    fn of_equal_names_the_last_counts() {
        assert_eq!(scalar("/id", r#"{"id":1,"id":2}"#).unwrap(), "2");
        assert_eq!(scalar("/id", r#"{"id":1,"id":null}"#), None);
    }

    #[test]
    fn a_malformed_pointer_is_refused() {
        for text in ["", "id", "/a~2", "/a~"] {
            assert!(text.parse::<JsonPointer>().is_err(), "{text:?}");
        }
    }
}
