"""Eight publishers of orders over HTTP, each with one connection, on which it waits for its answer.

`python -m benchmarks.publishers URL TOKEN SECRET ORDER ORDERS_A_REQUEST SECONDS` prints what they saw as
JSON. One thread serves all of them and composes each request from bytes, so that they take as little as
possible from the cores that they share with what they measure.
"""

import json
import selectors
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from urllib.parse import urlparse

from qmtl_sdk.contracts.sessions import SESSION_HEADER

PUBLISHERS = 8
_BLANK = "0" * 32
_END = b"\r\n\r\n"


class Publisher:
    """One connection: a request at a time, and how long each answer took in seconds."""

    def __init__(self, address: tuple[str, int], requests: Iterator[bytes]) -> None:
        self.socket = socket.create_connection(address, timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.waits: list[float] = []
        self.accepted = 0
        self._requests = requests
        self._began = 0.0
        self._read = b""

    def send(self) -> None:
        self._read, request = b"", next(self._requests)
        self._began = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Read what is there. Returns whether the answer is complete."""
        part = self.socket.recv(65536)
        assert part, "the Gateway closed the connection"
        self._read += part
        head, end, answer = self._read.partition(_END)
        if not end or len(answer) < _length(head):
            return False
        assert head.startswith(b"HTTP/1.1 200 "), self._read
        self.waits.append(time.perf_counter() - self._began)
        self.accepted += answer.count(b'"accepted":true')
        return True


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])


def _requests(host: str, headers: str, order: str, together: int) -> Iterator[bytes]:
    """Endless requests, each order of which has an id of its own."""
    found = json.loads(order)
    prefix = found["order_id"].rpartition(":")[0]
    template = json.dumps({**found, "order_id": f"{prefix}:{_BLANK}"}).encode()
    before, after = template.split(_BLANK.encode())
    size = len(b'{"orders": []}') + together * len(template) + 2 * (together - 1)
    head = (
        f"POST /orders HTTP/1.1\r\nhost: {host}\r\n{headers}"
        f"content-type: application/json\r\ncontent-length: {size}\r\n\r\n"
    ).encode()
    while True:
        orders = [before + uuid.uuid4().hex.encode() + after for _ in range(together)]
        yield head + b'{"orders": [' + b", ".join(orders) + b"]}"


def main(url: str, token: str, secret: str, order: str, together: str, seconds: str) -> None:
    place = urlparse(url)
    headers = f"authorization: Bearer {token}\r\n{SESSION_HEADER}: {secret}\r\n"
    requests = _requests(place.netloc, headers, order, int(together))
    publishers = [Publisher((str(place.hostname), place.port or 80), requests) for _ in range(PUBLISHERS)]
    cpu, began = time.process_time(), time.perf_counter()
    over = began + float(seconds)
    with selectors.DefaultSelector() as selector:
        for publisher in publishers:
            selector.register(publisher.socket, selectors.EVENT_READ, publisher)
            publisher.send()
        waiting = len(publishers)
        while waiting:
            for key, _ in selector.select():
                if key.data.receive():
                    if time.perf_counter() < over:
                        key.data.send()
                    else:
                        waiting -= 1
    took = time.perf_counter() - began
    for publisher in publishers:
        publisher.socket.close()
    print(
        json.dumps(
            {
                "accepted": sum(publisher.accepted for publisher in publishers),
                "seconds": took,
                "cpu": time.process_time() - cpu,
                "waits": [wait for publisher in publishers for wait in publisher.waits],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
