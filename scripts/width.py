#!/usr/bin/env python3
"""Checks that comments and text are at most 100 columns wide.

    scripts/width.py [FILE...]    these files, or all files that git knows or would add
    scripts/width.py --test       the check itself, on made-up lines

Checked are comment lines in Rust, Python, shell, TOML and YAML, and the text of Markdown files. Tables, code blocks,
link definitions, and lines that are a single word (a long link) may be wider. rustfmt minds code.
"""

import re
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
WIDTH = 100

RUST = re.compile(r"\s*//[/!]?")
HASH = re.compile(r"\s*#")
TEXT = re.compile(r"")
MARKERS = {".rs": RUST, ".py": HASH, ".sh": HASH, ".toml": HASH, ".yml": HASH, ".md": TEXT}

FENCE = re.compile(r"\s*(```|~~~)")
INDENTED = re.compile(r" ?    ")
TABLE = re.compile(r"\s*\|")
DEFINITION = re.compile(r"\s*\[[^\]]+\]:\s")
# What may precede the only word of a line.
LEAD = re.compile(r"(?:[-*+>]|\d+\.)\s+")


def wide_lines(lines, marker):
    """Yields the number and the width of each line that is too wide."""
    in_code = False
    # Indented code begins after an empty line.
    indents_are_code = True
    for number, line in enumerate(lines, 1):
        found = marker.match(line)
        if not found:
            # A fence that is left open ends with its comment.
            in_code, indents_are_code = False, True
            continue
        text = line[found.end():]
        if FENCE.match(text):
            in_code = not in_code
            continue
        if indents_are_code and INDENTED.match(text) and marker is not HASH:
            continue
        indents_are_code = not text.strip()
        if len(line) <= WIDTH or in_code or TABLE.match(text) or DEFINITION.match(text):
            continue
        if len(LEAD.sub("", text.strip(), count=1).split()) > 1:
            yield number, len(line)


def known_files():
    """The files that git knows or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=TOP, stdout=subprocess.PIPE, check=True).stdout.decode()
    return [TOP / name for name in listed.split("\0") if name]


def check(files):
    """Prints the lines that are too wide, and returns their number."""
    count = 0
    for path in files:
        marker = MARKERS.get(path.suffix)
        if marker is None or not path.is_file():
            continue
        for number, width in wide_lines(path.read_text(encoding="utf-8").splitlines(), marker):
            shown = path.relative_to(TOP) if path.is_relative_to(TOP) else path
            print(f"{shown}:{number}: {width} columns")
            count += 1
    return count


def self_test():
    long = "word " * 25
    for marker, lines, wide in [
        (RUST, ["// " + long, "    /// " + long, "//! " + long], [1, 2, 3]),
        (RUST, ["let a = 1; " * 20, "// short"], []),
        (RUST, ["// " + "x" * 94 + " end"], [1]),
        (RUST, ["// " + "x" * 93 + " end"], []),
        (RUST, ["/// ```", "/// " + long, "/// ```", "/// " + long], [4]),
        (RUST, ["/// ```", "fn f() {}", "/// " + long], [3]),
        (RUST, ["/// | a | " + long], []),
        (HASH, ["# " + long, "print() " * 20], [1]),
        (TEXT, [long, "| " + long, "[a]: " + long, "- " + long], [1, 4]),
        (TEXT, ["", "    " + long, "    " + long, long, "    " + long], [4, 5]),
        (TEXT, ["- <https://example.org/" + "x" * 100 + ">"], []),
    ]:
        found = [number for number, _ in wide_lines(lines, marker)]
        assert found == wide, (lines, found, wide)


def main():
    if sys.argv[1:] == ["--test"]:
        self_test()
        return
    count = check([Path(name).resolve() for name in sys.argv[1:]] or known_files())
    if count:
        sys.exit(f"{count} lines of comments or text are over {WIDTH} columns")


main()
