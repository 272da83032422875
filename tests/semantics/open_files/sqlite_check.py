"""Checks a copy of a database: sqlite_check.py DATABASE BEFORE ACKNOWLEDGED...

It must be sound, and have each row that was acknowledged BEFORE that time.
"""
import sqlite3
import sys

database, before, acknowledged = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
c = sqlite3.connect(database)
assert c.execute("pragma integrity_check").fetchone()[0] == "ok", "not sound"
have = dict(c.execute("select writer, max(number) from rows group by writer").fetchall())
for name in acknowledged:
    writer = name.rsplit(".", 1)[1]
    last = -1
    for line in open(name):
        words = line.split()
        if len(words) == 2 and line.endswith("\n") and float(words[0]) < before:
            last = int(words[1])
    assert have.get(writer, -1) >= last, f"{writer} has {have.get(writer)}, acknowledged was {last}"
print(sum(have.values()))
