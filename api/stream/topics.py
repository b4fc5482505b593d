"""Topics of a world (`WORLD.KIND`) and their kinds, and events as frames of text."""

from api.auth.claims import StreamClaims
from qmtl_sdk.contracts.stream import EventFrame
from qmtl_sdk.contracts.topic_state import Sequenced


def topics_of(claims: StreamClaims) -> list[str]:
    """Return the topics that a token allows."""
    return [f"{claims.world_id}.{kind}" for kind in claims.topics]


def kind_of_topic(topic: str) -> str:
    """Return the kind of a topic: `decisions` of `fx.decisions`."""
    return topic.rpartition(".")[2]


def frame_text(topic: str, item: Sequenced) -> str:
    """Return an event as the text of a frame."""
    return EventFrame(topic=kind_of_topic(topic), sequence=item.sequence, event=item.event).model_dump_json()
