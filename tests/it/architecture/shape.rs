//! The shape of the code: each type name once, no circle of files, no function too long to be read.

use std::collections::{BTreeMap, BTreeSet};

use super::{File, is_name, none};

/// The longest a function may be, in lines.
const LONGEST: usize = 100;

/// Functions that may be longer, each with its reason.
const STILL_LONGER: [(&str, &str); 0] = [];

/// The name of the type that a line defines. An associated type, which is indented, is not one.
fn defined_type(line: &str) -> Option<&str> {
    let code = line.trim_start();
    let code = match code.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.strip_prefix(' ')?,
        None => code,
    };
    let (kind, rest) = code.split_once(' ')?;
    let is_type = matches!(kind, "struct" | "enum" | "trait" | "union");
    let is_alias = kind == "type" && !line.starts_with(' ');
    let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
    (is_type || is_alias).then_some(&rest[..end])
}

/// The functions of a file with their lengths. rustfmt puts a function's last brace below its first word.
fn functions(code: &str) -> Vec<(&str, usize)> {
    let lines: Vec<_> = code.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let Some(at) = trimmed.find("fn ") else {
            continue;
        };
        let is_start = trimmed[..at]
            .split_whitespace()
            .all(|word| matches!(word, "async" | "const" | "unsafe") || word.starts_with("pub"));
        if !is_start || trimmed.ends_with(';') {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - trimmed.len()]);
        let length = lines[start..].iter().position(|line| *line == end);
        let name = &trimmed[at + 3..];
        let name = &name[..name.find(|c| !is_name(c)).unwrap_or(name.len())];
        found.extend(length.map(|length| (name, length + 1)));
    }
    found
}

/// Which files each file names, by their modules. A name that a module passes on (`pub use`) counts as
/// the file's that defines it.
fn uses(files: &[File]) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let steps = |path: &str| path.split("::").map(str::to_owned).collect::<Vec<_>>();
    let modules: BTreeSet<_> = files.iter().map(|file| file.module.clone()).collect();
    let absolute = |file: &File, path: &str| {
        let path = steps(path);
        if path[0] == "crate" {
            return Some(path);
        }
        let child: Vec<_> = file.module.iter().chain(&path).cloned().collect();
        modules
            .contains(&child[..=file.module.len()])
            .then_some(child)
    };
    // What a module passes on: its own path of a name, and where that comes from.
    let mut passed_on = BTreeMap::new();
    for file in files {
        for path in file.paths() {
            if let Some(path) = absolute(file, &path) {
                let mut own = file.module.clone();
                own.extend(path.last().cloned());
                passed_on.entry(own).or_insert(path);
            }
        }
    }
    let home = |mut path: Vec<String>| {
        // A name that is passed on more often than this is passed on in a circle.
        for _ in 0..4 {
            let longest = (1..=path.len())
                .rev()
                .find(|&n| modules.contains(&path[..n]))?;
            let Some(from) = path.get(..=longest).and_then(|name| passed_on.get(name)) else {
                return Some(path[..longest].to_vec());
            };
            if from.starts_with(&path[..=longest]) {
                return Some(path[..longest].to_vec());
            }
            path = from.iter().chain(&path[longest + 1..]).cloned().collect();
        }
        None
    };
    let mut uses: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for file in files {
        let used = file.paths();
        let used = used.iter().filter_map(|path| home(absolute(file, path)?));
        uses.entry(file.module.clone()).or_default().extend(used);
    }
    uses
}

/// The children of `parent` that can be reached from `child`, each with all that is below it.
fn reachable(child: &str, edges: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut next = vec![child.to_owned()];
    while let Some(child) = next.pop() {
        for used in edges.get(&child).into_iter().flatten() {
            if reached.insert(used.clone()) {
                next.push(used.clone());
            }
        }
    }
    reached
}

#[test]
fn a_type_name_is_defined_once() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in File::all("src") {
        for name in file.code().lines().filter_map(defined_type) {
            places
                .entry(name.to_owned())
                .or_default()
                .push(file.path.clone());
        }
    }
    assert!(places.len() > 200, "the types are found: {}", places.len());
    let twice = places.iter().filter(|(_, places)| places.len() > 1);
    let breaches: Vec<_> = twice
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect();
    none(&breaches, "one name, one type");
}

#[test]
fn the_files_of_a_folder_form_no_circle() {
    let files = File::all("src");
    let uses = uses(&files);
    assert!(
        uses[&["crate", "proxy", "session"].map(str::to_owned)[..]]
            .iter()
            .any(|used| used.starts_with(&["crate", "proxy", "session"].map(str::to_owned))),
        "a file's children are seen: {uses:?}"
    );
    let parents: BTreeSet<_> = files
        .iter()
        .filter_map(|file| file.module.split_last().map(|(_, parent)| parent.to_vec()))
        .collect();
    let mut breaches = Vec::new();
    for parent in parents {
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (user, used) in &uses {
            let own = user
                .strip_prefix(&*parent)
                .and_then(<[_]>::first)
                .filter(|_| !parent.is_empty());
            for used in used {
                let other = used.strip_prefix(&*parent).and_then(<[_]>::first);
                if let (Some(own), Some(other)) = (own, other)
                    && own != other
                {
                    edges.entry(own.clone()).or_default().insert(other.clone());
                }
            }
        }
        for child in edges.keys() {
            if reachable(child, &edges).contains(child) {
                breaches.push(format!("{}::{child}", parent.join("::")));
            }
        }
    }
    none(&breaches, "these files use each other in a circle");
}

#[test]
fn no_function_is_too_long_to_be_read() {
    let mut breaches = Vec::new();
    let mut known = BTreeSet::new();
    for file in File::all("src") {
        for (name, lines) in functions(&file.code()) {
            let may = STILL_LONGER
                .iter()
                .any(|(path, _)| *path == format!("{}: {name}", file.path));
            if lines > LONGEST && may {
                known.insert(format!("{}: {name}", file.path));
            } else if lines > LONGEST {
                breaches.push(format!("{}: {name} has {lines}", file.path));
            }
        }
    }
    none(&breaches, "a function in src has at most 100 lines");
    for (function, _) in STILL_LONGER {
        assert!(
            known.contains(function),
            "an exception is needed: {function}"
        );
    }
}

#[test]
fn the_readers_of_types_and_functions_see_them_all() {
    let code = "pub(crate) struct A<T> {\n    a: T,\n}\nenum B {\n    C,\n}\nimpl X for A {\n    type Y = u8;\n\n    pub async fn f(\n        &self,\n    ) -> u8 {\n        0\n    }\n}\ntype D = u8;\n";
    let types: Vec<_> = code.lines().filter_map(defined_type).collect();
    assert_eq!(types, ["A", "B", "D"], "types, and no associated ones");
    assert_eq!(functions(code), [("f", 5)], "a function with its lines");
}

#[test]
fn an_async_unit_test_has_a_limit_on_its_time() {
    let mut breaches = Vec::new();
    for file in File::all("src") {
        let lines: Vec<_> = file.text.lines().map(str::trim).collect();
        let tests = (0..lines.len()).filter(|at| lines[*at].starts_with("#[tokio::test"));
        let unlimited = tests.filter(|at| !lines[at + 2].ends_with("limit_this_test();"));
        breaches.extend(unlimited.map(|at| format!("{}: {}", file.path, lines[at + 1])));
    }
    none(
        &breaches,
        "an async test begins with `crate::time_limit::limit_this_test()`: it may wait forever",
    );
}
