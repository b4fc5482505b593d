"""What authors, operators and dashboards ask of the Gateway beside submitting: results, worlds, metrics."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from qmtl_sdk import QmtlError, Runner
from qmtl_sdk.contracts.submission import StrategySubmit
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.runtime.client import GatewayClient
from tests.support.command import Person
from tests.support.machine import Machine, wait_for
from tests.support.one_answer import answering_once
from tests.support.strategies import Trend
from tests.support.submissions import submission_body
from tests.support.worlds import PAPER, POLICY, world


def values(machine: Machine, metric: str) -> dict[str, float]:
    """The values of a metric by its labels, as written."""
    text = httpx.get(f"{machine.url}/metrics", headers=machine.headers, trust_env=False, timeout=30).text
    return {labels: float(value) for labels, value in re.findall(rf"^{metric}(\{{.*\}})? (\S+)$", text, re.M)}


def test_a_result_says_how_the_run_ended_and_what_the_strategy_contributes(machine: Machine) -> None:
    result = Runner.submit(Trend("JPM", 17), world="equities", config=machine.config, run=False)
    mine = result.mine
    assert mine is not None
    assert (result.status, result.contribution) == ("decided", mine.contribution)
    assert result.contribution is not None
    told = result.as_dict()
    assert (told["status"], told["contribution"]) == ("decided", mine.contribution)


def test_the_answer_to_a_submission_names_the_nodes_that_it_is_about(machine: Machine) -> None:
    build = BuiltStrategy(Trend("KO", 13))
    with machine.client() as client:
        submit = StrategySubmit.model_validate(submission_body())
        ack = client.submit(submit)
    assert ack.node_ids_crc32 == build.crc32
    body = ack.model_copy(update={"node_ids_crc32": build.crc32 ^ 1}).model_dump_json().encode()
    head = f"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with (
        answering_once(head.encode() + body) as (url, _),
        GatewayClient(url, None) as client,
        pytest.raises(QmtlError, match="E_CHECKSUM_MISMATCH"),
    ):
        client.submit(submit)


def test_an_evaluation_says_what_a_judgment_would_decide_and_writes_nothing(machine: Machine) -> None:
    Runner.submit(Trend("PG", 19), world="equities", config=machine.config, run=False)
    with machine.client() as client:
        before = client.decisions("equities")[0]
        found: dict[str, Any] = client._call("POST", "/worlds/equities/evaluate")
        assert client.decisions("equities")[0] == before
    assert found["etag"] == before.etag
    assert found["strategies"] == [item.json_dict() for item in before.strategies]
    assert any(item["active"] and item["contribution"] is not None for item in found["strategies"])


def test_a_deleted_world_takes_nothing_more_and_keeps_its_records(machine: Machine) -> None:
    with machine.client() as client:
        client.create_world(world("ended"), POLICY)
        for _ in range(2):
            assert client._call("DELETE", "/worlds/ended")["state"] == "archived"
        assert client.fence("ended").halted
        with pytest.raises(QmtlError, match="E_WORLD_ARCHIVED"):
            client.submit(StrategySubmit.model_validate(submission_body(world_id="ended")))
        actions = [item["action"] for item in client.audit("ended", verify=True)["entries"]]
        assert actions.count("world.updated") == 1
        with pytest.raises(QmtlError, match="E_WORLD_UNKNOWN"):
            client._call("DELETE", "/worlds/never")


def test_metrics_show_sentinels_time_to_activation_and_the_memory_of_running_strategies(
    machine: Machine,
) -> None:
    with machine.client() as client:
        client.create_world(world("paper_metrics"), PAPER)
    result = Runner.submit(Trend("MSFT", 23), world="paper_metrics", config=machine.config)
    try:
        assert result.running is not None
        wait_for(
            lambda: values(machine, "nodecache_resident_bytes").get('{world_id="paper_metrics"}', 0) > 0,
            "bytes of the node cache",
        )
        held = values(machine, "nodecache_resident_bytes")['{world_id="paper_metrics"}']
        assert held == result.running.engine.resident_bytes
    finally:
        Runner.shutdown(result)
    gaps = values(machine, "sentinel_gap_count")[""]  # other tests bind strategies without a graph
    took = values(machine, "submit_to_activation_seconds")
    assert 0 < took['{quantile="0.5"}'] <= took['{quantile="0.95"}'] < 600
    database = machine.database()
    try:
        with database.write("test", bookkeeping=True) as tx:
            removed = "DELETE FROM sentinel WHERE world_id = 'paper_metrics'"
            tx.session.connection().exec_driver_sql(removed)
    finally:
        database.close()
    assert values(machine, "sentinel_gap_count") == {"": gaps + 1.0}


def test_the_command_takes_the_gateway_and_the_configuration_from_its_options(
    machine: Machine, tmp_path: Path
) -> None:
    person = Person(tmp_path, QMTL_HOME=str(machine.home), QMTL_GATEWAY__URL="http://127.0.0.1:1")
    listed = person.types("--gateway-url", machine.url, "token", "list", "-o", "json")
    assert (listed.returncode, bool(json.loads(listed.stdout))) == (0, True)
    (tmp_path / "other.yml").write_text("gateway: { host: 10.9.8.7 }\n")
    shown = person.types("--config", "other.yml", "config", "show")
    assert "10.9.8.7" in shown.stdout
    missing = person.types("--config", "none.yml", "config", "show")
    assert missing.returncode != 0
    assert "none.yml" in missing.stderr
