"""Thin: upkeep of one queue, and the list of those that need it."""

from datetime import datetime

from temporalio import activity

from activities.commands import UpkeepInput, UpkeepTopic
from activities.queues.upkeep import QueueKeeper, RetentionResult


class QueueActivities:
    def __init__(self, keeper: QueueKeeper) -> None:
        self._keeper = keeper

    @activity.defn(no_thread_cancel_exception=True)
    def queues_due(self, command: UpkeepInput) -> list[str]:
        return self._keeper.due(datetime.fromisoformat(command.now))

    @activity.defn(no_thread_cancel_exception=True)
    def keep_queue(self, command: UpkeepTopic) -> RetentionResult:
        return self._keeper.keep(command.topic, datetime.fromisoformat(command.now))
