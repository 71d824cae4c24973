"""The shipped catalogue is whole, and its names lead where they say."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from qmpkit.errors import SpecInvalid
from qmpkit.images.store.catalogue import _read, catalogue, published
from qmpkit.images.store.sources import resolved
from qmpkit.images.store.vetting import FORMATS
from qmpkit.spec.profile import load_profile, profile_names

HOSTS = {
    "debian": ("cloud.debian.org",),
    "ubuntu": ("cloud-images.ubuntu.com",),
    "fedora": ("download.fedoraproject.org", "dl.fedoraproject.org"),
    "alpine": ("dl-cdn.alpinelinux.org",),
}
ALL = [(name, arch) for name, entry in catalogue().items() for arch in entry.architectures]


@pytest.mark.parametrize(("name", "arch"), ALL)
def test_every_image_is_checked_against_its_projects_sums(name: str, arch: str) -> None:
    source = resolved(name, arch=arch)
    hosts = HOSTS[name.partition("-")[0]]
    for url in (source.where, source.checksums):
        assert urlsplit(url).scheme == "https"
        assert urlsplit(url).netloc in hosts
    image, sums = (urlsplit(url).path.rpartition("/") for url in (source.where, source.checksums))
    assert image[0] == sums[0]
    assert image[2] != sums[2]
    assert source.format in FORMATS
    arches = {"x86_64": ("x86_64", "amd64"), "aarch64": ("aarch64", "arm64")}
    assert any(word in source.file for word in arches[arch])


def test_each_project_has_one() -> None:
    assert {name.partition("-")[0] for name in catalogue()} == set(HOSTS)


def test_a_name_or_an_architecture_that_it_has_not() -> None:
    with pytest.raises(SpecInvalid, match=r"no image 'debain-12' \(did you mean 'debian-12'\?\)"):
        published("debain-12", "x86_64")
    with pytest.raises(SpecInvalid, match=r"not published for s390x \(it is for x86_64, aarch64\)"):
        published("debian-12", "s390x")
    with pytest.raises(SpecInvalid, match="not published for title"):
        published("debian-12", "title")


def test_it_is_no_profile() -> None:
    assert "images" not in profile_names()
    with pytest.raises(SpecInvalid, match="there is no profile 'images'"):
        load_profile("images")


def test_a_spoilt_one_is_told_with_every_fault() -> None:
    with pytest.raises(SpecInvalid) as caught:
        _read('schema = 1\n[images.x]\ntitel = "X"\nx86_64 = { url = 3 }\n', "x.toml")
    faults = str(caught.value)
    for part in ("images.x.title: is missing", "titel: unknown key", "url: must be a text"):
        assert part in faults
