"""The command line as a list, word by word."""

from __future__ import annotations

import itertools
import json
import subprocess
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmpkit.errors import SpecInvalid
from qmpkit.spec.argv import TOOLS, pretty, render
from qmpkit.spec.block import Disk
from qmpkit.spec.chardev import Endpoint, FdEndpoint, PathEndpoint, Serial
from qmpkit.spec.cpu import Cpu
from qmpkit.spec.cpu_places import place_of
from qmpkit.spec.dimms import Dimm
from qmpkit.spec.facts import Facts
from qmpkit.spec.machine import Kernel, MachineSpec, channels, links
from qmpkit.spec.memory import Memory
from qmpkit.spec.network import DgramNic, StreamNic, UserNic
from qmpkit.spec.numa import NumaNode
from qmpkit.spec.options import escape, keyvals, to_json
from qmpkit.spec.profile import load_profile
from tests.unit.spec.strategies import NASTY, machines

DENY = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
KVM = Facts(binary="/usr/bin/qemu", accel="kvm", cpu_flags=("-arch-capabilities",))


def fds(spec: MachineSpec) -> dict[str, Endpoint]:
    return {name: FdEndpoint(10 + n) for n, name in enumerate((*channels(spec), *links(spec)))}


def argv(spec: MachineSpec, facts: Facts | None = None, **more: Any) -> list[str]:
    return render(spec, facts or Facts(), fds(spec), **more)


def after(words: list[str], option: str) -> list[str]:
    """Every value that option is given."""
    return [value for word, value in itertools.pairwise(words) if word == option]


def test_the_smallest_machine_word_by_word() -> None:
    spec = MachineSpec(name="web", panic=False)
    assert render(spec, Facts(), fds(spec)) == [
        "qemu-system-x86_64",
        "-name",
        "guest=web,debug-threads=on",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-sandbox",
        DENY,
        "-accel",
        "tcg",
        "-machine",
        "q35,memory-backend=ram0",
        "-cpu",
        "max",
        "-smp",
        "cpus=1",
        "-m",
        "size=512M",
        "-S",
        "-chardev",
        "socket,id=qk-qmp,fd=10",
        "-chardev",
        "socket,id=qk-serial0,fd=11",
        "-mon",
        "chardev=qk-qmp,mode=control",
        "-object",
        '{"qom-type":"memory-backend-ram","id":"ram0","size":536870912}',
        "-device",
        '{"driver":"isa-serial","id":"serial0","chardev":"qk-serial0","index":0}',
    ]


def test_kvm_is_enabled_by_name_with_the_flags_the_host_needs() -> None:
    words = argv(MachineSpec(cpu=Cpu(2, 4, flags=["+x2apic"], sockets=1)), KVM)
    assert words[0] == "/usr/bin/qemu"
    assert "-enable-kvm" in words
    assert "-accel" not in words
    assert after(words, "-cpu") == ["host,-arch-capabilities,+x2apic"]
    assert after(words, "-smp") == ["cpus=2,maxcpus=4,sockets=1"]


def test_launcher_stands_first_and_extra_args_last() -> None:
    spec = MachineSpec(launcher=["nice", "-n", "5"], qemu="/opt/q", extra_args=["-d", "a,b"])
    words = argv(spec)
    assert words[:4] == ["nice", "-n", "5", "/opt/q"]
    assert words[-2:] == ["-d", "a,b"]


def test_the_environment_is_not_in_the_command() -> None:
    assert "s3cret" not in " ".join(argv(MachineSpec(env={"TOKEN": "s3cret"})))


@pytest.mark.parametrize(
    ("run_with_user", "switch"),
    [(False, ["-runas", "a,b"]), (True, ["-run-with", "user=a,,b"])],
)
def test_another_user_keeps_the_rest_of_the_sandbox(run_with_user: bool, switch: list[str]) -> None:
    words = argv(MachineSpec(run_as="a,b"), Facts(run_with_user=run_with_user))
    assert after(words, "-sandbox") == ["on,obsolete=deny,spawn=deny,resourcecontrol=deny"]
    assert after(words, switch[0]) == switch[1:]


