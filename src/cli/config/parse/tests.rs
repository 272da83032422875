use super::*;
use std::path::PathBuf;

fn parsed(text: &str) -> Config {
    let mut config = parse(Path::new("/c.toml"), text, Some(Path::new("/home/me")));
    check_together(&mut config, &|path| PathBuf::from(path));
    config
}

/// The mistakes, without their hints.
fn mistakes(text: &str) -> Vec<String> {
    let lines = parsed(text).problems.into_iter();
    let line = |problem: Problem| problem.to_string().lines().next().unwrap().to_owned();
    lines.map(line).collect()
}

/// The only mistake, and its hint.
fn mistake(text: &str) -> String {
    let problems = parsed(text).problems;
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems[0].to_string()
}

const GOOD: &str = "\
[defaults]
flush_after = \"1m\"
options = [\"noexec\", \"allow_other\"]
[drive.lab]
drive = \"LABEL=HDD\"
mountpoint = \"~/lab\"
auto_flush = false
fsck = true
schedule = \"0 2 * * *\"
quiet_hours = [\"19:00-23:30\", \"01:00-02:00\"]
on_failure = [\"notify-send\", \"it's bad\"]
[drive.nas]
drive = \"/mnt/nas\"
mountpoint = \"/srv/nas\"
flush_after = \"2m\"
protect_mountpoint = false
";

#[test]
fn sections_are_layers_and_become_options() {
    let config = parsed(GOOD);
    assert_eq!(config.problems, []);
    let names: Vec<_> = config
        .drives
        .iter()
        .map(|drive| drive.name.as_str())
        .collect();
    assert_eq!(names, ["lab", "nas"]);
    let lab = config
        .settings_for(config.drive("lab").unwrap(), &Default::default())
        .unwrap();
    assert_eq!(lab[MOUNTPOINT].text(), Some("/home/me/lab"));
    assert_eq!(
        super::super::arguments(&lab),
        [
            "--no-auto-flush",
            "--flush-after=1m",
            "--fsck",
            "--on-failure=exec 'notify-send' 'it'\\''s bad'",
            "-onoexec",
            "-oallow_other",
            "--quiet-hours=19:00-23:30",
            "--quiet-hours=01:00-02:00",
            "--schedule=0 2 * * *",
        ]
    );
    let nas = config
        .settings_for(config.drive("nas").unwrap(), &Default::default())
        .unwrap();
    assert_eq!(nas["flush_after"].text(), Some("2m"));
    assert_eq!(nas["flush_after"].source.to_string(), "/c.toml:15");
    assert!(super::super::arguments(&nas).contains(&"--no-protect-mountpoint".into()));
    let given = [(
        "flush_after".to_owned(),
        Setting {
            value: Value::Texts(vec!["3m".into()]),
            source: Source::CommandLine,
        },
    )];
    let nas = config
        .settings_for(config.drive("nas").unwrap(), &given.into())
        .unwrap();
    assert_eq!(nas["flush_after"].text(), Some("3m"));
}

#[test]
fn mistakes_have_line_and_column() {
    assert_eq!(
        mistakes(
            "[defaults]\n\
             flush_aftr = \"1m\"\n\
             cache = \"/c\"\n\
             [drive.\"ä\"]\n\
             [drive.lab]\n\
             drive = \"HDD\"\n\
             mountpoint = \"lab\"\n\
             fsck = \"yes\"\n\
             io_timeout = 5\n  verify = \"sometimes\" # \n\
             options = [\"noexec\", \"ro\"]\n\
             schedule = \"0 0 30 2 *\"\n\
             quiet_hours = [\"19:00-23:30\", \"25:00-26:00\"]\n\
             on_failure = []\n\
             foreground = true\n\
             [drive.nas]\n\
             mountpoint = \"/nas\"\n"
        ),
        [
            "/c.toml:2:1: unknown key \"flush_aftr\"",
            "/c.toml:3:1: cache is different for each drive",
            "/c.toml:4:8: \"ä\" cannot be the name of a drive",
            "/c.toml:6:9: drive \"HDD\" must be an absolute path, LABEL=..., or the id of a volume",
            "/c.toml:7:14: mountpoint is a relative path: lab",
            "/c.toml:8:8: fsck is a string; it must be true or false",
            "/c.toml:9:14: io_timeout is an integer; it must be a string in quotes, such as \"10s\"",
            "/c.toml:10:12: verify = \"sometimes\": must be one of: off, after-flush",
            "/c.toml:11:22: mount option 'ro' is not accepted: ferryfs is a cache for writes",
            "/c.toml:12:12: schedule = \"0 0 30 2 *\": never comes: no such day is in the calendar",
            "/c.toml:13:31: quiet_hours = \"25:00-26:00\": hours are 00 to 23, minutes 00 to 59",
            "/c.toml:14:14: on_failure is empty",
            "/c.toml:15:1: unknown key \"foreground\"",
            "/c.toml:16:8: [drive.nas] has no drive",
        ]
    );
}

#[test]
fn the_nearest_key_is_the_hint() {
    for (key, near) in [
        ("flush_aftr", "flush_after"),
        ("cache-size", "cache_size"),
        ("--max-age", "max_age"),
        ("shedule", "schedule"),
        ("on_fail", "on_failure"),
    ] {
        let text = format!("[defaults]\n\"{key}\" = \"1\"\n");
        let hint = format!("did you mean {near:?}?");
        assert!(mistake(&text).ends_with(&hint), "{}", mistake(&text));
    }
    assert!(!mistake("[defaults]\nxyzzy = 1\n").contains("did you mean"));
    assert!(mistake("flush_after = \"1m\"\n").contains("[defaults]"));
    assert!(mistake("[drives.a]\n").contains("did you mean \"drive\""));
}

#[test]
fn text_that_is_no_toml_has_its_place() {
    let text = "[defaults]\nflush_after = \"1m\n[drive.a]\n";
    assert!(
        mistakes(text)[0].starts_with("/c.toml:2:"),
        "{:?}",
        mistakes(text)
    );
    let twice = "[drive.a]\ndrive=\"/a\"\nmountpoint=\"/m\"\n[drive.a]\n";
    assert!(
        mistakes(twice)[0].starts_with("/c.toml:4:"),
        "{:?}",
        mistakes(twice)
    );
    assert!(mistakes("drive = 7\n")[0].contains("not a table"));
    assert_eq!(mistakes(""), [""; 0]);
}

#[test]
fn drives_need_mount_points_and_caches_of_their_own() {
    let text = "\
[drive.a]
drive = \"/1\"
mountpoint = \"/m\"
cache = \"/c\"
[drive.b]
drive = \"/2\"
mountpoint = \"/m/inside\"
[drive.d]
drive = \"/3\"
mountpoint = \"/other\"
cache = \"/c\"
";
    assert_eq!(
        mistakes(text),
        [
            "/c.toml:7:1: [drive.b] has a mount point that overlaps with that of [drive.a]: /m",
            "/c.toml:11:1: [drive.d] has the same cache as [drive.a]: /c",
        ]
    );
}

#[test]
fn a_mistake_in_one_drive_leaves_the_others_usable() {
    let config = parsed(
        "[drive.a]\ndrive = \"/a\"\nmountpoint = \"/m\"\n[drive.b]\ndrive = 1\nmountpoint = \"/n\"\n",
    );
    assert!(config.drive("a").is_ok());
    let failure = config.drive("b").unwrap_err();
    assert!(
        failure.message.starts_with("/c.toml:5:9: drive is a"),
        "{failure}"
    );
    let failure = config.drive("c").unwrap_err();
    assert!(failure.hint.unwrap().contains("it has: a, b"));
    let config = parsed("[defaults]\nx = 1\n[drive.a]\ndrive = \"/a\"\nmountpoint = \"/m\"\n");
    assert!(
        config.drive("a").is_err(),
        "the defaults are of every drive"
    );
}

#[test]
fn any_bytes_give_a_place_and_no_panic() {
    use proptest::prelude::*;
    proptest!(ProptestConfig::with_cases(300), |(text in "[\\[\\]a-z_.=\"'0-9 \\n#ä{},-]{0,80}")| {
        for problem in parsed(&text).problems {
            prop_assert!(problem.place.line >= 1 && problem.place.column >= 1);
            prop_assert!(problem.place.line <= text.lines().count() + 1);
        }
    });
}
