"""Hostile inputs: long, deep, empty, not finite, huge, duplicated, compressed, of a future schema.

Each is a request that the Gateway must answer with a refusal or, where it is harmless, accept; a row of the
outbox; or an entry of the bus. `poisons` makes a seeded mixture in which every kind occurs.
"""

import base64
import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from activities.storage.log import NewEntry
from activities.storage.tables import OutboxRow
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.reports.artifact import encode
from tests.support.frames import DAY, series
from tests.support.strategies import Trend
from tests.support.worlds import WORLD

DEEP = "[" * 5000 + "]" * 5000
DEEP_FOR_A_READER = '{"a":' * 150 + "1" + "}" * 150
ESCAPES = "\x1b[2J\u202e\x9b31m"


@dataclass(frozen=True)
class Request:
    """A request. `accepted`: whether it may succeed."""

    kind: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    accepted: bool = False


@dataclass(frozen=True)
class Row:
    """A row that is put into the outbox. `dead`: whether it must become a dead letter."""

    kind: str
    row: OutboxRow
    dead: bool = True


@dataclass(frozen=True)
class BusEntry:
    """An entry that is put on the bus past the relay."""

    kind: str
    entry: NewEntry


@dataclass(frozen=True)
class Returns:
    """An artifact for a lease of its own, which completes with it. It is refused, or its strategy judged."""

    kind: str
    data: bytes


Poison = Request | Row | BusEntry | Returns


def submission(world: str, number: int, **changes: Any) -> dict[str, Any]:
    """The body of a valid submission of a strategy of its own, with changes."""
    built = BuiltStrategy(Trend("KO", 10 + number))
    return {
        "world_id": world,
        "dag": built.dag.model_dump(mode="json"),
        "node_ids_crc32": built.crc32,
        "idempotency_key": uuid.uuid4().hex,
        "runner": "poison",
        "meta": {"name": f"Trend {number}"},
        **changes,
    }


def _post(kind: str, path: str, body: Any, accepted: bool = False) -> Request:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Request(kind, "POST", path, raw, {"content-type": "application/json"}, accepted)


def submissions(world: str, rng: random.Random) -> list[Poison]:
    def node(**changes: Any) -> dict[str, Any]:
        body = submission(world, rng.randrange(100))
        body["dag"]["nodes"][0] |= changes
        return body

    many = submission(world, 1)
    many["dag"]["nodes"] = many["dag"]["nodes"] * 2600
    bodies: dict[str, Any] = {
        "deep text": submission(world, 2, dag=None, dag_json=DEEP),
        "deep body": DEEP.encode(),
        "deep parameters": node(params=json.loads("[" * 40 + "]" * 40)),
        "long name": node(name="x" * 100_000),
        "escapes in a name": node(name=ESCAPES),
        "U+0000": node(name="a\0b"),
        "half a surrogate": b'{"world_id": "\\ud800"}',
        "not finite": b'{"world_id": "w", "node_ids_crc32": NaN}',
        "too large a number": node(period=10**30),
        "huge": json.dumps(submission(world, 3, runner="x" * 2_000_000)).encode(),
        "empty": b"",
        "an empty object": {},
        "duplicated nodes": many,
        "a future schema": {**submission(world, 4), "dag": {"schema_version": 2, "nodes": [], "edges": {}}},
        "an unknown key": submission(world, 5, priority=9),
        "a number as tags": node(params={"tags": 5}),
        "seventeen tags": node(tags=[f"t{n}" for n in range(17)]),
        "a long tag": node(tags=["t" * 5000]),
        "no such world": submission("nowhere", 6),
        "no such time": submission(world, 7, meta={"as_of": "0001-01-01T00:00:00+14:00"}),
        "a reused key": submission(world, 8, idempotency_key="reused-key", runner=uuid.uuid4().hex),
    }
    bodies["a reused key, first"] = bodies["a reused key"]
    return [
        _post(kind, "/strategies", body, accepted=kind.startswith("a reused key"))
        for kind, body in bodies.items()
    ]


def policies(world: str, rng: random.Random) -> list[Poison]:
    gates: Any = "sharpe > 0"
    for _ in range(60):
        gates = {"and": [gates]}
    bodies: dict[str, Any] = {
        "deep gates": {"selection": {"gates": gates}},
        "many gates": {"selection": {"gates": {"and": ["sharpe > 0"] * 5000}}},
        "a long expression": {"selection": {"score": "sharpe" + " + 1" * 10_000}},
        "a deep expression": {"selection": {"score": "sharpe" + "+1" * 490}},
        "parentheses": {"selection": {"score": "(" * 400 + "sharpe" + ")" * 400}},
        "an infinite number": {"selection": {"score": "sharpe * 1e999"}},
        "a list as preset": {"preset": []},
        "a long duration": {"decision_ttl": "9" * 5000 + "d"},
        "a future key": {"schema_version": 9, "selection": {}},
        "a long key": {"x" * 100_000: 1},
        "approvals beyond counting": {"gating_policy": {"approvals": {"live": 10**30}}},
    }
    found: list[Poison] = [
        _post(f"policy: {kind}", f"/worlds/{world}/policies", body) for kind, body in bodies.items()
    ]
    overflow = {"selection": {"score": f"sharpe * 1e308 * {rng.randint(10, 99)}"}}
    found.append(
        _post("policy: a score that overflows", f"/worlds/{world}/policies", overflow, accepted=True)
    )
    found.append(_post("judgment by that policy", f"/worlds/{world}/decide", {}, accepted=True))
    return found


