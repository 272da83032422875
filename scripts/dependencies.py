#!/usr/bin/env python3
"""Checks what the program is made of against deny.toml: licenses, sources, crates in two versions; and against the advisories
that scripts/advisories.toml lists. Asks no network: for the current advisories run `cargo deny check` where there is one.

    scripts/dependencies.py            the crates in Cargo.lock
    scripts/dependencies.py --test     the checks themselves, on made-up crates
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python before 3.11
    from pip._vendor import tomli as tomllib

TOP = Path(__file__).resolve().parent.parent
CRATES_IO = "registry+"


def number(version):
    """A version for comparing: a pre-release goes before its release, and a build is ignored."""
    release, _, pre = version.split("+")[0].partition("-")
    parts = [int(part) for part in release.split(".")]
    return (parts + [0, 0, 0])[:3] + [0 if pre else 1]


def takes_in(requirement, version):
    """Whether a list such as `>= 1.2, < 2` takes in the version."""
    compare = {
        ">=": lambda a, b: a >= b,
        ">": lambda a, b: a > b,
        "<=": lambda a, b: a <= b,
        "<": lambda a, b: a < b,
        "=": lambda a, b: a == b,
    }
    for part in requirement.split(","):
        found = re.fullmatch(r"\s*(>=|<=|>|<|=)\s*([0-9][^\s,]*)\s*", part)
        if not found:
            raise ValueError(f"cannot read the requirement {part!r}")
        if not compare[found[1]](number(version), number(found[2])):
            return False
    return True


def allowed(expression, licenses):
    """Whether an SPDX expression can be met with these licenses. `/` is an old way to write OR."""
    words = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def either():
        met = both()
        while words and words[0] == "OR":
            words.pop(0)
            met = both() or met
        return met

    def both():
        met = one()
        while words and words[0] == "AND":
            words.pop(0)
            met = one() and met
        return met

    def one():
        word = words.pop(0)
        if word == "(":
            met = either()
            if words.pop(0) != ")":
                raise ValueError(f"cannot read the license {expression!r}")
            return met
        if words and words[0] == "WITH":
            words.pop(0)
            word = f"{word} WITH {words.pop(0)}"
        return word in licenses

    met = either()
    if words:
        raise ValueError(f"cannot read the license {expression!r}")
    return met


def is_skipped(package, skip):
    """Whether an entry such as `syn@2` of `bans.skip` means the package."""
    for entry in skip:
        name, _, version = entry["crate"].partition("@")
        if name == package["name"] and (package["version"] + ".").startswith(version + "."):
            return True
    return False


def check(packages, policy, advisories):
    """What is wrong with these packages, a line each."""
    wrong = []
    versions = defaultdict(set)
    registries = [CRATES_IO + url for url in policy["sources"]["allow-registry"]]
    for package in packages:
        name, version = package["name"], package["version"]
        what = f"{name} {version}"
        if package["source"] is not None and package["source"] not in registries:
            wrong.append(f"{what} comes from {package['source']}")
        if not allowed(package["license"] or "none", policy["licenses"]["allow"]):
            wrong.append(f"{what} has the license {package['license']}")
        if not is_skipped(package, policy["bans"]["skip"]):
            versions[name].add(version)
        for advisory in advisories:
            if advisory["crate"] != name:
                continue
            well = advisory.get("patched", []) + advisory.get("unaffected", [])
            if not any(takes_in(requirement, version) for requirement in well):
                wrong.append(f"{what}: {advisory['id']}: {advisory['title']}")
    for name, found in sorted(versions.items()):
        if len(found) > 1:
            wrong.append(f"{name} is there in {len(found)} versions: {', '.join(sorted(found))}")
    return wrong


def packages_for(targets):
    """What is built for any of these targets, and for the tests."""
    found = {}
    for target in targets:
        command = ["cargo", "metadata", "--format-version=1", "--locked", "--filter-platform", target]
        said = subprocess.run(command, cwd=TOP, check=True, stdout=subprocess.PIPE).stdout
        metadata = json.loads(said)
        used = {node["id"] for node in metadata["resolve"]["nodes"]}
        found.update({p["id"]: p for p in metadata["packages"] if p["id"] in used})
    return list(found.values())


def load(path):
    return tomllib.loads((TOP / path).read_text())


def main():
    policy, known = load("deny.toml"), load("scripts/advisories.toml")
    packages = packages_for(policy["graph"]["targets"])
    wrong = check(packages, policy, known["advisory"])
    for line in wrong:
        print(f"NOT ALLOWED: {line}")
    print(f"{len(packages)} crates looked at: licenses, sources, versions, {len(known['advisory'])} advisories")
    print(f"NOTE: the advisories are those of {known['as_of']}; the current list was NOT asked for (that is `cargo deny check`)")
    return 1 if wrong else 0


def test():
    policy = {
        "licenses": {"allow": ["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"]},
        "sources": {"allow-registry": ["https://index"]},
        "bans": {"skip": [{"crate": "old@1.2"}]},
    }
    advisories = [{"id": "X-1", "crate": "a", "title": "bad", "patched": [">= 1.2.3, < 2", ">= 2.1.0"], "unaffected": ["< 0.5"]}]

    def crate(name="a", version="3.0.0", license="MIT", source="registry+https://index"):
        return {"name": name, "version": version, "license": license, "source": source}

    def fails(*crates):
        return len(check(list(crates), policy, advisories))

    for version, count in [("0.4.9", 0), ("0.5.0", 1), ("1.2.2", 1), ("1.2.3", 0), ("2.0.0", 1), ("2.1.0-rc.1", 1), ("2.1.0+b", 0)]:
        assert fails(crate(version=version)) == count, version
    for license, count in [
        ("MIT", 0), ("GPL-3.0", 1), ("GPL-3.0 OR MIT", 0), ("MIT AND GPL-3.0", 1), ("(GPL-3.0 OR MIT) AND Zlib", 0), (None, 1),
        ("GPL-3.0/MIT", 0), ("Apache-2.0 WITH LLVM-exception", 0), ("Apache-2.0", 1), ("MIT OR GPL-3.0 AND GPL-2.0", 0),
    ]:
        assert fails(crate(license=license)) == count, license
    assert fails(crate(source="git+https://elsewhere")) == 1
    assert fails(crate(source=None)) == 0
    assert fails(crate(version="3.0.0"), crate(version="3.0.1")) == 1
    assert fails(crate("old", "1.2.9"), crate("old", "2.0.0")) == 0
    assert fails(crate("old", "1.20.9"), crate("old", "2.0.0")) == 1
    print("the checks of dependencies work")
    return 0


if __name__ == "__main__":
    sys.exit(test() if sys.argv[1:] == ["--test"] else main())
