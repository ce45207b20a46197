//! How a series is described.

/// What its values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// How much there is now.
    Gauge,
    /// How much there was since the process started.
    Counter,
    /// How often something took so long, since the process started.
    Histogram,
}

impl Kind {
    /// As the text format names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// What tells the samples of a series apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Which values it has, in words.
    pub values: &'static str,
}

/// Which processes have a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nodes.
    Node,
    /// Nodes that keep a journal or snapshots: in `memory` mode there is none of it.
    NodeDisk,
    /// Operators.
    Operator,
    /// All of them.
    Both,
}

/// A series, as it is described to Prometheus and to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Series {
    /// Its name, the unit last.
    pub name: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// What they mean, in one or more sentences on a line.
    pub help: &'static str,
    /// What tells its samples apart.
    pub labels: &'static [Label],
    /// Who has it.
    pub source: Source,
}

impl Series {
    /// The unit of its values, by its name; nothing where they are counts.
    pub fn unit(&self) -> &'static str {
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        match name.rsplit('_').next() {
            Some("seconds") => "seconds",
            Some("bytes") => "bytes",
            _ => "",
        }
    }

    /// The names of its samples: those of a histogram have three.
    pub fn sample_names(&self) -> Vec<String> {
        match self.kind {
            Kind::Gauge | Kind::Counter => vec![self.name.to_owned()],
            Kind::Histogram => {
                let suffixes = ["_bucket", "_sum", "_count"];
                suffixes
                    .map(|suffix| format!("{}{suffix}", self.name))
                    .to_vec()
            }
        }
    }
}

/// Series that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// What they are about.
    pub title: &'static str,
    /// In the order in which they are shown.
    pub series: &'static [Series],
}
