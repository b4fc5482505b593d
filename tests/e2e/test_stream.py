"""Hearing of what changed: over the socket of a running Gateway, from several of them, and by asking."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from activities.events.bus import SqliteBus
from activities.storage.database import Database
from activities.storage.transactions import RecordedChange
from qmtl_sdk.contracts.stream import Resumed, Subscribe, Subscription
from qmtl_sdk.contracts.topic_state import TopicState, state_hash
from qmtl_sdk.runtime import stream as stream_module
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.stream import StreamClient
from tests.support.events import event, record_change
from tests.support.machine import Machine, wait_for
from tests.support.twofold import machine_for, of_one_gateway
from tests.support.worlds import POLICY, world

POLICY_TOPIC = ("policy",)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    env = {
        "QMTL_EVENTS__SLOW_READER_S": "1",
        "QMTL_EVENTS__HEARTBEAT_S": "0.2",
        "QMTL_GATEWAY__MAX_SOCKETS": "12",
        "QMTL_EVENTS__KEEP": "1000000",
    }
    found = machine_for(tmp_path_factory.mktemp("stream"), **env)
    try:
        found.start_temporal()
        found.start_relay()
        found.start_gateway()
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def client(machine: Machine) -> Iterator[GatewayClient]:
    with machine.client() as found:
        yield found


@pytest.fixture(scope="module")
def database(machine: Machine) -> Iterator[Database]:
    found = machine.database()
    yield found
    found.close()


@pytest.fixture
def home(client: GatewayClient, request: pytest.FixtureRequest) -> str:
    """A world of the test's own."""
    name = "w" + "".join(c for c in request.node.name.lower() if c.isalnum())[-50:]
    client.create_world(world(name), POLICY)
    return name


@contextmanager
def opened(subscription: Subscription, **hello: Any) -> Iterator[ClientConnection]:
    with connect(subscription.stream_url, compression=None, max_size=None, proxy=None) as socket:
        socket.send(json.dumps({"type": "hello", "token": subscription.token, **hello}))
        yield socket


def frames(socket: ClientConnection, count: int) -> list[dict[str, Any]]:
    """The next frames that are no heartbeats."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        frame = json.loads(socket.recv(timeout=10))
        if frame["type"] != "heartbeat":
            found.append(frame)
    return found


def closed(socket: ClientConnection) -> tuple[int, str]:
    """The code and reason with which the Gateway closes."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            socket.recv(timeout=15)
    found = caught.value.rcvd
    assert found is not None
    return found.code, found.reason.partition(":")[0]


def policy(client: GatewayClient, name: str) -> Subscription:
    return client.subscribe(Subscribe(world_id=name, topics=POLICY_TOPIC))


def test_each_topic_begins_with_a_snapshot_and_goes_on_by_sequence(
    client: GatewayClient, database: Database, home: str
) -> None:
    record_change(database, "a", 1, home)
    record_change(database, "a", 2, home)
    wait_for(lambda: _last(client, home) == 2, "two events")
    with opened(client.subscribe(Subscribe(world_id=home, topics=("policy", "decisions")))) as socket:
        first = {frame["topic"]: frame for frame in frames(socket, 2)}
        assert {
            name: (frame["type"], frame["reason"], frame["sequence"]) for name, frame in first.items()
        } == {"policy": ("snapshot", "first", 2), "decisions": ("snapshot", "first", 0)}
        assert [item["data"]["version"] for item in first["policy"]["events"]] == [2]
        record_change(database, "b", 3, home)
        record_change(database, "other", 4, "another_world")
        (frame,) = frames(socket, 1)
        assert (frame["type"], frame["topic"], frame["sequence"], frame["event"]["subject"]) == (
            "event",
            "policy",
            3,
            "b",
        )
        assert frame["event"]["specversion"] == "1.0"


def _last(client: GatewayClient, name: str) -> int:
    subscription = policy(client, name)
    polled = httpx.get(
        subscription.poll_url, headers={"authorization": f"Bearer {subscription.token}"}, trust_env=False
    ).json()
    return int(polled["newest"]["policy"])


def test_who_comes_back_gets_what_was_missed_and_nothing_else(
    client: GatewayClient, database: Database, home: str
) -> None:
    for i in range(5):
        record_change(database, "a", i, home)
    wait_for(lambda: _last(client, home) == 5, "five events")
    subscription = policy(client, home)
    with opened(subscription) as socket:
        log = frames(socket, 1)[0]["log"]
    with opened(subscription, log=log, positions={"policy": 2}) as socket:
        found = frames(socket, 4)
    assert (found[0]["type"], found[0]["sequence"]) == ("resumed", 2)
    assert [frame["sequence"] for frame in found[1:]] == [3, 4, 5]


