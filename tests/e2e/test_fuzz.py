"""The short form of `make fuzz`."""

from pathlib import Path

from tests.chaos.fuzz import fuzz


def test_no_answer_is_outside_the_document_or_an_error_of_the_gateway(tmp_path: Path) -> None:
    made, failed = fuzz(tmp_path, examples=6, seed=7)
    assert failed == []
    assert made >= 200
