//! Random edits by path, for tests that need some tree and some difference.

use ferryfs::core::{FileKind, Timestamp};
use ferryfs::vfs::RenameMode;

use super::Engine;
use super::rng::Rng;

const NAMES: [&str; 6] = ["a", "b", "c", "dir", "Dir", "x.txt"];

/// Makes `steps` edits; those that cannot be are left out.
pub fn edit(engine: &Engine, rng: &mut Rng, steps: usize) {
    for _ in 0..steps {
        step(engine, rng);
    }
}

fn step(engine: &Engine, rng: &mut Rng) {
    let tree = engine.mount_tree();
    let kind = |mode| FileKind::from_mode(mode).expect("a kind");
    let of = |wanted: FileKind| -> Vec<String> {
        let all = tree.iter().filter(|(_, seen)| kind(seen.mode) == wanted);
        all.map(|(path, _)| path.to_string()).collect()
    };
    let files = of(FileKind::Regular);
    let mut dirs = of(FileKind::Directory);
    dirs.push(String::new());
    let all: Vec<String> = tree.keys().map(ToString::to_string).collect();
    let dir = rng.pick(&dirs);
    let name = rng.pick(&NAMES);
    let path = match dir.as_str() {
        "" => name.to_string(),
        dir => format!("{dir}/{name}"),
    };
    let parent = tree
        .iter()
        .filter(|(at, _)| at.split_last().is_some_and(|(up, _)| up.to_string() == dir));
    let taken = parent
        .filter_map(|(at, _)| at.split_last())
        .any(|(_, last)| last.as_bytes() == name.as_bytes());
    match rng.below(12) {
        0 | 1 if !taken => engine.mkdir(&path),
        2..=4 if !taken => engine.put(&path, &rng.bytes(50)),
        5 if !files.is_empty() => engine.edit(&rng.pick(&files), 3, &rng.bytes(20)),
        6 if !files.is_empty() => engine.put(&rng.pick(&files), &rng.bytes(50)),
        7 if !files.is_empty() => engine.unlink(&rng.pick(&files)),
        8 if !files.is_empty() && !taken => engine.link(&rng.pick(&files), &path),
        9 if !files.is_empty() => {
            let time = Timestamp(1_600_000_000_000_000_000 + rng.below(1 << 50) as i64);
            engine.utimes(&rng.pick(&files), time);
        }
        10 if all.len() > 1 => {
            let (one, other) = (rng.pick(&all), rng.pick(&all));
            let within = |a: &str, b: &str| format!("{a}/").starts_with(&format!("{b}/"));
            if !within(&one, &other) && !within(&other, &one) {
                engine
                    .rename_with(&one, &other, RenameMode::Exchange)
                    .expect("exchange");
            }
        }
        _ if !all.is_empty() => {
            let from = rng.pick(&all);
            if !format!("{path}/").starts_with(&format!("{from}/")) {
                // What rename(2) refuses is refused here as well, and changes nothing.
                let _ = engine.rename_with(&from, &path, RenameMode::Replace);
            }
        }
        _ => {}
    }
}
