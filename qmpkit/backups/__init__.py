"""Backups that are there: `points`, `verify`, `compare`, `restore`, `prune`.

No machine is needed; `vm.backups.run` makes them.
"""

from qmpkit.backups.pruning import prune
from qmpkit.backups.restoring import restore
from qmpkit.backups.verifying import Flaw, compare, points, verify
from qmpkit.spec.backups import BackupLayer, BackupPoint

__all__ = ["BackupLayer", "BackupPoint", "Flaw", "compare", "points", "prune", "restore", "verify"]
