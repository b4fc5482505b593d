"""The state of a topic: the newest event of each subject, as of a sequence number.

A snapshot holds this state, a client builds it from events, and `state_hash` is its hash. So a client that
has the same sequence number as the log has the same state.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from qmtl_sdk.contracts.canonical import canonical_json, content_hash, hash_of
from qmtl_sdk.contracts.events import CloudEvent
from qmtl_sdk.contracts.model import Model

_RECENT_KEYS = 5000
"""Idempotency keys to remember: more than a bus repeats after a crash."""


class Sequenced(Model):
    """An event with its sequence number in its topic, from 1."""

    sequence: int = Field(ge=1)
    event: CloudEvent


class TopicState:
    """The newest event of each subject, as of `sequence`.

    Applying an event twice changes nothing. An event is known by its sequence number or, where a bus repeated
    it under a new number after a crash, by its idempotency key.
    """

    def __init__(self, sequence: int = 0, events: Iterable[CloudEvent] = ()) -> None:
        self.sequence = sequence
        self.events: dict[str, CloudEvent] = {event.subject: event for event in events}
        self._recent = dict.fromkeys(event.idempotencykey for event in self.events.values())

    def apply(self, item: Sequenced) -> bool:
        """Apply an event; return whether it was new. Raises GapError where events before it are missing."""
        if item.sequence <= self.sequence:
            return False
        if item.sequence > self.sequence + 1:
            raise GapError(self.sequence, item.sequence)
        self.sequence = item.sequence
        if item.event.idempotencykey in self._recent:
            return False
        self._recent[item.event.idempotencykey] = None
        if len(self._recent) > _RECENT_KEYS + len(self.events):
            del self._recent[next(iter(self._recent))]
        if item.event.ends_subject:
            self.events.pop(item.event.subject, None)
        else:
            self.events[item.event.subject] = item.event
        return True

    @property
    def state_hash(self) -> str:
        return state_hash({subject: event.data for subject, event in self.events.items()})

    def __repr__(self) -> str:
        return f"TopicState(sequence={self.sequence}, {len(self.events)} subjects)"


class GapError(Exception):
    """Events between the last sequence number and the received one are missing."""

    def __init__(self, last: int, received: int) -> None:
        super().__init__(f"event {received} follows event {last}")
        self.last = last
        self.received = received


def entry_hash(data: Mapping[str, Any]) -> str:
    """Return the hash of one subject's data, without the `state_hash` that the data itself may have."""
    return hash_of({key: value for key, value in data.items() if key != "state_hash"})


def combined_hash(entries: Mapping[str, str]) -> str:
    """Return the hash of a state from the hashes of its entries, so that a change hashes one entry."""
    return hash_of(dict(entries))


class RunningHash:
    """The combined hash of entries of which one after the other changes.

    It keeps the canonical bytes of each entry, so a change does not encode the others again.
    """

    def __init__(self, entries: Mapping[str, str]) -> None:
        self._subjects = sorted(entries)
        self._parts = [_part(subject, entries[subject]) for subject in self._subjects]

    def change(self, subject: str, entry: str) -> str:
        """Set the hash of one subject's entry. Returns the `combined_hash` of all."""
        at = bisect_left(self._subjects, subject)
        if at < len(self._subjects) and self._subjects[at] == subject:
            self._parts[at] = _part(subject, entry)
        else:
            self._subjects.insert(at, subject)
            self._parts.insert(at, _part(subject, entry))
        return content_hash(b"{" + b",".join(self._parts) + b"}")


def _part(subject: str, entry: str) -> bytes:
    return canonical_json({subject: entry})[1:-1]


def state_hash(entries: Mapping[str, Any]) -> str:
    """Return the hash of a whole state from the data of its subjects."""
    return combined_hash({subject: entry_hash(data) for subject, data in entries.items()})
