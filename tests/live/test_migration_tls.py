"""Memory that goes through TCP under TLS: between those who know each other, and nobody else."""

from __future__ import annotations

import secrets
from pathlib import Path

import attrs
import pytest
import trustme

import qmpkit
from qmpkit import CannotMigrate, MigrationFailed, MigrationOptions
from qmpkit.operations.migration.parameters import TLS_ID
from qmpkit.testing.leaks import leaks
from tests.live.counting import counted
from tests.live.migrating import counting, lives_on, still_here

pytestmark = pytest.mark.live


def certificates(
    folder: Path, ours: trustme.CA, *, client: trustme.CA | None = None, host: str = "127.0.0.1"
) -> MigrationOptions:
    """Of both ends, by one authority unless another has issued the client's."""
    folder.mkdir()
    ours.cert_pem.write_to_path(str(folder / "ca-cert.pem"))
    for side, authority, name in (("server", ours, host), ("client", client or ours, "client.x")):
        issued = authority.issue_cert(name)
        issued.private_key_pem.write_to_path(str(folder / f"{side}-key.pem"))
        issued.cert_chain_pems[0].write_to_path(str(folder / f"{side}-cert.pem"))
    return MigrationOptions(way="tcp", tls=folder)


def secret(folder: Path) -> MigrationOptions:
    folder.mkdir(mode=0o700)
    (folder / "keys.psk").write_text(f"qemu:{secrets.token_hex(32)}\n")
    return MigrationOptions(way="tcp", tls=folder)


async def test_those_who_know_each_other(qemu: str, tmp_path: Path) -> None:
    by_certificate = certificates(tmp_path / "tls", trustme.CA())
    by_secret = attrs.evolve(secret(tmp_path / "psk"), channels=2)
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        # Of a supervisor that was killed in the middle of a move.
        left = {"qom-type": "secret", "id": TLS_ID, "data": "left behind"}
        await vm.execute("object-add", left)
        async with qmpkit.receiving(vm) as there:
            await vm.migrate(there, options=by_certificate)
            await lives_on(there.vm, had)
            objects = await there.vm.execute("qom-list", {"path": "/objects"})
            assert not any("tls" in it["name"] for it in objects)
            async with qmpkit.receiving(there.vm) as back:
                await there.vm.migrate(back, options=by_secret)
                await lives_on(back.vm, had)


async def test_strangers_are_refused(qemu: str, tmp_path: Path) -> None:
    ours, other = trustme.CA(), trustme.CA()
    wrong = {
        "hasn't got a known issuer": certificates(tmp_path / "client", ours, client=other),
        "not match the hostname": certificates(tmp_path / "host", ours, host="example.org"),
    }
    torn = certificates(tmp_path / "torn", ours)
    assert torn.tls is not None
    (torn.tls / "client-key.pem").unlink()
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        for why, options in wrong.items():
            async with qmpkit.receiving(vm) as destination:
                with pytest.raises(MigrationFailed, match=why):
                    await vm.migrate(destination, options=options)
        async with qmpkit.receiving(vm) as destination:
            with pytest.raises(CannotMigrate, match=r"client-key\.pem is not there"):
                await vm.migrate(destination, options=torn)
        objects = await vm.execute("qom-list", {"path": "/objects"})
        assert not any("tls" in it["name"] for it in objects)
        await still_here(vm, had)
