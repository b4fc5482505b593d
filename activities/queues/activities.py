"""Activities of UpkeepWorkflow."""

from datetime import datetime

from temporalio import activity

from activities.messages.stubs import QueueActivityStubs
from activities.messages.upkeep import RetentionResult, UpkeepInput, UpkeepTopic
from activities.queues.upkeep import QueueRetention


class QueueActivities(QueueActivityStubs):
    """Applies retention to queues."""

    def __init__(self, retention: QueueRetention) -> None:
        self._retention = retention

    @activity.defn(no_thread_cancel_exception=True)
    def queues_due(self, command: UpkeepInput) -> list[str]:
        """List the queues that retention applies to."""
        return self._retention.due(datetime.fromisoformat(command.now))

    @activity.defn(no_thread_cancel_exception=True)
    def apply_retention(self, command: UpkeepTopic) -> RetentionResult:
        """Archive and drop what is older than a queue's retention."""
        return self._retention.apply(command.topic, datetime.fromisoformat(command.now))
