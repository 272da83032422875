//! The history of batches, and metrics: what they say, and that Prometheus understands it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::lab::{Backend, Lab, content, has, skip, text, wait_until, write};

/// The samples of a text in the exposition format 0.0.4, by name and labels.
struct Exposition {
    kinds: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

/// Whether this is a name of a metric or a label.
fn is_name(name: &str) -> bool {
    let first = name.chars().next().unwrap_or('0');
    (first.is_ascii_alphabetic() || first == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

/// The labels in `text`, which begins after `{`, and what follows the `}`.
fn labels(text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        if let Some(rest) = rest.strip_prefix('}') {
            return (found, rest);
        }
        let (name, after) = rest.split_once("=\"").expect("a label has a value");
        assert!(is_name(name) && !name.contains(':'), "label {name}");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("a value ends") {
                (at, '"') => break at,
                (_, '\\') => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, c @ ('\\' | '"'))) => value.push(c),
                    other => panic!("unknown escape {other:?}"),
                },
                (_, c) => value.push(c),
            }
        };
        assert!(found.iter().all(|(known, _)| known != name), "{name} twice");
        found.push((name.to_owned(), value));
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

fn value(text: &str) -> f64 {
    match text {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        text => text.parse().unwrap_or_else(|_| panic!("no number: {text}")),
    }
}

/// Parses a text, and checks all that the format asks for.
fn parse(text: &str) -> Exposition {
    assert!(text.ends_with('\n'), "the last line has no end");
    let (mut kinds, mut samples) = (BTreeMap::new(), BTreeMap::new());
    let (mut helped, mut family) = (String::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped = rest.split_once(' ').expect("a help text").0.to_owned();
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(["gauge", "counter", "histogram"].contains(&kind), "{line}");
            assert_eq!(name, helped, "the help is that of another family");
            let before = kinds.insert(name.to_owned(), kind.to_owned());
            assert!(before.is_none(), "{name} comes twice");
            family = name.to_owned();
            continue;
        }
        assert!(!line.starts_with('#') && !line.is_empty(), "{line:?}");
        let end = line.find(['{', ' ']).expect("a value");
        let (name, rest) = line.split_at(end);
        assert!(is_name(name), "{name}");
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest),
            None => (Vec::new(), rest),
        };
        let number = value(rest.strip_prefix(' ').expect("a space before the value"));
        let kind = kinds.get(&family).expect("a type before the sample");
        let suffix = name
            .strip_prefix(family.as_str())
            .expect("a sample of its family");
        match kind.as_str() {
            "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
            _ => assert_eq!(suffix, "", "{line}"),
        }
        assert_eq!(kind == "counter", family.ends_with("_total"), "{family}");
        let labels: Vec<String> = labels.iter().map(|(l, v)| format!("{l}={v}")).collect();
        let key = match labels.is_empty() {
            true => name.to_owned(),
            false => format!("{name}{{{}}}", labels.join(",")),
        };
        assert!(samples.insert(key, number).is_none(), "{line} comes twice");
    }
    let exposition = Exposition { kinds, samples };
    exposition.check_histograms();
    exposition
}

impl Exposition {
    fn get(&self, key: &str) -> f64 {
        *self
            .samples
            .get(key)
            .unwrap_or_else(|| panic!("no {key} in {:?}", self.samples.keys().collect::<Vec<_>>()))
    }

    /// The buckets of each histogram grow, and the last one is the count.
    fn check_histograms(&self) {
        for (name, _) in self.kinds.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
            for (key, number) in &self.samples {
                let Some(rest) = key.strip_prefix(&format!("{name}_bucket{{")) else {
                    continue;
                };
                let (own, le) = rest.trim_end_matches('}').rsplit_once("le=").expect("le");
                let own = own.trim_end_matches(',').to_owned();
                series.entry(own).or_default().push((value(le), *number));
            }
            assert!(!series.is_empty(), "{name} has no buckets");
            for (own, mut buckets) in series {
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert!(
                    buckets.windows(2).all(|two| two[0].1 <= two[1].1),
                    "{name} {own}"
                );
                let (last, count) = *buckets.last().expect("a bucket");
                assert_eq!(last, f64::INFINITY, "{name} {own}");
                let key = match own.is_empty() {
                    true => format!("{name}_count"),
                    false => format!("{name}_count{{{own}}}"),
                };
                assert_eq!(self.get(&key), count, "{key}");
            }
        }
    }
}

fn docs(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All words of a text that look like the name of a metric.
fn named(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("ferryfs_") && !word.ends_with('_'))
        .map(str::to_owned)
        .collect()
}