def test_a_position_of_another_log_gets_a_snapshot_that_says_so(client: GatewayClient, home: str) -> None:
    with opened(policy(client, home), log="another", positions={"policy": 7}) as socket:
        assert frames(socket, 1)[0]["reason"] == "log"


def test_a_position_too_old_for_the_retention_gets_a_new_snapshot_that_says_so(
    machine: Machine, client: GatewayClient, database: Database, home: str
) -> None:
    for i in range(8):
        record_change(database, "a", i, home)
    wait_for(lambda: _last(client, home) == 8, "eight events")
    bus = SqliteBus(machine.home / "bus.db")
    bus.trim(f"{home}.policy", 6)
    log = bus.log_id
    bus.close()
    with opened(policy(client, home), log=log, positions={"policy": 2}) as socket:
        (frame,) = frames(socket, 1)
    assert (frame["type"], frame["reason"], frame["sequence"], frame["events"][0]["data"]["version"]) == (
        "snapshot",
        "retention",
        8,
        7,
    )
    with opened(policy(client, home), log=log, positions={"policy": 5}) as socket:
        assert [frame["type"] for frame in frames(socket, 4)] == ["resumed", "event", "event", "event"]


def test_a_sequence_from_the_future_closes_the_socket_and_the_client_begins_again(
    client: GatewayClient, database: Database, home: str
) -> None:
    subscription = policy(client, home)
    with opened(subscription) as socket:
        log = frames(socket, 1)[0]["log"]
    with opened(subscription, log=log, positions={"policy": 99}) as socket:
        assert closed(socket) == (1008, "E_SEQUENCE_FUTURE")
    response = httpx.get(
        subscription.poll_url,
        params={"after": "policy:99", "log": log},
        headers={"authorization": f"Bearer {subscription.token}"},
        trust_env=False,
    )
    assert (response.status_code, response.json()["code"]) == (422, "E_SEQUENCE_FUTURE")
    stream = StreamClient([client], Subscribe(world_id=home, topics=POLICY_TOPIC))
    stream._reader.apply(Resumed(topic="policy", log=log, sequence=99))
    stream.states["policy"].sequence = 99
    with stream:
        assert stream.wait(
            lambda: stream.states["policy"].sequence == 0 and stream.counters.snapshots["first"] == 1, 20
        ), stream.fault


def test_an_unknown_topic_is_refused_with_the_nearest(client: GatewayClient, home: str) -> None:
    from qmtl_sdk import QmtlError

    with pytest.raises(QmtlError, match="did you mean 'activation'") as caught:
        client.subscribe(Subscribe(world_id=home, topics=("activations",)))
    assert caught.value.code == "E_TOPIC_UNKNOWN"


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (b"\x00\x01", (1003, "E_FRAME_BINARY")),
        ("not json", (1008, "E_FRAME")),
        ('{"type": "dance"}', (1008, "E_FRAME")),
        ('{"type": "hello", "token": "x"}', (1008, "E_FRAME")),
        ('{"type": "refresh"}', (1008, "E_FRAME")),
        ("x" * 100_000, (1009, "")),
    ],
)
def test_a_frame_that_is_none_closes_the_socket_with_a_reason(
    client: GatewayClient, home: str, frame: str | bytes, expected: tuple[int, str]
) -> None:
    with opened(policy(client, home)) as socket:
        frames(socket, 1)
        socket.send(frame)
        code, reason = closed(socket)
    assert (code, reason if code != 1009 else "") == expected


def test_a_first_frame_without_a_token_closes_the_socket(client: GatewayClient, home: str) -> None:
    with connect(policy(client, home).stream_url, proxy=None) as socket:
        socket.send('{"type": "refresh", "token": "x"}')
        assert closed(socket) == (1008, "E_TOKEN_MISSING")


def test_a_reader_that_takes_nothing_is_dropped_and_the_others_hear_everything(
    client: GatewayClient, database: Database, home: str
) -> None:
    subscription = policy(client, home)
    with (
        opened(subscription) as stuck,
        StreamClient([client], Subscribe(world_id=home, topics=POLICY_TOPIC)) as other,
    ):
        assert other.ready()
        frames(stuck, 1)
        stuck.recv_bufsize = 1
        blocked = threading.Event()
        stuck.recv_events_thread_stop = (
            blocked  # nothing of ours reads it: its library reads only what fits its buffer
        )
        wide = {"filler": "x" * 60_000}
        for i in range(400):
            with database.write("test") as tx:
                tx.record(
                    RecordedChange(
                        "test.told",
                        home,
                        "wide",
                        event="policy_updated",
                        data={"world_id": home, "version": i, **wide},
                    )
                )
        assert other.wait(lambda: other.states["policy"].sequence == 400, 60), (other.fault, other.positions)
        assert other.counters.max_gap == 0
        wait_for(
            lambda: "E_SLOW_READER" in httpx.get(f"{client.url}/metrics", trust_env=False).text,
            "dropped reader",
            30,
        )


