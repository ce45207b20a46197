//! Which names objects can have. The same rule for every backend, so that what works with one works with all.

use crate::StorageError;

/// The most bytes that an object's key can have. With room to spare below the 255 bytes of a file name.
pub const KEY_BYTES_MAX: usize = 200;

/// Checks that `key` can name an object: 1 to [`KEY_BYTES_MAX`] bytes, in segments of `A-Z a-z 0-9 . _ -` that `/` separates;
/// none is empty, `.` or `..`.
///
/// # Errors
/// `Refused`, naming the key and the rule that it breaks.
pub fn check_key(key: &str) -> Result<(), StorageError> {
    let refuse = |rule: &str| {
        // A key can be of any length here; its beginning is enough to know it by.
        let shown: String = key.chars().take(KEY_BYTES_MAX).collect();
        let dots = if shown.len() < key.len() { "…" } else { "" };
        Err(StorageError::refused(format!(
            "object key {shown:?}{dots} is not allowed: {rule}"
        )))
    };
    if key.is_empty() {
        return refuse("a key is not empty");
    }
    if key.len() > KEY_BYTES_MAX {
        return refuse(&format!(
            "it has {} bytes, a key has at most {KEY_BYTES_MAX}",
            key.len()
        ));
    }
    for segment in key.split('/') {
        match segment {
            "" => return refuse("no segment between slashes is empty"),
            "." | ".." => return refuse("no segment is \".\" or \"..\""),
            _ => {}
        }
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    match key.chars().find(|&c| !allowed(c)) {
        Some(c) => refuse(&format!(
            "it contains {c:?}; a key has only A-Z a-z 0-9 . _ - and / between segments"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StorageErrorKind;

    #[test]
    fn usual_keys_are_allowed() {
        for key in [
            "cluster-map.json",
            "a",
            "nodes/7/manifest_2.json",
            ".hidden/...",
            &"k".repeat(KEY_BYTES_MAX),
        ] {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
    }

    #[test]
    fn a_refusal_names_the_key_and_the_rule() {
        for (key, rule) in [
            ("", "not empty"),
            ("/a", "between slashes"),
            ("a/", "between slashes"),
            ("a//b", "between slashes"),
            ("a/../b", "\"..\""),
            (".", "\".\""),
            ("~lock", "'~'"),
            ("a+b", "'+'"),
            ("a b", "' '"),
            ("a\0", "'\\0'"),
            ("schlüssel", "'ü'"),
            (&"k".repeat(KEY_BYTES_MAX + 1), "at most 200"),
        ] {
            let error = check_key(key).unwrap_err();
            assert_eq!(error.kind(), StorageErrorKind::Refused);
            let text = error.to_string();
            assert!(text.contains(rule), "{key:?}: {text}");
            assert!(text.starts_with("object key \""), "{text}");
        }
    }
}
