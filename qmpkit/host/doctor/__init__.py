"""What this host is enough for: `examine_host` looks at all of it and says the cures."""

from qmpkit.host.doctor.examination import examine_host
from qmpkit.host.doctor.finding import NEEDS, Finding, HostReport, Need, Topic, Verdict
from qmpkit.host.doctor.place import Host

__all__ = ["NEEDS", "Finding", "Host", "HostReport", "Need", "Topic", "Verdict", "examine_host"]
