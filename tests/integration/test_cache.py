"""Outputs on disk: reused in their own context, never in another."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from activities.artifacts.folder import FolderArtifacts
from qmtl_sdk import Node, QmtlError, StreamInput
from qmtl_sdk.compute.cache import ArrowCache
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.domains import ComputeContext, Domain
from qmtl_sdk.data.bars import Bars
from qmtl_sdk.nodes.strategy import BuiltStrategy, Strategy

KEY = "blake3:" + "a" * 64
NODE = "blake3:" + "b" * 64
CONTEXT = ComputeContext(
    world_id="w", execution_domain=Domain.BACKTEST, as_of="2024-01-01", dataset_fingerprint="f"
)
TAPE = NodeOutput(Bars(np.arange(5, dtype="int64"), {"value": np.array([np.nan, 1, 2, 3, 4])}, 60), 1)


def test_what_was_put_is_got_without_a_copy(tmp_path: Path) -> None:
    cache = ArrowCache(tmp_path, CONTEXT)
    assert cache.get(KEY, NODE) is None
    cache.put(KEY, NODE, TAPE)
    found = cache.get(KEY, NODE)
    assert found is not None
    assert (found.first, found.bars.interval) == (1, 60)
    np.testing.assert_array_equal(found.bars.columns["value"], TAPE.bars.columns["value"])
    assert not found.bars.columns["value"].flags.owndata
    assert (cache.counters.hits, cache.counters.misses, cache.counters.cross_context_hits) == (1, 1, [])


@pytest.mark.parametrize("other", [{"as_of": "2024-01-02"}, {"partition": "p"}])
def test_a_hit_from_another_context_is_counted_and_never_used(tmp_path: Path, other: dict[str, str]) -> None:
    ArrowCache(tmp_path, CONTEXT).put(KEY, NODE, TAPE)
    cache = ArrowCache(tmp_path, CONTEXT.model_copy(update=other))
    assert cache.get(KEY, NODE) is None
    assert cache.counters.cross_context_hits == [NODE]


@pytest.mark.parametrize("other", [{"world_id": "v"}, {"execution_domain": Domain.LIVE}])
def test_another_world_or_domain_has_a_folder_of_its_own(tmp_path: Path, other: dict[str, object]) -> None:
    ArrowCache(tmp_path, CONTEXT).put(KEY, NODE, TAPE)
    cache = ArrowCache(tmp_path, CONTEXT.model_copy(update=other))
    assert cache.get(KEY, NODE) is None
    assert cache.counters.cross_context_hits == []


def test_mended_data_is_computed_anew(tmp_path: Path) -> None:
    ArrowCache(tmp_path, CONTEXT).put(KEY, NODE, TAPE)
    cache = ArrowCache(tmp_path, CONTEXT.model_copy(update={"dataset_fingerprint": "g"}))
    assert cache.get(KEY, NODE) is None
    assert cache.counters.cross_context_hits == []


def test_a_torn_file_is_computed_anew(tmp_path: Path) -> None:
    cache = ArrowCache(tmp_path, CONTEXT)
    cache.put(KEY, NODE, TAPE)
    (path,) = tmp_path.rglob("*.arrow")
    path.write_bytes(path.read_bytes()[:50])
    assert cache.get(KEY, NODE) is None
    path.write_bytes(b"")
    assert cache.get(KEY, NODE) is None
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, pa.schema([])) as _:
        pass
    assert cache.get(KEY, NODE) is None


def test_partial_output_is_found_again_until_it_is_whole(tmp_path: Path) -> None:
    cache = ArrowCache(tmp_path, CONTEXT)
    partial = cache.checkpoint(KEY, NODE, 60)
    assert partial.done == 0
    assert partial.save is not None
    partial.save({"value": np.arange(5.0)}, 3)
    again = ArrowCache(tmp_path, CONTEXT).checkpoint(KEY, NODE, 60)
    assert (again.done, again.rows["value"].tolist()) == (3, [0.0, 1.0, 2.0])
    cache.put(KEY, NODE, TAPE)
    assert cache.checkpoint(KEY, NODE, 60).done == 0


def test_a_seed_is_shown_to_the_author() -> None:
    class Seeded(Strategy):
        def setup(self) -> None:
            price = StreamInput(tags=["x"], interval=60)
            self.add_nodes(
                [Node(price, lambda v: v[price].values, params={"model": {"seed": 1}}, name="forest")]
            )

    assert BuiltStrategy(Seeded).warnings == [
        "forest has a seed among its parameters: it is computed again every time"
    ]


def test_artifacts_are_stored_under_their_hash(tmp_path: Path) -> None:
    store, data = FolderArtifacts(tmp_path), b"some bytes"
    store.put(content_hash(data), data)
    store.put(content_hash(data), data)
    assert store.get(content_hash(data)) == data
    for attempt, code in (
        (lambda: store.put(KEY, data), "E_ARTIFACT_HASH"),
        (lambda: store.get(KEY), "E_ARTIFACT_UNKNOWN"),
        (lambda: store.get("../../etc/passwd"), "E_ARTIFACT_HASH"),
    ):
        with pytest.raises(QmtlError) as caught:
            attempt()
        assert caught.value.code == code
