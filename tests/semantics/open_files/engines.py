"""LMDB and DuckDB under load: engines.py write|check DIRECTORY STOP

Each transaction changes two places in the same way, so that a copy of another moment is seen.
"""
import os
import sys
import time

import duckdb
import lmdb

what, directory, stop = sys.argv[1:]
duck, tree = os.path.join(directory, "lab.duckdb"), os.path.join(directory, "tree.lmdb")
if what == "write":
    c = duckdb.connect(duck)
    c.execute("create or replace table t(n bigint, filler varchar)")
    environment = lmdb.open(tree, map_size=64 << 20, subdir=False)
    number = 0
    while not os.path.exists(stop):
        c.execute("begin")
        c.execute("insert into t values(?, repeat('x', 2000))", [number])
        c.execute("insert into t values(?, repeat('y', 2000))", [number])
        c.execute("commit")
        with environment.begin(write=True) as transaction:
            transaction.put(b"first", str(number).encode())
            transaction.put(f"filler{number % 500}".encode(), os.urandom(2000))
            transaction.put(b"second", str(number).encode())
        number += 1
        print(number, flush=True)
        time.sleep(0.002)
else:
    c = duckdb.connect(duck)
    odd = c.execute("select n from t group by n having count(*) != 2").fetchall()
    assert odd == [], f"half a transaction: {odd}"
    count = c.execute("select count(distinct n), coalesce(max(n) + 1, 0) from t").fetchone()
    assert count[0] == count[1], f"a transaction is missing: {count}"
    environment = lmdb.open(tree, map_size=64 << 20, subdir=False)
    with environment.begin() as transaction:
        assert transaction.get(b"first") == transaction.get(b"second")
        keys = sum(1 for _ in transaction.cursor())
        assert keys == transaction.stat()["entries"]
        last = int(transaction.get(b"first") or -1)
    print(count[0], last + 1)
