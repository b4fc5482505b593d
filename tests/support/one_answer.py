"""A server that answers one request, whose body is JSON, with given bytes."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def answering_once(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Give its address, and a list that holds the request once it has come: one whose body ends with `}`."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)  # against a client that never comes

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(30)
                request = b""
                while not request.endswith(b"}"):  # what is left unread would reset the connection
                    part = connection.recv(65536)
                    assert part, "the client closed before its body ended"
                    request += part
                requests.append(request)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", requests
        finally:
            thread.join()
