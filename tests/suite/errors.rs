//! The README's table of errors and the code say the same.

use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const README: &str = include_str!("../../README.md");

/// All sources as one text, with strings that go over several lines on one.
fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else {
            let source = std::fs::read_to_string(&path).unwrap();
            let mut glued = false;
            for line in source.lines() {
                let line = if glued { line.trim_start() } else { line };
                glued = line.ends_with('\\');
                text.push_str(line.trim_end_matches('\\'));
                if !glued {
                    text.push('\n');
                }
            }
        }
    }
}

fn table() -> &'static str {
    let (_, rest) = README.split_once("<!-- errors: ").expect("the table begins");
    rest.split_once("<!-- end of errors -->").expect("the table ends").0
}

/// What stands between backticks in the first column.
fn quoted() -> Vec<&'static str> {
    let rows = table().lines().filter(|line| line.starts_with("| `"));
    rows.flat_map(|row| {
        let first = row[1..].split(" | ").next().expect("a column");
        first.split('`').skip(1).step_by(2)
    })
    .collect()
}

#[test]
fn what_the_table_of_errors_quotes_is_what_the_code_says() {
    let mut code = String::new();
    sources(&Path::new(ROOT).join("src"), &mut code);
    let quoted = quoted();
    assert!(quoted.len() > 40, "the table is read: {}", quoted.len());
    let mut unsaid = Vec::new();
    for text in quoted {
        for part in text.split('…').map(str::trim).filter(|part| part.len() > 2) {
            let part = part.trim_start_matches(": ");
            if !code.contains(part) {
                unsaid.push(part);
            }
        }
    }
    assert!(unsaid.is_empty(), "nothing says {unsaid:?}");
}

/// What a command ends with, without what is put in: the longest part stands in the table.
#[test]
fn what_commands_end_with_is_in_the_table_of_errors() {
    let mut code = String::new();
    sources(&Path::new(ROOT).join("src/cli"), &mut code);
    let table = table();
    let mut count = 0;
    for (at, _) in code.match_indices("bail!(") {
        let (_, literal) = code[at..].split_once('"').expect("a text");
        let literal = literal.split('"').next().expect("its end");
        let parts = literal.split('{').flat_map(|part| part.rsplit('}').next());
        let known = parts.clone().any(|part| {
            let part = part.trim_matches([' ', ':', ',']);
            part.len() > 8
                && quoted()
                    .iter()
                    .any(|quoted| part.contains(quoted) || quoted.contains(part))
        });
        assert!(known, "{literal:?} is not in the table of errors");
        count += 1;
    }
    assert!(count > 5 && table.contains("| it says |"), "{count} texts");
}
