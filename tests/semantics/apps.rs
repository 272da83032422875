//! Programs that know nothing of us do their day's work in the mount; afterwards all of it is on
//! the drive.

use crate::{lab, on_both_drives, on_plain_directory};

use std::fs;
use std::process::Command;

use crate::lab::{Lab, python, run, sh, skip, write};

on_both_drives!(
    sqlite_from_several_processes_loses_no_row,
    git_init_commit_clone_and_fsck,
    archives_and_rsync_come_back_without_a_difference,
    shell_scripts_run_unmodified,
);

on_plain_directory!(
    python_venv_installs_and_imports_a_package,
    cargo_builds_a_crate,
    databases_survive_flushes_while_they_are_written,
);

/// Everything is closed now: the flush leaves nothing behind, and the drive is sound.
fn carried_over(lab: Lab) {
    lab.finish_flushed();
}

/// Four processes write rows of their own into one database, a fifth reads; then all rows are
/// counted.
const DATABASE: &str = r"
import os, sqlite3, sys, time
path, mode = sys.argv[1], os.path.basename(sys.argv[2])
PROCESSES, ROWS = 4, 60
def connect():
    c = sqlite3.connect(path, timeout=60, isolation_level=None)
    c.execute('pragma synchronous=normal')
    return c
c = connect()
assert c.execute(f'pragma journal_mode={mode}').fetchone()[0] == mode, 'journal mode refused'
c.execute('create table t(process int, row int, pad blob, primary key(process, row))')
c.close()
children = []
for process in range(PROCESSES + 1):
    pid = os.fork()
    if pid == 0:
        try:
            c = connect()
            if process == PROCESSES:
                last = 0
                for _ in range(40):
                    n = c.execute('select count(*) from t').fetchone()[0]
                    assert n >= last, 'rows went away'
                    last = n
                    time.sleep(0.01)
            else:
                for row in range(ROWS):
                    c.execute('begin immediate')
                    c.execute('insert into t values(?,?,?)', (process, row, os.urandom(700)))
                    c.execute('commit')
            c.close()
            os._exit(0)
        except BaseException as e:
            print(process, repr(e), file=sys.stderr, flush=True)
            os._exit(1)
    children.append(pid)
failed = [pid for pid in children if os.waitpid(pid, 0)[1] != 0]
assert not failed, 'a process failed'
c = connect()
assert c.execute('pragma integrity_check').fetchone()[0] == 'ok'
assert c.execute('select count(*) from t').fetchone()[0] == PROCESSES * ROWS
for process in range(PROCESSES):
    assert c.execute('select count(*), max(row) from t where process=?', (process,)).fetchone() == (ROWS, ROWS - 1)
c.close()
";

fn sqlite_from_several_processes_loses_no_row(lab: Lab) {
    for mode in ["wal", "delete"] {
        python(DATABASE, &[&lab.m(format!("{mode}.db")), mode.as_ref()]);
    }
    carried_over(lab);
}

