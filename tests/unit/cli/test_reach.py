"""How a machine is reached by ssh, and told to OpenSSH and Ansible."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qmpkit.cli import main
from qmpkit.cli.reach import config_of, inventory_of, reach_of, why_unreached
from tests.unit.cli.daemons import scripted


def machine(**values: Any) -> dict[str, Any]:
    plain = {"name": "web1", "group": "web", "users": [], "forwards": [], "networks": []}
    return {**plain, "spec": {"nics": []}, **values}


def forward(guest: int, address: str = "127.0.0.1") -> dict[str, Any]:
    return {"proto": "tcp", "address": address, "port": 40022, "guest_port": guest}


def test_by_the_port_that_leads_to_its_22() -> None:
    reach = reach_of(machine(forwards=[forward(80), forward(22)], users=["me"]))
    assert reach is not None
    assert (reach.host, reach.port, reach.user) == ("127.0.0.1", 40022, "me")
    reach = reach_of(machine(forwards=[forward(22, address="0.0.0.0")]), "you")
    assert reach is not None
    assert (reach.host, reach.user) == ("127.0.0.1", "you")


def test_by_its_address_on_a_bridge_and_not_on_a_segment() -> None:
    nics = [{"id": "nic0", "kind": "dgram"}, {"id": "nic1", "kind": "tap"}]
    lan = {"name": "lan", "nic": "nic0", "ip": "10.1.0.2"}
    out = {"name": "out", "nic": "nic1", "ip": "10.2.0.2"}
    reach = reach_of(machine(spec={"nics": nics}, networks=[lan, out]))
    assert reach is not None
    assert (reach.host, reach.port) == ("10.2.0.2", 22)
    assert reach_of(machine(spec={"nics": nics}, networks=[lan])) is None


def test_a_fragment_for_openssh() -> None:
    reach = reach_of(machine(forwards=[forward(22)], users=["me"]))
    assert reach is not None
    assert config_of([reach], "/state/a b/known_hosts") == (
        "Host web1\n"
        "    HostName 127.0.0.1\n"
        "    Port 40022\n"
        "    User me\n"
        "    HostKeyAlias web1\n"
        '    UserKnownHostsFile "/state/a b/known_hosts"\n'
        "    StrictHostKeyChecking accept-new\n"
    )
    assert config_of([], "/k") == ""


@pytest.mark.parametrize(
    ("pid", "guest", "said"),
    [
        (None, 22, "machine 'web 1' is not up, and its ports lead nowhere. Cure: `qmpkit start"),
        (7, 22, "the QEMU of machine 'web 1' does not tell which port leads to its 22"),
        (7, 80, "no way leads to port 22 of machine 'web 1'. Cure: ports = "),
    ],
)
def test_why_there_is_no_way(pid: int | None, guest: int, said: str) -> None:
    nics = [{"kind": "user", "forwards": [{"host": 0, "guest": guest, "proto": "tcp"}]}]
    found = machine(name="web 1", pid=pid, spec={"nics": [{"kind": "dgram"}, *nics]})
    assert reach_of({**found, "spec": {"nics": []}}) is None
    assert why_unreached(found).startswith(said)


@pytest.mark.parametrize(("command", "said"), [("ssh-config", ""), ("inventory", "{}")])
def test_a_farm_without_machines_has_nobody_to_reach(
    command: str, said: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(root, {"GET /machines": {"machines": []}}):
        assert main([command]) == 0
    told = capsys.readouterr()
    assert (said in told.out, told.err) == (True, "")


@pytest.mark.parametrize("command", ["ssh-config", "inventory"])
def test_who_cannot_be_reached_is_left_out_and_told_with_the_cure(
    command: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nics = [{"kind": "user", "forwards": [{"host": 0, "guest": 22, "proto": "tcp"}]}]
    there = machine(forwards=[forward(22)])
    down = machine(name="web2", pid=None, spec={"nics": nics})
    alone = machine(name="db", pid=7)
    answers = {f"GET /machines/{it['name']}": it for it in (there, down, alone)}
    with scripted(root, {"GET /machines": {"machines": [there, down, alone]}, **answers}):
        assert main([command]) == 0
    told = capsys.readouterr()
    assert "web1" in told.out
    assert "web2" not in told.out
    assert '"db"' not in told.out
    first, second = told.err.splitlines()
    assert first.startswith("left out: machine 'web2' is not up") and "qmpkit start web2" in first
    assert second.startswith("left out: no way leads to port 22 of machine 'db'. Cure: ports")


ODD = "web '1', \"a\\b\""
FILE = '/st ate/50% "of" {{x}} #/known_hosts'


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs OpenSSH's client")
@pytest.mark.parametrize("name", ["web1", ODD, "web*", "!web", "wéb"])
def test_openssh_reads_names_and_paths_as_they_are(name: str, tmp_path: Path) -> None:
    reach = reach_of(machine(name=name, forwards=[forward(22)], users=["me"]))
    assert reach is not None
    file = tmp_path / "config"
    file.write_text(config_of([reach], FILE))
    flags = [word for pair in reach.options(FILE).items() for word in ("-o", "=".join(pair))]
    for words in (["-F", str(file)], ["-F", "none", *flags]):
        asked = ["ssh", "-G", *words, reach.alias]
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
        read = dict(line.split(" ", 1) for line in told.splitlines() if " " in line)
        assert (read["hostname"], read["port"], read["user"]) == ("127.0.0.1", "40022", "me")
        assert (read["hostkeyalias"], read["userknownhostsfile"]) == (reach.alias, FILE)
    other = ["ssh", "-G", "-F", str(file), "webmaster"]  # a name is no pattern
    told = subprocess.run(other, capture_output=True, text=True, check=True, timeout=20).stdout
    assert "hostname webmaster" in told.lower()


def test_ansible_gets_the_words_as_they_are() -> None:
    found = inventory_of([machine(name=ODD, group="_meta", forwards=[forward(22)])], FILE)
    args = found["_meta"]["hostvars"][ODD]["ansible_ssh_common_args"]
    plain = args.removeprefix("{% raw %}").removesuffix("{% endraw %}")
    assert plain != args
    alias, file, _ = shlex.split(plain)
    assert alias.startswith("-oHostKeyAlias=qk-")
    assert file == '-oUserKnownHostsFile="/st ate/50%% \\"of\\" {{x}} #/known_hosts"'


def test_an_inventory_for_ansible() -> None:
    reached = machine(forwards=[forward(22)], users=["me"])
    down = machine(name="web2")
    found = inventory_of([reached, down, machine(name="x", group=None)], "/k")
    assert (found["web"], found["ungrouped"]) == ({"hosts": ["web1"]}, {"hosts": []})
    variables = found["_meta"]["hostvars"]
    assert list(variables) == ["web1"]
    assert (variables["web1"]["ansible_port"], variables["web1"]["ansible_user"]) == (40022, "me")
