"""What a topic says is the fold of its events, whatever was sent twice."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qmtl_sdk.contracts.events import DATA, KINDS, CloudEvent, kind_of, topic_of
from qmtl_sdk.contracts.stream import close_code, schemas
from qmtl_sdk.contracts.topic_state import (
    GapError,
    RunningHash,
    Sequenced,
    TopicState,
    combined_hash,
    state_hash,
)
from tests.support.events import event

CHANGES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=30)


def log_of(changes: list[tuple[str, int]]) -> list[Sequenced]:
    return [
        Sequenced(sequence=i, event=event(subject, number, key=f"key-{i}"))
        for i, (subject, number) in enumerate(changes, 1)
    ]


def folded(log: list[Sequenced]) -> TopicState:
    state = TopicState()
    for item in log:
        state.apply(item)
    return state


@given(CHANGES, st.data())
def test_doubles_change_nothing(changes: list[tuple[str, int]], data: st.DataObject) -> None:
    log, state = log_of(changes), TopicState()
    for i, item in enumerate(log):
        assert state.apply(item)
        again = data.draw(st.integers(0, i))
        assert not state.apply(log[again])
    assert state.state_hash == folded(log).state_hash


@given(CHANGES, st.data())
def test_what_was_published_twice_under_new_sequences_changes_nothing(
    changes: list[tuple[str, int]], data: st.DataObject
) -> None:
    """A bus that does not recognise what a relay tells again after its crash."""
    log = log_of(changes)
    start = data.draw(st.integers(0, len(log)))
    again = [Sequenced(sequence=len(log) + i, event=item.event) for i, item in enumerate(log[start:], 1)]
    assert folded(log + again).state_hash == folded(log).state_hash
    assert folded(log + again).sequence == len(log + again)


@given(CHANGES, st.data())
def test_a_snapshot_and_what_follows_are_the_whole(
    changes: list[tuple[str, int]], data: st.DataObject
) -> None:
    log = log_of(changes)
    at = data.draw(st.integers(0, len(log)))
    before = folded(log[:at])
    state = TopicState(before.sequence, before.events.values())
    for item in log[at:]:
        assert state.apply(item)
    assert (state.sequence, state.state_hash) == (len(log), folded(log).state_hash)


def test_an_event_that_comes_too_early_is_a_gap() -> None:
    log, state = log_of([("a", 1), ("a", 2), ("a", 3)]), TopicState()
    state.apply(log[0])
    with pytest.raises(GapError):
        state.apply(log[2])
    assert state.sequence == 1


def test_a_session_that_has_ended_leaves_the_state() -> None:
    state = TopicState()
    state.apply(Sequenced(sequence=1, event=event("session", kind="session.opened")))
    state.apply(Sequenced(sequence=2, event=event("session", kind="session.ended")))
    assert state.events == {}


def test_the_hash_does_not_depend_on_order_or_on_itself() -> None:
    one, two = (
        {"a": {"x": 1, "state_hash": "p"}, "b": {"y": 2}},
        {"b": {"y": 2}, "a": {"x": 1, "state_hash": "q"}},
    )
    assert state_hash(one) == state_hash(two)
    assert state_hash(one) != state_hash({"a": {"x": 1}})


@given(
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=5),
    st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=10),
)
def test_a_hash_that_follows_changes_is_that_of_the_whole_state(
    entries: dict[str, str], changes: list[tuple[str, str]]
) -> None:
    running = RunningHash(entries)
    for subject, entry in changes:
        entries[subject] = entry
        assert running.change(subject, entry) == combined_hash(entries)


@pytest.mark.parametrize("field", ["id", "source", "type", "subject", "time", "idempotencykey"])
def test_an_event_without_what_cloudevents_asks_for_is_refused(field: str) -> None:
    body = event().model_dump(mode="json")
    del body[field]
    with pytest.raises(ValidationError):
        CloudEvent.model_validate(body)
    with pytest.raises(ValidationError):
        CloudEvent.model_validate({**event().model_dump(mode="json"), field: ""})


def test_extension_attributes_of_others_are_retained() -> None:
    body = {**event().model_dump(mode="json"), "traceparent": "00-abc"}
    assert CloudEvent.model_validate(body).model_dump()["traceparent"] == "00-abc"


def test_every_type_has_its_topic_and_an_unknown_one_stays_apart() -> None:
    assert {kind_of(name) for name in DATA} <= set(KINDS)
    assert kind_of("nobody.knows") == "other"
    assert (topic_of("w", "activation_updated"), topic_of("", "store.created")) == (
        "w.activation",
        "_.worlds",
    )


def test_the_schemas_say_what_there_is() -> None:
    found = schemas()
    assert set(found["data"]) == set(DATA)
    assert found["cloudevent"]["properties"]["specversion"]["const"] == "1.0"


def test_a_close_frame_says_its_code() -> None:
    assert (close_code("E_TOKEN_EXPIRED: the token"), close_code("bye")) == ("E_TOKEN_EXPIRED", "")


def test_times_are_utc() -> None:
    assert event().time.tzinfo == UTC
    assert event().time <= datetime.now(UTC)
