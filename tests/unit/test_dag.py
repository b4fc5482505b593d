"""The canonical DAG and its lint."""

import sys
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from activities.graph.diff import plan_diff
from activities.queues.topics import assets_of
from qmtl_sdk import Node, QmtlError, Strategy, StreamInput
from qmtl_sdk.contracts.dag import MAX_INTERVAL_S, MAX_TAG, MAX_TAGS, Dag, NodeRecord
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.events import MAX_SUBJECT
from qmtl_sdk.contracts.identity import node_ids_crc32
from qmtl_sdk.nodes.strategy import BuiltStrategy


def record(name: str, *inputs: str, **fields: object) -> NodeRecord:
    return NodeRecord(
        **{
            "node_id": name,
            "node_type": "Node",
            "interval": 60,
            "period": 1,
            "inputs": inputs,
            "code_hash": "blake3:x",
            **fields,
        }
    )  # type: ignore[arg-type]


def refused(code: str, *nodes: NodeRecord, **dag: object) -> QmtlError:
    with pytest.raises(QmtlError) as caught:
        Dag(nodes=nodes, **dag).lint()  # type: ignore[arg-type]
    assert caught.value.code == code
    return caught.value


def test_a_cycle_is_refused_with_its_nodes() -> None:
    """Trap 14: a cycle fell back to input order in silence."""
    error = refused("E_DAG_CYCLE", record("a", "c"), record("b", "a"), record("c", "b"), record("d"))
    assert error.details["nodes"] == ["a", "b", "c"]


def test_every_other_fault_has_its_code() -> None:
    refused("E_DAG_EMPTY")
    refused("E_DAG_ASSIGNED_TWICE", record("a"), record("a"))
    refused("E_DAG_INPUT_UNDEFINED", record("a", "nowhere"))
    refused("E_DAG_CYCLE", record("a", "a"))
    refused("E_DAG_MIXED_CLOCKS", record("a", clock="wall"), record("b", clock="virtual"))
    refused("E_DAG_RETURNS", record("a"), returns="b")
    refused("E_DAG_RETURNS", record("a"), weights={"b": 1.0})


@pytest.mark.parametrize("tags", [("x" * (MAX_TAG + 1),), ("",), tuple("abcdefghijklmnopq")])
def test_tags_have_a_limit_in_a_node_and_in_a_tag_query(tags: tuple[str, ...]) -> None:
    """One long tag made an event that no relay could publish."""
    with pytest.raises(ValidationError, match="tags"):
        record("a", tags=tags)
    query = {"query_tags": list(tags), "match_mode": "all", "interval": 60}
    with pytest.raises(ValidationError):
        record("a", node_type="TagQueryNode", params=query)
    with pytest.raises(QmtlError, match="tags") as caught:
        StreamInput(tags=tags, interval="1h").record()
    assert caught.value.code == "E_NODE_INPUT"


def test_the_longest_tags_fit_an_event() -> None:
    longest = "+".join("x" * MAX_TAG for _ in range(MAX_TAGS))
    assert len(f"{Domain.BACKTEST}:{MAX_INTERVAL_S}:all:{longest}") <= MAX_SUBJECT


def test_inputs_come_first_and_the_order_is_one() -> None:
    nodes = (record("c", "a", "b"), record("b", "a"), record("a"), record("aa"))
    assert [node.node_id for node in Dag(nodes=nodes).ordered()] == ["a", "aa", "b", "c"]
    assert Dag(nodes=nodes).ordered() == Dag(nodes=nodes[::-1]).ordered()
    assert Dag(nodes=nodes).strategy_id == Dag(nodes=nodes[::-1]).strategy_id


@pytest.mark.parametrize(
    "work", [Dag.ordered, assets_of, lambda dag: plan_diff(dag, "w", "live", {}, {}, {})]
)
def test_a_chain_is_sorted_and_admitted_in_steps_of_its_size(work: Callable[[Dag], object]) -> None:
    """Trap 14: a sort of N²; and each node looked at all its ancestors inside the graph's transaction.

    Lines that run are counted, since time depends on what else the machine does.
    """

    def steps(length: int) -> int:
        dag = Dag(nodes=tuple(record(f"{i:08}", *([f"{i - 1:08}"] if i else [])) for i in range(length)))
        lines = 0

        def count(*_: object) -> Callable[..., object]:
            nonlocal lines
            lines += 1
            return count

        before = sys.gettrace()
        sys.settrace(count)
        try:
            work(dag)
        finally:
            sys.settrace(before)
        return lines

    assert steps(1500) < 15 * steps(150)


