"""The audit trail of a database whose upkeep has not run: nothing of it is archived."""

import tempfile
from pathlib import Path

from activities.artifacts.folder import FolderArtifacts
from activities.retention.archives import Archives
from activities.retention.audit import SqlAudit
from activities.storage.database import Database


def audit_trail(database: Database) -> SqlAudit:
    """Read and verify the trail; archives would be missing."""
    return SqlAudit(database, Archives(FolderArtifacts(Path(tempfile.gettempdir(), "qmtl-no-archives"))))
