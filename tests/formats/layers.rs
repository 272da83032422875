//! The modules of the crate form layers: none imports one above it. The order is the table at the
//! head of `src/lib.rs`; the picture in `docs/architecture.md` shows the imports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Imports by module, each with one file that has it.
type Imports = BTreeMap<String, BTreeMap<String, PathBuf>>;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The modules from the bottom to the top, as `src/lib.rs` lists them.
fn order() -> Vec<String> {
    let lib = fs::read_to_string(top().join("src/lib.rs")).unwrap();
    lib.lines()
        .filter_map(|line| line.strip_prefix("//! | [`"))
        .filter_map(|row| row.split_once('`'))
        .map(|(name, _)| name.trim_start_matches("mod@").to_string())
        .collect()
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|end| end == "rs") => found.push(path),
            false => {}
        }
    }
}

/// The first segments of the paths that begin with `crate::`, outside of comments.
fn imported(text: &str) -> BTreeSet<String> {
    let code: String = (text.lines())
        .map(|line| line.split("//").next().unwrap_or_default().to_string() + "\n")
        .collect();
    let mut names = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let group = rest.strip_prefix('{').map_or(rest, |group| group);
        let name: String = (group.chars())
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        names.insert(name);
    }
    names
}

fn imports(order: &[String]) -> Imports {
    let src = top().join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut imports = Imports::new();
    for file in files {
        let below = file.strip_prefix(&src).unwrap().with_extension("");
        let module = below.iter().next().unwrap().to_string_lossy().to_string();
        if !order.contains(&module) {
            continue;
        }
        let of = imports.entry(module.clone()).or_default();
        for name in imported(&fs::read_to_string(&file).unwrap()) {
            if order.contains(&name) && name != module {
                of.entry(name).or_insert_with(|| file.clone());
            }
        }
    }
    imports
}

#[test]
fn every_module_has_its_place_in_the_order() {
    let order = order();
    let lib = fs::read_to_string(top().join("src/lib.rs")).unwrap();
    let declared: BTreeSet<&str> = (lib.lines())
        .filter_map(|line| line.strip_prefix("pub mod "))
        .filter_map(|rest| rest.strip_suffix(';'))
        .collect();
    assert_eq!(
        declared,
        order.iter().map(String::as_str).collect::<BTreeSet<_>>()
    );
}

#[test]
fn no_module_imports_one_above_it() {
    let order = order();
    let rank = |name: &str| order.iter().position(|it| it == name).unwrap();
    let mut upward = Vec::new();
    for (module, of) in imports(&order) {
        for (name, file) in of {
            if rank(&name) > rank(&module) {
                upward.push(format!("{} imports {name}", file.display()));
            }
        }
    }
    assert!(upward.is_empty(), "{upward:#?}");
}

/// The arrows that do not follow from others.
fn picture(order: &[String], imports: &Imports) -> String {
    let mut reached: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut drawn = Vec::new();
    for module in order {
        let of: Vec<&str> = (order.iter().rev().map(String::as_str))
            .filter(|name| (imports.get(module)).is_some_and(|of| of.contains_key(*name)))
            .collect();
        let mut all = BTreeSet::new();
        let mut arrows = Vec::new();
        for name in of {
            if all.insert(name) {
                arrows.push(name);
            }
            all.extend(reached.get(name).into_iter().flatten());
        }
        if !arrows.is_empty() {
            drawn.push(format!("    {module} --> {}\n", arrows.join(" & ")));
        }
        reached.insert(module, all);
    }
    drawn.reverse();
    drawn.concat()
}

#[test]
fn the_picture_in_the_documents_shows_the_imports() {
    let order = order();
    let expected = picture(&order, &imports(&order));
    let doc = fs::read_to_string(top().join("docs/architecture.md")).unwrap();
    let (_, rest) = doc.split_once("<!-- modules:begin -->").unwrap();
    let (block, _) = rest.split_once("<!-- modules:end -->").unwrap();
    let shown: String = (block.lines())
        .filter(|line| line.contains(" --> "))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(shown, expected, "the picture is to be:\n{expected}");
}
