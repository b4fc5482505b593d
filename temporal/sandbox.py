"""The sandbox of workflows: each workflow module is imported once a process, under Temporal's restrictions.

Temporal's own runner imports the module anew for every run, which takes 5 to 25 ms of an acknowledgement, so
that runs can't share module globals. Workflow modules hold constants only. A module that a workflow imports
under `imports_passed_through` is the process's own and is not restricted, as before.
"""

import threading
from functools import cache
from typing import Any

from temporalio.converter import StorageDriverStoreContext
from temporalio.worker import WorkflowInstance, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions
from temporalio.worker.workflow_sandbox._importer import Importer
from temporalio.worker.workflow_sandbox._restrictions import RestrictionContext
from temporalio.worker.workflow_sandbox._runner import _Instance

# Packages that hold no workflow: the same objects inside and outside of the sandbox.
_PASSED_THROUGH = ("activities", "qmtl_sdk", "pydantic", "pydantic_core", "annotated_types")


class _Context(threading.local, RestrictionContext):
    """Whether a workflow runs or is imported, by thread: an importer is shared by runs in several threads."""


@cache
def _importer(module: str) -> Importer:
    restrictions = SandboxRestrictions.default.with_passthrough_modules(*_PASSED_THROUGH)
    return Importer(restrictions, _Context(), workflow_module_name=module)


@cache
def _compiled(code: str) -> Any:
    """Compile one of the SDK's few pieces of code, which it gives as text at every activation.

    (Any: `exec` takes either.)
    """
    return compile(code, "workflow_sandbox.py", "exec")


class _SharedImports(_Instance):
    """A run of a workflow, with the modules that earlier runs have imported."""

    def __init__(self, details: Any, runner_class: type[WorkflowRunner]) -> None:
        """Create the instance. (Any: the SDK's details of a workflow, which it does not export.)"""
        self.instance_details = details
        self.runner_class = runner_class
        self.importer = _importer(self._workflow_module_name())
        self._current_thread_id: int | None = None
        self.globals_and_locals = {"__file__": "workflow_sandbox.py"}
        self._create_instance()

    def _run_code(self, code: str, **extra_globals: Any) -> None:
        super()._run_code(_compiled(code), **extra_globals)

    # The SDK asks the sandbox for these for each payload, which took a sixth of the worker's time. The data
    # converter looks at neither, and nothing is stored outside of histories.

    def get_serialization_context(self, _command_info: object) -> None:
        """Return nothing: payloads are converted alike wherever they belong."""

    def get_external_store_context(self, _command_info: object) -> StorageDriverStoreContext:
        """Return no target."""
        return StorageDriverStoreContext(target=None)


class SharedImportsRunner(SandboxedWorkflowRunner):
    """Runs workflows in Temporal's sandbox, and imports a workflow's module for its first run only.

    Creating a worker creates an instance of each workflow, so the import happens there, in one thread.
    """

    def create_instance(self, det: Any) -> WorkflowInstance:
        """Create a run's instance. (Any: as above.)"""
        return _SharedImports(det, self.runner_class)