@of_one_gateway
def test_the_sockets_of_one_caller_are_limited(client: GatewayClient, home: str) -> None:
    subscription = policy(client, home)
    wait_for(
        lambda: "stream_sockets 0.0" in httpx.get(f"{client.url}/metrics", trust_env=False).text,
        "end of other tests' sockets",
    )
    with ExitStack() as stack:
        for _ in range(12):
            frames(stack.enter_context(opened(subscription)), 1)
        with opened(subscription) as one_more:
            assert closed(one_more) == (1013, "E_SOCKETS")


@of_one_gateway
def test_sockets_that_do_not_say_who_they_are_are_limited_too(client: GatewayClient, home: str) -> None:
    subscription = policy(client, home)
    wait_for(
        lambda: "stream_sockets 0.0" in httpx.get(f"{client.url}/metrics", trust_env=False).text,
        "end of other tests' sockets",
    )
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(connect(subscription.stream_url, proxy=None))
        with connect(subscription.stream_url, proxy=None) as one_more:
            assert closed(one_more) == (1013, "E_SOCKETS")


def test_an_event_of_an_unknown_type_is_stored_counted_and_skipped(
    client: GatewayClient, database: Database, home: str
) -> None:
    heard: list[str] = []
    with StreamClient(
        [client],
        Subscribe(world_id=home, topics=("other", "policy")),
        on_event=lambda _, item: heard.append(item.type),
    ) as stream:
        assert stream.ready()
        record_change(database, "x", 1, home, kind="weather.changed")
        record_change(database, "a", 1, home)
        assert stream.wait(lambda: stream.positions == {"other": 1, "policy": 1}, 20)
        assert heard == ["policy_updated"]
        assert stream.counters.unknown == {"weather.changed": 1}
        assert "x" in stream.states["other"].events
    assert (
        'events_of_unknown_type_total{type="weather.changed"} 1.0'
        in httpx.get(f"{client.url}/metrics", trust_env=False).text
    )


def test_asking_gives_what_the_socket_gives(client: GatewayClient, database: Database, home: str) -> None:
    wanted = Subscribe(world_id=home, topics=POLICY_TOPIC)
    with (
        StreamClient([client], wanted) as by_socket,
        StreamClient([client], wanted, sockets=False) as by_asking,
    ):
        assert by_socket.ready()
        assert by_asking.ready()
        for i in range(50):
            record_change(database, f"s{i % 7}", i, home)
        for stream in (by_socket, by_asking):
            assert stream.wait(lambda stream=stream: stream.positions == {"policy": 50}, 20)  # type: ignore[misc]
        assert by_asking.counters.polls
        assert by_socket.states["policy"].state_hash == by_asking.states["policy"].state_hash
        assert by_asking.counters.max_gap == by_socket.counters.max_gap == 0


