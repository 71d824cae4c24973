"""Machines that hypothesis makes up: valid ones, with awkward texts wherever a text may stand."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from qmpkit.spec.block import Cache, Disk, DiskInterface, Overlay
from qmpkit.spec.chardev import Serial
from qmpkit.spec.cpu import Cpu
from qmpkit.spec.dimms import Dimm
from qmpkit.spec.machine import Kernel, MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.network import DgramNic, Forward, Nic, StreamNic, TapNic, UserNic
from qmpkit.spec.options import text_problem
from qmpkit.spec.resources import IoMax, Resources
from qmpkit.spec.sizes import GIB, KIB, MIB

NASTY = "a,b'\"\\ \n\t$`;&|*?[]{}~#%=é\u2028😀"

# What QEMU takes in no text is a fault of its own, see test_options.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12).filter(
    lambda text: not text_problem(text)
) | st.sampled_from([NASTY, ",", ",,", "id=x,share=on", "a b", '"', "'", "\n", "-x", "${"])
paths = texts.filter(bool)
names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=15).filter(
    lambda name: name.isprintable() and "/" not in name and name[0] not in ".-"
)
ids = st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,19}", fullmatch=True).filter(
    lambda name: not name.startswith("qk-")
)
ports = st.integers(1, 65535)
addresses = st.ip_addresses(v=4).map(str)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def disks(draw: st.DrawFn, number: int) -> Disk:
    """The file's name ends in the number: two disks never share one."""
    interface: DiskInterface = draw(
        st.sampled_from(["virtio-blk", "virtio-scsi", "nvme", "cdrom", "scsi-cdrom"])
    )
    cdrom = "cdrom" in interface
    file = "" if cdrom and draw(st.booleans()) else f"{draw(texts)}{number}"
    cache: Cache = draw(
        st.sampled_from(["writeback", "none", "writethrough", "directsync", "unsafe"])
    )
    native = cache in ("none", "directsync")
    overlay = st.builds(Overlay, paths.map(lambda text: f"{text}-base"), format=st.just("raw"))
    sizes = st.integers(1, 1 << 40).map(lambda sectors: sectors * 512)
    readonly = draw(st.booleans())
    make = None if readonly or cdrom else draw(st.none() | sizes | overlay)
    threads = interface in ("virtio-blk",)
    several = threads and draw(st.booleans())
    return Disk(
        file,
        format="qcow2" if isinstance(make, Overlay) else draw(st.sampled_from(["raw", "qcow2"])),
        make=make,
        interface=interface,
        cache=cache,
        aio=draw(st.sampled_from(["threads", "native", "io_uring"] if native else ["threads"])),
        discard=True,
        detect_zeroes=draw(st.sampled_from(["off", "on", "unmap"])),
        readonly=readonly,
        iothread=draw(optional(ids)) if threads and not several else None,
        iothreads=draw(st.lists(ids, min_size=1, max_size=3, unique=True)) if several else (),
        queues=draw(optional(st.integers(3, 256))) if threads else None,
        serial=draw(
            optional(
                st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)
            )
        ),
        boot=draw(optional(st.just(number))),
        node=draw(optional(st.just(f"node{number}"))),
    )


def _mac(number: int) -> str:
    return ":".join(f"{byte:02x}" for byte in (0x52, *number.to_bytes(5, "big")))


