"""A Gateway that accepts connections and never answers holds nothing up for long."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.sessions import QueueMessage
from qmtl_sdk.contracts.submission import Heartbeat, Lease
from qmtl_sdk.runtime import client as clients
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.lease import Heartbeats
from qmtl_sdk.runtime.routes.running import SessionKey
from qmtl_sdk.runtime.withheld import RETRIED
from tests.support.machine import wait_for
from tests.support.one_answer import answering_once


@pytest.fixture
def url() -> Iterator[str]:
    """A socket whose backlog takes connections that nobody serves."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_running_strategy_waits_for_an_answer_as_long_as_its_limit(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert clients.RUNNING_ANSWER_LIMIT_S <= 10.0
    monkeypatch.setattr(clients, "RUNNING_ANSWER_LIMIT_S", 0.3)
    message = QueueMessage(key="k", ts=0, values={})
    with GatewayClient(url, None) as author, author.for_running() as gateway:
        calls = (
            lambda: gateway.queue_append("w.dryrun.t", [message], SessionKey("s")),
            lambda: gateway.queue_read("w.dryrun.t", 0),
            lambda: gateway.queues_by_tag(["a"], 60, "any", "w", "dryrun"),
            lambda: gateway.end_session(SessionKey("s"), "over", patience_s=0.0),
        )
        for call in calls:
            began = time.monotonic()
            with pytest.raises(QmtlError) as caught:
                call()
            assert caught.value.code == "E_UNAVAILABLE"
            assert time.monotonic() - began < 5.0


class LeaseGateway:
    """A Gateway that answers heartbeats of a lease with these errors, one after the other."""

    def __init__(self, *codes: str) -> None:
        self.codes = list(codes)
        self.beats = 0

    def heartbeat(self, lease_id: str, report: Heartbeat) -> None:
        self.beats += 1
        if self.codes:
            raise QmtlError(self.codes.pop(0), "no")


def test_heartbeats_of_a_lease_go_on_until_the_service_says_that_it_has_ended() -> None:
    lease = Lease(lease_id="run.lease-1", heartbeat_timeout_s=0.03)
    gateway = LeaseGateway("E_UNAVAILABLE", "E_RATE", "E_INTERNAL")
    with Heartbeats(gateway, lease):  # type: ignore[arg-type]
        wait_for(lambda: gateway.beats >= 5, "heartbeats after the errors")
    for code in ("E_LEASE_LOST", "E_LEASE_HOLDER"):
        gateway = LeaseGateway(code)
        with Heartbeats(gateway, lease) as heartbeats:  # type: ignore[arg-type]
            wait_for(lambda heartbeats=heartbeats: not heartbeats._thread.is_alive(), "end of the heartbeats")
        assert gateway.beats == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<h1>Please log in</h1>",
        b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\n\r\nno such page",
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n<h1>Bad Gateway</h1>",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\nnot gzip",
    ],
)
def test_an_answer_that_is_not_of_a_gateway_is_none_to_a_running_strategy(answer: bytes) -> None:
    """It was a refusal, after which orders, acknowledgements and reports are not sent again."""
    message = QueueMessage(key="k", ts=0, values={})
    with (
        answering_once(answer) as (url, _),
        GatewayClient(url, None) as author,
        author.for_running() as gateway,
        pytest.raises(QmtlError) as caught,
    ):
        gateway.queue_append("w.dryrun.t", [message], SessionKey("s"))
    assert caught.value.code in RETRIED


def test_a_command_does_not_repeat_a_request_to_what_is_no_gateway() -> None:
    """It would say only after half a minute that the address is wrong."""
    tries = list[int]()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    tries.append(1)
                    with connection:
                        connection.recv(65536)
                        connection.sendall(b"HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\nno such page")

        threading.Thread(target=serve, daemon=True).start()
        with (
            GatewayClient(f"http://127.0.0.1:{server.getsockname()[1]}", None) as client,
            pytest.raises(QmtlError, match=r"answered 404, and not as a Gateway does") as caught,
        ):
            client.worlds()
    assert (caught.value.code, len(tries)) == ("E_UNAVAILABLE", 1)
