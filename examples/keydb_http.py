"""KeyDB over HTTP, with Python's standard library alone.

A call goes to one node, which asks the others. Where that node fails, the call is sent to the next one until its time is up. A claim
is sent under a name, so that a lost reply does not turn a first into a duplicate.
"""

import http.client
import json
import time
import uuid


class CallFailed(Exception):
    """A call that was refused, or that nobody answered in time."""


class KeyDB:
    """One connection to a cluster. It is for one thread."""

    def __init__(self, nodes, namespace="", timeout=30.0):
        """nodes: host:port of nodes' HTTP ports. timeout: how many seconds a call may take, repeats included."""
        self.nodes = list(nodes)
        self.namespace = namespace
        self.timeout = timeout
        self.connection = None

    def get(self, keys):
        """Whether each key is there, in order."""
        return self._call("get", {"keys": keys})["present"]

    def put(self, keys, ttl):
        """Stores the keys for this long, such as "30d". A key that lives longer already is left as it is."""
        self._call("put", {"keys": keys, "ttl": ttl})

    def claim(self, keys, ttl, name=None, repeat=False):
        """Stores the keys that are absent; "first", "duplicate" or "unknown" for each.

        name: what the claim is called, of these keys only. repeat: it may have been sent before, by another process perhaps.
        """
        return self._call("claim", {"keys": keys, "ttl": ttl}, name or str(uuid.uuid4()), repeat)["claims"]

    def _call(self, operation, fields, name=None, repeat=False):
        if self.namespace:
            fields["namespace"] = self.namespace
        body = json.dumps(fields).encode()
        deadline = time.monotonic() + self.timeout
        while True:
            headers = {"Content-Type": "application/json"}
            if name:
                headers["Idempotency-Key"] = name
            if repeat:
                headers["Keydb-Repeat"] = "true"
            try:
                status, reply = self._exchange("/v1/" + operation, body, headers)
            except (OSError, http.client.HTTPException) as error:
                status, reply = None, {"detail": f"{self.nodes[0]}: {error!r}"}
            if status == 200:
                return reply
            # 408, 503 and 504 pass, and so does a node that is gone. All else would be answered the same again.
            may_pass = status in (None, 408, 503, 504)
            if not may_pass or time.monotonic() > deadline:
                raise CallFailed(f"{operation}: {reply.get('detail')}")
            # Unless it is certain that nothing was applied, the next sending is a repeat.
            repeat = repeat or (name is not None and reply.get("applied") != "no")
            self._leave_node()
            time.sleep(0.1)

    def _exchange(self, path, body, headers):
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.nodes[0], timeout=self.timeout)
        self.connection.request("POST", path, body, headers)
        response = self.connection.getresponse()
        return response.status, json.loads(response.read())

    def _leave_node(self):
        """The next call goes to another node."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        self.nodes.append(self.nodes.pop(0))
