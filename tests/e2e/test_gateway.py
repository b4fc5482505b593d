"""Bad input at the Gateway: a stable code, one clear line, and nothing half done."""

import getpass
import select
import socket
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.errors import CODES
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.reports.artifact import encode
from tests.support.frames import series
from tests.support.machine import Machine
from tests.support.strategies import Trend
from tests.support.submissions import body_with_node, body_without_node_field, submission_body
from tests.support.worlds import POLICY, world


def cycle() -> dict[str, Any]:
    found = submission_body()
    a, b = found["dag"]["nodes"][:2]
    a["inputs"], b["inputs"] = [b["node_id"]], [a["node_id"]]
    return found


def without_world(**changes: Any) -> dict[str, Any]:
    found = submission_body(**changes)
    del found["world_id"]
    return found


def unknown_stream() -> dict[str, Any]:
    build = BuiltStrategy(Trend("TSLA"))
    return submission_body(dag=build.dag.model_dump(mode="json"), node_ids_crc32=build.crc32)


def refused(response: httpx.Response, code: str) -> dict[str, Any]:
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["code"]) == (CODES[code], code), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["detail"]
    assert "Traceback" not in response.text
    return problem


@pytest.fixture(scope="module")
def http(machine: Machine) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=machine.url, headers=machine.headers, trust_env=False, timeout=60) as client:
        yield client


def audit_length(machine: Machine, actor: str = "%") -> int:
    database = machine.database()
    try:
        with database.read() as session:
            query = text("SELECT count(*) FROM audit WHERE actor LIKE :actor")
            return int(session.connection().execute(query, {"actor": actor}).scalar_one())
    finally:
        database.close()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: body_with_node(period=99), "E_NODE_ID_MISMATCH"),
        (lambda: submission_body(node_ids_crc32=1), "E_CHECKSUM_MISMATCH"),
        (lambda: body_with_node(node_id=""), "E_DAG_INPUT_UNDEFINED"),
        (lambda: body_with_node(schema_compat_id="v2"), "E_SCHEMA_COMPAT_MISMATCH"),
        (lambda: body_without_node_field("interval"), "E_BODY_INVALID"),
        (lambda: body_without_node_field("node_id"), "E_BODY_INVALID"),
        (lambda: submission_body(world_id=None), "E_BODY_INVALID"),
        (lambda: submission_body(extra=1), "E_BODY_INVALID"),
        (lambda: submission_body(world_ids=["equities", "other"]), "E_WORLDS_SEVERAL"),
        (lambda: submission_body(world_ids=["other"]), "E_WORLDS_SEVERAL"),
        (lambda: without_world(world_ids=[]), "E_WORLDS_SEVERAL"),
        (lambda: without_world(world_ids=["a", "b"]), "E_WORLDS_SEVERAL"),
        (lambda: without_world(world_ids=[["a"]]), "E_BODY_INVALID"),
        (lambda: submission_body(dag={"nodes": []}), "E_DAG_EMPTY"),
        (cycle, "E_DAG_CYCLE"),
        (lambda: submission_body(world_id="nowhere"), "E_WORLD_UNKNOWN"),
        (unknown_stream, "E_STREAM_UNBOUND"),
        (lambda: submission_body(meta={"as_of": "yesterday"}), "E_BODY_INVALID"),
        (lambda: submission_body(meta={"as_of": "1999-01-01"}), "E_DATA_EMPTY"),
        (lambda: submission_body(idempotency_key="short"), "E_BODY_INVALID"),
    ],
)
def test_a_bad_submission_is_refused_and_leaves_no_trace(
    machine: Machine, http: httpx.Client, make: Any, code: str
) -> None:
    me = getpass.getuser()  # what earlier submissions lead to may go on meanwhile
    before = audit_length(machine, me)
    refused(http.post("/strategies", json=make()), code)
    assert audit_length(machine, me) == before


