"""Every size that differs between the plain run (CI's) and `scripts/test --long`.

The long sizes are those the issues write.
"""

from __future__ import annotations

import os

QEMU_VERSIONS = ("7.2", "10.0")  # the live tests run on each of them
ARCHITECTURES = ("aarch64", "riscv64")  # and those that take `board` on each of these too

LONG = os.environ.get("QMPKIT_LONG") == "1"

# What hardly depends on QEMU's version is tested on one of them in CI, on each with --long:
# a test without a mark of its own on the one that `share` gives it.
OLDEST = QEMU_VERSIONS if LONG else QEMU_VERSIONS[:1]
NEWEST = QEMU_VERSIONS if LONG else QEMU_VERSIONS[-1:]


def share(position: int) -> tuple[str, ...]:
    """The QEMU versions of a module's so-many-th test: CI divides the tests between them."""
    return QEMU_VERSIONS if LONG else (QEMU_VERSIONS[position % len(QEMU_VERSIONS)],)


def size(ci: int, long: int) -> int:
    """*ci* in the plain run, *long* with `--long`."""
    return long if LONG else ci


# One machine, for real
BOOTED_COPIES = ("tiny", "tiny-microvm") if LONG else ("tiny",)  # of a guest that has booted
TINY_BOOTED = size(ci=3, long=50)  # tiny guests booted to the agent at the same time
TINY_PAUSED = size(ci=27, long=0)  # … and more, started paused
CANCELS_FAKE = size(ci=200, long=200)  # cancellations of start, run and stop on the fake
CANCELS_REAL = size(ci=40, long=200)  # … and on a real QEMU
PYTHON_KILLS = size(ci=20, long=200)  # SIGKILLs of Python 0 to 30 ms into a start
AGENT_CANCELS = size(ci=8, long=200)  # agent calls cancelled at random points
CONSOLE_FLOOD = size(ci=1100, long=20_000)  # KiB printed while nobody reads; 1024 are kept
LATE_KILL_AFTER = size(ci=2, long=15)  # seconds after a start that Python is killed

# Debian on its own disk, with --long: the cached image boots by (QEMU, firmware) and reboots
DEBIAN_BOOTS = [(version, firmware) for firmware in (None, "uefi") for version in QEMU_VERSIONS]
FARM_DEBIANS = size(ci=1, long=2)  # Debian machines of the farm that is brought up by its file
FARM_TINY = size(ci=4, long=12)  # … and tiny ones
FARM_DEBIAN_GRACE = size(ci=0, long=90)  # seconds in which Debian may power down
FARM_SEGMENTS = size(ci=1, long=2)  # … on so many segments, and Debian with a way out too
SEGMENT_KINDS = ("dgram", "stream") if LONG else ("dgram",)  # that a machine joins as it runs

# tiny on the other architectures, by (architecture, QEMU): CI divides the boots between them
BOARDS = [(arch, version) for arch in ARCHITECTURES for version in QEMU_VERSIONS]
WHOLE_LIVES = BOARDS if LONG else [("aarch64", "10.0"), ("riscv64", "7.2")]
IGNORED_BUTTONS = BOARDS if LONG else [("riscv64", "10.0")]

# Images
IMAGE_KILLS = size(ci=8, long=100)  # SIGKILLs of Python while it makes or changes an image
IMAGE_CHAINS = size(ci=12, long=300)  # chains of images made up and compared with qemu-img

# The image store
STORE_KILLS = size(ci=2, long=100)  # SIGKILLs of Python in a pull, and as many in a gc
PULL_CANCELS_EVERY = size(ci=25, long=1)  # a pull is cancelled at each so-many-th checkpoint
OVERLAY_CANCELS_EVERY = size(ci=4, long=1)  # and the making of an overlay on its image

MIRRORED = ("x86_64", "aarch64", "riscv64") if LONG else ("x86_64",)  # of the catalogue's images

