"""Asks one question of many keys through given nodes, as clients in Python would, for the test crates/cli/tests/examples.rs.

    doors.py {http|grpc} {get|put|claim} NODE,NODE,… < KEYS

A line of KEYS is the number of a node in the list, a space, and a key in base64. For each line there is one of output: `present`, `absent`,
`stored`, `first`, `duplicate` or `unknown`.
"""

import base64
import json
import sys
import urllib.request

BATCH_KEYS = 1000
TTL_S = 3600


def is_text(key):
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


def over_http(node, operation, keys):
    fields = {} if operation == "get" else {"ttlSeconds": TTL_S}
    if is_text(keys[0]):
        fields["keys"] = [key.decode() for key in keys]
    else:
        fields |= {"keys": [base64.b64encode(key).decode() for key in keys], "encoding": "base64"}
    with urllib.request.urlopen(f"http://{node}/v1/{operation}", json.dumps(fields).encode()) as response:
        reply = json.load(response)
    if operation == "get":
        return ["present" if present else "absent" for present in reply["present"]]
    if operation == "put":
        return ["stored"] * reply["stored"]
    return reply["claims"]


def over_grpc(node, operation, keys):
    import grpc

    from keydb import node_pb2, node_pb2_grpc

    keys = [key.decode() for key in keys]
    with grpc.insecure_channel(node) as channel:
        stub = node_pb2_grpc.NodeServiceStub(channel)
        if operation == "get":
            exists = stub.Get(node_pb2.GetRequest(keys=keys)).exists
            return ["present" if present else "absent" for present in exists]
        if operation == "put":
            reply = stub.Put(node_pb2.PutRequest(keys=keys, ttl_seconds=TTL_S))
            return ["stored"] * len(keys) if reply.success else []
        reply = stub.Claim(node_pb2.ClaimRequest(keys=keys, ttl_seconds=TTL_S))
        return [node_pb2.ClaimAnswer.Name(answer).lower() for answer in reply.answers]


def main():
    door, operation, nodes = sys.argv[1:]
    ask = {"http": over_http, "grpc": over_grpc}[door]
    nodes = nodes.split(",")
    lines = [line.split(" ") for line in sys.stdin.read().splitlines()]
    keys = [base64.b64decode(key) for _, key in lines]
    # Those that go together: to one node, and all as text or all as base64.
    groups = {}
    for index, (number, _) in enumerate(lines):
        groups.setdefault((int(number), is_text(keys[index])), []).append(index)
    answers = [None] * len(lines)
    for (number, _), indexes in groups.items():
        for start in range(0, len(indexes), BATCH_KEYS):
            batch = indexes[start : start + BATCH_KEYS]
            told = ask(nodes[number], operation, [keys[index] for index in batch])
            if len(told) != len(batch):
                sys.exit(f"{len(told)} answers for {len(batch)} keys")
            for index, answer in zip(batch, told):
                answers[index] = answer
    print("\n".join(answers))


if __name__ == "__main__":
    main()