def worlds(world: str, rng: random.Random) -> list[Poison]:
    preset = dict(WORLD["data"]["presets"][0])  # type: ignore[index]
    spec = {**WORLD, "world": f"never{rng.randrange(10**6)}"}
    fast = {"clock": {"replay": {"start": "2017-06-30T00:00:00Z", "speed": 1e300}}}
    early = {"clock": {"replay": {"start": "0001-01-01T00:00:00+14:00"}}}
    bodies: dict[str, Any] = {
        "a fast clock": {"spec": {**spec, **fast}},
        "an early clock": {"spec": {**spec, **early}},
        "a long name": {"spec": {**spec, "world": "w" * 5000}},
        "many data sets": {"spec": {**spec, "data": {"presets": [preset] * 200}}},
        "an endless interval": {"spec": {**spec, "data": {"presets": [{**preset, "interval": 10**18}]}}},
        "many streams": {
            "spec": {**spec, "data": {"presets": [{**preset, "streams": {f"s{n}": [] for n in range(6000)}}]}}
        },
        "a limit beyond 32 bits": {"spec": {**spec, "circuit_breaker": {"max_orders_per_minute": 2**40}}},
    }
    found: list[Poison] = [_post(f"world: {kind}", "/worlds", body) for kind, body in bodies.items()]
    patches = {
        "deep": DEEP.encode(),
        "escapes": json.dumps({"description": ESCAPES}).encode(),
        "a future key": b'{"schema_version": 3}',
    }
    return found + [
        Request(
            f"world: {kind} change", "PATCH", f"/worlds/{world}", body, {"content-type": "application/json"}
        )
        for kind, body in patches.items()
    ]


def orders(world: str, rng: random.Random) -> list[Poison]:
    def order(**changes: Any) -> dict[str, Any]:
        body = {
            "order_id": f"order:{rng.randrange(10**12):012}",
            "world_id": world,
            "strategy_id": "strategy:none",
            "execution_domain": "live",
            "epoch": 1,
            "symbol": "KO",
            "side": "buy",
            "quantity": "1",
        }
        return {**body, **changes}

    bodies: dict[str, list[dict[str, Any]]] = {
        "not a number": [order(quantity="NaN")],
        "infinite": [order(quantity="Infinity")],
        "huge": [order(quantity="1" + "0" * 400_000)],
        "a long symbol": [order(symbol="S" * 5000)],
        "escapes": [order(symbol=ESCAPES)],
        "an epoch beyond 32 bits": [order(epoch=2**40)],
        "empty": [],
        "too many": [order() for _ in range(1001)],
    }
    return [_post(f"orders: {kind}", "/orders", {"orders": body}) for kind, body in bodies.items()]


def addresses(world: str, rng: random.Random) -> list[Poison]:
    deep = base64.urlsafe_b64encode(DEEP[:9000].encode()).decode()
    token = {"authorization": f"Bearer {deep}.{deep}.{deep}"}
    found: list[Poison] = [
        Request("address: a long path", "GET", f"/worlds/{'w' * 5000}"),
        Request("address: U+0000", "GET", "/worlds/a%00b"),
        Request("address: escapes", "GET", "/strategies/%1b%5b2J/status"),
        Request("address: a long query", "GET", f"/sessions?world_id={'w' * 5000}"),
        Request("address: many queries", "GET", "/sessions?" + "&".join(f"a{n}=1" for n in range(500))),
        Request(
            "address: a long interval",
            "GET",
            f"/queues/by_tag?tags=a&interval=99999999999999d&world_id={world}",
        ),
        Request("address: a large number", "GET", f"/worlds/{world}/audit?after={10**30}"),
        Request("token: deep", "GET", "/worlds", headers=token),
        Request("token: long", "GET", "/worlds", headers={"authorization": "Bearer " + "x" * 30_000}),
    ]
    session = {"world_id": world, "strategy_id": "s", "runner": "r"}
    for kind, changes in {"host": {"host": ESCAPES}, "runner": {"runner": "r" * 5000}}.items():
        found.append(_post(f"session: {kind}", "/sessions", {**session, **changes}))
    found.append(
        _post("token: a long subject", "/tokens", {"subject": "a" * 5000, "grants": {"*": "reader"}})
    )
    found.append(
        _post("stream: many topics", "/events/subscribe", {"world_id": world, "topics": ["a"] * 5000})
    )
    return found


