//! `docs/settings.md` has every setting as it is declared, and the documentation names no other.

use std::{env, fmt::Write, fs, path::Path};

use super::declared::{DECLARED, Declared, Reader, Settings};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// What lies between these lines is generated.
const BEGIN: &str = "<!-- Generated from the code: `just docs` writes it. -->\n";
const END: &str = "<!-- The end of what is generated. -->\n";

/// A row of the table.
fn row(setting: &Declared) -> String {
    let default = match (setting.default)() {
        none if none.is_empty() => String::new(),
        value => format!("`{}`", with_unit(setting.name, value)),
    };
    let reader = match setting.reader {
        Reader::Node => "node",
        Reader::Client => "client",
        Reader::Operator => "operator",
        Reader::Server => "node, operator",
        Reader::Both => "all",
    };
    let (name, about) = (setting.name, setting.about);
    format!("| `{name}` | {default} | {reader} | {about} |\n")
}

/// Whole mebibytes as such.
fn with_unit(name: &str, value: String) -> String {
    const MEBIBYTE: u64 = 1 << 20;
    match value.parse::<u64>() {
        Ok(bytes) if name.contains("_BYTES") && bytes.is_multiple_of(MEBIBYTE) => {
            format!("{}MiB", bytes / MEBIBYTE)
        }
        _ => value,
    }
}

#[test]
fn the_reference_has_every_setting_as_it_is_declared() {
    let path = Path::new(ROOT).join("docs/settings.md");
    let page = fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    let mut right = format!(
        "{head}{BEGIN}\n| setting | default | read by | meaning |\n| --- | --- | --- | --- |\n"
    );
    right.extend(DECLARED.iter().map(row));
    let _ = write!(right, "\n{END}{tail}");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &right).unwrap();
        return;
    }
    assert!(
        page == right,
        "docs/settings.md is not what the code declares; `just docs` writes it"
    );
}

/// The bounds of a setting, as its parser names them: `from 1 to 16384`, `give 1s to 24h`.
fn bounds(name: &str) -> Option<(String, String)> {
    let mut bounds = None;
    for out_of_bounds in ["-1", "99999h"] {
        let vars = vec![(name.to_owned(), out_of_bounds.to_owned())];
        Settings::parse(vars, |_, _, problem| {
            let stated = problem
                .split_once(" from ")
                .or(problem.split_once("; give "));
            bounds = stated.and_then(|(_, stated)| {
                let (least, most) = stated.split_once(" to ")?;
                let is_one_word = !least.contains(' ') && !most.contains(' ');
                is_one_word.then(|| (least.to_owned(), most.to_owned()))
            });
        });
    }
    bounds
}

#[test]
fn the_reference_has_the_bounds_that_the_parsers_go_by() {
    let mut bounded = 0;
    for setting in DECLARED {
        // A port is a port, and a cluster's size is checked against a list.
        if setting.name.ends_with("_PORT") || setting.name == "KEYDB_CLUSTER_SIZE" {
            continue;
        }
        let Some((least, most)) = bounds(setting.name) else {
            continue;
        };
        bounded += 1;
        let about = setting.about.replace('`', "");
        let stated = format!("{least} to {most}");
        assert!(about.contains(&stated), "{}: {stated}", setting.name);
    }
    assert_eq!(bounded, 8);
}

#[test]
fn the_documentation_names_no_setting_that_there_is_not() {
    let root = Path::new(ROOT);
    let docs = fs::read_dir(root.join("docs")).unwrap();
    let pages = docs.map(|entry| entry.unwrap().path());
    let pages = pages.filter(|path| path.extension().is_some_and(|it| it == "md"));
    let mut found = 0;
    for page in pages.chain([root.join("README.md")]) {
        let text = fs::read_to_string(&page).unwrap();
        let is_of_names = |c: char| c.is_ascii_uppercase() || c == '_';
        for word in text.split(|c| !is_of_names(c)) {
            // Not what stands for several, such as KEYDB_STORAGE_….
            if !word.starts_with("KEYDB_") || word.ends_with('_') {
                continue;
            }
            found += 1;
            assert!(
                DECLARED.iter().any(|setting| setting.name == word),
                "{} speaks of {word}, and there is no such setting",
                page.display()
            );
        }
    }
    assert!(found > 50, "{found}");
}
