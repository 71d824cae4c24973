"""QEMU/KVM virtual machines from Python, supervised with trio, without libvirt.

Every public name is listed here and loaded when it is first used (PEP 562), so
that `import qmpkit` costs next to nothing and a program that only needs
`qmpkit.load_profile` never loads trio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qmpkit._lazy import lazily

if TYPE_CHECKING:
    from qmpkit import backups as backups
    from qmpkit import farm as farm
    from qmpkit import images as images
    from qmpkit._receiving import Destination as Destination
    from qmpkit._receiving import receiving as receiving
    from qmpkit._running import restored as restored
    from qmpkit._running import running as running
    from qmpkit.errors import AgentSilent as AgentSilent
    from qmpkit.errors import BinaryMissing as BinaryMissing
    from qmpkit.errors import CertificateWrong as CertificateWrong
    from qmpkit.errors import ChecksumWrong as ChecksumWrong
    from qmpkit.errors import Fault as Fault
    from qmpkit.errors import GuestRefused as GuestRefused
    from qmpkit.errors import HostLacks as HostLacks
    from qmpkit.errors import ImageFailed as ImageFailed
    from qmpkit.errors import ImageInUse as ImageInUse
    from qmpkit.errors import ImageRefused as ImageRefused
    from qmpkit.errors import JournalFailed as JournalFailed
    from qmpkit.errors import JournalNewer as JournalNewer
    from qmpkit.errors import KvmUnavailable as KvmUnavailable
    from qmpkit.errors import LaunchFailed as LaunchFailed
    from qmpkit.errors import MachineDied as MachineDied
    from qmpkit.errors import MachineGone as MachineGone
    from qmpkit.errors import MachineMoving as MachineMoving
    from qmpkit.errors import PullFailed as PullFailed
    from qmpkit.errors import QmpkitError as QmpkitError
    from qmpkit.errors import SignatureWrong as SignatureWrong
    from qmpkit.errors import SpecInvalid as SpecInvalid
    from qmpkit.errors import SupervisorRunning as SupervisorRunning
    from qmpkit.host.doctor.examination import examine_host as examine_host
    from qmpkit.host.doctor.finding import Finding as Finding
    from qmpkit.host.doctor.finding import HostReport as HostReport
    from qmpkit.host.topology import Topology as Topology
    from qmpkit.host.topology import topology as topology
    from qmpkit.machine.launch import LaunchOptions as LaunchOptions
    from qmpkit.machine.machine import Graces as Graces
    from qmpkit.machine.report import ExitCause as ExitCause
    from qmpkit.machine.report import ExitReport as ExitReport
    from qmpkit.machine.state import State as State
    from qmpkit.operations.agent import Agent as Agent
    from qmpkit.operations.agent_info import GuestInterface as GuestInterface
    from qmpkit.operations.agent_info import OsInfo as OsInfo
    from qmpkit.operations.block.at_rest import AtRest as AtRest
    from qmpkit.operations.block.at_rest import at_rest as at_rest
    from qmpkit.operations.block.backup_pull import Pull as Pull
    from qmpkit.operations.block.backup_pull import PulledDisk as PulledDisk
    from qmpkit.operations.block.fronts import Backups as Backups
    from qmpkit.operations.block.fronts import Snapshots as Snapshots
    from qmpkit.operations.block.graph import Layer as Layer
    from qmpkit.operations.block.revert import reverted as reverted
    from qmpkit.operations.completed import Completed as Completed
    from qmpkit.operations.console import Console as Console
    from qmpkit.operations.console_attach import AttachEnd as AttachEnd
    from qmpkit.operations.console_reader import Reader as Reader
    from qmpkit.operations.errors import AgentRefused as AgentRefused
    from qmpkit.operations.errors import BackupDiffers as BackupDiffers
    from qmpkit.operations.errors import ConsoleEnded as ConsoleEnded
    from qmpkit.operations.errors import GuestCommandFailed as GuestCommandFailed
    from qmpkit.operations.errors import JobFailed as JobFailed
    from qmpkit.operations.errors import OutputLost as OutputLost
    from qmpkit.operations.errors import TrayLocked as TrayLocked
    from qmpkit.operations.errors import UnknownKey as UnknownKey
    from qmpkit.operations.forwards import Forwarded as Forwarded
    from qmpkit.operations.hotplug.balloon import GuestMemoryUse as GuestMemoryUse
    from qmpkit.operations.hotplug.cpus import Vcpu as Vcpu
    from qmpkit.operations.hotplug.errors import NoPortLeft as NoPortLeft
    from qmpkit.operations.hotplug.errors import PlugFailed as PlugFailed
    from qmpkit.operations.hotplug.errors import UnplugPending as UnplugPending
    from qmpkit.operations.hotplug.errors import UnplugRefused as UnplugRefused
    from qmpkit.operations.hotplug.fronts import Devices as Devices
    from qmpkit.operations.hotplug.fronts import Disks as Disks
    from qmpkit.operations.hotplug.fronts import Nics as Nics
    from qmpkit.operations.hotplug.places import RootPorts as RootPorts
    from qmpkit.operations.hotplug.resources import Cpus as Cpus
    from qmpkit.operations.hotplug.resources import GuestMemory as GuestMemory
    from qmpkit.operations.jobs import JobProgress as JobProgress
    from qmpkit.operations.jobs import JobState as JobState
    from qmpkit.operations.migration.convergence import Copying as Copying
    from qmpkit.operations.migration.convergence import Round as Round
    from qmpkit.operations.migration.convergence import Step as Step
    from qmpkit.operations.migration.convergence import fast as fast
    from qmpkit.operations.migration.convergence import live as live
    from qmpkit.operations.migration.convergence import postcopy as postcopy
    from qmpkit.operations.migration.errors import CannotMigrate as CannotMigrate
    from qmpkit.operations.migration.errors import MigrationFailed as MigrationFailed
    from qmpkit.operations.migration.errors import MigrationLost as MigrationLost
    from qmpkit.operations.migration.errors import MigrationUnknown as MigrationUnknown
    from qmpkit.operations.migration.errors import NotArrived as NotArrived
    from qmpkit.operations.migration.following import Migration as Migration
    from qmpkit.operations.migration.moving import Migrated as Migrated
    from qmpkit.operations.migration.options import MigrationOptions as MigrationOptions
    from qmpkit.operations.migration.place import MovePlace as MovePlace
    from qmpkit.operations.migration.place import move_place as move_place
    from qmpkit.operations.patterns import Match as Match
    from qmpkit.operations.saved.restoring import saved_machine as saved_machine
    from qmpkit.operations.saved.restoring import verify_saved as verify_saved
    from qmpkit.operations.tune.fronts import Tune as Tune
    from qmpkit.operations.tune.live import Tuned as Tuned
    from qmpkit.operations.tune.stats import DiskUse as DiskUse
    from qmpkit.operations.tune.stats import Rates as Rates
    from qmpkit.operations.tune.stats import Stats as Stats
    from qmpkit.operations.tune.threads import Threads as Threads
    from qmpkit.operations.tune.usage import MemoryUse as MemoryUse
    from qmpkit.operations.tune.usage import NicUse as NicUse
    from qmpkit.operations.tune.usage import ThreadTime as ThreadTime
    from qmpkit.process.cgroup import Pressure as Pressure
    from qmpkit.process.status import ExitStatus as ExitStatus
    from qmpkit.qmp.connect import connect as connect
    from qmpkit.qmp.errors import CommandRefused as CommandRefused
    from qmpkit.qmp.errors import EventsLost as EventsLost
    from qmpkit.qmp.errors import MonitorAbsent as MonitorAbsent
    from qmpkit.qmp.errors import MonitorBusy as MonitorBusy
    from qmpkit.qmp.errors import MonitorGarbled as MonitorGarbled
    from qmpkit.qmp.errors import MonitorLost as MonitorLost
    from qmpkit.qmp.errors import MonitorMisread as MonitorMisread
    from qmpkit.qmp.errors import MonitorSilent as MonitorSilent
    from qmpkit.qmp.errors import MonitorTorn as MonitorTorn
    from qmpkit.qmp.events import Event as Event
    from qmpkit.qmp.events import Subscription as Subscription
    from qmpkit.qmp.session import Session as Session
    from qmpkit.spec.backups import BackupLayer as BackupLayer
    from qmpkit.spec.backups import BackupPoint as BackupPoint
    from qmpkit.spec.block import Disk as Disk
    from qmpkit.spec.block import Overlay as Overlay
    from qmpkit.spec.chardev import Serial as Serial
    from qmpkit.spec.checkpoints import Checkpoint as Checkpoint
    from qmpkit.spec.cpu import Cpu as Cpu
    from qmpkit.spec.data import spec_from_dict as spec_from_dict
    from qmpkit.spec.data import spec_from_toml as spec_from_toml
    from qmpkit.spec.data import spec_to_dict as spec_to_dict
    from qmpkit.spec.data import spec_to_toml as spec_to_toml
    from qmpkit.spec.dimms import Dimm as Dimm
    from qmpkit.spec.encryption import BaseKey as BaseKey
    from qmpkit.spec.encryption import Luks as Luks
    from qmpkit.spec.farm import Farm as Farm
    from qmpkit.spec.farm import FarmMachine as FarmMachine
    from qmpkit.spec.farm_load import load_farm as load_farm
    from qmpkit.spec.firmware import Uefi as Uefi
    from qmpkit.spec.limits import IoLimits as IoLimits
    from qmpkit.spec.machine import Kernel as Kernel
    from qmpkit.spec.machine import MachineSpec as MachineSpec
    from qmpkit.spec.memory import Memory as Memory
    from qmpkit.spec.network import DgramNic as DgramNic
    from qmpkit.spec.network import Forward as Forward
    from qmpkit.spec.network import StreamNic as StreamNic
    from qmpkit.spec.network import TapNic as TapNic
    from qmpkit.spec.network import UserNic as UserNic
    from qmpkit.spec.numa import NumaNode as NumaNode
    from qmpkit.spec.peripherals import Rng as Rng
    from qmpkit.spec.peripherals import ScsiController as ScsiController
    from qmpkit.spec.peripherals import Share as Share
    from qmpkit.spec.peripherals import UsbController as UsbController
    from qmpkit.spec.peripherals import UsbHost as UsbHost
    from qmpkit.spec.peripherals import UsbKeyboard as UsbKeyboard
    from qmpkit.spec.peripherals import UsbTablet as UsbTablet
    from qmpkit.spec.peripherals import Vfio as Vfio
    from qmpkit.spec.peripherals import VirtioMem as VirtioMem
    from qmpkit.spec.peripherals import Vsock as Vsock
    from qmpkit.spec.profile import load_profile as load_profile
    from qmpkit.spec.profile import profile_names as profile_names
    from qmpkit.spec.resources import IoMax as IoMax
    from qmpkit.spec.resources import Resources as Resources
    from qmpkit.spec.restart import Restart as Restart
    from qmpkit.spec.saved import SavedMachine as SavedMachine
    from qmpkit.spec.snapshots import Snapshot as Snapshot
    from qmpkit.supervisor.errors import LeftAlone as LeftAlone
    from qmpkit.supervisor.errors import StartBlocked as StartBlocked
    from qmpkit.supervisor.errors import StartCalledOff as StartCalledOff
    from qmpkit.supervisor.events import Happening as Happening
    from qmpkit.supervisor.events import Happenings as Happenings
    from qmpkit.supervisor.kept import Kept as Kept
    from qmpkit.supervisor.moves.departures import Whereabouts as Whereabouts
    from qmpkit.supervisor.moves.terms import ReceiveTerms as ReceiveTerms
    from qmpkit.supervisor.moves.unkept import hand_over as hand_over
    from qmpkit.supervisor.supervisor import Supervisor as Supervisor
    from qmpkit.supervisor.table import Row as Row
    from qmpkit.templates.errors import PoolClosed as PoolClosed
    from qmpkit.templates.errors import TemplateBroken as TemplateBroken
    from qmpkit.templates.errors import TemplateFailed as TemplateFailed
    from qmpkit.templates.errors import TemplateInUse as TemplateInUse
    from qmpkit.templates.errors import TemplateUnfit as TemplateUnfit
    from qmpkit.templates.make import make_template as make_template
    from qmpkit.templates.opening import open_template as open_template
    from qmpkit.templates.pool import Pool as Pool
    from qmpkit.templates.specs import templating as templating
    from qmpkit.templates.take import to_template as to_template
    from qmpkit.templates.template import Template as Template
    from qmpkit.vm import VM as VM

__version__ = "0.1.0"

_MODULES = {
    "qmpkit._receiving": "Destination receiving",
    "qmpkit._running": "restored running",
    "qmpkit.errors": (
        "AgentSilent BinaryMissing CertificateWrong ChecksumWrong Fault GuestRefused HostLacks "
        "ImageFailed ImageInUse ImageRefused JournalFailed JournalNewer KvmUnavailable "
        "LaunchFailed MachineDied MachineGone MachineMoving PullFailed QmpkitError SignatureWrong "
        "SpecInvalid SupervisorRunning"
    ),
    "qmpkit.host.doctor.examination": "examine_host",
    "qmpkit.host.doctor.finding": "Finding HostReport",
    "qmpkit.host.topology": "Topology topology",
    "qmpkit.qmp.connect": "connect",
    "qmpkit.qmp.errors": (
        "CommandRefused EventsLost MonitorAbsent MonitorBusy MonitorGarbled MonitorLost "
        "MonitorMisread MonitorSilent MonitorTorn"
    ),
    "qmpkit.qmp.events": "Event Subscription",
    "qmpkit.qmp.session": "Session",
    "qmpkit.machine.launch": "LaunchOptions",
    "qmpkit.machine.machine": "Graces",
    "qmpkit.machine.report": "ExitCause ExitReport",
    "qmpkit.machine.state": "State",
    "qmpkit.operations.agent": "Agent",
    "qmpkit.operations.agent_info": "GuestInterface OsInfo",
    "qmpkit.operations.block.at_rest": "AtRest at_rest",
    "qmpkit.operations.block.backup_pull": "Pull PulledDisk",
    "qmpkit.operations.completed": "Completed",
    "qmpkit.operations.console": "Console",
    "qmpkit.operations.console_attach": "AttachEnd",
    "qmpkit.operations.console_reader": "Reader",
    "qmpkit.operations.errors": (
        "AgentRefused BackupDiffers ConsoleEnded GuestCommandFailed JobFailed OutputLost "
        "TrayLocked UnknownKey"
    ),
    "qmpkit.operations.forwards": "Forwarded",
    "qmpkit.operations.block.fronts": "Backups Snapshots",
    "qmpkit.operations.hotplug.balloon": "GuestMemoryUse",
    "qmpkit.operations.hotplug.cpus": "Vcpu",
    "qmpkit.operations.hotplug.errors": "NoPortLeft PlugFailed UnplugPending UnplugRefused",
    "qmpkit.operations.hotplug.fronts": "Devices Disks Nics",
    "qmpkit.operations.hotplug.places": "RootPorts",
    "qmpkit.operations.hotplug.resources": "Cpus GuestMemory",
    "qmpkit.operations.block.graph": "Layer",
    "qmpkit.operations.block.revert": "reverted",
    "qmpkit.operations.jobs": "JobProgress JobState",
    "qmpkit.operations.migration.convergence": "Copying Round Step fast live postcopy",
    "qmpkit.operations.migration.errors": (
        "CannotMigrate MigrationFailed MigrationLost MigrationUnknown NotArrived"
    ),
    "qmpkit.operations.migration.following": "Migration",
    "qmpkit.operations.migration.moving": "Migrated",
    "qmpkit.operations.migration.options": "MigrationOptions",
    "qmpkit.operations.migration.place": "MovePlace move_place",
    "qmpkit.operations.patterns": "Match",
    "qmpkit.operations.saved.restoring": "saved_machine verify_saved",
    "qmpkit.operations.tune.fronts": "Tune",
    "qmpkit.operations.tune.live": "Tuned",
    "qmpkit.operations.tune.stats": "DiskUse Rates Stats",
    "qmpkit.operations.tune.threads": "Threads",
    "qmpkit.operations.tune.usage": "MemoryUse NicUse ThreadTime",
    "qmpkit.process.cgroup": "Pressure",
    "qmpkit.process.status": "ExitStatus",
    "qmpkit.spec.backups": "BackupLayer BackupPoint",
    "qmpkit.spec.block": "Disk Overlay",
    "qmpkit.spec.limits": "IoLimits",
    "qmpkit.spec.chardev": "Serial",
    "qmpkit.spec.checkpoints": "Checkpoint",
    "qmpkit.spec.cpu": "Cpu",
    "qmpkit.spec.dimms": "Dimm",
    "qmpkit.spec.data": "spec_from_dict spec_from_toml spec_to_dict spec_to_toml",
    "qmpkit.spec.encryption": "BaseKey Luks",
    "qmpkit.spec.farm": "Farm FarmMachine",
    "qmpkit.spec.farm_load": "load_farm",
    "qmpkit.spec.firmware": "Uefi",
    "qmpkit.spec.machine": "Kernel MachineSpec",
    "qmpkit.spec.memory": "Memory",
    "qmpkit.spec.peripherals": (
        "Rng ScsiController Share UsbController UsbHost UsbKeyboard UsbTablet Vfio VirtioMem Vsock"
    ),
    "qmpkit.spec.network": "DgramNic Forward StreamNic TapNic UserNic",
    "qmpkit.spec.numa": "NumaNode",
    "qmpkit.spec.profile": "load_profile profile_names",
    "qmpkit.spec.resources": "IoMax Resources",
    "qmpkit.spec.restart": "Restart",
    "qmpkit.spec.saved": "SavedMachine",
    "qmpkit.spec.snapshots": "Snapshot",
    "qmpkit.supervisor.moves.departures": "Whereabouts",
    "qmpkit.supervisor.errors": "LeftAlone StartBlocked StartCalledOff",
    "qmpkit.supervisor.events": "Happening Happenings",
    "qmpkit.supervisor.kept": "Kept",
    "qmpkit.supervisor.moves.terms": "ReceiveTerms",
    "qmpkit.supervisor.moves.unkept": "hand_over",
    "qmpkit.supervisor.supervisor": "Supervisor",
    "qmpkit.supervisor.table": "Row",
    "qmpkit.templates.errors": (
        "PoolClosed TemplateBroken TemplateFailed TemplateInUse TemplateUnfit"
    ),
    "qmpkit.templates.make": "make_template",
    "qmpkit.templates.opening": "open_template",
    "qmpkit.templates.pool": "Pool",
    "qmpkit.templates.specs": "templating",
    "qmpkit.templates.take": "to_template",
    "qmpkit.templates.template": "Template",
    "qmpkit.vm": "VM",
}
_SUBPACKAGES = ("backups", "farm", "images")
_find, _names = lazily(__name__, _MODULES)

__all__ = ["__version__", *_SUBPACKAGES, *_names]


def __getattr__(name: str) -> object:
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    return _find(name)


def __dir__() -> list[str]:
    return __all__