def test_a_submission_may_name_its_world_in_a_list(http: httpx.Client) -> None:
    for body in (without_world(world_ids=["equities"]), submission_body(world_ids=["equities", "equities"])):
        answer = http.post("/strategies/dry-run", json=body)
        assert (answer.status_code, answer.json()["context"]["world_id"]) == (200, "equities")


def test_several_worlds_are_refused_with_what_to_do(http: httpx.Client) -> None:
    said = refused(http.post("/strategies", json=without_world(world_ids=["a", "b"])), "E_WORLDS_SEVERAL")
    assert "names a, b" in said["detail"]
    assert "once for each world" in said["remedy"]


def test_a_node_without_identity_fields_is_refused(http: httpx.Client) -> None:
    found = submission_body()
    node = next(node for node in found["dag"]["nodes"] if node["node_type"] == "Node")
    node["code_hash"] = ""
    refused(http.post("/strategies", json=found), "E_NODE_ID_FIELDS")


@pytest.mark.parametrize("part", ["x" * 10_000, "x: y\r\n" * 2_000], ids=["a header", "headers"])
def test_a_head_without_an_end_is_refused(machine: Machine, part: str) -> None:
    sent = b"GET /worlds HTTP/1.1\r\nhost: x\r\nlong: "
    with socket.create_connection(("127.0.0.1", machine.port), timeout=30) as connection:
        try:
            for _ in range(1_000):
                connection.sendall(sent)
                sent = part.encode()
                if select.select([connection], [], [], 0)[0]:
                    break
            answer = connection.recv(1000)
        except ConnectionError:  # it has closed, and the answer is lost with what lay unread there
            answer = b""
    assert not answer or answer.startswith(b"HTTP/1.1 400 "), answer


def test_a_head_in_parts_and_one_after_a_body_are_read(machine: Machine) -> None:
    head = f"GET /health HTTP/1.1\r\nhost: x\r\nlong: {'x' * 40_000}\r\n\r\n".encode()
    post = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n" + b"x" * 200_000
    with socket.create_connection(("127.0.0.1", machine.port), timeout=30) as connection:
        connection.sendall(post + head[:20_000])
        connection.sendall(head[20_000:])
        answers = b""
        while answers.count(b"HTTP/1.1 ") < 2 or b'"status"' not in answers.partition(b"HTTP/1.1 200")[2]:
            answers += (part := connection.recv(65_536))
            assert part, answers


def test_bytes_that_are_no_body(http: httpx.Client) -> None:
    json = {"content-type": "application/json"}
    refused(http.post("/strategies", content=b"{not json", headers=json), "E_BODY_JSON")
    refused(http.post("/strategies", content=b"\xff\xfe", headers=json), "E_BODY_JSON")
    refused(http.post("/strategies", content=b"[]", headers=json), "E_BODY_INVALID")
    refused(http.post("/strategies", content=b'{"node_ids_crc32": NaN}', headers=json), "E_BODY_JSON")


def test_a_body_over_the_limit_is_refused_with_and_without_a_length(http: httpx.Client) -> None:
    big = b'{"x": "' + b"a" * 1_100_000 + b'"}'
    json = {"content-type": "application/json"}
    assert (
        refused(http.post("/strategies", content=big, headers=json), "E_BODY_TOO_LARGE")["details"]["limit"]
        == 1_048_576
    )
    refused(
        http.post("/strategies", content=iter([big[:600_000], big[600_000:]]), headers=json),
        "E_BODY_TOO_LARGE",
    )


def test_an_ambiguous_stream_lists_what_there_is(http: httpx.Client) -> None:
    from qmtl_sdk import Node, Strategy, StreamInput

    class Vague(Strategy):
        def setup(self) -> None:
            price = StreamInput(interval="1d")
            self.add_nodes([Node(price, lambda v: v[price].values)])

    build = BuiltStrategy(Vague)
    problem = refused(
        http.post(
            "/strategies",
            json=submission_body(dag=build.dag.model_dump(mode="json"), node_ids_crc32=build.crc32),
        ),
        "E_STREAM_AMBIGUOUS",
    )
    assert "AAPL" in problem["remedy"]


