//! What KeyDB measures, for Prometheus.
//!
//! [`registry`] describes every series once: its name, type, labels and meaning. Nodes and operators write their values with
//! [`MetricsText`], which takes nothing that is not described, and `docs/metrics.md` is made of the same descriptions. Names are by
//! Prometheus' conventions (<https://prometheus.io/docs/practices/naming/>); labels have few values, which are known beforehand.

mod histogram;
pub mod registry;
mod series;
mod text;

pub use histogram::{BOUNDS_MICROS, Durations, Histogram};
pub use series::{Kind, Label, Section, Series, Source};
pub use text::{MetricsText, Samples};
