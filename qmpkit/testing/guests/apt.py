"""Debian packages fetched and unpacked by an ordinary user, the system untouched.

apt runs on a state of its own (lists, archives, an empty list of installed
packages) below the cache directory, with the host's mirrors and keys, so every
package is verified as usual.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from qmpkit.errors import HostLacks, QmpkitError
from qmpkit.testing.guests import sources, store

__all__ = ["Apt", "AptFailed", "Package", "dependency_closure", "parse_packages"]

_CURE = "run on Debian with apt and dpkg installed"

# The host's hooks are for the host: some empty its caches, some need root.
_CONFIGURATION = """\
#clear APT::Update;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
APT::Sandbox::User "";
APT::Architecture "{architecture}";
APT::Architectures "";
APT::Default-Release "{preferred}";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::GzipIndexes "false";
Dir::Etc::sourcelist "{root}/apt.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{root}/state";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
"""


def _write(path: Path, text: str) -> None:
    """Write *path* whole, for another process may be reading it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


class AptFailed(QmpkitError):
    """apt or dpkg-deb refused; the message ends with what it said."""


@attrs.frozen
class Package:
    """A package at the version apt would install."""

    name: str
    version: str
    section: str = ""
    depends: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        return f"{self.name}_{self.version.replace(':', '%3a')}_"


class Apt:
    """apt for one Debian release and *architecture*, with a state of its own in *directory*.

    Packages of another architecture than this host's are only unpacked, so any will do.
    Hold `locked` around all use: the directory serves one at a time.
    """

    def __init__(
        self,
        directory: Path,
        release: str,
        *,
        backports: bool = False,
        architecture: str = "amd64",
    ) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise HostLacks("apt-get and dpkg-deb are not here", _CURE)
        host = sources.host_codename()
        found = sources.for_release(sources.host_sources(), host, release, backports=backports)
        self.directory = directory
        self._configuration = directory / "apt.conf"
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        (directory / "state/status").touch()
        _write(directory / "apt.sources", sources.render(found))
        # Backports are preferred only where asked for; security updates win by version.
        preferred = f"{release}-backports" if backports else ""
        configuration = _CONFIGURATION.format(
            root=directory, architecture=architecture, preferred=preferred
        )
        _write(self._configuration, configuration)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other process uses the directory, and keep others waiting."""
        with store.locked(self.directory / "lock"):
            yield

    def update(self) -> None:
        """Fetch the package lists; raises AptFailed."""
        self._run("apt-get", "update", "-qq", "--error-on=any")

    def show(self, names: Iterable[str]) -> dict[str, Package]:
        """The candidates of *names* by name; unknown names are left out."""
        shown = self._run("apt-cache", "show", "--no-all-versions", *names, check=False)
        return parse_packages(shown)

    def closure(self, roots: Iterable[str]) -> dict[str, Package]:
        """*roots* and the libraries they depend on; raises AptFailed when a root is unknown."""
        known: dict[str, Package] = {}
        wanted = list(roots)
        asked: set[str] = set()
        while wanted:
            asked.update(wanted)
            known |= self.show(wanted)
            wanted = [n for p in known.values() for n in p.depends if n not in asked]
            wanted = list(dict.fromkeys(wanted))
        return dependency_closure(known, roots)

    def solve(self, names: Iterable[str]) -> dict[str, str]:
        """Versions of all that apt would install for *names* on an empty system, by name.

        Recommended packages are left out; raises AptFailed when a name is unknown.
        """
        words = ["install", "--simulate", "--no-install-recommends", *names]
        planned = self._run("apt-get", *words)
        return dict(re.findall(r"^Inst (\S+) \((\S+)", planned, re.MULTILINE))

    def fetch(self, packages: Iterable[Package]) -> list[Path]:
        """The .deb files of *packages*, downloaded and verified unless here already."""
        archives = self.directory / "cache/archives"
        wanted = list(packages)
        missing = [p for p in wanted if not list(archives.glob(f"{p.file_name}*.deb"))]
        if missing:
            # apt writes into the working directory: only whole, verified files move on.
            with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
                names = [f"{package.name}={package.version}" for package in missing]
                self._run("apt-get", "download", "-qq", *names, cwd=Path(scratch))
                for file in Path(scratch).glob("*.deb"):
                    file.rename(archives / file.name)
        return [next(archives.glob(f"{package.file_name}*.deb")) for package in wanted]

    def unpack(self, archives: Iterable[Path], target: Path) -> None:
        """Unpack .deb files into the tree *target*; nothing in them is run."""
        target.mkdir(parents=True, exist_ok=True)
        for archive in archives:
            self._run("dpkg-deb", "--extract", str(archive), str(target))

    def _run(self, program: str, *words: str, check: bool = True, cwd: Path | None = None) -> str:
        options = [] if program == "dpkg-deb" else ["-c", str(self._configuration)]
        command = [program, *options, *words]
        done = subprocess.run(
            command,
            cwd=cwd,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if check and done.returncode:
            said = done.stderr.strip() or f"exit status {done.returncode}"
            raise AptFailed(f"{' '.join([program, *words[:6]])}: {said}")
        return done.stdout


def parse_packages(text: str) -> dict[str, Package]:
    """The stanzas that `apt-cache show` prints, the first of each name."""
    found: dict[str, Package] = {}
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", stanza, re.MULTILINE))
        if "Package" in fields:
            found.setdefault(fields["Package"], _package(fields))
    return found


def _package(fields: Mapping[str, str]) -> Package:
    wanted = ", ".join(fields[key] for key in ("Depends", "Pre-Depends") if fields.get(key))
    # Of alternatives apt's own first choice; versions are the archive's business.
    names = [re.split(r"[\s(:|]", word.strip())[0] for word in wanted.split(",")]
    section = fields.get("Section", "")
    return Package(fields["Package"], fields["Version"], section, tuple(n for n in names if n))


def dependency_closure(known: Mapping[str, Package], roots: Iterable[str]) -> dict[str, Package]:
    """*roots* and every library package below them: no program comes along unasked."""
    chosen: dict[str, Package] = {}
    queue: Sequence[str] = list(roots)
    for name in queue:
        if name not in known:
            raise AptFailed(f"package {name} is not in this host's Debian archive")
    while queue:
        chosen |= {name: known[name] for name in queue}
        below = [n for name in queue for n in known[name].depends if n in known]
        queue = [n for n in dict.fromkeys(below) if n not in chosen and known[n].section == "libs"]
    return chosen
