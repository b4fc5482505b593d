"""Client order ids: short names that lead to their orders and back."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.brokers.client_ids import LENGTH, client_id, order_id_of

HEX = st.text("0123456789abcdef", min_size=44, max_size=44)


@given(HEX)
def test_an_order_id_has_one_short_name_and_the_name_leads_back(digits: str) -> None:
    order = f"order:{digits[:12]}:{digits[12:]}"
    name = client_id(order)
    assert name is not None
    assert re.fullmatch("[0-9A-Za-z]{30}", name)
    assert order_id_of(name) == order


def test_the_first_and_the_last_id_have_names_of_the_same_length() -> None:
    for digit in "0f":
        name = client_id(f"order:{digit * 12}:{digit * 32}")
        assert name is not None
        assert len(name) == LENGTH


@pytest.mark.parametrize(
    "order",
    ["order:abc:1", "order:" + "A" * 12 + ":" + "a" * 32, "order:" + "a" * 12 + ":" + "a" * 32 + "\n"],
)
def test_an_id_of_another_form_has_no_name(order: str) -> None:
    assert client_id(order) is None


@pytest.mark.parametrize("name", ["", "z" * LENGTH, "web_" + "0" * 26, "0" * 31, "x-TKT5PX2F" + "a" * 22])
def test_a_name_that_others_gave_leads_to_no_order(name: str) -> None:
    assert order_id_of(name) is None
