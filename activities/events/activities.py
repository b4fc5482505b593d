"""Thin: notes in the commit log which run admitted a submission, and what was answered."""

from temporalio import activity

from activities.commands import RecordAdmission
from activities.events.store import CommitLogStore


class LogActivities:
    def __init__(self, log: CommitLogStore) -> None:
        self._log = log

    @activity.defn(no_thread_cancel_exception=True)
    def admitted(self, command: RecordAdmission) -> None:
        self._log.admitted(command.idempotency_key, command.run_id, command.ack)
