"""Activities of UpkeepWorkflow."""

from datetime import datetime

from temporalio import activity

from activities.messages.stubs import QueueActivityStubs
from activities.messages.upkeep import RetentionResult, UpkeepInput, UpkeepTopic
from activities.queues.upkeep import QueueKeeper


class QueueActivities(QueueActivityStubs):
    """Applies retention to queues."""

    def __init__(self, keeper: QueueKeeper) -> None:
        self._keeper = keeper

    @activity.defn(no_thread_cancel_exception=True)
    def queues_due(self, command: UpkeepInput) -> list[str]:
        """List the queues that retention applies to."""
        return self._keeper.due(datetime.fromisoformat(command.now))

    @activity.defn(no_thread_cancel_exception=True)
    def apply_retention(self, command: UpkeepTopic) -> RetentionResult:
        """Archive and drop what is older than a queue's retention."""
        return self._keeper.apply_retention(command.topic, datetime.fromisoformat(command.now))