def test_a_snapshot_that_is_too_large_for_a_socket_is_polled(
    client: GatewayClient, database: Database, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every runner of a world with many queues opened its stream again and again, and never got its start."""
    monkeypatch.setattr(stream_module, "MAX_FRAME", 8192)
    for i in range(50):
        record_change(database, f"s{i}", i, home)
    wait_for(lambda: _last(client, home) == 50, "fifty events")
    with StreamClient([client], Subscribe(world_id=home, topics=POLICY_TOPIC)) as reader:
        assert reader.ready(), reader.fault
        record_change(database, "s0", 50, home)
        assert reader.wait(lambda: reader.positions == {"policy": 51}, 20), reader.fault
        assert len(reader.states["policy"].events) == 50


class _BadProxy(BaseHTTPRequestHandler):
    """Answers the first poll with a page of its own, as a proxy does while its Gateway restarts."""

    gateway = ""
    pages: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        if self.path.startswith("/events/poll") and not self.pages:
            self.pages.append(self.path)
            self._answer(502, b"<html>Bad Gateway</html>")
            return
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        url = f"{self.gateway}{self.path}"
        headers = {key: value for key, value in self.headers.items() if key.lower() != "accept-encoding"}
        found = httpx.request(self.command, url, content=body, headers=headers, trust_env=False, timeout=20)
        self._answer(found.status_code, found.content)

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_asking_survives_an_answer_that_is_not_of_a_gateway(
    machine: Machine, database: Database, home: str
) -> None:
    """One page of a proxy ended the stream for good, and with it the order gate."""
    _BadProxy.gateway = machine.url
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _BadProxy)
    serving = threading.Thread(target=proxy.serve_forever)
    serving.start()
    try:
        address = f"http://127.0.0.1:{proxy.server_port}"
        wanted = Subscribe(world_id=home, topics=POLICY_TOPIC)
        with (
            GatewayClient(address, machine.token()) as client,
            StreamClient([client], wanted, sockets=False) as stream,
        ):
            record_change(database, "s", 1, home)
            assert stream.wait(lambda: stream.positions == {"policy": 1}, 20)
            assert stream.failure is None
        assert _BadProxy.pages, "no poll went through the proxy"
    finally:
        proxy.shutdown()
        serving.join()
        proxy.server_close()


def test_a_client_that_moves_between_two_gateways_at_every_reconnect_receives_everything_once(
    machine: Machine, client: GatewayClient, database: Database, home: str
) -> None:
    heard: list[int] = []
    with GatewayClient(machine.start_second_gateway(), machine.token()) as second:
        with StreamClient(
            [client, second],
            Subscribe(world_id=home, topics=POLICY_TOPIC),
            on_event=lambda _, item: heard.append(item.data["version"]),
        ) as stream:  # type: ignore[index]
            assert stream.ready()
            for i in range(200):
                record_change(database, f"s{i % 5}", i, home)
                if i % 25 == 10:
                    assert stream.wait(lambda: stream.connected, 20), stream.fault
                    before = stream.counters.reconnects
                    stream.break_socket()
                    assert stream.wait(lambda before=before: stream.counters.reconnects > before, 20)  # type: ignore[misc]
            assert stream.wait(lambda: stream.positions == {"policy": 200}, 30), stream.fault
            assert heard == list(range(200))
            assert (stream.counters.max_gap, stream.counters.doubles) == (0, 0)
            assert stream.counters.reconnects >= 8
        expected = {f"s{i % 5}": {"world_id": home, "version": i} for i in range(195, 200)}
        assert stream.states["policy"].state_hash == state_hash(expected)


def test_a_wrong_clock_on_the_clients_machine_does_no_harm(
    client: GatewayClient, database: Database, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    with StreamClient([client], Subscribe(world_id=home, topics=POLICY_TOPIC)) as stream:
        assert stream.ready()
        record_change(database, "a", 1, home)
        assert stream.wait(lambda: stream.positions == {"policy": 1}, 20)
        assert stream.counters.reconnects == 0


def test_an_event_without_an_id_is_a_fault_that_the_client_says_and_survives(
    client: GatewayClient, database: Database, home: str
) -> None:
    stream = StreamClient([client], Subscribe(world_id=home, topics=POLICY_TOPIC))
    real = stream._read_frames
    text = json.dumps(
        {
            "type": "event",
            "topic": "policy",
            "sequence": 1,
            "event": {k: v for k, v in event().model_dump(mode="json").items() if k != "id"},
        }
    )

    def with_a_bad_frame(gateway: GatewayClient, socket: ClientConnection, refresh_at: float) -> None:
        from qmtl_sdk.contracts.stream import ServerFrame

        if not stream.counters.malformed:
            ServerFrame.validate_json(text)
        real(gateway, socket, refresh_at)

    stream._read_frames = with_a_bad_frame  # type: ignore[method-assign]
    with stream:
        assert stream.ready()
        record_change(database, "a", 1, home)
        assert stream.wait(lambda: stream.positions == {"policy": 1}, 20)
    assert (stream.counters.malformed, stream.counters.reconnects) == (1, 1)


def test_the_state_of_every_subscriber_is_that_of_the_log(
    machine: Machine, client: GatewayClient, database: Database, home: str
) -> None:
    wanted = Subscribe(world_id=home, topics=POLICY_TOPIC)
    streams = [StreamClient([client], wanted) for _ in range(5)]
    for stream in streams:
        stream.start()
    try:
        for i in range(100):
            record_change(database, f"s{i % 9}", i, home)
        for stream in streams:
            assert stream.wait(lambda stream=stream: stream.positions == {"policy": 100}, 30)  # type: ignore[misc]
        bus = SqliteBus(machine.home / "bus.db")
        expected = TopicState(*bus.snapshot(f"{home}.policy")).state_hash
        bus.close()
        assert {stream.states["policy"].state_hash for stream in streams} == {expected}
    finally:
        for stream in streams:
            stream.close()
