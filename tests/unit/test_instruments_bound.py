"""Whoever asks may name ever new symbols: what is remembered of them is bounded."""

import gc

import pytest

from qmtl_sdk.contracts.instruments import Instrument, InstrumentConstraints, Instruments


def alive() -> int:
    return sum(isinstance(each, Instrument) for each in gc.get_objects())


def test_instruments_of_ever_new_symbols_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qmtl_sdk.contracts.instruments.MAX_SYMBOLS", 50)
    instruments = Instruments(InstrumentConstraints.model_validate({"lot": "1"}))
    gc.collect()
    before = alive()
    for number in range(500):
        assert instruments.find("paper", f"S{number}").symbol == f"S{number}"
    assert alive() - before <= 50
    assert instruments.find("paper", "S499") is instruments.find("paper", "S499")