def test_a_long_chain_builds() -> None:
    class Long(Strategy):
        def setup(self) -> None:
            node: Node = StreamInput(tags=["x"], interval=60)
            for _ in range(1500):
                node = Node(node, lambda view: view)
            self.add_nodes([node])

    assert len(BuiltStrategy(Long).nodes) == 1501


class Two(Strategy):
    def setup(self) -> None:
        price = StreamInput(tags=["x"], interval=60, period=3)
        self.add_nodes([price, Node(price, lambda view: view[price].values, name="copy")])


def verify(dag: Dag, crc: int | None = None) -> str:
    with pytest.raises(QmtlError) as caught:
        dag.verify(node_ids_crc32(dag.node_ids) if crc is None else crc)
    return caught.value.code


def test_what_the_sdk_builds_verifies() -> None:
    build = BuiltStrategy(Two)
    build.dag.verify(build.crc32)


def test_altered_nodes_are_refused_with_what_was_expected() -> None:
    dag = BuiltStrategy(Two).dag
    first, rest = dag.nodes[0], dag.nodes[1:]

    def altered(**fields: object) -> Dag:
        return dag.model_copy(update={"nodes": (first.model_copy(update=fields), *rest)})

    assert verify(altered(period=4)) == "E_NODE_ID_MISMATCH"
    assert verify(altered(node_id="blake3:" + "0" * 64)) == "E_NODE_ID_MISMATCH"
    assert verify(altered(node_id="")) == "E_NODE_ID_FIELDS"
    assert verify(altered(schema_compat_id="v9")) == "E_SCHEMA_COMPAT_MISMATCH"
    assert verify(dag, 1) == "E_CHECKSUM_MISMATCH"


@pytest.mark.parametrize("name", ["world_id", "World", "as_of", "domain", "env_name", "timestamp"])
def test_a_parameter_that_says_where_or_when_is_refused_by_its_name(name: str) -> None:
    """`params={"world_id": …}` passed, and the same computation had another NodeID in each world."""
    with pytest.raises(QmtlError, match=name) as caught:
        Node(StreamInput(tags=["a"], interval=60), lambda view: 1.0, params={name: "x"})
    with pytest.raises(QmtlError, match=name):
        Node(StreamInput(tags=["a"], interval=60), lambda view: 1.0, params={"bands": {"slow": {name: 1}}})
    assert (caught.value.code, caught.value.details["field"]) == ("E_NODE_ID_FIELDS", name)
    good = NodeRecord(node_id="n", node_type="Node", interval=60, period=1, params={name: "x"}, code_hash="c")
    dag = Dag(nodes=(good.model_copy(update={"node_id": good.spec().node_id()}),))
    with pytest.raises(QmtlError, match="no NodeID holds"):
        dag.verify(0)


def test_a_mistake_in_setup_is_one_clear_line() -> None:
    class NoSetup(Strategy):
        pass

    class NotANode(Strategy):
        def setup(self) -> None:
            self.add_nodes(["price"])  # type: ignore[list-item]

    class NoFunction(Strategy):
        def setup(self) -> None:
            self.add_nodes([Node(interval=60, name="empty")])

    for strategy, code in (
        (NoSetup, "E_DAG_EMPTY"),
        (NotANode, "E_NODE_INPUT"),
        (NoFunction, "E_NODE_INPUT"),
        (dict, "E_STRATEGY_FILE"),
    ):
        with pytest.raises(QmtlError) as caught:
            BuiltStrategy(strategy)  # type: ignore[arg-type]
        assert caught.value.code == code
        assert caught.value.remedy


def test_intervals_that_differ_must_be_chosen_between() -> None:
    minute, hour = (StreamInput(tags=["x"], interval=form) for form in ("1m", "1h"))
    with pytest.raises(QmtlError, match="different intervals"):
        Node([minute, hour], lambda view: view)
    assert Node([minute, hour], lambda view: view, interval="1h").interval == 3600
