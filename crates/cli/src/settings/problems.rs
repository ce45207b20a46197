//! What is wrong with settings.

use std::fmt::Display;

use super::{names::nearest, parse::without_secrets};
use crate::exit::Failure;

/// The settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub(crate) struct SettingsError(Vec<String>);

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::usage(error.to_string())
    }
}

/// Gathers what is wrong, so that all of it is said at once.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<String>);

impl Problems {
    /// One with several settings, or with none.
    pub(super) fn add(&mut self, problem: String) {
        self.0.push(problem);
    }

    /// One with the value of a setting.
    pub(super) fn of(&mut self, name: &str, value: &str, problem: impl Display) {
        let value = if is_secret(name) {
            "(set)".to_owned()
        } else {
            without_secrets(value)
        };
        self.add(format!("{name}={value}: {problem}"));
    }

    /// Whether there is one.
    pub(super) fn has_any(&self) -> bool {
        !self.0.is_empty()
    }

    /// An error if there is any.
    pub(super) fn into_result(self) -> Result<(), SettingsError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(SettingsError(self.0)),
        }
    }
}

/// A setting that is needed is not there; `right` is what to give.
pub(super) fn missing(name: &str, right: &str) -> SettingsError {
    SettingsError(vec![format!("{name} is not set; give {right}")])
}

/// Whether a variable's value is shown to nobody. A mistyped name may well be followed by the secret.
fn is_secret(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let sounds_so = ["SECRET", "PASSWORD", "TOKEN"]
        .iter()
        .any(|word| upper.contains(word));
    sounds_so || nearest(name) == Some("KEYDB_STORAGE_ACCESSKEY")
}