def test_the_sandbox_can_be_left_out() -> None:
    assert "-sandbox" not in argv(MachineSpec(sandbox=False))


def test_a_machine_may_start_running_with_actions() -> None:
    words = argv(MachineSpec(), paused=False, actions={"shutdown": "pause", "panic": "pause"})
    assert "-S" not in words
    assert after(words, "-action") == ["shutdown=pause,panic=pause"]


def test_kernel_words_are_verbatim() -> None:
    kernel = Kernel("/a,b", initrd="/c,d", append="x=1,2 ${tsc_khz}")
    words = argv(MachineSpec(kernel=kernel, no_reboot=True))
    assert after(words, "-kernel") == ["/a,b"]
    assert after(words, "-initrd") == ["/c,d"]
    assert after(words, "-append") == ["x=1,2 ${tsc_khz}"]
    assert "-no-reboot" in words


def test_words_for_a_kernel_that_is_not_named_are_not_given() -> None:
    words = argv(MachineSpec(kernel=Kernel(append="quiet"), firmware="/b,ios"))
    assert not {"-kernel", "-append"} & set(words)
    assert after(words, "-bios") == ["/b,ios"]


def test_machine_options_are_spelled_on_and_off_and_escaped() -> None:
    spec = MachineSpec(machine_options={"hpet": False, "smm": True, "x-oem-id": "a,b", "n": 3})
    assert after(argv(spec), "-machine") == [
        "q35,memory-backend=ram0,hpet=off,smm=on,x-oem-id=a,,b,n=3"
    ]


def test_hotplug_memory_and_a_shared_file() -> None:
    memory = Memory("524296KiB", maxmem="4GiB", slots=8, mem_path="/a,b", share=True)
    words = argv(MachineSpec(memory=memory))
    assert after(words, "-m") == ["size=524296K,slots=8,maxmem=4G"]
    assert json.loads(after(words, "-object")[0]) == {
        "qom-type": "memory-backend-file",
        "id": "ram0",
        "size": 524296 << 10,
        "mem-path": "/a,b",
        "share": True,
    }


def test_what_was_plugged_is_there_at_a_start() -> None:
    dimms = [Dimm(size="128MiB"), Dimm(size="1GiB", id="big", address=5 << 30)]
    memory = Memory("1GiB", maxmem="4GiB", slots=4, mem_path="/ram", dimms=dimms, merge=False)
    spec = MachineSpec(cpu=Cpu(1, 8, threads=2, added=[3, 5]), memory=memory)
    words = argv(spec)
    backends = [json.loads(it) for it in after(words, "-object")]
    common = {"qom-type": "memory-backend-ram", "merge": False}
    assert backends[1:3] == [
        {**common, "id": "qk-dimm0", "size": 128 << 20},
        {**common, "id": "qk-big", "size": 1 << 30},
    ], "the file holds the RAM alone"
    there = {it["id"]: it for it in map(json.loads, after(words, "-device"))}
    assert there["dimm0"] == {"driver": "pc-dimm", "id": "dimm0", "memdev": "qk-dimm0"}
    assert there["big"]["addr"] == 5 << 30
    place = {"socket-id": 0, "core-id": 1, "thread-id": 1}
    assert there["cpu3"] == {"driver": "max-x86_64-cpu", "id": "cpu3", **place}
    assert there["cpu5"]["core-id"] == 2


def test_modules_of_a_guest_with_nodes_lie_where_those_do() -> None:
    nodes = [NumaNode(cpus="0", memory="64MiB"), NumaNode(memory="64MiB", host_nodes="0")]
    memory = Memory("128MiB", maxmem="1GiB", slots=2, dimms=[Dimm(size="128MiB", node=1)])
    words = argv(MachineSpec(memory=memory, numa=nodes))
    backend = json.loads(after(words, "-object")[2])
    assert backend["id"] == "qk-dimm0" and backend["host-nodes"] == [0]
    assert [it["node"] for it in map(json.loads, after(words, "-device")) if "node" in it] == [1]


