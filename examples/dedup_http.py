#!/usr/bin/env python3
"""Writes each line of standard input whose key was not seen before. HTTP, with Python's standard library alone.

    printf 'one\\ntwo\\none\\n' | examples/dedup_http.py --ttl 10m
"""

import argparse
import itertools
import sys

from keydb_http import KeyDB

BATCH_LINES = 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="localhost:50080", help="host:port of nodes' HTTP ports, with commas between")
    parser.add_argument("--ttl", default="30d", help="how long a line is remembered")
    parser.add_argument("--namespace", default="", help="the key space")
    options = parser.parse_args()
    keydb = KeyDB(options.nodes.split(","), options.namespace)

    lines = (line.rstrip("\n") for line in sys.stdin)
    while batch := list(itertools.islice(lines, BATCH_LINES)):
        keys = [line for line in batch if line]  # An empty line has no key.
        claims = iter(keydb.claim(keys, options.ttl) if keys else [])
        for line in batch:
            # "unknown" is written as well: to lose a line is worse here than to write it twice.
            if not line or next(claims) != "duplicate":
                print(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
