"""Submissions over hundreds of streams."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from activities.storage.database import Database
from activities.submissions.admission import acknowledgement
from qmtl_sdk import Node, Strategy, StreamInput
from qmtl_sdk.contracts.submission import DryRun
from qmtl_sdk.contracts.worlds import WorldSpec
from qmtl_sdk.data.presets import bind
from qmtl_sdk.nodes.strategy import BuiltStrategy
from tests.support.admissions import diff, run_of
from tests.support.worlds import world

NAMES = [f"SYM{number}" for number in range(500)]
LIMIT = 200_000
"""Bytes of an acknowledgement with that many streams. Temporal takes 2 MB, with histories of many."""

SPEC = WorldSpec.model_validate(
    {
        **world("w"),
        "data": {
            "presets": [
                {
                    "name": name,
                    "source": "csv",
                    "path": f"{name}/{{stream}}.csv",
                    "interval": "1d",
                    "streams": {symbol: [symbol, name] for symbol in symbols},
                }
                for name, symbols in (("prices", NAMES), ("volumes", ["SYM7"]))
            ]
        },
    }
)


class Wide(Strategy):
    """Over prices, and a volume."""

    def __init__(self, names: Sequence[str] = NAMES) -> None:
        super().__init__()
        self.names = names

    def setup(self) -> None:
        streams = [StreamInput(tags=[name, "prices"], interval="1d", period=1) for name in self.names]
        streams.append(StreamInput(tags=["SYM7", "volumes"], interval="1d", period=1))
        self.add_nodes([Node(streams, lambda view: 1.0, name="portfolio")])


@pytest.mark.parametrize("dsn", ["sqlite"], indirect=True)
def test_the_answer_for_500_streams_holds_each_preset_once(database: Database) -> None:
    """Each binding held its whole preset: 250 streams made 3.6 MB, and no submission was admitted."""
    build = BuiltStrategy(Wide())
    run = run_of("run", build.dag.strategy_id, "w", "Wide")
    run = run.model_copy(update={"bindings": bind(build.dag, SPEC)})
    ack = acknowledgement(run, diff(database, "run", "w", "Wide", build.dag), "workflow", None)
    dry: Any = DryRun(
        strategy_id=build.dag.strategy_id,
        nodes_new=(),
        nodes_reused=(),
        topics={},
        context=run.context,
        bindings=run.bindings,
    )
    for message in (ack, run, dry):
        text = message.model_dump_json()
        assert len(text) < LIMIT, type(message)
        again = type(message).model_validate_json(text)
        assert again == message
        assert {item.stream for item in again.bindings} == set(NAMES)
        assert len(again.bindings) == len(NAMES) + 1


@pytest.mark.parametrize("dsn", ["sqlite"], indirect=True)
def test_streams_that_share_a_tag_are_admitted_in_steps_of_their_number(database: Database) -> None:
    """For each stream all queues with its tags were read: 500 streams held the graph's lock for 15 s.

    Lines that run are counted, since time depends on what else the machine does.
    """

    def steps(world_id: str, count: int) -> int:
        dag = BuiltStrategy(Wide(NAMES[:count])).dag
        lines = 0

        def note(*_: object) -> Callable[..., object]:
            nonlocal lines
            lines += 1
            return note

        before = sys.gettrace()
        sys.settrace(note)
        try:
            diff(database, world_id, world_id, "Wide", dag)
        finally:
            sys.settrace(before)
        return lines

    steps("warm", 10)  # statements are compiled
    assert steps("large", 160) < 8 * steps("small", 40)
