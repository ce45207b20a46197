//! Which variables of the environment are settings.

use super::{
    declared::{DECLARED, PREFIX, Reader},
    names::{is_from_kubernetes, nearest},
    problems::{Problems, SettingsError},
};

const KUBERNETES_CURE: &str = "set enableServiceLinks: false in the pod's spec";

/// Every `KEYDB_` variable of this process.
pub(crate) fn environment() -> Result<Vec<(String, String)>, SettingsError> {
    let mut vars = Vec::new();
    let mut problems = Problems::default();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        match value.to_str() {
            Some(value) => vars.push((name.to_owned(), value.to_owned())),
            None => problems.add(format!("{name}={}: is not UTF-8", value.display())),
        }
    }
    problems.into_result().map(|()| vars)
}

/// The variables that are settings of `reader`, and what a node is warned of. Others are errors, but for those that Kubernetes
/// sets: they become a warning, or nothing where nobody listens. The ones that stand in the place of a setting are errors only
/// where that is used.
pub(super) fn known(
    vars: impl IntoIterator<Item = (String, String)>,
    reader: Reader,
    problems: &mut Problems,
) -> (Vec<(String, String)>, Option<String>) {
    let mut known = Vec::new();
    let mut from_kubernetes = Vec::new();
    for (name, value) in vars {
        if !name.starts_with(PREFIX) {
            continue;
        }
        match DECLARED.iter().find(|declared| declared.name == name) {
            Some(declared)
                if is_from_kubernetes(&name, &value)
                    && declared.is_read_by(reader)
                    && reader != Reader::Client =>
            {
                problems.of(&name, &value, format!("was set by Kubernetes for a Service, and hides the setting of that name; {KUBERNETES_CURE}"));
            }
            _ if is_from_kubernetes(&name, &value) => from_kubernetes.push(name),
            Some(declared) if declared.is_read_by(reader) => known.push((name, value)),
            Some(_) => {}
            None => {
                let hint = nearest(&name).map_or_else(
                    || {
                        let names: Vec<&str> = DECLARED.iter().map(|it| it.name).collect();
                        format!("the settings are {}", names.join(", "))
                    },
                    |nearest| format!("did you mean {nearest}?"),
                );
                problems.of(
                    &name,
                    &value,
                    format!("there is no setting of this name; {hint}"),
                );
            }
        }
    }
    from_kubernetes.sort();
    let those = match from_kubernetes.as_slice() {
        [] => return (known, None),
        [one] => format!("{one} was"),
        several => format!("{} were", several.join(", ")),
    };
    let warning =
        format!("{those} set by Kubernetes for a Service, and ignored; {KUBERNETES_CURE}");
    (known, Some(warning))
}