def test_a_nan_parameter_is_refused_where_it_is_written() -> None:
    from qmtl_sdk import QmtlError, Strategy, StreamInput
    from qmtl_sdk.nodes.node import Node

    class NaN(Strategy):
        def setup(self) -> None:
            price = StreamInput(tags=["KO", "price"], interval="1d")
            self.add_nodes(
                [Node(price, lambda v: v[price].values, params={"band": float("nan")}, name="band")]
            )

    with pytest.raises(QmtlError, match="params.band is nan") as caught:
        BuiltStrategy(NaN)
    assert caught.value.code == "E_PARAM_NOT_FINITE"


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ({"selection": {"gates": {"and": ["sharp >= 1"]}}}, "E_METRIC_UNKNOWN"),
        ({"selection": {"gates": {"and": ["sharpe >="]}}}, "E_EXPRESSION"),
        ({"selection": {"score": 5}}, "E_POLICY_INVALID"),
        ({"selektion": {}}, "E_POLICY_INVALID"),
        ({"preset": "moderate", "version": 7}, "E_POLICY_VERSION"),
    ],
)
def test_a_policy_that_does_not_parse_is_refused_and_the_default_stays(
    http: httpx.Client, policy: dict[str, Any], code: str
) -> None:
    http.post("/worlds", json={"spec": world("policies"), "policy": POLICY})
    before = http.get("/worlds/policies").json()["policy_version"]
    refused(http.post("/worlds/policies/policies", json=policy), code)
    assert http.get("/worlds/policies").json()["policy_version"] == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"world": "Bad Name"}, "E_WORLD_INVALID"),
        ({"description": "another"}, "E_WORLD_EXISTS"),
        (
            {
                "world": "x1",
                "data": {
                    "presets": [
                        {**world()["data"]["presets"][0], "path": f"{tempfile.gettempdir()}/none.csv"}
                    ]
                },
            },
            "E_DATA_NOT_FOUND",
        ),  # type: ignore[index]
        (
            {
                "world": "x1",
                "data": {"presets": [{**world()["data"]["presets"][0], "path": "/etc/passwd"}]},
            },
            "E_DATA_FORBIDDEN",
        ),  # type: ignore[index]
        (
            {"world": "x2", "data": {"presets": [{**world()["data"]["presets"][0], "calendar": "XNYSE"}]}},
            "E_WORLD_INVALID",
        ),  # type: ignore[index]
        (
            {
                "world": "x3",
                "data": {
                    "presets": [
                        {**world()["data"]["presets"][0], "streams": {"TSLA": ["TSLA"], "AAPL": ["AAPL"]}}
                    ]
                },
            },
            "E_DATA_EMPTY",
        ),  # type: ignore[index]
        (
            {"world": "x4", "data": {"presets": [{**world()["data"]["presets"][0], "interval": "2d"}]}},
            "E_DATA_MISALIGNED",
        ),  # type: ignore[index]
        (
            {
                "world": "x5",
                "data": {
                    "presets": [{**world()["data"]["presets"][0], "on_missing": "fail", "calendar": "24/7"}]
                },
            },
            "E_DATA_GAP",
        ),  # type: ignore[index]
    ],
)
def test_a_world_that_can_not_work_is_refused(http: httpx.Client, change: dict[str, Any], code: str) -> None:
    refused(http.post("/worlds", json={"spec": {**world(), **change}}), code)


def test_a_world_without_a_policy_takes_no_submissions(http: httpx.Client) -> None:
    assert http.post("/worlds", json={"spec": world("lawless")}).status_code == 201
    refused(http.post("/strategies", json=submission_body(world_id="lawless")), "E_POLICY_MISSING")
    refused(http.post("/worlds/lawless/decide"), "E_POLICY_MISSING")


