"""A limit for the head of a request (its line and headers), which uvicorn with httptools does not have."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 65_536
"""Bytes of a request's line and headers after the first read, which takes a quarter of a megabyte at most."""


class BoundedHead(HttpToolsProtocol):
    """Refuses a request whose head is longer than `MAX_HEAD`, and closes its connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what uvicorn gives its protocol. (Any: that is its own.)"""
        super().__init__(*args, **options)
        self._in_head = False
        self._began = False
        self._head = 0

    def data_received(self, data: bytes) -> None:
        """Take a part of a request. A read in which a head begins may hold another request's body too."""
        self._began = False
        super().data_received(data)
        if self._in_head and not self._began:
            self._head += len(data)
            if self._head > MAX_HEAD and not self.transport.is_closing():
                self.send_400_response(f"the line and headers of a request are longer than {MAX_HEAD} bytes")

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._in_head, self._began, self._head = True, True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting."""
        self._in_head = False
        super().on_headers_complete()