nic_common = {
    "mac": optional(st.integers(0, 2**40 - 1).map(_mac)),
    "model": st.sampled_from(["virtio-net", "e1000e"]),
}
forwards = st.builds(
    Forward,
    host=st.integers(0, 65535),
    guest=ports,
    proto=st.sampled_from(["tcp", "udp"]),
    address=addresses,
    guest_address=optional(addresses),
)
sockets = st.builds("unix:{}".format, paths) | st.builds("{}:{}".format, addresses, ports)
nics: st.SearchStrategy[Nic] = st.one_of(
    st.builds(
        UserNic,
        forwards=st.lists(forwards, max_size=2, unique_by=lambda forward: forward.host),
        net=optional(st.just("10.1.0.0/16")),
        restrict=st.booleans(),
        **nic_common,
    ),
    st.builds(TapNic, ifname=st.from_regex(r"[a-z,=]{1,15}", fullmatch=True), vhost=st.booleans()),
    st.builds(StreamNic, address=optional(sockets), server=st.booleans(), **nic_common),
    st.builds(DgramNic, local=st.none(), remote=optional(sockets), **nic_common),
)
cpus = st.one_of(
    st.builds(Cpu, st.integers(1, 255)),
    st.builds(
        Cpu,
        cpus=st.integers(1, 4),
        maxcpus=st.just(8),
        model=optional(st.sampled_from(["host", "max", "Skylake-Client-v4"])),
        flags=st.lists(st.sampled_from(["+avx", "-x2apic", "phys-bits=40"]), max_size=3),
        sockets=optional(st.just(2)),
        cores=optional(st.just(4)),
        threads=optional(st.just(1)),
        pin=optional(st.sampled_from(["auto", "0-3", ("1", "", "2-3")])),
        added=st.lists(st.integers(4, 7), max_size=3, unique=True),
    ),
)
sizes = st.integers(128, 1 << 30).map(lambda count: count * 8 * KIB)
dimms = st.builds(
    Dimm,
    size=st.integers(1, 2).map(lambda count: count * 128 * MIB),
    node=optional(st.just(0)),
)
memories = st.one_of(
    st.builds(Memory, sizes),
    st.builds(
        Memory,
        st.just(64 * MIB),
        maxmem=sizes.filter(lambda size: size > 64 * MIB),
        slots=st.integers(1, 256),
        mem_path=optional(paths),
        share=st.booleans(),
        prealloc=st.booleans(),
        host_nodes=optional(st.sampled_from(["0", "0-1,3"])),
        policy=st.sampled_from(["bind", "interleave"]),
        merge=st.booleans(),
        dump=st.booleans(),
        lock=st.booleans(),
    ),
    st.builds(
        Memory,
        st.just(64 * MIB),
        maxmem=st.just(GIB),
        slots=st.just(4),
        dimms=st.lists(dimms, max_size=3),
    ),
    st.builds(
        Memory,
        st.integers(1, 64).map(lambda count: count * 2 * MIB),
        huge_pages=st.just(2 * MIB),
        prealloc=st.just(True),
        prealloc_threads=st.integers(1, 8),
    ),
)
lists = st.sampled_from(["0", "2-3", "0,5-7"])
rates = optional(st.integers(1, 1 << 40))
resources = st.builds(
    Resources,
    emulator=optional(lists),
    policy=optional(st.sampled_from(["other", "batch", "idle"])),
    nice=optional(st.integers(-20, 19)),
    cpu_max=optional(st.floats(0.01, 256)),
    cpu_weight=optional(st.integers(1, 10_000)),
    memory_high=optional(st.integers(1, MIB)),
    memory_max=optional(st.integers(MIB, 1 << 50)),
    pids_max=optional(st.integers(1, 4096)),
    io_max=st.lists(
        st.builds(IoMax, device=st.sampled_from(["/dev/sda", "8:16"]), rbps=st.just(1), wiops=rates)
    ),
)
kernels = st.builds(Kernel, paths, initrd=optional(paths), append=texts)
serials = st.integers(0, 4) | st.lists(
    ids.filter(lambda name: name not in ("qmp", "tools", "agent", "agent0")),
    unique=True,
    max_size=3,
).map(lambda found: [Serial(name, kind="virtio") for name in found])


@st.composite
def machines(draw: st.DrawFn) -> MachineSpec:
    """A valid q35 with something in every field."""
    count = draw(st.integers(0, 4))
    return MachineSpec(
        name=draw(names),
        description=draw(texts),
        machine=draw(st.sampled_from(["q35", "pc-q35-7.2"])),
        machine_options=draw(
            st.dictionaries(st.sampled_from(["hpet", "usb", "smm"]), st.booleans() | texts | ports)
        ),
        accel=draw(st.sampled_from(["auto", "kvm", "tcg"])),
        cpu=draw(cpus),
        memory=draw(memories),
        resources=draw(resources),
        kernel=draw(optional(kernels)),
        firmware=draw(optional(paths)),
        disks=[draw(disks(number)) for number in range(count)],
        nics=draw(st.lists(nics, max_size=3, unique_by=lambda nic: nic.mac or object())),
        serials=draw(serials),
        agent=draw(st.booleans()),
        rng=draw(st.booleans()),
        balloon=draw(st.booleans()),
        panic=draw(st.booleans()),
        vmgenid=draw(optional(st.just("auto") | st.uuids().map(str))),
        vsock=draw(optional(st.integers(3, 2**32 - 2))),
        display=draw(st.sampled_from(["none", "std"])),
        root_ports=draw(st.integers(0, 32) | st.integers(33, 160)),
        no_reboot=draw(st.booleans()),
        uuid=draw(optional(st.uuids().map(str))),
        sandbox=draw(st.booleans()),
        run_as=draw(optional(paths)),
        launcher=draw(st.lists(texts, max_size=2)),
        image_folders=draw(st.lists(paths, max_size=2)),
        env=draw(st.dictionaries(st.from_regex(r"[A-Z_.,' ]{1,8}", fullmatch=True), texts)),
        qemu=draw(optional(paths)),
        extra_args=draw(st.lists(texts, max_size=2)),
    )
