"""Services read data files under their roots only, and say nothing of what is in them."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from api.cli.text.worlds import created_text
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.worlds import Preset, World, WorldSpec
from qmtl_sdk.data import roots
from qmtl_sdk.data.bars import Bars
from qmtl_sdk.data.inspection import inspect_stream, inspect_world, split_like
from tests.support.worlds import world

GOOD = "date,close\n2024-01-02,1\n2024-01-03,2\n"
NOW = datetime(2024, 2, 1, tzinfo=UTC)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    folder.mkdir()
    roots.restrict([folder])
    yield folder
    roots.restrict(None)


def spec(path: Path | str, **preset: Any) -> WorldSpec:
    found = {"name": "p", "source": "csv", "path": str(path), "interval": "1d", "streams": {"X": ["X"]}}
    return WorldSpec.model_validate({**world("w"), "data": {"presets": [{**found, **preset}]}})


def refused(path: Path | str, **preset: Any) -> QmtlError:
    with pytest.raises(QmtlError) as error:
        inspect_world(spec(path, **preset), NOW)
    return error.value


def test_a_file_under_a_root_is_read_and_one_outside_is_not(root: Path, tmp_path: Path) -> None:
    (root / "x.csv").write_text(GOOD)
    (tmp_path / "secret.csv").write_text(GOOD)
    assert inspect_world(spec(root / "x.csv"), NOW)["p"]["streams"]
    for path in (tmp_path / "secret.csv", root / ".." / "secret.csv", "/etc/passwd", "relative.csv"):
        assert refused(path).code == "E_DATA_FORBIDDEN"
    assert refused(root / "{stream}.csv", streams={"../secret": ["X"]}).code == "E_DATA_FORBIDDEN"


def test_a_symbolic_link_leads_nowhere_else(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text(GOOD)
    (root / "link.csv").symlink_to(tmp_path / "secret.csv")
    (root / "folder").symlink_to(tmp_path)
    assert refused(root / "link.csv").code == "E_DATA_FORBIDDEN"
    assert refused(root / "folder" / "secret.csv").code == "E_DATA_FORBIDDEN"


def test_no_pipe_device_or_folder_is_read(root: Path) -> None:
    """Reading a pipe waited for ever."""
    os.mkfifo(root / "pipe.csv")
    (root / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv", "none.csv"):
        assert refused(root / name).code == "E_DATA_NOT_FOUND"
    roots.restrict(None)
    assert refused("/dev/zero").code == "E_DATA_NOT_FOUND"


@pytest.mark.parametrize("path", ["sample:../../x", "sample:/etc/passwd", "sample:../__init__.py"])
def test_a_sample_is_one_that_is_shipped(path: str) -> None:
    assert refused(path).code == "E_DATA_NOT_FOUND"


@pytest.mark.parametrize(
    "text",
    [
        "hunter2,x\nhunter2,y\n",
        "date,hunter2\nhunter2,1\n",
        "date,close\n2024-01-01,1\n2024-01-02,hunter2\n",
        "date,hunter2\n2024-01-01,1\n2024-01-02,b\n",
        "date,symbol,close\n2024-01-01,hunter2,1\n2024-01-01,B,1\n",
        "root:hunter2:0:0\nroot:x:1,2,3\n",
    ],
)
def test_an_error_shows_nothing_of_the_content(root: Path, text: str) -> None:
    (root / "x.csv").write_text(text)
    error = refused(root / "x.csv")
    assert "hunter2" not in str(error) + repr(error.details)
    roots.restrict(None)
    assert "x.csv" in str(refused(root / "x.csv")), "an author sees their own file's name"


NEW_YORK = Preset.model_validate(
    {
        "name": "p",
        "path": "x.csv",
        "interval": "1d",
        "calendar": "XNYS",
        "source": "csv",
        "streams": {"X": ["X"]},
    }
)


def bars(days: list[str], close: list[float]) -> Bars:
    ts = pd.DatetimeIndex(days).as_unit("ns").asi8
    return Bars(ts, {"close": np.array(close, "float64")}, 86_400)


def test_what_is_odd_in_a_stream_is_counted() -> None:
    days = ["2024-01-12", "2024-01-13", "2024-01-16", "2024-01-18", "2024-01-19", "2024-02-02"]
    found = inspect_stream(NEW_YORK, bars(days, [100.0, 101.0, float("nan"), 0.0, 50.4, 51.0]), NOW)
    for odd in ("blank", "not_positive", "off_session", "split_like", "after_clock"):
        assert found[odd] == 1, odd
    assert found["split_like_at"] == ["2024-01-19T00:00:00Z"]
    assert found["missing"] == 10


def test_who_creates_a_world_reads_what_is_odd_in_its_data(root: Path) -> None:
    """Most of a file lay after the world's clock, closes were missing or 0, and nothing said so."""
    (root / "x.csv").write_text(
        "date,close\n2024-01-12,100\n2024-01-13,101\n2024-01-16,\n2024-01-18,0\n2024-01-19,50.4\n2024-02-02,51\n"
    )
    found = spec(root / "x.csv", calendar="XNYS")
    stored = World(spec=found, created_at=NOW, etag="e")
    text = "\n".join(created_text({"world": stored.json_dict(), "data": inspect_world(found, NOW)}))
    assert (
        "p/X: 6 bars, 2024-01-12 to 2024-02-02, 10 missing, 1 without a close, 1 with a close of 0 or less, "
        "1 while the market is closed, 1 with a jump like a split's, "
        "1 after the world's clock, which it does not see yet" in text
    )
    assert "jumps as a split makes them at 2024-01-19T00:00: is the price adjusted?" in text


def test_ordinary_moves_are_no_splits() -> None:
    assert len(split_like(np.array([100.0, 80.0, 110.0, 90.0, 130.0]))) == 0
    assert split_like(np.array([100.0, 50.0, 101.0, 10.0])).tolist() == [1, 2, 3]
    assert len(split_like(np.array([np.nan, 0.0, 5.0]))) == 0


def test_days_beyond_a_calendar_are_neither_on_nor_off_session() -> None:
    """The package raised an error for a day outside of its calendar."""
    for days in (["1950-01-01", "1950-01-02"], ["2090-01-01", "2090-01-02"], ["2024-01-13", "2024-01-14"]):
        assert inspect_stream(NEW_YORK, bars(days, [1.0, 1.0]), NOW)["bars"] == 2