@pytest.mark.parametrize(
    ("cpu", "place"),
    [
        (Cpu(1, 8), (0, 5, 0)),
        (Cpu(1, 8, sockets=2), (1, 1, 0)),
        (Cpu(1, 8, cores=2), (2, 1, 0)),
        (Cpu(1, 8, sockets=2, cores=2), (1, 0, 1)),
        (Cpu(1, 8, sockets=2, cores=2, threads=2), (1, 0, 1)),
        (Cpu(1, 8, threads=2), (0, 2, 1)),
    ],
)
def test_the_sixth_processors_place(cpu: Cpu, place: tuple[int, int, int]) -> None:
    assert place_of(cpu, 5) == place


def test_a_balloon_says_only_what_is_on() -> None:
    plain = argv(MachineSpec(balloon=True))
    assert "deflate" not in str(plain) and "reporting" not in str(plain)
    words = argv(MachineSpec(balloon=True, memory=Memory(deflate_on_oom=True)))
    (balloon,) = (it for it in map(json.loads, after(words, "-device")) if it["id"] == "balloon0")
    assert balloon["deflate-on-oom"] is True and "free-page-reporting" not in balloon


def test_a_clones_file_says_that_it_is_not_shared() -> None:
    words = argv(MachineSpec(memory=Memory(mem_path="/ram")))
    assert json.loads(after(words, "-object")[0])["share"] is False


def test_endpoints_by_path_listen_without_waiting() -> None:
    ends: dict[str, Endpoint] = {
        "qmp": PathEndpoint("/run/a,b"),
        "serial0": FdEndpoint(5, listen=True),
        TOOLS: PathEndpoint("/t"),
    }
    words = render(MachineSpec(), Facts(), ends)
    assert after(words, "-chardev") == [
        "socket,id=qk-qmp,path=/run/a,,b,server=on,wait=off",
        "socket,id=qk-serial0,fd=5,server=on,wait=off",
        "socket,id=qk-tools,path=/t,server=on,wait=off",
    ]
    assert after(words, "-mon") == [
        "chardev=qk-qmp,mode=control",
        "chardev=qk-tools,mode=control",
    ]


def test_channels_and_links_are_what_render_wants() -> None:
    spec = MachineSpec(
        serials=[Serial("com"), Serial("hvc", "virtio")],
        agent=True,
        nics=[UserNic(), StreamNic(), DgramNic(), StreamNic(address="unix:/a")],
    )
    assert channels(spec) == ("qmp", "com", "hvc", "agent")
    assert links(spec) == ("nic1", "nic2")
    with pytest.raises(ValueError, match="no endpoint for agent, com, hvc, nic1, nic2"):
        render(spec, Facts(), {"qmp": FdEndpoint(3)})
    with pytest.raises(ValueError, match="tool: the machine has no such channel"):
        render(spec, Facts(), {**fds(spec), "tool": FdEndpoint(3)})
    netdevs = [json.loads(word) for word in after(argv(spec), "-netdev")]
    assert netdevs[1]["addr"] == {"type": "fd", "str": "14"}
    assert netdevs[2]["local"] == {"type": "fd", "str": "15"}


def test_a_link_has_to_be_a_descriptor() -> None:
    spec = MachineSpec(nics=[StreamNic()])
    with pytest.raises(ValueError, match="has to be handed over as a descriptor"):
        render(spec, Facts(), {**fds(spec), "nic0": PathEndpoint("/a")})