/// Runs promtool on `input`, if it is installed.
fn promtool(args: &[&str], input: &str) {
    if !has("promtool") {
        return skip(
            "promtool is not installed (Debian: prometheus): metrics are checked by our own parser only",
        );
    }
    let mut child = Command::new("promtool")
        .args(args)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("promtool");
    let mut stdin = child.stdin.take().expect("its stdin");
    stdin
        .write_all(input.as_bytes())
        .expect("write to promtool");
    drop(stdin);
    let output = child.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {args:?}: {said}");
    // What it only remarks on, it says without failing.
    assert!(!said.contains("ferryfs"), "promtool {args:?}: {said}");
}

fn ask(socket: &Path, path: &str) -> (String, String) {
    let mut stream = UnixStream::connect(socket).expect("connect");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: here\r\n\r\n").expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

#[test]
fn metrics_in_the_file_and_at_the_socket_say_what_waits_and_what_was_written() {
    let Some(mut lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let (file, socket) = (lab.root().join("m.prom"), lab.root().join("m.sock"));
    let listen = format!("unix:{}", text(&socket));
    lab.mount(&["--metrics", &text(&file), "--metrics-listen", &listen]);
    write(&lab.m("a/one"), &content(1, 50_000));
    write(&lab.m("two"), &content(2, 10_000));
    // The kernel reports the last close of a file a moment after it has returned.
    wait_until("both files to be counted", Duration::from_secs(20), || {
        ask(&socket, "/metrics")
            .1
            .contains("ferryfs_dirty_bytes 60000\n")
    });
    let (head, body) = ask(&socket, "/metrics");
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let before = parse(&body);
    assert_eq!(before.get("ferryfs_dirty_bytes"), 60_000.0);
    assert!(before.get("ferryfs_dirty_files") >= 3.0);
    assert_eq!(before.get("ferryfs_safe_to_unplug"), 0.0);
    assert_eq!(before.get("ferryfs_batches_total{outcome=complete}"), 0.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let age = now.expect("after 1970").as_secs_f64()
        - before.get("ferryfs_oldest_change_timestamp_seconds");
    assert!((-1.0..600.0).contains(&age), "{age}");
    assert!(before.get("ferryfs_request_duration_seconds_count{kind=write}") >= 2.0);

    lab.flush();
    let written = "ferryfs_batches_total{outcome=\"complete\"} 1\n";
    wait_until(
        "the file to have the flush",
        Duration::from_secs(20),
        || fs::read_to_string(&file).is_ok_and(|text| text.contains(written)),
    );
    let body = fs::read_to_string(&file).expect("the metrics");
    let after = parse(&body);
    assert_eq!(after.get("ferryfs_dirty_files"), 0.0);
    assert_eq!(after.get("ferryfs_dirty_bytes"), 0.0);
    assert_eq!(after.get("ferryfs_batch_files_total"), 2.0);
    assert_eq!(after.get("ferryfs_batch_bytes_total"), 60_000.0);
    assert_eq!(after.get("ferryfs_batch_duration_seconds_count"), 1.0);
    assert_eq!(after.get("ferryfs_drive_state{state=attached}"), 1.0);
    assert_eq!(after.get("ferryfs_drive_state{state=away}"), 0.0);
    assert!(after.get("ferryfs_drive_free_bytes") > 0.0);
    assert!(after.get("ferryfs_last_batch_timestamp_seconds") > 1.7e9);
    assert!(
        !after
            .samples
            .contains_key("ferryfs_oldest_change_timestamp_seconds")
    );
    promtool(&["check", "metrics"], &body);

    let scrub = ["scrub", "--rate", "4G", &text(&lab.mnt)];
    assert_eq!(lab.ferryfs(&scrub).code, 0);
    let scrubbed = parse(&ask(&socket, "/metrics").1);
    assert_eq!(scrubbed.get("ferryfs_scrub_files"), 2.0);
    assert_eq!(scrubbed.get("ferryfs_scrub_unrepaired_files"), 0.0);
    assert!(scrubbed.get("ferryfs_scrub_last_timestamp_seconds") > 1.7e9);

    // Each is in the document, and the document has no other ones.
    let all: BTreeSet<String> = before
        .kinds
        .keys()
        .chain(after.kinds.keys())
        .chain(scrubbed.kinds.keys())
        .cloned()
        .collect();
    assert_eq!(named(&docs("metrics.md")), all);

    lab.eject();
    let away = parse(&ask(&socket, "/metrics").1);
    assert_eq!(away.get("ferryfs_drive_state{state=away}"), 1.0);
    assert!(!away.samples.contains_key("ferryfs_drive_free_bytes"));
    assert!(ask(&socket, "/other").0.starts_with("HTTP/1.0 404"));
    lab.unmount();
    assert!(!file.exists(), "the file reports a mount that has ended");
    assert!(!socket.exists());
    lab.finish();
}

#[test]
fn alert_rules_and_the_dashboard_name_only_metrics_that_exist() {
    let known = named(&docs("metrics.md"));
    let exists = |name: &str| {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        known.contains(name) || family.is_some_and(|family| known.contains(family))
    };
    let rules = docs("metrics/alerts.yml");
    let dashboard = docs("metrics/grafana-dashboard.json");
    for name in named(&rules).iter().chain(&named(&dashboard)) {
        assert!(exists(name), "there is no metric {name}");
    }
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
    let panels = parsed["panels"].as_array().expect("panels");
    assert!(panels.len() >= 6);
    for panel in panels {
        assert!(
            panel["targets"][0]["expr"].is_string(),
            "{}",
            panel["title"]
        );
    }
    promtool(&["check", "rules", "/dev/stdin"], &rules);
}

#[test]
fn a_metrics_option_that_cannot_be_kept_is_refused_before_anything_is_mounted() {
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let inside = text(&lab.m("m.prom"));
    let cases: [(&[&str], i32, &str); 4] = [
        (&["--metrics", &inside], 2, "in the mount"),
        (&["--metrics", "/no/such/dir/m.prom"], 1, "the directory"),
        (&["--metrics-listen", "0.0.0.0:9"], 2, "loopback"),
        (
            &["--metrics-listen", "unix:/no/such/dir/m.sock"],
            1,
            "cannot listen",
        ),
    ];
    for (args, code, word) in cases {
        lab.try_mount(args).refuses(code, word);
        assert!(!lab.is_mounted(), "{args:?}");
    }
    lab.finish();
}

#[test]
fn the_history_has_each_batch_also_without_the_mount() {
    let Some(mut lab) = Lab::mounted(Backend::Ext4Dir) else {
        return;
    };
    let log = |lab: &Lab, args: &[&str]| {
        let mut all = vec!["log", "--json"];
        all.extend(args);
        lab.ferryfs(&all).ok().json()
    };
    let mnt = text(&lab.mnt);
    assert_eq!(log(&lab, &[&mnt]), serde_json::json!([]));
    write(&lab.m("one"), &content(1, 5_000));
    write(&lab.m("two"), &content(2, 5_000));
    let first = lab.flush();
    // A flush with nothing to do is no batch.
    lab.flush();
    fs::remove_file(lab.m("one")).expect("remove");
    fs::rename(lab.m("two"), lab.m("three")).expect("rename");
    let second = lab.flush();
    let entries = log(&lab, &[&mnt]);
    assert_eq!(entries.as_array().expect("a list").len(), 2, "{entries}");
    assert_eq!(entries[0]["batch"], first["batch"]);
    assert_eq!(entries[0]["files"], 2);
    assert_eq!(entries[0]["bytes"], 10_000);
    assert_eq!(entries[0]["outcome"], "complete");
    assert_eq!(entries[1]["batch"], second["batch"]);
    assert_eq!(entries[1]["removed"], 1);
    assert_eq!(entries[1]["moved"], 1);
    let said = lab.ferryfs(&["log", "-n", "1", &mnt]).ok().stdout;
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("1 removed, 1 moved"), "{said}");
    lab.unmount();
    let cache = text(&lab.cache);
    assert_eq!(log(&lab, &["--cache", &cache]), entries);
    assert_eq!(log(&lab, &["-n", "1", "--cache", &cache])[0], entries[1]);
    lab.ferryfs(&["log", "--cache", "/no/such/cache"])
        .refuses(1, "no cache");
    lab.finish();
}

#[test]
fn a_batch_that_is_given_up_is_in_the_history_with_its_reason() {
    let Some(lab) = Lab::mounted(Backend::Exfat(32)) else {
        return;
    };
    write(&lab.m("too large"), &content(1, 40 << 20));
    lab.flush_code(1);
    let mnt = text(&lab.mnt);
    let entries = lab.ferryfs(&["log", "--json", &mnt]).ok().json();
    let last = entries
        .as_array()
        .and_then(|all| all.last())
        .expect("an entry");
    assert_eq!(last["outcome"], "given_up", "{last}");
    assert_eq!(last["files"], 0);
    assert!(
        last["problem"]
            .as_str()
            .is_some_and(|it| it.contains("space")),
        "{last}"
    );
    let said = lab.ferryfs(&["log", "-n", "1", &mnt]).ok().stdout;
    assert!(said.contains("given up, all of it still waits"), "{said}");
    fs::remove_file(lab.m("too large")).expect("remove");
    write(&lab.m("small"), &content(2, 1000));
    lab.flush();
    let entries = lab.ferryfs(&["log", "--json", "-n", "1", &mnt]).ok().json();
    assert_eq!(entries[0]["outcome"], "complete", "{entries}");
    lab.finish_flushed();
}
