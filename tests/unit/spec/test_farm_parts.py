"""What machines of a farm are in and are told: networks, ports, seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmpkit.spec.cloud_init import CloudInit, seed_files
from qmpkit.spec.farm import Joined
from qmpkit.spec.farm_networks import Bridge, Nat, Segment
from qmpkit.spec.names import mac_of, tap_name
from qmpkit.spec.network import DgramNic, Forward, StreamNic, TapNic, UserNic
from tests.unit.spec.farms import load, one, write

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEvvZ2hlcmUgaXMgYSBrZXkgZm9yIHRlc3RpbmcgaXQ= ada"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_networks_take_the_place_of_the_profiles_nics(folder: Path) -> None:
    farm = load(
        folder,
        """
        defaults.profile = "q35"
        [networks.lan]
        kind = "segment"
        subnet = "10.1.0.0/24"
        [networks.wire]
        kind = "segment"
        socket = "stream"
        [networks.out]
        kind = "nat"
        net = "10.9.0.0/24"
        restrict = true
        [networks.br]
        kind = "bridge"
        bridge = "br0"
        make = true
        subnet = "10.2.0.0/24"
        address = "10.2.0.1"
        dhcp = "10.2.0.100-10.2.0.199"
        [machines.plain]
        [machines.alone]
        networks = []
        [machines.all]
        networks = ["lan", { name = "out", model = "e1000e" }, "wire", "br"]
        [machines.both]
        nics = [{ kind = "user" }]
        networks = [{ name = "lan", mac = "52:54:00:00:00:0A", ip = "10.1.0.9" }]
        """,
    )
    plain, alone, all_, both = farm.machines
    assert plain.spec.nics == (UserNic(id="nic0", mac=mac_of("plain", "nic0")),)
    assert alone.spec.nics == ()
    macs = [mac_of("all", f"nic{number}") for number in range(4)]
    assert all_.spec.nics == (
        DgramNic(id="nic0", mac=macs[0]),
        UserNic(id="nic1", mac=macs[1], net="10.9.0.0/24", restrict=True, model="e1000e"),
        StreamNic(id="nic2", mac=macs[2]),
        TapNic(id="nic3", mac=macs[3]),
    )
    assert [join.nic for join in all_.networks] == ["nic0", "nic1", "nic2", "nic3"]
    lan = Segment(subnet="10.1.0.0/24")
    assert both.networks == (Joined(name="lan", network=lan, nic="nic1", ip="10.1.0.9"),)
    assert both.spec.nics[1].mac == "52:54:00:00:00:0a"
    assert farm.networks == {
        "lan": lan,
        "wire": Segment(socket="stream"),
        "out": Nat(net="10.9.0.0/24", restrict=True),
        "br": Bridge(
            bridge="br0",
            make=True,
            subnet="10.2.0.0/24",
            address="10.2.0.1",
            dhcp="10.2.0.100-10.2.0.199",
        ),
    }


def test_taps_have_names_that_the_kernel_takes() -> None:
    found = {tap_name("lab", f"web{n}", "lan") for n in range(1000)}
    assert len(found) == 1000
    assert {len(name) for name in found} == {14}


def test_ports_lead_in_by_the_first_nat(folder: Path) -> None:
    farm = load(
        folder,
        """
        [networks.lan]
        kind = "segment"
        [networks.out]
        kind = "nat"
        [machines.a]
        networks = ["lan", "out"]
        ports = ["8080:80", { host = 0, guest = 53, proto = "udp" }]
        [machines.b]
        nics = [{ kind = "user", forwards = ["2222:22"] }]
        ports = ["8081:80"]
        """,
    )
    a, b = farm.machines
    assert isinstance(a.spec.nics[1], UserNic)
    assert a.spec.nics[1].forwards == (Forward(8080, 80), Forward(0, 53, proto="udp"))
    assert isinstance(b.spec.nics[0], UserNic)
    assert b.spec.nics[0].forwards == (Forward(2222, 22), Forward(8081, 80))


def test_one_port_on_two_addresses_of_the_host(folder: Path) -> None:
    load(
        folder,
        """
        defaults.profile = "q35"
        [machines.a]
        ports = [{ host = 80, guest = 80, address = "127.0.0.1" }]
        [machines.b]
        ports = [{ host = 80, guest = 80, address = "127.0.0.2" }]
        """,
    )


def test_a_seed_for_each(folder: Path) -> None:
    write(folder / "ada.pub", f"# mine\n{KEY}\n")
    farm = load(
        folder,
        f"""
        [machines.web]
        count = 2
        [machines.web.cloud_init]
        user = "ada"
        ssh_keys = ["{KEY}x"]
        ssh_key_files = ["ada.pub"]
        user_data = {{ packages = ["nginx"] }}
        meta_data = {{ role = "web" }}
        write_files = [{{ path = "/etc/motd", content = "hi\\n" }}]
        [machines.db_1.cloud_init]
        hostname = "{{name}}-{{n}}.lab"
        [[machines.db_1.cloud_init.users]]
        name = "eve"
        ssh_keys = ["{KEY}"]
        """,
    )
    web1, web2, db = (machine.seed for machine in farm.machines)
    assert web1 == CloudInit(
        hostname="web1",
        user="ada",
        ssh_keys=(f"{KEY}x", KEY),
        user_data={
            "packages": ["nginx"],
            "write_files": [{"path": "/etc/motd", "content": "hi\n", "permissions": "0644"}],
        },
        meta_data={"role": "web"},
    )
    assert web2 is not None
    assert web2.hostname == "web2"
    assert db is not None
    assert db.hostname == "db-1-1.lab"
    files = seed_files(db)
    (user,) = json.loads(files["user-data"].partition(b"\n")[2])["users"]
    assert (user["name"], user["ssh_authorized_keys"]) == ("eve", [KEY])


def test_whole_texts_come_from_files_as_they_are(folder: Path) -> None:
    script = "#!/bin/sh\necho ${HOME} {name}\n"
    write(folder / "seed/user.sh", script)
    write(folder / "seed/net.yaml", "version: 2\n")
    machine = one(
        folder,
        """
        [machines.a.cloud_init]
        user_data_file = "seed/user.sh"
        network_config_file = "seed/net.yaml"
        """,
    )
    assert machine.seed == CloudInit(hostname="a", user_data=script, network_config="version: 2\n")


def test_fixed_addresses_are_told_to_the_guest(folder: Path) -> None:
    text = """
        [networks.lan]
        kind = "segment"
        subnet = "10.1.0.0/24"
        [networks.quiet]
        kind = "segment"
        [networks.out]
        kind = "nat"
        [networks.br]
        kind = "bridge"
        bridge = "br0"
        make = true
        subnet = "10.2.0.0/16"
        address = "10.2.0.1"
        [machines.web]
        count = 2
        networks = [{ name = "lan", ip = "10.1.0.1{n}" }, "quiet", "out"]
        cloud_init = {}
        [machines.db]
        networks = [{ name = "br", ip = "10.2.0.9" }]
        cloud_init = {}
        [machines.own]
        networks = [{ name = "lan", ip = "10.1.0.9" }]
        cloud_init = { network_config = "mine" }
    """
    web1, _, db, own = load(folder, text).machines
    macs = [mac_of("web1", f"nic{number}") for number in range(3)]
    assert web1.seed is not None
    assert web1.seed.network_config == {
        "version": 2,
        "ethernets": {
            "nic0": {"match": {"macaddress": macs[0]}, "addresses": ["10.1.0.11/24"]},
            "nic1": {"match": {"macaddress": macs[1]}, "link-local": ["ipv6"]},
            "nic2": {"match": {"macaddress": macs[2]}, "dhcp4": True},
        },
    }
    assert db.seed is not None
    assert db.seed.network_config == {
        "version": 2,
        "ethernets": {
            "nic0": {
                "match": {"macaddress": mac_of("db", "nic0")},
                "addresses": ["10.2.0.9/16"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.2.0.1"}],
            }
        },
    }
    assert own.seed is not None
    assert own.seed.network_config == "mine"