def test_what_only_kvm_can_do_is_refused_under_tcg() -> None:
    spec = MachineSpec(
        machine="microvm", cpu=Cpu(model="host"), disks=[Disk("a", format="raw", iothread="io")]
    )
    with pytest.raises(SpecInvalid) as caught:
        argv(spec)
    assert [str(fault) for fault in caught.value.faults] == [
        "disks[0].iothread: microvm has iothreads only under KVM, and this is TCG"
        " (leave iothread out)",
        "cpu.model: 'host' needs KVM, and this is TCG (leave model out)",
    ]
    assert "-enable-kvm" in argv(spec, KVM)


def test_a_faulty_machine_is_never_rendered() -> None:
    with pytest.raises(SpecInvalid, match="a machine needs a name"):
        argv(MachineSpec(name=""))


def test_names_in_the_command_follow_the_machine() -> None:
    # The MACs too: two machines from one profile must not meet on a bridge.
    one, two = (argv(attrs.evolve(load_profile("q35"), name=name)) for name in ("one", "two"))
    changed = [(a, b) for a, b in zip(one, two, strict=True) if a != b]
    assert len(changed) == 2
    assert changed[0] == ("guest=one,debug-threads=on", "guest=two,debug-threads=on")
    assert '"mac":' in changed[1][0]


@given(machines())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_machine_renders_json_that_says_where_each_device_is(spec: MachineSpec) -> None:
    facts = KVM if spec.cpu.model == "host" else Facts()
    words = argv(attrs.evolve(spec, extra_args=[], launcher=[]), facts)
    devices = [json.loads(word) for word in after(words, "-device")]
    names = [device["id"] for device in devices]
    nodes = [json.loads(word)["node-name"] for word in after(words, "-blockdev")]
    assert len(set(names)) == len(names)
    images = [disk for disk in spec.disks if not disk.is_empty]
    assert len(set(nodes)) == len(nodes) == 2 * len(images)
    assert all(len(node) <= 31 for node in nodes)
    placed = [(d["bus"], d["addr"]) for d in devices if "addr" in d]
    assert len(set(placed)) == len(placed)
    pci = ("virtio-", "vhost-", "nvme", "e1000e", "VGA", "pvpanic-pci", "pcie-")
    assert all("addr" in d for d in devices if d["driver"].startswith(pci))


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
@settings(max_examples=40, deadline=None)
def test_what_is_shown_can_be_pasted(words: list[str]) -> None:
    # A real shell is the judge: shlex.split does not know a line's continuation.
    script = "printf '%s\\0' " + pretty(words)
    shown = subprocess.run(["/bin/sh", "-c", script], check=True, capture_output=True).stdout
    assert shown.decode().split("\0")[:-1] == words


def test_one_option_a_line() -> None:
    assert (
        pretty(["q", "-name", "a b", "-S", "-m", "1"]) == "q \\\n  -name 'a b' \\\n  -S \\\n  -m 1"
    )


@given(st.text())
def test_an_escaped_comma_ends_no_field(text: str) -> None:
    # As QEMU reads it: two commas are one, a single one separates.
    assert escape(text).replace(",,", "\0").count(",") == 0
    assert escape(text).replace(",,", ",") == text


def test_pairs_leave_out_none_and_json_is_ascii() -> None:
    assert keyvals("a,b", [("x", None), ("y", True), ("z", "c,d")]) == "a,,b,y=on,z=c,,d"
    assert to_json({"a": NASTY}).isascii()
    assert json.loads(to_json({"a": NASTY}))["a"] == NASTY


def test_a_nic_is_silent_from_the_first_moment_on() -> None:
    spec = MachineSpec(name="web", nics=[DgramNic(remote="230.0.0.1:1234"), UserNic()])
    words = argv(spec, incoming=True, silent=["nic0"])
    assert words[-4:] == [
        "-chardev",
        "null,id=qk-silent-nic0",
        "-object",
        '{"qom-type":"filter-redirector","id":"qk-silent-nic0","netdev":"qk-nic0",'
        '"queue":"tx","outdev":"qk-silent-nic0"}',
    ]
    assert words[:-4] == argv(spec, incoming=True)