# Kept machines
KEPT_MACHINES = size(ci=8, long=50)  # that one supervisor has while it is killed again and again
SUPERVISOR_KILLS = size(ci=15, long=100)  # SIGKILLs of the supervising Python at random moments
ADOPTED = size(ci=12, long=50)  # paused machines adopted at once, in under a second
JOURNAL_KILLS = size(ci=8, long=200)  # SIGKILLs of a process that writes its journal

# Many machines
MADE_UP_FARMS = size(ci=60, long=1000)  # histories of a made-up farm, of 40 steps each
SIMULATED_EVENTS = size(ci=5_000, long=100_000)  # that happen to a farm of fakes
CHAOS_SECONDS = size(ci=0, long=600)  # in which a farm is made to suffer, round after round
FARM_MACHINES = size(ci=10, long=200)  # paused ones, started against a bare script, and kept
FARM_EVENTS = size(ci=20, long=1000)  # of them, timed on their way to a client

# Disks of machines that run
DISK_KILLS = size(ci=4, long=100)  # SIGKILLs between two steps of a change, for each kind
RAM_CANCELS = size(ci=9, long=1)  # each so-and-so-many-th checkpoint of a snapshot with RAM
DISK_KILLED = ("snapshot", "merge", "move", *(("ram", "save") if LONG else ()))
RAM_KILLED = (1, 2) if LONG else (1,)  # where a start that goes on with a RAM is killed
STORES = ("raw", "qcow2") if LONG else ("qcow2",)  # of UEFI variables; others have a raw one
DISK_STEPS = size(ci=8, long=200)  # changes of two disks that a guest writes to all the time

# Images at rest
ENCRYPTED = ("qcow2", "luks") if LONG else ("qcow2",)  # each takes seconds to make
REST_KILLS = size(ci=2, long=100)  # SIGKILLs of Python while it does each of these
REST_KILLED = ("rebase", "commit", "snapshots") if LONG else ("rebase", "commit")
DATA_CANCELS_EVERY = size(ci=9, long=1)  # checkpoints of a copy with a data file
KEY_CANCELS_EVERY = size(ci=1000, long=1)  # checkpoints of a change of secrets, which takes 2 s
REST_CANCELS = ("commit", "rebase") if LONG else ("commit",)  # cancelled at every checkpoint

# Backups
BACKUP_POINTS = size(ci=3, long=19)  # in one chain, and one more after a restart
BACKUP_CANCELS = size(ci=17, long=1)  # each so-and-so-many-th checkpoint of one
BACKUP_KILLS = size(ci=2, long=100)  # SIGKILLs between two steps of a backup, and of a prune

# Hotplug
HOTPLUG_STEPS = size(ci=15, long=200)  # devices that come and go in random order
_MORE_CHANGES = ("pull_cable", "remove_rng", "remove_module", "add_growing")
HOTPLUG_CANCELS = size(ci=40, long=1)  # each so-and-so-many-th checkpoint of a plug
CHANGE_CANCELS = size(ci=12, long=1)  # … of a change of what is plugged, each of these
CHANGES_CANCELLED = ("remove_disk", "change_nic", "balloon", *(_MORE_CHANGES if LONG else ()))
RESOURCE_CANCELS = size(ci=6, long=1)  # … of one of memory, or of a processor
HOTPLUG_KILLS = size(ci=2, long=40)  # SIGKILLs between two steps of a plug, and of an unplug
RESOURCE_KILLED = ("add", "grow", *(("remove", "shrink") if LONG else ()))
RESOURCE_KILLS_EVERY = size(ci=8, long=1)  # … of memory, or of a processor: each so-many-th step
BUTTONS = [it for it in BOARDS if it[0] == "aarch64"]  # pressed
# What a machine is given of its host
LIMITED_CANCELS = size(ci=9, long=1)  # each so-and-so-many-th checkpoint of one with limits

# Templates
CLONES_APART = size(ci=6, long=20)  # clones that differ in all that makes somebody
TEMPLATE_CANCELS = size(ci=3, long=1)  # each so-and-so-many-th checkpoint of a save, of a clone
POOL_CANCELS = size(ci=13, long=1)  # … and of the life of a pool
POOL_CLONES = size(ci=50, long=1000)  # that one pool gives, one after another
HELD_AT_ONCE = size(ci=8, long=50)  # clones that are taken at the same time

