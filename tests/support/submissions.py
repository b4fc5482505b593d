"""Bodies of submissions, valid and not."""

import uuid
from typing import Any

from qmtl_sdk.contracts.submission import StrategySubmit
from qmtl_sdk.nodes.strategy import BuiltStrategy
from tests.support.strategies import Trend


def submission_body(**changes: Any) -> dict[str, Any]:
    build = BuiltStrategy(Trend("KO", 13))
    submit = StrategySubmit(
        world_id="equities", dag=build.dag, node_ids_crc32=build.crc32, idempotency_key=uuid.uuid4().hex
    )
    return {**submit.model_dump(mode="json"), **changes}


def body_with_node(**changes: Any) -> dict[str, Any]:
    found = submission_body()
    found["dag"]["nodes"][0] |= changes
    return found


def body_without_node_field(field: str) -> dict[str, Any]:
    found = submission_body()
    del found["dag"]["nodes"][0][field]
    return found
