#!/usr/bin/env python3
"""Writes each line of standard input whose key was not seen before. gRPC; the stubs are generated from the service's description:

    pip install grpcio grpcio-tools
    python3 -m grpc_tools.protoc -I proto --python_out=examples --grpc_python_out=examples keydb/node.proto
    printf 'one\\ntwo\\none\\n' | examples/dedup_grpc.py --ttl 600
"""

import argparse
import itertools
import sys
import time
import uuid

import grpc

from keydb import node_pb2, node_pb2_grpc

BATCH_LINES = 1000
TIMEOUT_S = 30.0
MAY_PASS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def claim(stubs, keys, ttl_seconds, namespace):
    """Claims the keys at the first node that answers; an answer for each key. `stubs` are in the order in which they are asked."""
    # Under this name the claim can be sent again: a lost reply does not turn a first into a duplicate.
    request = node_pb2.ClaimRequest(keys=keys, ttl_seconds=ttl_seconds, namespace=namespace, operation=str(uuid.uuid4()))
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return stubs[0].Claim(request, timeout=TIMEOUT_S).answers
        except grpc.RpcError as error:
            if error.code() not in MAY_PASS or time.monotonic() > deadline:
                raise
            # Unless the node says that nothing was applied, the next sending is a repeat.
            trailers = dict(error.trailing_metadata() or ())
            if trailers.get("keydb-applied") != "no":
                request.is_repeat = True
        stubs.append(stubs.pop(0))
        time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="localhost:50051", help="host:port of nodes' gRPC ports, with commas between")
    parser.add_argument("--ttl", type=int, default=30 * 86_400, help="how many seconds a line is remembered")
    parser.add_argument("--namespace", default="", help="the key space")
    options = parser.parse_args()
    stubs = [node_pb2_grpc.NodeServiceStub(grpc.insecure_channel(node)) for node in options.nodes.split(",")]

    lines = (line.rstrip("\n") for line in sys.stdin)
    while batch := list(itertools.islice(lines, BATCH_LINES)):
        keys = [line for line in batch if line]  # An empty line has no key.
        answers = iter(claim(stubs, keys, options.ttl, options.namespace) if keys else [])
        for line in batch:
            # UNKNOWN is written as well: to lose a line is worse here than to write it twice.
            if not line or next(answers) != node_pb2.DUPLICATE:
                print(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