def test_what_does_not_exist_says_so(http: httpx.Client) -> None:
    refused(http.get("/worlds/nowhere"), "E_WORLD_UNKNOWN")
    refused(http.get("/worlds/equities/policies/99"), "E_POLICY_UNKNOWN")
    refused(http.get("/strategies/strategy:none/status"), "E_STRATEGY_UNKNOWN")
    refused(http.get("/artifacts/blake3:" + "0" * 64), "E_ARTIFACT_UNKNOWN")
    refused(http.get("/artifacts/nonsense"), "E_ARTIFACT_HASH")
    refused(http.put("/artifacts/blake3:" + "0" * 64, content=b"x"), "E_ARTIFACT_HASH")
    refused(http.post("/leases/none.lease-1/heartbeat", json={}), "E_LEASE_UNKNOWN")
    refused(http.get("/nowhere"), "E_NOT_FOUND")
    refused(http.delete("/worlds"), "E_METHOD")
    refused(http.get("/worlds/equities/activation", params={"strategy_id": "none"}), "E_DECISION_UNKNOWN")


def test_returns_that_do_not_fit_the_run_are_refused_while_the_lease_is_held(http: httpx.Client) -> None:
    from blake3 import blake3

    ack = http.post("/strategies", json=submission_body(runner="a-test")).json()
    assert ack["lease"]["lease_id"]
    data = encode(series([0.0, 0.01]))
    digest = "blake3:" + blake3(data).hexdigest()
    lease = f"/leases/{ack['lease']['lease_id']}"
    refused(http.post(f"{lease}/complete", json={"returns_hash": digest}), "E_ARTIFACT_UNKNOWN")
    assert http.put(f"/artifacts/{digest}", content=data).status_code == 201
    assert http.put(f"/artifacts/{digest}", content=data).status_code == 201
    foreign = encode(series([0.0, 0.01])).replace(b"86400", b"86401")
    other = "blake3:" + blake3(foreign).hexdigest()
    http.put(f"/artifacts/{other}", content=foreign)
    refused(http.post(f"{lease}/complete", json={"returns_hash": other}), "E_RETURNS_INVALID")
    assert http.post(f"{lease}/heartbeat", json={"node": "x", "bar": 1}).status_code == 204
    assert http.post(f"{lease}/complete", json={"returns_hash": digest}).status_code == 204
    refused(http.post(f"{lease}/complete", json={"returns_hash": digest}), "E_LEASE_LOST")
    status = http.get(f"/strategies/{ack['strategy_id']}/status", params={"wait": 30}).json()
    assert status["state"] == "decided"


def test_a_retry_gets_the_same_answer_and_no_second_run(http: httpx.Client) -> None:
    """The same key, again while it runs and again after it has ended."""
    found = submission_body(runner="a-test")
    found["dag"] = BuiltStrategy(Trend("KO", 17)).dag.model_dump(mode="json")
    found["node_ids_crc32"] = BuiltStrategy(Trend("KO", 17)).crc32
    first, second = http.post("/strategies", json=found), http.post("/strategies", json=found)
    assert first.status_code == second.status_code == 202
    assert first.json() == second.json()
    lease = first.json()["lease"]["lease_id"]
    assert (
        http.post(
            f"/leases/{lease}/fail", json={"code": "E_COMPUTE_FAILED", "message": "no", "final": True}
        ).status_code
        == 204
    )
    outcome = http.get(f"/strategies/{first.json()['strategy_id']}/status", params={"wait": 30}).json()
    assert outcome["outcome"]["error_code"] == "E_COMPUTE_FAILED"
    assert http.post("/strategies", json=found).json()["run_id"] == first.json()["run_id"]
    another = http.post("/strategies", json={**found, "idempotency_key": uuid.uuid4().hex}).json()
    assert another["run_id"] != first.json()["run_id"]
    http.post(
        f"/leases/{another['lease']['lease_id']}/fail",
        json={"code": "E_COMPUTE_FAILED", "message": "no", "final": True},
    )
    http.get(f"/strategies/{another['strategy_id']}/status", params={"wait": 30, "run_id": another["run_id"]})
    assert http.post("/strategies", json=found).json()["run_id"] == first.json()["run_id"]
    refused(http.post("/strategies", json={**found, "runner": "another"}), "E_IDEMPOTENCY_KEY_REUSED")


