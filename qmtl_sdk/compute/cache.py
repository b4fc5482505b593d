"""Outputs on disk, as Arrow files by ComputeKey, memory-mapped when they are read again.

A file carries its scope: node, world, domain, as_of, data fingerprint. One whose scope is not the asker's is a defect: it is counted in
`cross_context_hits`, which must stay 0, and never used. A file is written aside and renamed, so that a reader sees all of it or none.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qmtl_sdk.compute.engine import Checkpoint, NodeOutput
from qmtl_sdk.compute.output import Columns
from qmtl_sdk.contracts.domains import ComputeContext
from qmtl_sdk.data.bars import Bars

_SCOPE, _TS = b"qmtl.scope", "ts"


@dataclass
class Counters:
    hits: int = 0
    misses: int = 0
    cross_context_hits: int = 0


class ArrowCache:
    """The outputs of one context, under `root`/world/domain."""

    def __init__(self, root: Path, context: ComputeContext) -> None:
        self._context, self.counters = context, Counters()
        self._folder = root / context.world_id / context.execution_domain.value
        self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, compute_key: str, node_id: str) -> NodeOutput | None:
        """The whole output, or None."""
        found = self._read(self._path(compute_key), node_id)
        if found is None:
            self.counters.misses += 1
            return None
        self.counters.hits += 1
        return found[0]

    def put(self, compute_key: str, node_id: str, tape: NodeOutput) -> None:
        self._write(self._path(compute_key), node_id, tape, len(tape.bars))
        self._path(compute_key, ".partial").unlink(missing_ok=True)

    def partial(self, compute_key: str, node_id: str, interval: int) -> Checkpoint:
        """Where an interrupted computation stopped; what it reaches from here on is saved now and then."""
        path = self._path(compute_key, ".partial")

        def save(columns: Columns, done: int) -> None:
            rows = {name: values[:done] for name, values in columns.items()}
            self._write(path, node_id, NodeOutput(Bars(np.arange(done, dtype="int64"), rows, interval)), done)

        found = self._read(path, node_id)
        if found is None:
            return Checkpoint(save=save)
        tape, done = found
        return Checkpoint(rows=dict(tape.bars.columns), done=done, save=save)

    def _path(self, compute_key: str, ending: str = ".arrow") -> Path:
        return self._folder / (compute_key.removeprefix("blake3:") + ending)

    def _scope(self, node_id: str) -> dict[str, Any]:
        c = self._context
        return {
            "node": node_id,
            "world": c.world_id,
            "domain": c.execution_domain.value,
            "as_of": c.as_of,
            "partition": c.partition,
        }

    def _read(self, path: Path, node_id: str) -> tuple[NodeOutput, int] | None:
        if not path.exists():
            return None
        try:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            meta = json.loads((table.schema.metadata or {})[_SCOPE])
        except (pa.ArrowInvalid, KeyError, ValueError):
            path.unlink(
                missing_ok=True
            )  # a torn file of a machine that lost power: computing again costs time, never truth
            return None
        if meta["scope"] != self._scope(node_id):
            self.counters.cross_context_hits += 1
            return None
        if meta["fingerprint"] != self._context.dataset_fingerprint:
            return None  # the same context over mended data
        columns = {
            name: table.column(name).combine_chunks().to_numpy(zero_copy_only=False)
            for name in table.column_names
            if name != _TS
        }
        ts = table.column(_TS).combine_chunks().to_numpy(zero_copy_only=False)
        return NodeOutput(Bars(ts, columns, meta["interval"]), meta["first"]), meta["done"]

    def _write(self, path: Path, node_id: str, tape: NodeOutput, done: int) -> None:
        meta = {
            "scope": self._scope(node_id),
            "fingerprint": self._context.dataset_fingerprint,
            "interval": tape.bars.interval,
            "first": tape.first,
            "done": done,
        }
        table = pa.table({_TS: tape.bars.ts, **tape.bars.columns}).replace_schema_metadata(
            {_SCOPE: json.dumps(meta).encode()}
        )
        aside = path.with_suffix(f"{path.suffix}.{os.getpid()}")
        with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        os.replace(aside, path)
