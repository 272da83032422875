"""Commits rows to a database all the time: sqlite_writer.py DATABASE MODE WRITER ACKNOWLEDGED STOP

After each commit the time and the number of the row are appended to ACKNOWLEDGED. Ends when the
file STOP is there, and prints the percentiles of the time that a commit took.
"""
import os
import sqlite3
import sys
import time

database, mode, writer, acknowledged, stop = sys.argv[1:]
c = sqlite3.connect(database, timeout=60, isolation_level=None)
c.execute("pragma synchronous=normal")
for _ in range(1000):
    try:
        if c.execute(f"pragma journal_mode={mode}").fetchone()[0] == mode:
            break
    except sqlite3.OperationalError:
        time.sleep(0.01)
c.execute("create table if not exists rows(writer, number, bytes blob, primary key(writer, number))")
log = open(acknowledged, "w")
took = []
number = 0
while not os.path.exists(stop):
    begun = time.time()
    try:
        c.execute("insert into rows values(?, ?, randomblob(3000))", (writer, number))
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        continue
    done = time.time()
    log.write(f"{done} {number}\n")
    log.flush()
    took.append(done - begun)
    number += 1
    if number % 200 == 0:
        c.execute("delete from rows where writer=? and number<?", (writer, number - 100))
    time.sleep(0.001)
c.close()
took.sort()
at = lambda share: took[min(len(took) - 1, int(len(took) * share))] * 1000
print(f"{mode} {writer}: {number} rows, p50 {at(0.5):.1f} p99 {at(0.99):.1f} worst {at(1):.1f} ms")
