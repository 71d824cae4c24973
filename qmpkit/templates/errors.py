"""What can go wrong with templates, their clones, and pools of them."""

from __future__ import annotations

from collections.abc import Sequence

from qmpkit.errors import HostLacks, ImageInUse, QmpkitError

__all__ = ["PoolClosed", "TemplateBroken", "TemplateFailed", "TemplateInUse", "TemplateUnfit"]


class TemplateFailed(QmpkitError):
    """QEMU could not save or load a machine's state; `why` is what it said.

    A machine that could not be saved goes on as before.
    """

    def __init__(self, machine: str, asked: str, why: str, cure: str = "") -> None:
        self.machine = machine
        self.asked = asked
        self.why = why
        self.cure = cure
        super().__init__(machine, asked, why, cure)

    def __str__(self) -> str:
        cure = f". Cure: {self.cure}" if self.cure else ""
        return f"machine {self.machine!r}: cannot {self.asked}: {self.why}{cure}"


class TemplateBroken(QmpkitError):
    """The files of a template are not those that were saved; `flaws` says of each what is wrong."""

    def __init__(self, path: str, flaws: Sequence[str]) -> None:
        self.path = path
        self.flaws = tuple(flaws)
        super().__init__(path, self.flaws)

    def __str__(self) -> str:
        told = "; ".join(self.flaws)
        return f"the template {self.path!r} is not as it was saved: {told}. Cure: make it anew"


class TemplateUnfit(HostLacks):
    """A sound template that this host cannot clone: another CPU or QEMU; `why` says which."""

    def __init__(self, path: str, why: str, cure: str) -> None:
        super().__init__(f"the template {path!r} cannot be cloned here: {why}", cure)
        self.path = path
        self.why = why
        self.args = (path, why, cure)


class TemplateInUse(ImageInUse):
    """A template that clones still run from cannot be removed; one that is going, not cloned."""

    def __init__(self, path: str, doing: str) -> None:
        why = "clones of it run" if doing == "remove" else "it is being removed"
        cure = "end them first" if doing == "remove" else "make it anew"
        super().__init__(path, f"{doing} the template", why, cure)
        self.doing = doing
        self.args = (path, doing)


class PoolClosed(QmpkitError):
    """The pool has ended, or cannot start machines any more, so it gives none."""

    def __init__(self, template: str, why: str = "its block has ended") -> None:
        self.template = template
        self.why = why
        super().__init__(template, why)

    def __str__(self) -> str:
        return f"the pool of {self.template!r} gives no machine: {self.why}"
