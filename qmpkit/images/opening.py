"""How qemu-img is told which image to open: in its stated format, with its secret."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence

import attrs

from qmpkit.host.chain import Chain
from qmpkit.images.in_use import Allowed, checked_chain, refuse_used
from qmpkit.images.keys import Key
from qmpkit.images.tool import Asked

__all__ = ["Opened", "changeable", "image_options", "opened", "readable"]


@attrs.frozen
class Opened:
    """An image as qemu-img is told to open it: words before `--`, and its name after it."""

    words: tuple[str, ...]
    name: str
    fds: Mapping[int, int]


def opened(
    asked: Asked, chains: Sequence[Chain], key: Key | None, option: str = "secret"
) -> list[Opened]:
    """Each of the images on top of *chains*, in its stated format, for one command line.

    `ImageFailed` when one of them or of their bases is encrypted and there is no *key*,
    which *option* gives.
    """
    for chain in chains:
        for layer in chain.layers:
            if layer.encrypted and key is None:
                cure = f"say {option}=…, in a shell --{option.replace('_', '-')}-file FILE"
                raise asked.failed(f"{str(layer.path)!r} is encrypted", cure)
    if key is None:
        return [Opened(("-f", c.layers[0].format), str(c.layers[0].path), {}) for c in chains]
    words = (*key.words, "--image-opts")
    return [Opened(words, image_options(chain, key), key.fds) for chain in chains]


def image_options(chain: Chain, key: Key | None) -> str:
    """The image for `--image-opts`, which leaves no format to be guessed."""
    top = chain.layers[0]
    driver = "host_device" if stat.S_ISBLK(top.path.stat().st_mode) else "file"
    options = [f"driver={top.format}", f"file.driver={driver}"]
    options.append(f"file.filename={str(top.path).replace(',', ',,')}")
    for depth, layer in enumerate(chain.layers):
        if layer.encrypted and key is not None:
            name = "key-secret" if layer.format == "luks" else "encrypt.key-secret"
            options.append(f"{'backing.' * depth}{name}={key.id}")
    return ",".join(options)


def readable(
    asked: Asked,
    format: str,
    key: Key | None,
    allowed: Allowed = None,
    option: str = "secret",
) -> tuple[Chain, Opened]:
    """The image, to be read with all below it, after every reason to refuse; blocking."""
    chain = checked_chain(asked, format, allowed)
    (image,) = opened(asked, [chain], key, option)
    return chain, image


def changeable(
    asked: Asked, format: str, key: Key | None, allowed: Allowed = None
) -> tuple[Chain, Opened]:
    """The image, to be changed in place, which nobody uses; blocking."""
    refuse_used(asked, for_writing=True)
    return readable(asked, format, key, allowed)
