"""A measurement stands for what its EvalKeys say: nodes, world, domain, contract, data, code and limits."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from activities.messages.submission import MeasureCommand, RunContextBody
from activities.settings import Settings
from activities.stores import Stores
from activities.submissions.activities import SubmissionActivities
from activities.submissions.context import ComputeContextService
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.contracts.submission import EvidenceRef, StrategySubmit
from qmtl_sdk.contracts.worlds import Data, OrderLimits, WorldSpec, WorldUpdate
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.reports.artifact import encode
from tests.support.admissions import begin_run
from tests.support.frames import series
from tests.support.strategies import Trend
from tests.support.worlds import POLICY, WORLD, world

WIDER = {**WORLD["data"]["presets"][0], "calendar": "XNYS", "sectors": {"AAPL": "tech"}}  # type: ignore[index]


class House:
    """A world and one strategy of it, whose returns can be lost."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.stores = Stores.open(Settings(home=home))
        self.stores.fence.create(WorldSpec.model_validate(world("w")), policy_from(POLICY), "me")
        self.activities = SubmissionActivities(self.stores.for_submissions)
        self.build = BuiltStrategy(Trend())

    def measured(self, returns: list[float], **context: object) -> dict[str, float | None]:
        """Submit, and measure these returns without their artifact, which must be put before."""
        submit = StrategySubmit(world_id="w", dag=self.build.dag, node_ids_crc32=self.build.crc32)
        self.stores.log.append(submit, "ana")
        run = ComputeContextService(self.stores.context_sources).run(uuid.uuid4().hex, submit)
        run = run.model_copy(update={"context": run.context.model_copy(update=context)})
        self.run: RunContextBody = begin_run(self.stores.database, run)
        command = MeasureCommand(
            store_id=self.stores.database.store_id,
            world_id="w",
            run_id=run.run_id,
            log_key=submit.idempotency_key,
            evidence=EvidenceRef(returns_hash=content_hash(encode(series(returns)))),
        )
        return self.activities.measure(command)

    def put(self, returns: list[float]) -> None:
        data = encode(series(returns))
        self.stores.artifacts.put(content_hash(data), data)

    def lose_artifacts(self) -> None:
        for file in [path for path in self.stores.artifacts._root.rglob("*") if path.is_file()]:
            file.unlink()

    def eval_keys(self) -> set[str]:
        return {item.eval_key for item in self.stores.worlds.nodes("w", None) if item.eval_key}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    found = House(tmp_path)
    yield found
    found.stores.close()


RETURNS = [0.0, 0.01, -0.005, 0.02]


def test_what_was_measured_under_the_same_keys_is_not_measured_again(house: House) -> None:
    house.put(RETURNS)
    first = house.measured(RETURNS)
    keys = house.eval_keys()
    house.lose_artifacts()
    assert house.measured(RETURNS) == first, "the artifact is not read again"
    evidence = house.stores.runs.evidence(house.run.run_id)
    assert evidence is not None
    assert (evidence.run_id, evidence.metrics) == (house.run.run_id, first)
    house.stores.rule_changes.add_policy("w", policy_from(POLICY), "olga")
    assert house.measured(RETURNS) == first, "another version of the same policy is the same contract"
    assert house.eval_keys() == keys


CHANGES: dict[str, Callable[[House], object]] = {
    "policy": lambda house: house.stores.rule_changes.add_policy(
        "w", policy_from({"preset": "sandbox"}), "olga"
    ),
    "limits": lambda house: house.stores.rule_changes.update_world(
        "w", WorldUpdate(order_limits=OrderLimits(max_quantity="5")), "olga"
    ),
    "data": lambda house: house.stores.rule_changes.update_world(
        "w", WorldUpdate(data=Data.model_validate({"presets": [WIDER]})), "olga"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_contract_or_of_the_limits_takes_a_measurement_of_its_own(
    house: House, change: str
) -> None:
    house.put(RETURNS)
    house.measured(RETURNS)
    keys = house.eval_keys()
    house.lose_artifacts()
    CHANGES[change](house)
    with pytest.raises(QmtlError, match="E_ARTIFACT_UNKNOWN"):
        house.measured(RETURNS)
    house.put(RETURNS)
    house.measured(RETURNS)
    assert not house.eval_keys() & keys


def test_other_returns_another_time_and_another_domain_are_measured(house: House) -> None:
    house.put(RETURNS)
    house.measured(RETURNS)
    house.lose_artifacts()
    for returns, context in (
        ([0.0, 0.3], {}),
        (RETURNS, {"as_of": "2016-01-04T00:00:00+00:00"}),
        (RETURNS, {"execution_domain": Domain.DRYRUN}),
        (RETURNS, {"dataset_fingerprint": "blake3:other"}),
    ):
        with pytest.raises(QmtlError, match="E_ARTIFACT_UNKNOWN"):
            house.measured(returns, **context)
