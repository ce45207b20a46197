//! Identities: of clusters, nodes, processes and operations.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::random;

/// A node's number in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an id; an id is 32 hexadecimal digits")]
pub struct IdError {
    /// The refused text.
    pub text: String,
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// 128 random bits, written as 32 lower-case hex digits.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 16]);

        impl $name {
            /// A new, random one.
            pub fn random() -> Self {
                Self(random::bytes())
            }

            /// From its 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its 16 bytes.
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", u128::from_be_bytes(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = || IdError { text: text.to_owned() };
                if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(error());
                }
                u128::from_str_radix(text, 16).map(|bits| Self(bits.to_be_bytes())).map_err(|_| error())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
    };
}

random_id! {
    /// Which cluster: carried by every request and every file.
    ClusterId
}

random_id! {
    /// Which life of a node: drawn anew at every start, so that nothing takes a restarted process for the old one.
    Incarnation
}

random_id! {
    /// Which claim: a repeat under the same id gets the same answers.
    OperationId
}

random_id! {
    /// Which copy of a range: what one move session brings to the range's next owner. Void when that session breaks.
    CopyId
}

impl OperationId {
    /// The id of part `index` of this operation: the same parts have the same ids each time.
    ///
    /// It is XXH3-128 over the operation's 16 bytes and the index as 8 bytes, little-endian.
    pub fn part(self, index: u64) -> Self {
        let mut input = [0; 24];
        input[..16].copy_from_slice(&self.0);
        input[16..].copy_from_slice(&index.to_le_bytes());
        Self(xxh3_128(&input).to_be_bytes())
    }

    /// The id that stands for a name which the caller chose, such as the name of a run: XXH3-128 over its bytes.
    pub fn from_name(name: &str) -> Self {
        Self(xxh3_128(name.as_bytes()).to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_from_its_text() {
        let id = ClusterId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), 32);
        for text in [
            "",
            "12",
            "zz345678901234567890123456789012",
            "+1234567890123456789012345678901",
        ] {
            assert!(text.parse::<ClusterId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_parts_of_an_operation_are_stable_and_differ() {
        let id = OperationId::from_name("run-1");
        assert_eq!(id.part(7), OperationId::from_name("run-1").part(7));
        assert_ne!(id.part(7), id.part(8));
        assert_ne!(id.part(0), id);
        assert_ne!(id, OperationId::from_name("run-2"));
    }
}