# Migration
WAYS = ("fd", "unix", "tcp", "file", "multifd")
MIGRATION_WAYS = WAYS if LONG else ("fd", "multifd")  # each on both QEMUs
POSTCOPY_SWITCHES = size(ci=2, long=10)  # … by postcopy, whose connection is cut as they switch
FILE_SWITCHES = size(ci=3, long=30)  # migrations into a file, called off as they switch over
MIGRATION_CANCELS = size(ci=25, long=1)  # each so-and-so-many-th checkpoint of one
MIGRATION_ROUNDS = size(ci=0, long=50)  # by each way, of a guest that keeps a ledger
DISK_MOVES = QEMU_VERSIONS if LONG else NEWEST  # disks that go along, of each odd kind
DISK_CANCELS = size(ci=90, long=1)  # each so-and-so-many-th checkpoint of one with its disks
KEPT_DISK_CANCELS = size(ci=150, long=1)  # … of a kept machine
MOVED_DISK_KILLS = size(ci=2, long=200)  # SIGKILLs of a supervisor between two steps of one
# At which words the conversation breaks off, before or after the answer.
DISK_CUTS = [("alike", True), ("disks", True), ("alike", False), ("disks", False)]
DISK_CUTS = DISK_CUTS if LONG else DISK_CUTS[:1]
LEDGER_KILLS = size(ci=0, long=50)  # SIGKILLs of either supervisor, whose guest keeps a ledger
KVM_MIGRATIONS = size(ci=3, long=50)  # of one under KVM
MIGRATION_KILLS = size(ci=4, long=100)  # SIGKILLs of a supervisor between two steps of one
MIGRATIONS_KILLED = ("live", "postcopy") if LONG else ("live",)  # … by each of these policies
POSTCOPY_ROUNDS = size(ci=0, long=50)  # of a guest that keeps a ledger, and writes too fast
POSTCOPY_DEATHS = ("kill", "cut") if LONG else ("kill",)  # of a supervisor, and the connection too
POSTCOPY_STOPS = ("before", "after") if LONG else ("after",)  # of a kept machine that moves
KEPT_MIGRATION_CANCELS = size(ci=60, long=1)  # checkpoints of one of a kept machine
CABLE_CANCELS = size(ci=400, long=5)  # checkpoints of one whose machine is in networks
CABLE_KILLS = size(ci=1, long=200)  # SIGKILLs of its supervisor between two steps of one
MOVE_CANCELS = size(ci=40, long=3)  # checkpoints of one to another supervisor
_ASKS = ("offer", "set_up", "listen", "loaded")  # of its conversation, cut before and after
MOVE_CUTS = (
    tuple((ask, passes) for ask in _ASKS for passes in (False, True))
    if LONG
    else (("set_up", True), ("loaded", False))
)
# At which words the conversation breaks off while memory follows, before or after the answer.
REST_CUTS = [(word, passes) for word in ("rest", "run_ahead", "now") for passes in (False, True)]
MOVE_KILLS = size(ci=2, long=100)  # SIGKILLs of a supervisor between two steps of one

# Saved machines
RAM_FORMS = ("plain", "packed", "mapped") if LONG else ("mapped",)  # packed is tried elsewhere
SAVED_CANCELS = size(ci=17, long=1)  # each so-and-so-many-th checkpoint of a save, of a restore
# After which step of a save its supervisor is killed, or QEMU too.
SAVED_KILLED = [(step, who) for step in (1, 2, 3, 4) for who in ("supervisor", "both")]
SAVED_KILLED = SAVED_KILLED if LONG else [(2, "supervisor"), (3, "both")]
LAB_KILLED = (1, 2, 3, 4, 5, 6, 7) if LONG else (4,)  # … of a checkpoint of two, and a rewind
LAB_CANCELS = size(ci=97, long=7)  # each so-and-so-many-th checkpoint of one of a lab, and back
REWINDS = size(ci=1, long=5)  # of two guests that talk to one another