def rows(world: str, rng: random.Random) -> list[Poison]:
    plain = {"type": "policy_updated", "subject": world, "at": "2024-01-01T00:00:00+00:00", "data": "{}"}
    changes: dict[str, dict[str, str]] = {
        "deep": {"data": DEEP},
        "deep for a reader": {"data": DEEP_FOR_A_READER},
        "not finite": {"data": '{"a": NaN}'},
        "not JSON": {"data": "nonsense"},
        "a list": {"data": "[]"},
        "huge": {"data": '{"a": "' + "x" * 5_000_000 + '"}'},
        "no type": {"type": ""},
        "no subject": {"subject": ""},
        "a long subject": {"subject": "s" * 100_000},
        "a bad time": {"at": "yesterday"},
        "an early time": {"at": "0001-01-01T00:00:00+14:00"},
    }
    harmless = {
        "a future type": {"type": f"order.v{rng.randint(2, 9)}", "data": '{"schema_version": 9}'},
        "a future schema": {
            "type": "activation_updated",
            "data": '{"schema_version": 9}',
            "subject": "future",
        },
    }
    found: list[Poison] = []
    for group, dead in ((changes, True), (harmless, False)):
        for kind, change in group.items():
            row = OutboxRow(event_id=uuid.uuid4().hex, key="poison", world_id="poison", **{**plain, **change})
            found.append(Row(f"event: {kind}", row, dead))
    return found


def bus_entries(world: str, rng: random.Random) -> list[Poison]:
    bodies = {
        "deep": DEEP,
        "empty": "",
        "an empty object": "{}",
        "of a future version": '{"specversion": "2.0", "id": "x"}',
        "huge": "x" * 2_000_000,
    }
    kinds = ("activation", "decisions", "policy")
    return [
        BusEntry(
            f"bus: {kind}",
            NewEntry(f"{world}.{rng.choice(kinds)}", uuid.uuid4().hex, f"poison{rng.randrange(9)}", body),
        )
        for kind, body in bodies.items()
    ]


def _file(columns: dict[str, Any], meta: bytes | None = None, compression: str | None = None) -> bytes:
    plain = pa.ipc.open_file(encode(series([0.0, 0.1]))).schema.metadata
    table = pa.table(columns).replace_schema_metadata({b"qmtl.returns": meta} if meta is not None else plain)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def returns(world: str, rng: random.Random) -> list[Poison]:
    good = encode(series([0.0, 0.01, -0.01] * 20))
    damaged = bytearray(good)
    for _ in range(20):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    two = {"ts": np.array([0, DAY * 10**9]), "returns": np.array([0.0, 0.1])}
    zeros = np.zeros(2_000_000)
    files = {
        "a bomb": _file({"ts": zeros.astype("int64"), "returns": zeros}, compression="zstd"),
        "deep metadata": _file(two, DEEP.encode()),
        "metadata of a future schema": _file(two, b'{"schema_version": 9}'),
        "metadata of other types": _file(two, b'{"interval": 86400, "weights": {}, "price_streams": [{}]}'),
        "no rows": _file({"ts": np.array([], "int64"), "returns": np.array([], "float64")}),
        "not finite": _file({**two, "returns": np.array([0.0, np.nan])}),
        "infinite metrics": _file({**two, "returns": np.array([0.0, 1e200])}),
        "many columns": _file({f"c{n}": np.array([], "float64") for n in range(6000)}),
        "cut": good[: rng.randrange(8, len(good))],
        "damaged": bytes(damaged),
        "random": rng.randbytes(5000),
        "empty": b"",
        "beyond as_of": encode(series([0.0] + [0.01, -0.01] * 20_000)),
    }
    return [Returns(f"returns: {kind}", data) for kind, data in files.items()]


def artifacts(world: str, rng: random.Random) -> list[Poison]:
    data = rng.randbytes(100)
    return [
        Request("artifact: another hash", "PUT", "/artifacts/blake3:" + "0" * 64, data),
        Request("artifact: no hash", "PUT", "/artifacts/" + "x" * 5000, data),
        Request("artifact: twice", "PUT", f"/artifacts/{content_hash(data)}", data, accepted=True),
        Request("artifact: a path", "GET", "/artifacts/..%2f..%2fetc%2fpasswd"),
    ]


KINDS: tuple[Callable[[str, random.Random], list[Poison]], ...] = (
    submissions,
    policies,
    worlds,
    orders,
    addresses,
    rows,
    bus_entries,
    returns,
    artifacts,
)


def poisons(world: str, rng: random.Random, count: int) -> list[Poison]:
    """A mixture of `count` inputs. Up to the number of kinds none occurs twice."""
    found: list[Poison] = []
    while len(found) < count:
        batch = [poison for kind in KINDS for poison in kind(world, rng)]
        rng.shuffle(batch)
        found += batch
    return found[:count]
