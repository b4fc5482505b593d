"""A judgment over a real store and real artifacts."""

import errno
import math
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from activities.artifacts.folder import FolderArtifacts
from activities.decisions.activities import DecisionActivities
from activities.messages.evaluation import JudgeCommand
from activities.settings import Settings
from activities.stores import Stores
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.decisions import StrategyDecision
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.reports.artifact import encode
from qmtl_sdk.reports.returns import Returns
from tests.support.desk import Desk, policy

DAY = 86_400
FALLING_OUT = Policy.model_validate(
    {
        **policy().model_dump(by_alias=True),
        "selection": {
            "gates": {"and": ["sharpe >= 0"]},
            "score": "sharpe",
            "constraints": {"correlation": {"max_pairwise": 0.8}},
        },
    }
)


def returns(phase: float) -> bytes:
    days = np.arange(60)
    values = 0.01 * np.sin(days * 2 * math.pi / 7 + phase)
    values[0] = 0.0
    return encode(
        Returns(
            ts=(days * DAY * 10**9).astype("int64"),
            values=values,
            interval=DAY,
            positions={"a": np.ones(60)},
            weights={"a": 1.0},
            price_streams=("a",),
        )
    )


def judged(stores: Stores, desk: Desk) -> dict[str, StrategyDecision]:
    request = uuid.uuid4().hex
    DecisionActivities(stores.for_decisions).judge(
        JudgeCommand(
            store_id=stores.database.store_id, world_id=desk.world, run_id="r", request_ids=(request,)
        )
    )
    decision = stores.decisions.answer(request)
    assert decision is not None
    return {item.strategy_id: item for item in decision.strategies}


def lose(file: Path) -> None:
    file.unlink()


def damage(file: Path) -> None:
    file.write_bytes(b"not Arrow")


def make_unreadable(file: Path) -> None:
    file.unlink()
    file.mkdir()  # for root, who may run the tests, no file is unreadable


@pytest.mark.parametrize(
    ("harm", "code"),
    [(lose, "E_ARTIFACT_UNKNOWN"), (damage, "E_ARTIFACT_DAMAGED"), (make_unreadable, "E_ARTIFACT_DAMAGED")],
)
def test_lost_returns_put_their_strategy_out_and_no_other(
    tmp_path: Path, harm: Callable[[Path], None], code: str
) -> None:
    """One lost artifact failed the judgment of its whole world for ever."""
    with closing(Stores.open(Settings(home=tmp_path))) as stores:
        desk = Desk(stores.database, strategies=3, found=FALLING_OUT)
        for n, strategy in enumerate(desk.strategies):
            artifact = returns(n * math.pi / 2)
            stores.artifacts.put(content_hash(artifact), artifact)
            desk.evidence(strategy, sharpe=3.0 - n, returns_hash=content_hash(artifact))
        before = judged(stores, desk)
        assert [before[strategy].active for strategy in desk.strategies] == [True, True, False], before

        first = content_hash(returns(0.0)).removeprefix("blake3:")
        (file,) = [path for path in (tmp_path / "artifacts").rglob("*") if path.name == first]
        harm(file)
        after = judged(stores, desk)
        assert [after[strategy].active for strategy in desk.strategies] == [False, True, True]
        (violation,) = after[desk.strategies[0]].violations
        assert (violation.step, violation.rule) == ("evidence", code)


def test_a_folder_of_artifacts_that_is_away_is_retried_and_rejects_nobody(tmp_path: Path) -> None:
    artifacts = FolderArtifacts(tmp_path / "artifacts")
    artifact = returns(0.0)
    artifacts.put(content_hash(artifact), artifact)
    (tmp_path / "artifacts").rename(tmp_path / "away")
    with pytest.raises(QmtlError, match="E_UNAVAILABLE"):
        artifacts.get(content_hash(artifact))


def test_too_many_open_files_say_nothing_about_an_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = FolderArtifacts(tmp_path)

    def busy(_: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", busy)
    with pytest.raises(QmtlError, match="E_UNAVAILABLE"):
        artifacts.get("blake3:" + "0" * 64)
