#!/usr/bin/env python3
"""A consumer of a message log that handles each message once, also when it is killed: lease, then confirm.

The log is a file with a JSON object a line; its field "id" says which message it is. The same message may stand in it several times,
and in the logs of other consumers. It stands for a partition of Kafka, and the position file for the committed offset.

    examples/consumer.py --log orders.jsonl --position orders.position --output handled.jsonl

Two namespaces: "leases" says who works on a message now, "done" that it was handled.

1. Write down, on the disk, which messages come next and what their claim is called.
2. Claim their ids in "leases", for a short time. `first`: the message is ours until the lease ends.
3. Ask "done", in this order: who confirmed before our lease began is seen.
4. Handle what is ours and not done, and put each id into "done" for a long time.
5. What somebody else has leased is looked at again: it becomes done, or its lease ends.
6. Go on behind these messages when all are done.

A consumer that is killed sends the same claim again when it is back, is told `first` again, and goes on at once. The one message that
it was handling may be handled twice. No message is lost.
"""

import argparse
import dataclasses
import fcntl
import json
import os
import sys
import time
import uuid

from keydb_http import KeyDB

BATCH_MESSAGES = 100
PAUSE_S = 0.2


@dataclasses.dataclass
class Position:
    """What is kept across restarts: where the messages in work begin and end, and the claim that leases them."""

    start: int = 0
    end: int = 0
    claim: str | None = None
    lease_ends: float = 0.0


def read(log, start, end):
    """The messages from `start` on, up to `end` where that was fixed by an earlier life, and where they end."""
    log.seek(start)
    messages = []
    position = start
    while len(messages) < BATCH_MESSAGES and (position < end or end <= start):
        line = log.readline()
        if not line.endswith(b"\n"):
            break  # Still being written.
        messages.append(json.loads(line))
        position += len(line)
    return messages, position


class Consumer:
    def __init__(self, options):
        nodes = options.nodes.split(",")
        self.leases = KeyDB(nodes, options.group + ".leases")
        self.done = KeyDB(nodes, options.group + ".done")
        self.options = options
        self.position = Position()
        if os.path.exists(options.position):
            with open(options.position) as file:
                self.position = Position(**json.load(file))
        self.output = open(options.output, "a")

    def save(self, position):
        """Writes the position to the disk, as a whole or not at all."""
        self.position = position
        new = self.options.position + ".new"
        with open(new, "w") as file:
            json.dump(dataclasses.asdict(position), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.options.position)

    def handle(self, message):
        """The work itself: here the message is written to a file."""
        time.sleep(self.options.work_ms / 1000)
        self.output.write(json.dumps(message) + "\n")
        self.output.flush()

    def run(self, log):
        while True:
            messages, end = read(log, self.position.start, self.position.end)
            if messages:
                self.work_off(messages, end)
                self.save(Position(start=end, end=end))
            elif self.options.until_end:
                return
            else:
                time.sleep(PAUSE_S)

    def work_off(self, messages, end):
        """Returns when all of these messages are done, through whomever."""
        ids = [message["id"] for message in messages]
        repeat = self.position.claim is not None
        while True:
            if not repeat or self.lease_is_over():
                # Written down before it is sent, so that the next life can send the same again.
                lease_ends = time.time() + self.options.lease
                self.save(Position(self.position.start, end, str(uuid.uuid4()), lease_ends))
                repeat = False
            claims = self.leases.claim(ids, f"{self.options.lease}s", self.position.claim, repeat)
            is_done = self.done.get(ids)
            for message, claim, done in zip(messages, claims, is_done):
                if done or claim != "first":
                    continue
                if self.lease_is_over():
                    break
                self.handle(message)
                self.done.put([message["id"]], self.options.remember)
            if all(self.done.get(ids)):
                return
            # The others are leased by somebody else, or by an earlier claim of ours: they are claimed anew.
            repeat = False
            time.sleep(PAUSE_S)

    def lease_is_over(self):
        """Whether so little is left of the lease that nothing may be begun under it: the work must fit into the rest."""
        return time.time() > self.position.lease_ends - self.options.lease / 3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="localhost:50080", help="host:port of nodes' HTTP ports, with commas between")
    parser.add_argument("--log", required=True, help="the file with the messages")
    parser.add_argument("--position", required=True, help="the file that says how far it was read")
    parser.add_argument("--output", required=True, help="where messages are handled to")
    parser.add_argument("--group", default="consumer", help="consumers of a group share the work")
    parser.add_argument("--lease", type=int, default=60, help="seconds that a message is leased for")
    parser.add_argument("--remember", default="30d", help="how long a handled message is remembered")
    parser.add_argument("--work-ms", type=float, default=0.0, help="how long a message takes, to try this out")
    parser.add_argument("--until-end", action="store_true", help="end with the log instead of waiting for more")
    options = parser.parse_args()

    # One consumer a partition, as a broker sees to it.
    with open(options.position + ".lock", "w") as lock, open(options.log, "rb") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another consumer has {options.position}")
        Consumer(options).run(log)


if __name__ == "__main__":
    main()