def test_a_lease_is_of_the_actor_to_whom_it_was_granted(machine: Machine, http: httpx.Client) -> None:
    """Another author reads its id, takes its runner's name, or repeats its submission."""
    built = BuiltStrategy(Trend("KO", 19))
    found = {
        **submission_body(runner="laptop"),
        "dag": built.dag.model_dump(mode="json"),
        "node_ids_crc32": built.crc32,
    }
    ack = http.post("/strategies", json=found).json()
    lease = ack["lease"]["lease_id"]
    token = machine.issue("eve", {"equities": Role.AUTHOR}).token
    failure = {"code": "E_COMPUTE_FAILED", "message": "no", "final": True}
    with httpx.Client(
        base_url=machine.url, headers={"authorization": f"Bearer {token}"}, timeout=30, trust_env=False
    ) as eve:
        before = audit_length(machine, "eve")
        refused(eve.post("/strategies", json=found), "E_IDEMPOTENCY_KEY_REUSED")
        refused(eve.post(f"/leases/{lease}/heartbeat", json={}), "E_LEASE_HOLDER")
        refused(eve.post(f"/leases/{lease}/fail", json=failure), "E_LEASE_HOLDER")
        refused(
            eve.post(f"/leases/{lease}/complete", json={"returns_hash": "blake3:" + "0" * 64}),
            "E_LEASE_HOLDER",
        )
        assert audit_length(machine, "eve") == before
        same_name = eve.post("/strategies", json={**found, "idempotency_key": uuid.uuid4().hex}).json()
        assert same_name["run_id"] == ack["run_id"]
        assert (same_name["lease"] or {}).get("lease_id") != lease
    refused(http.post(f"/leases/{ack['run_id']}.lease-99/heartbeat", json={}), "E_LEASE_UNKNOWN")
    given_back = http.post(f"/leases/{lease}/fail", json=failure)
    assert given_back.status_code in (204, CODES["E_LEASE_LOST"]), "its holder may, unless it has timed out"


def test_reading_changes_nothing(machine: Machine, http: httpx.Client) -> None:
    """Trap 13: a GET changed state. What earlier submissions lead to may go on meanwhile."""
    me = getpass.getuser()
    before = audit_length(machine, me)
    for path in (
        "/worlds",
        "/worlds/equities",
        "/worlds/equities/policies",
        "/worlds/equities/decisions",
        "/worlds/equities/activation",
        "/status",
        "/health",
        "/openapi.json",
    ):
        assert http.get(path).status_code == 200
    assert http.post("/strategies/dry-run", json=submission_body()).status_code == 200
    assert audit_length(machine, me) == before


def test_the_api_describes_itself(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    assert "/strategies" in schema["paths"]
    examples = schema["paths"]["/strategies"]["post"]["requestBody"]["content"]["application/json"][
        "examples"
    ]
    assert examples
    health = http.get("/health").json()
    assert health == {
        "status": "ok",
        "database": True,
        "temporal": True,
        "workers": health["workers"],
        "missing": {},
        "faults": {},
        "dead_letters": 0,
        "log_waiting": health["log_waiting"],
    }
    assert http.get("/status").json()["temporal_ui"].startswith("http://127.0.0.1")


def test_deciding_twice_with_one_key_is_one_decision(http: httpx.Client) -> None:
    first = http.post("/worlds/equities/decide", json={"idempotency_key": "decide-once"}).json()
    assert http.post("/worlds/equities/decide", json={"idempotency_key": "decide-once"}).json() == first
    later = http.post("/worlds/equities/decide").json()
    assert later["decided_at"] != first["decided_at"]
