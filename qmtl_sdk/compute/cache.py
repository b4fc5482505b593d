"""A cache of node outputs on disk: Arrow files by ComputeKey, memory-mapped when they are read.

A file carries its scope: node, world, domain, as_of, data fingerprint. A file of another scope than the
reader's is a defect: it is counted in `cross_context_hits`, which must stay 0, and never used. A file is
written under another name and renamed, so that a reader sees all of it or nothing.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qmtl_sdk.compute.engine import Checkpoint
from qmtl_sdk.compute.output import Columns, NodeOutput
from qmtl_sdk.contracts.domains import ComputeContext
from qmtl_sdk.data.bars import Bars

_SCOPE = b"qmtl.scope"
"""The key of a file's metadata: scope, data fingerprint, interval, first row and rows done, as JSON."""

_TS = "ts"
"""The column of opening times."""


@dataclass
class Counters:
    """What the cache was used for in this process. `cross_context_hits` are NodeIDs; there should be none."""

    hits: int = 0
    misses: int = 0
    cross_context_hits: list[str] = field(default_factory=list)


class ArrowCache:
    """The outputs of one compute context, in the folder `root`/world/domain."""

    def __init__(self, root: Path, context: ComputeContext) -> None:
        self.counters = Counters()
        self._context = context
        self._folder = root / context.world_id / context.execution_domain.value
        self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, compute_key: str, node_id: str) -> NodeOutput | None:
        """Return a finished output, or None."""
        found = self._read(self._path(compute_key), node_id)
        if found is None:
            self.counters.misses += 1
            return None
        self.counters.hits += 1
        return found[0]

    def put(self, compute_key: str, node_id: str, output: NodeOutput) -> None:
        """Store a finished output and drop its checkpoint."""
        self._write(self._path(compute_key), node_id, output, len(output.bars))
        self._path(compute_key, ".partial").unlink(missing_ok=True)

    def checkpoint(self, compute_key: str, node_id: str, interval: int) -> Checkpoint:
        """Return where an interrupted computation stopped, and how to save where it is from now on."""
        path = self._path(compute_key, ".partial")

        def save(columns: Columns, done: int) -> None:
            rows = {name: values[:done] for name, values in columns.items()}
            self._write(path, node_id, NodeOutput(Bars(np.arange(done, dtype="int64"), rows, interval)), done)

        found = self._read(path, node_id)
        if found is None:
            return Checkpoint(save=save)
        output, done = found
        return Checkpoint(rows=dict(output.bars.columns), done=done, save=save)

    def _path(self, compute_key: str, ending: str = ".arrow") -> Path:
        return self._folder / (compute_key.removeprefix("blake3:") + ending)

    def _scope(self, node_id: str) -> dict[str, Any]:
        return {
            "node": node_id,
            "world": self._context.world_id,
            "domain": self._context.execution_domain.value,
            "as_of": self._context.as_of,
            "partition": self._context.partition,
        }

    def _read(self, path: Path, node_id: str) -> tuple[NodeOutput, int] | None:
        if not path.exists():
            return None
        try:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            meta = json.loads((table.schema.metadata or {})[_SCOPE])
        except (pa.ArrowInvalid, KeyError, ValueError):
            path.unlink(missing_ok=True)  # incomplete after a power failure; the output is computed again
            return None
        if meta["scope"] != self._scope(node_id):
            self.counters.cross_context_hits.append(node_id)
            return None
        if meta["fingerprint"] != self._context.dataset_fingerprint:
            return None  # the same context over corrected data
        columns = {
            name: table.column(name).combine_chunks().to_numpy(zero_copy_only=False)
            for name in table.column_names
            if name != _TS
        }
        ts = table.column(_TS).combine_chunks().to_numpy(zero_copy_only=False)
        return NodeOutput(Bars(ts, columns, meta["interval"]), meta["first"]), meta["done"]

    def _write(self, path: Path, node_id: str, output: NodeOutput, done: int) -> None:
        meta = {
            "scope": self._scope(node_id),
            "fingerprint": self._context.dataset_fingerprint,
            "interval": output.bars.interval,
            "first": output.first,
            "done": done,
        }
        table = pa.table({_TS: output.bars.ts, **output.bars.columns}).replace_schema_metadata(
            {_SCOPE: json.dumps(meta).encode()}
        )
        temporary = path.with_suffix(f"{path.suffix}.{os.getpid()}")
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        os.replace(temporary, path)
