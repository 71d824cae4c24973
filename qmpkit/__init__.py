"""QEMU/KVM virtual machines from Python, supervised with trio, without libvirt.

Every public name is listed here and loaded when it is first used (PEP 562), so
that `import qmpkit` costs next to nothing and a program that only needs
`qmpkit.load_profile` never loads trio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qmpkit.errors import AgentSilent as AgentSilent
    from qmpkit.errors import BinaryMissing as BinaryMissing
    from qmpkit.errors import Fault as Fault
    from qmpkit.errors import GuestRefused as GuestRefused
    from qmpkit.errors import HostLacks as HostLacks
    from qmpkit.errors import ImageFailed as ImageFailed
    from qmpkit.errors import ImageInUse as ImageInUse
    from qmpkit.errors import KvmUnavailable as KvmUnavailable
    from qmpkit.errors import LaunchFailed as LaunchFailed
    from qmpkit.errors import MachineDied as MachineDied
    from qmpkit.errors import MachineGone as MachineGone
    from qmpkit.errors import QmpkitError as QmpkitError
    from qmpkit.errors import SpecInvalid as SpecInvalid

__version__ = "0.1.0"

_MODULES = {
    "qmpkit.errors": (
        "AgentSilent BinaryMissing Fault GuestRefused HostLacks ImageFailed ImageInUse "
        "KvmUnavailable LaunchFailed MachineDied MachineGone QmpkitError SpecInvalid"
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> object:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
