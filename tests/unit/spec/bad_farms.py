"""Bad farm files, what is wrong with machines: a text after `schema = 1`, and its fault lines.

/F stands for the folder the file is in.
"""

from __future__ import annotations

_KEYS = (
    "accel, after, agent, arch, balloon, cloud_init, count, cpu, description, devices, disks, "
    "display, env, extra_args, firmware, health, image_folders, kernel, last_ports, launcher, "
    "machine, machine_options, memory, name, networks, nics, no_reboot, numa, panic, ports, "
    "profile, qemu, requires, resources, restart, resume_from, rng, root_ports, run_as, sandbox, "
    "serials, snapshot, snapshots, uuid, vmgenid, vsock"
)

MACHINES: dict[str, tuple[str, list[str]]] = {
    "not-toml": (
        "machines = [",
        ["this is not TOML: Invalid value (at end of document)"],
    ),
    "unknown-table": (
        "[machine.web]\n[netwroks.a]\n",
        [
            "machine: unknown key (did you mean 'machines'?)",
            "netwroks: unknown key (did you mean 'networks'?)",
        ],
    ),
    "not-tables": (
        'machines = 5\nnetworks = "lan"\nvariables = []\ndefaults = 1\n',
        [
            "variables: must be a table, not a list",
            "defaults: must be a table, not a number",
            "networks: must be a table, not a text",
            "machines: must be a table, not a number",
        ],
    ),
    "a-machine-that-is-none": (
        'machines.web = "q35"\n[networks]\nlan = 5\n',
        [
            "machines.web: must be a table, not a text",
            "networks.lan: must be a table, not a number",
            "networks.lan.kind: is missing (one of 'segment', 'nat', 'bridge')",
        ],
    ),
    "unknown-fields": (
        '[machines.web]\nmemroy = "1GiB"\ncuont = 2\nprofle = "q35"\nextends = "q35"\n',
        [
            "machines.web.cuont: unknown key (did you mean 'count'?)",
            f"machines.web.extends: unknown key (known: {_KEYS})",
            "machines.web.memroy: unknown key (did you mean 'memory'?)",
            "machines.web.profle: unknown key (did you mean 'profile'?)",
        ],
    ),
    "strict-types": (
        '[machines.web]\ncount = "5"\nafter = "db"\nports = [8080]\nagent = 1\ncpu = "2"\n'
        "root_ports = true\n",
        [
            "machines.web.count: must be a whole number, not a text: '5'",
            "machines.web.ports[0]: must be a table, not a number: 8080",
            "machines.web.after: must be a list, not a text: 'db'",
            "machines.web.cpu: must be a table, not a text: '2'",
            "machines.web.agent: must be true or false, not a number: 1",
            "machines.web.root_ports: must be a whole number, not true or false: True",
        ],
    ),
    "spec-faults": (
        "[machines.web]\n"
        'memory = "12 parsecs"\naccel = "kvn"\n'
        'disks = [{ file = "a", formt = "raw" }, { file = "b", format = "rwa" }]\n',
        [
            "machines.web.accel: must be one of 'auto', 'kvm', 'tcg', not 'kvn'"
            " (did you mean 'kvm'?)",
            "machines.web.memory.size: '12 parsecs' has an unknown unit 'parsecs';"
            " use KiB, MiB, GiB or TiB",
            "machines.web.disks[0].format: is missing",
            "machines.web.disks[0].formt: unknown key (did you mean 'format'?)",
            "machines.web.disks[1].format: must be one of 'raw', 'qcow2', 'luks', not 'rwa'"
            " (did you mean 'raw'?)",
        ],
    ),
    "count": (
        "[machines.a]\ncount = -1\n[machines.b]\ncount = 1001\n",
        [
            "machines.a.count: must be from 0 to 1000, not -1",
            "machines.b.count: must be from 0 to 1000, not 1001",
        ],
    ),
    "one-name-for-many": (
        '[machines.web]\ncount = 2\nname = "web"\n',
        ["machines.web.name: 'web' is one name for 2 machines (add {n})"],
    ),
    "unknown-gap": (
        '[machines.web]\ncount = 2\nname = "web{m}"\n'
        "[machines.db]\n"
        'disks = [{ file = "{nmae}.img", format = "raw" }]\n',
        [
            "machines.web.name: 'web{m}' has an unknown gap {m} (known: {n}; {{ for a plain {)",
            "machines.db.disks[0].file: '{nmae}.img' has an unknown gap {nmae}"
            " (did you mean 'name'?)",
        ],
    ),
    "names-collide": (
        '[machines.web]\ncount = 3\n[machines.web2]\n[machines.x]\nname = "web{n}"\ncount = 1\n',
        [
            "machines.web2: 'web2' is already a machine of machines.web",
            "machines.x.name: 'web1' is already a machine of machines.web",
        ],
    ),
    "names-that-lead-elsewhere": (
        '[machines."../../etc"]\n[machines."a/b"]\n[machines.".."]\n'
        '[machines.c]\nname = "../c{n}"\n[machines.d]\nname = "-d"\n[machines."e\\nf"]\n'
        '[machines."g{n}"]\n',
        [
            "machines.../../etc: '../../etc' holds a '/'",
            "machines.a/b: 'a/b' holds a '/'",
            "machines...: '..' may not begin with '.', '-' or a space, nor end with a space",
            "machines.c.name: '../c1' holds a '/'",
            "machines.d.name: '-d' may not begin with '.', '-' or a space, nor end with a space",
            "machines.e\nf: 'e\\nf' holds a character that cannot be printed on one line",
            "machines.g{n}: 'g{n}': braces belong into name, a pattern",
        ],
    ),
    "networks-that-lead-elsewhere": (
        '[networks."../a"]\nkind = "nat"\n[networks.".b"]\nkind = "nat"\n'
        f'[networks.{"c" * 32}]\nkind = "nat"\n',
        [
            "networks.../a: '../a' is not a network's name: a letter or digit, then letters,"
            " digits, '-', '.', '_'",
            "networks..b: '.b' is not a network's name: a letter or digit, then letters,"
            " digits, '-', '.', '_'",
            f"networks.{'c' * 32}: '{'c' * 32}' is longer than 31 characters",
        ],
    ),
    "disks-that-lead-elsewhere": (
        "[machines.web]\n"
        'disks = [{ file = "d/{name}/../../x", format = "raw" }]\n'
        '[machines.db]\nfirmware = { vars = "{name}/../../vars" }\n'
        '[machines.ok]\ndisks = [{ file = "../d/{name}", format = "raw" }]\n',
        [
            "machines.web.disks[0].file: 'd/{name}/../../x' leads out of its directory after"
            " {name} (leave '..' out)",
            "machines.db.firmware.vars: '{name}/../../vars' leads out of its directory after"
            " {name} (leave '..' out)",
        ],
    ),
    "a-written-file-written-to": (
        '[machines.web]\nmachine = "q35"\n[[machines.web.disks]]\nfile = "/etc/{name}.img"\n'
        'format = "qcow2"\nmake = { file = "/etc/{name}.img", format = "raw" }\n',
        ["machines.web.disks[0].make.file: an image cannot be an overlay of itself"],
    ),
    "shared-disk": (
        '[machines.web]\ncount = 200\ndisks = [{ file = "/d.qcow2", format = "qcow2" }]\n',
        [
            "machines.web.disks[0].file: '/d.qcow2' is written by both 'web1' and 'web2'"
            " (put {name} into it)"
        ],
    ),
    "a-base-that-is-written": (
        '[machines.a]\ndisks = [{ file = "/base", format = "raw" }]\n'
        '[machines.b]\n[[machines.b.disks]]\nfile = "/b.qcow2"\nformat = "qcow2"\n'
        'make = { file = "/base", format = "raw" }\n'
        '[machines.c]\ndisks = [{ file = "/base", format = "raw", readonly = true }]\n',
        [
            "machines.b.disks[0].make.file: '/base' is written by 'a' ('b' would see it change)",
            "machines.c.disks[0].file: '/base' is written by 'a' ('c' would see it change)",
        ],
    ),
    "shared-store-of-variables": (
        '[defaults]\nfirmware = { vars = "uefi.vars" }\n[machines.a]\n[machines.b]\n',
        [
            "defaults.firmware.vars: '/F/uefi.vars' is written by both 'a' and 'b'"
            " (put {name} into it)"
        ],
    ),
    "shared-identity": (
        '[machines.a]\ncount = 2\nvsock = 5\nuuid = "0d5a5a4c-58a8-4d4e-9f0f-5b5b5f5d5c5e"\n',
        [
            "machines.a.uuid: uuid 0d5a5a4c-58a8-4d4e-9f0f-5b5b5f5d5c5e is of both 'a1' and 'a2'"
            " (leave it out)",
            "machines.a.vsock: vsock 5 is of both 'a1' and 'a2' (leave it out)",
        ],
    ),
    "shared-port": (
        '[defaults]\nprofile = "q35"\n[machines.a]\ncount = 2\nports = ["8080:80", "0:22"]\n'
        '[machines.b]\nports = [{ host = 8080, guest = 1, address = "0.0.0.0" }]\n'
        '[machines.c]\nports = [{ host = 8080, guest = 1, proto = "udp" }]\n',
        [
            "machines.a.ports[0].host: port 8080 of the host is of both 'a1' and 'a2'"
            " (0 is any free port)",
            "machines.b.ports[0].host: port 8080 of the host is of both 'a1' and 'b'"
            " (0 is any free port)",
        ],
    ),
    "ports-that-are-none": (
        '[networks.out]\nkind = "nat"\n[machines.a]\nnetworks = ["out"]\n'
        'ports = ["80", "70000:80", { host = 1, guest = 0 }, { host = 1 }]\n'
        '[machines.b]\nnetworks = ["out"]\nports = ["70000:80", "1:0"]\n',
        [
            "machines.a.ports[0]: '80' is not HOSTPORT:GUESTPORT (\"2222:22\")",
            "machines.a.ports[3].guest: is missing",
            "machines.b.ports[0].host: 70000 is not a port",
            "machines.b.ports[1].guest: 0 is not a port",
        ],
    ),
    "ports-that-lead-nowhere": (
        '[networks.lan]\nkind = "segment"\n[machines.a]\nnetworks = ["lan"]\nports = ["1:2"]\n',
        ['machines.a.ports: no network of the machine takes them (join one of kind "nat")'],
    ),
}
