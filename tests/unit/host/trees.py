"""Hosts with more nodes than the one that tests run on: their /sys and /proc, laid out."""

from __future__ import annotations

from pathlib import Path

from qmpkit.spec.number_list import text_of

NODE_MEMORY = 64 << 20  # KiB


def write(root: Path, path: str, text: str) -> None:
    where = root / path
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(text)


def two_nodes(root: Path, *, cores: int = 4, huge: tuple[int, int] = (0, 0)) -> Path:
    """Two sockets, a node each, *cores* with two threads: 0 and 8 are the first core of four.

    As a Xeon of two sockets tells it.  *huge*: the free pages of 2 MiB of each node.
    """
    count = 4 * cores
    every = list(range(count))
    write(root, "sys/devices/system/cpu/online", f"0-{count - 1}\n")
    write(root, "sys/devices/system/node/online", "0-1\n")
    write(root, "proc/self/status", f"Name:\tx\nCpus_allowed_list:\t0-{count - 1}\n")
    for cpu in every:
        node = cpu % (2 * cores) // cores
        topology = f"sys/devices/system/cpu/cpu{cpu}/topology"
        write(root, f"{topology}/physical_package_id", f"{node}\n")
        write(root, f"{topology}/core_id", f"{cpu % cores}\n")
        cache = f"sys/devices/system/cpu/cpu{cpu}/cache/index3"
        near = [other for other in every if other % (2 * cores) // cores == node]
        write(root, f"{cache}/level", "3\n")
        write(root, f"{cache}/type", "Unified\n")
        write(root, f"{cache}/size", "32768K\n")
        write(root, f"{cache}/shared_cpu_list", text_of(near) + "\n")
    for node in (0, 1):
        folder = f"sys/devices/system/node/node{node}"
        cpus = [cpu for cpu in every if cpu % (2 * cores) // cores == node]
        write(root, f"{folder}/cpulist", text_of(cpus) + "\n")
        write(root, f"{folder}/distance", "10 21\n" if node == 0 else "21 10\n")
        lines = {"MemTotal": NODE_MEMORY, "MemFree": NODE_MEMORY // 2, "Inactive(file)": 1024}
        text = "".join(f"Node {node} {name}:  {kib} kB\n" for name, kib in lines.items())
        write(root, f"{folder}/meminfo", text)
        pool = f"{folder}/hugepages/hugepages-2048kB"
        write(root, f"{pool}/nr_hugepages", f"{huge[node]}\n")
        write(root, f"{pool}/free_hugepages", f"{huge[node]}\n")
    pool = "sys/kernel/mm/hugepages/hugepages-2048kB"
    for name, number in (
        ("nr_hugepages", sum(huge)),
        ("free_hugepages", sum(huge)),
        ("nr_overcommit_hugepages", 0),
        ("surplus_hugepages", 0),
    ):
        write(root, f"{pool}/{name}", f"{number}\n")
    write(root, "sys/kernel/mm/ksm/run", "1\n")
    return root


def qemu_process(root: Path, pid: int, machine: str, pins: list[str], *, rest: str) -> None:
    """A QEMU in *root*'s /proc: its vCPUs on *pins*, its other threads on *rest*."""
    argv = ["/usr/bin/qemu-system-x86_64", "-name", f"guest={machine},debug-threads=on"]
    write(root, f"proc/{pid}/cmdline", "\0".join(argv) + "\0")
    threads = [("qemu-system-x86", rest), ("IO io-a", rest)]
    threads += [(f"CPU {number}/KVM", pin) for number, pin in enumerate(pins)]
    for number, (name, allowed) in enumerate(threads):
        status = f"Name:\t{name}\nTgid:\t{pid}\nCpus_allowed_list:\t{allowed}\n"
        write(root, f"proc/{pid}/task/{pid + number}/status", status)