fn databases_survive_flushes_while_they_are_written(lab: Lab) {
    std::thread::scope(|scope| {
        let writers = scope.spawn(|| {
            for mode in ["wal", "delete"] {
                python(
                    DATABASE,
                    &[&lab.m(format!("busy-{mode}.db")), mode.as_ref()],
                );
            }
        });
        while !writers.is_finished() {
            let done = lab.ferryfs(&["flush", &lab::text(&lab.mnt)]);
            let fair = [lab::exit::DONE, lab::exit::LEFT_BEHIND].contains(&done.code);
            assert!(
                fair,
                "flush beside a database: exit {}: {}",
                done.code, done.stderr
            );
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    carried_over(lab);
}

fn git_init_commit_clone_and_fsck(lab: Lab) {
    let script = r#"
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null HOME="$PWD"
export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@example.org GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@example.org
git init -q -b main repo
cd repo
for n in $(seq 120); do mkdir -p src/$((n % 8)); echo "file $n" > src/$((n % 8))/$n.txt; done
git add -A
git commit -q -m one
git mv src/1 src/one
sed -i s/file/line/ src/2/*.txt
git commit -q -am two
git branch side HEAD~1
git checkout -q side
git checkout -q main
git gc -q
git fsck --strict --no-progress
cd ..
git clone -q repo clone
git -C clone fsck --no-progress
test -z "$(git -C repo status --porcelain)"
test -z "$(git -C clone status --porcelain)"
test "$(git -C clone rev-parse HEAD)" = "$(git -C repo rev-parse HEAD)"
"#;
    sh(&lab.mnt, script);
    carried_over(lab);
}

fn python_venv_installs_and_imports_a_package(lab: Lab) {
    sh(&lab.mnt, "python3 -m venv venv");
    let installed = run(Command::new(lab.m("venv/bin/python")).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "six",
    ]));
    if installed.code != 0 {
        // A registry that cannot be reached from outside the mount either is no failure of the
        // mount.
        let outside = lab.root().join("outside");
        let probe = run(Command::new("python3")
            .args(["-m", "pip", "download", "-q", "-d"])
            .arg(&outside)
            .arg("six"));
        assert!(
            probe.code != 0,
            "pip works outside the mount, in it not: {}",
            installed.stderr
        );
        return skip("PyPI cannot be reached, pip install was not tried");
    }
    let imported =
        run(Command::new(lab.m("venv/bin/python")).args(["-c", "import six; print(six.__file__)"]))
            .ok();
    assert!(
        imported.stdout.starts_with(&lab::text(&lab.mnt)),
        "{}",
        imported.stdout
    );
    carried_over(lab);
}

/// A tree on the machine's own file system with all that tar and rsync can carry.
fn source_tree(lab: &Lab) -> std::path::PathBuf {
    let source = lab.root().join("source");
    for n in 0..60 {
        write(
            &source.join(format!("d{}/f{n}", n % 6)),
            &lab::content(n, 500 * n as usize),
        );
    }
    sh(
        &source,
        "chmod 640 d0/f0; chmod 2755 d1; chmod 755 d2/f2; ln -s d0/f0 link; ln d3/f3 d4/hard; mkfifo fifo; mkdir empty
         touch -d '2001-02-03 04:05:06.789012345' d5/f5; truncate -s 3M d5/sparse; touch -d '1999-12-31' d5
         setfattr -n user.note -v kept d2/f8",
    );
    source
}

fn archives_and_rsync_come_back_without_a_difference(lab: Lab) {
    let source = source_tree(&lab);
    let script = format!(
        r#"
source={source}
rsync -aHAX "$source/" copied/
differences=$(rsync -aHAXnc --delete --itemize-changes "$source/" copied/)
test -z "$differences" || {{ echo "rsync: $differences" >&2; exit 1; }}
tar -C "$source" --xattrs -cf tree.tar .
mkdir untarred
tar -C untarred --xattrs --xattrs-include='user.*' -xpf tree.tar
differences=$(rsync -aHAXnc --delete --itemize-changes "$source/" untarred/)
test -z "$differences" || {{ echo "tar: $differences" >&2; exit 1; }}
cp -a copied copied-again
diff -r --no-dereference -x fifo copied copied-again
tar -C untarred -cf - . | tar -df - -C "$source"
"#,
        source = lab::text(&source)
    );
    sh(&lab.mnt, &script);
    carried_over(lab);
}

fn cargo_builds_a_crate(lab: Lab) {
    write(
        &lab.m("crate/Cargo.toml"),
        b"[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    );
    write(
        &lab.m("crate/src/main.rs"),
        b"mod part;\nfn main() { println!(\"{}\", part::sum(&[1, 2, 39])); }\n",
    );
    write(
        &lab.m("crate/src/part.rs"),
        b"pub fn sum(all: &[u32]) -> u32 { all.iter().sum() }\n",
    );
    let cargo = |command: &str| {
        let mut cargo = Command::new(env!("CARGO"));
        // Ours would take the build elsewhere.
        cargo
            .args([command, "-q", "--offline", "-j1"])
            .current_dir(lab.m("crate"))
            .env_remove("CARGO_TARGET_DIR");
        run(&mut cargo).ok()
    };
    cargo("build");
    assert_eq!(cargo("run").stdout, "42\n");
    write(
        &lab.m("crate/src/part.rs"),
        b"pub fn sum(all: &[u32]) -> u32 { all.iter().sum::<u32>() + 1 }\n",
    );
    assert_eq!(
        cargo("run").stdout,
        "43\n",
        "a change is noticed by its time"
    );
    carried_over(lab);
}

fn shell_scripts_run_unmodified(lab: Lab) {
    let scraper = r#"#!/bin/sh
set -eu
mkdir -p pages index done
for n in 1 2 3 4 5 6 7 8 9 10; do
    echo "<html>page $n</html>" > pages/$n.html.part
    mv pages/$n.html.part pages/$n.html
    echo "$n pages/$n.html" >> index/all
done
sort -rn index/all -o index/all
find pages -name '*.html' -newer scraper.sh | wc -l > done/count
gzip -k pages/1.html
cp -p pages/2.html done/
sed -i 's/page/PAGE/' done/2.html
test "$(cat done/count)" -eq 10
test "$(zcat pages/1.html.gz)" = "<html>page 1</html>"
head -n 1 index/all | grep -q '^10 '
tail -n 1 index/all | grep -q '^1 '
ln -s pages latest
ls latest/10.html > /dev/null
rm -r index
"#;
    write(&lab.m("scraper.sh"), scraper.as_bytes());
    fs::set_permissions(
        lab.m("scraper.sh"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("chmod");
    sh(&lab.mnt, "touch -d '1 minute ago' scraper.sh; ./scraper.sh");
    assert!(lab.m("done/2.html").exists());
    carried_over(lab);
}
