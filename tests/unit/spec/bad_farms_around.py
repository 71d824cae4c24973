"""Bad farm files, what is wrong around machines: networks, order, variables, files, seeds."""

from __future__ import annotations

from qmpkit.spec.profile import profile_names

SHIPPED = f"shipped: {', '.join(profile_names())}; a file: ./zzz.toml"

AROUND: dict[str, tuple[str, list[str]]] = {
    "networks": (
        '[networks.a]\nkind = "segmnet"\n[networks.b]\nkind = "nat"\nnet = "10.0.0.1/24"\n'
        '[networks.c]\nkind = "segment"\nsubnet = "10.1.0.0/31"\nsocket = "tcp"\n'
        '[networks.d]\nkind = "bridge"\n[networks.e]\nkind = "nat"\nrestrikt = true\n',
        [
            "networks.a.kind: must be one of 'segment', 'nat', 'bridge', not 'segmnet'"
            " (did you mean 'segment'?)",
            "networks.b.net: '10.0.0.1/24' is not an IPv4 network"
            " (10.1.0.0/24: the bits after the prefix are 0)",
            "networks.c.socket: must be one of 'dgram', 'stream', not 'tcp'",
            "networks.c.subnet: '10.1.0.0/31' has no room for two machines",
            "networks.d.bridge: is missing",
            "networks.e.restrikt: unknown key (did you mean 'restrict'?)",
        ],
    ),
    "bridges": (
        '[networks.a]\nkind = "bridge"\nbridge = "br 0"\n'
        '[networks.b]\nkind = "bridge"\nbridge = "br0"\nsubnet = "10.1.0.0/24"\n'
        'address = "10.1.0.1"\n'
        '[networks.c]\nkind = "bridge"\nbridge = "br0"\n'
        '[networks.d]\nkind = "bridge"\nbridge = "br1"\nmake = true\nsubnet = "10.2.0.0/24"\n'
        'address = "10.2.0.5"\ndhcp = "10.2.0.2-10.2.0.9"\n'
        '[networks.e]\nkind = "bridge"\nbridge = "br2"\ndhcp = "all"\n',
        [
            "networks.a.bridge: 'br 0' is not the name of a network device",
            "networks.b.address: is for a bridge that is made (make = true)",
            "networks.d.dhcp: holds 10.2.0.5, the host's own address",
            "networks.e.dhcp: is for a bridge that is made and has an address"
            ' (make = true, address = "192.168.5.1")',
            "networks.e.dhcp: 'all' is not FIRST-LAST (\"192.168.5.100-192.168.5.199\")",
            "networks.c.bridge: 'br0' is already the bridge of 'b'",
        ],
    ),
    "two-networks-on-one-bridge": (
        '[networks.a]\nkind = "bridge"\nbridge = "br0"\n'
        '[networks.b]\nkind = "bridge"\nbridge = "br0"\n',
        ["networks.b.bridge: 'br0' is already the bridge of 'a'"],
    ),
    "two-bridges-in-one-subnet": (
        '[networks.a]\nkind = "bridge"\nbridge = "br0"\nmake = true\nsubnet = "10.1.0.0/24"\n'
        'address = "10.1.0.1"\n'
        '[networks.b]\nkind = "bridge"\nbridge = "br1"\nmake = true\nsubnet = "10.1.0.0/24"\n'
        'address = "10.1.0.2"\n'
        '[networks.c]\nkind = "bridge"\nbridge = "br2"\nmake = true\nsubnet = "10.1.0.0/24"\n',
        ["networks.b.subnet: '10.1.0.0/24' is already the host's on the bridge of 'a'"],
    ),
    "joining": (
        '[networks.lan]\nkind = "segment"\n'
        '[machines.a]\nnetworks = ["lna", "lan", "lan"]\n'
        '[machines.b]\nnetworks = ["wan", { name = "lan", mca = "x" }]\n'
        '[machines.c]\nnetworks = ["out"]\nports = ["1:2"]\n',
        [
            "machines.a.networks[0].name: there is no network 'lna' (did you mean 'lan'?)",
            "machines.a.networks[2].name: 'lan' is already joined",
            "machines.b.networks[1].mca: unknown key (did you mean 'mac'?)",
            "machines.c.networks[0].name: there is no network 'out' (known: lan)",
        ],
    ),
    "addresses": (
        '[networks.lan]\nkind = "segment"\nsubnet = "10.1.0.0/24"\n[networks.out]\nkind = "nat"\n'
        '[networks.bare]\nkind = "segment"\n'
        '[networks.br]\nkind = "bridge"\nbridge = "br0"\nmake = true\nsubnet = "10.2.0.0/24"\n'
        'address = "10.2.0.1"\ndhcp = "10.2.0.8-10.2.0.9"\n'
        '[machines.a]\nnetworks = [{ name = "lan", ip = "10.1.0.1" }]\n'
        '[machines.b]\ncount = 2\nnetworks = [{ name = "lan", ip = "10.1.0.1" }]\n'
        '[machines.c]\nnetworks = [{ name = "lan", ip = "10.3.0.1" }, '
        '{ name = "out", ip = "10.0.2.15" }, { name = "bare", ip = "10.1.0.1" }]\n'
        '[machines.d]\nnetworks = [{ name = "lan", ip = "ten" }]\n'
        '[machines.e]\nnetworks = [{ name = "br", ip = "10.2.0.1" }]\n'
        '[machines.g]\nnetworks = [{ name = "br", ip = "10.2.0.9" }]\n'
        '[machines.f]\nnetworks = [{ name = "lan", ip = "10.1.0.255" }]\n',
        [
            "machines.c.networks[0].ip: 10.3.0.1 is not in 10.1.0.0/24",
            "machines.c.networks[1].ip: QEMU gives the address in a network of kind 'nat'",
            "machines.c.networks[2].ip: needs the network's subnet",
            "machines.d.networks[0].ip: 'ten' is not an IPv4 address",
            "machines.f.networks[0].ip: 10.1.0.255 is no single host's address in 10.1.0.0/24",
            "machines.b.networks[0].ip: 10.1.0.1 in network 'lan' is of both 'a' and 'b1'"
            " (put {n} into it)",
            "machines.e.networks[0].ip: 10.2.0.1 is the host's own address on 'br'",
            "machines.g.networks[0].ip: 10.2.0.9 is in the range that DHCP gives away on 'br'",
        ],
    ),
    "macs": (
        '[networks.lan]\nkind = "segment"\n'
        '[machines.a]\nnetworks = [{ name = "lan", mac = "52:54:00:00:00:0a" }]\n'
        '[machines.b]\ncount = 2\nnetworks = [{ name = "lan", mac = "52:54:00:00:00:0A" }]\n'
        '[machines.c]\nnetworks = [{ name = "lan", mac = "mac" }]\n'
        '[machines.d]\ncount = 2\nnetworks = [{ name = "lan", mac = "52:54:00:00:01:0{n}" }]\n',
        [
            "machines.c.networks[0].mac: 'mac' is not a MAC address (52:54:00:12:34:56)",
            "machines.b.networks[0].mac: MAC 52:54:00:00:00:0a is of both 'a' and 'b1'"
            " (put {n} into it)",
        ],
    ),
    "restart": (
        '[machines.a]\nrestart = "allways"\n[machines.b]\nrestart = { policy = "always", '
        'delay = -1, factor = "2", retries = 3 }\n'
        "[machines.c.restart]\nperiod = 0\njitter = 2\n",
        [
            "machines.a.restart.policy: must be one of 'never', 'on-failure', 'always',"
            " not 'allways' (did you mean 'always'?)",
            "machines.b.restart.factor: must be a number, not a text: '2'",
            "machines.b.restart.retries: unknown key"
            " (known: delay, factor, intensity, jitter, max_delay, period, policy)",
            "machines.c.restart.period: must be seconds, more than 0",
            "machines.c.restart.jitter: must be between 0 and 1",
        ],
    ),
    "health": (
        '[machines.a]\nhealth = "agnet"\n[machines.b]\nhealth = [{ port = 80 }, { kind = 5 }, '
        '{ kind = "tcp", prot = 1, port = "1" }, { kind = "http" }, 5]\n'
        "[machines.c]\nhealth = { interval = 0, retires = 1 }\n"
        '[machines.d]\nhealth = ["tcp:0", "qmp", "qmp"]\n[machines.e]\nhealth = 5\n'
        "[machines.f.health]\nretries = 0\n",
        [
            "machines.a.health.checks[0]: 'agnet' is not a check (did you mean 'agent'?)",
            "machines.b.health.checks[0].kind: is missing (one of 'process', 'qmp', 'agent',"
            " 'tcp', 'http', 'console')",
            "machines.b.health.checks[1].kind: must be one of 'process', 'qmp', 'agent', 'tcp',"
            " 'http', 'console', not 5",
            "machines.b.health.checks[2].port: must be a whole number, not a text: '1'",
            "machines.b.health.checks[2].prot: unknown key (did you mean 'port'?)",
            "machines.b.health.checks[3].port: is missing",
            "machines.b.health.checks[4]: must be a table, not a number: 5",
            "machines.c.health.retires: unknown key (did you mean 'retries'?)",
            "machines.d.health.checks[0].port: 0 is not a port",
            "machines.d.health.checks[2]: 'qmp' is there twice",
            "machines.e.health: must be a table, not a number: 5",
            'machines.f.health.checks: there is none ("process", "qmp", "agent", "tcp:22",'
            ' "http:80/path", "console:login:")',
            "machines.f.health.retries: must be 1 or more",
        ],
    ),
    "health-of-no-way-in": (
        '[networks.lan]\nkind = "bridge"\nbridge = "br0"\n'
        '[defaults]\nhealth = ["agent", "tcp:22"]\n'
        '[machines.a]\ncount = 2\nnetworks = ["lan"]\n[machines.b]\nagent = true\n'
        'health = ["agent", { kind = "console", text = "login:", serial = "serial1" }]\n',
        [
            "defaults.health.checks[0]: the machine has no channel for an agent (agent = true)",
            "defaults.health.checks[1].port: no forward leads to port 22"
            ' (a user NIC with forwards = ["0:22"])',
            "machines.b.health.checks[1].serial: there is no console 'serial1'"
            " (did you mean 'serial0'?)",
        ],
    ),
    "order": (
        '[machines.web]\ncount = 2\nafter = ["dbs"]\nrequires = ["db2"]\n'
        "[machines.db]\ncount = 1\n",
        [
            "machines.web.after[0]: there is no machine 'dbs' (did you mean 'db'?)",
            "machines.web.requires[0]: there is no machine 'db2' (did you mean 'db'?)",
        ],
    ),
    "order-in-a-circle": (
        '[machines.a]\nafter = ["b"]\n[machines.b]\nrequires = ["c"]\n'
        '[machines.c]\nafter = ["a"]\n[machines.e]\ncount = 2\nrequires = ["d"]\n'
        '[machines.d]\nafter = ["e", "a"]\n[machines.f]\nafter = ["f"]\n',
        [
            "machines.a.after: none of them could start first: a → b → c → a"
            " (take one of these out)",
            "machines.e.requires: none of them could start first: e1 → d → e1"
            " (take one of these out)",
            "machines.f.after: none of them could start first: f → f (take one of these out)",
        ],
    ),
    "variables": (
        '[variables]\nimages = "/srv"\ncache = "/c"\n"1a" = "x"\nfar = 1.5\n'
        'a = "${b}"\nb = "${a}"\n'
        '[machines."${images}"]\n[machines.web]\ndescription = "${imagse} ${zzz} ${images"\n'
        'name = "${cache}"\n',
        [
            "variables.cache: is a variable of the host, which cannot be set",
            "variables.1a: '1a' is not a name: a letter, then letters, digits, '_', '-'",
            "variables.far: must be a text, a whole number or true or false",
            "variables.b: '${a}' comes back to itself",
            "machines.web.description: unknown variable ${imagse} (did you mean 'images'?)",
            "machines.web.description: unknown variable ${zzz}"
            " (known: a, b, cache, images, tsc_khz)",
            "machines.web.description: '${images' has no closing brace ($${ for a plain ${)",
            "machines.web.name: the host's ${cache} cannot stand here (in paths and kernel.append)",
            "machines.${images}: '${images}': braces belong into name, a pattern",
        ],
    ),
    "laughing-variables": (
        '[variables]\na = "'
        + "x" * 100
        + '"\n'
        + "".join(
            f'{name} = "{("${" + below + "}") * 100}"\n'
            for below, name in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        ["variables.b: variables add more than 4096 characters to it"],
    ),
    "profiles": (
        '[machines.a]\nprofile = "q53"\n[machines.b]\nprofile = "zzz"\n[machines.c]\nprofile = 5\n'
        '[machines.d]\nprofile = "./none.toml"\n',
        [
            "machines.a.profile: there is no profile 'q53' (did you mean 'q35'?)",
            f"machines.b.profile: there is no profile 'zzz' ({SHIPPED})",
            "machines.c.profile: must be a profile's name or a path, not 5",
            "machines.d.profile: /F/none.toml: cannot be read: No such file or directory",
        ],
    ),
    "defaults": (
        '[defaults]\nname = "vm{n}"\ncount = 2\nagent = 1\nmemroy = 1\n'
        "[machines.a]\n[machines.b]\n",
        [
            "defaults.name: is each machine's own ([machines.NAME] name = …)",
            "defaults.count: is each machine's own ([machines.NAME] count = …)",
            "defaults.memroy: unknown key (did you mean 'memory'?)",
            "defaults.agent: must be true or false, not a number: 1",
        ],
    ),
    "cloud-init": (
        '[machines.a.cloud_init]\nusr = "ada"\nhostname = 5\n'
        '[machines.b.cloud_init]\nuser = "root"\nssh_keys = ["ssh-rsa"]\nhostname = "{nam}"\n'
        'user_data = 5\n[machines.c.cloud_init]\nuser_data = "#!/bin/sh"\nuser = "ada"\n'
        'write_files = [{ path = "/a", content = "" }]\nusers = [{ name = "b" }]\n'
        '[machines.d.cloud_init]\nwrite_files = [{ path = "../a", content = "", '
        'permissions = "rw" }]\nhostname = "a b"\n',
        [
            "machines.a.cloud_init.hostname: must be a text, not a number: 5",
            "machines.a.cloud_init.usr: unknown key (did you mean 'user'?)",
            "machines.b.cloud_init.hostname: '{nam}' has an unknown gap {nam}"
            " (did you mean 'name'?)",
            "machines.b.cloud_init.user_data: must be a text or a table, not a number",
            "machines.b.cloud_init.user: cloud-init does not let root log in"
            " (name another user, who can use sudo)",
            "machines.b.cloud_init.ssh_keys[0]: is not a public key of OpenSSH"
            ' (a line of a .pub file: "ssh-ed25519 AAAA… name")',
            "machines.c.cloud_init.users: user_data, a text, leaves no room for it"
            " (give user_data as a table, or write it into the text)",
            "machines.c.cloud_init.write_files: user_data, a text, leaves no room for it"
            " (give user_data as a table, or write it into the text)",
            "machines.c.cloud_init.users: stands beside user (give one of them)",
            "machines.c.cloud_init.user_data: a text leaves no room for user"
            " (give user_data as a dict, or write the user into the text)",
            "machines.d.cloud_init.write_files[0].path: '../a' is not an absolute path"
            ' ("/etc/motd")',
            "machines.d.cloud_init.write_files[0].permissions: 'rw' is not a mode (\"0644\")",
        ],
    ),
    "cloud-inits-files": (
        '[machines.a.cloud_init]\nuser_data_file = "none.yaml"\nnetwork_config_file = 5\n'
        'ssh_key_files = "ada.pub"\n'
        '[machines.b.cloud_init]\nuser_data = "#!/bin/sh"\nuser_data_file = "farm.toml"\n'
        'ssh_key_files = ["none.pub"]\n',
        [
            "machines.a.cloud_init.user_data_file: 'none.yaml': cannot be read:"
            " No such file or directory",
            "machines.a.cloud_init.network_config_file: must be a file's name, not 5",
            "machines.a.cloud_init.ssh_key_files: must be a list, not a text",
            "machines.b.cloud_init.user_data_file: stands beside user_data (give one of them)",
            "machines.b.cloud_init.ssh_key_files[0]: 'none.pub': cannot be read:"
            " No such file or directory",
        ],
    ),
    "a-host-name-of-one-machine": (
        '[machines.web]\ncount = 2\ncloud_init.hostname = "{name}.a b"\n',
        [
            "machines.web.cloud_init.hostname: 'web1.a b' is not a host name: letters, digits"
            " and '-', in parts joined by '.'"
        ],
    ),
    "includes": (
        "include = ['/etc/farm.toml', '~/farm.toml', '${cache}/a.toml', 'none.toml', 5, "
        "'farm.toml', '']\n",
        [
            "include[0]: '/etc/farm.toml' must be relative, and the same everywhere"
            " (it counts from this file)",
            "include[1]: '~/farm.toml' must be relative, and the same everywhere"
            " (it counts from this file)",
            "include[2]: '${cache}/a.toml' must be relative, and the same everywhere"
            " (it counts from this file)",
            "include[3]: /F/none.toml: cannot be read: No such file or directory",
            "include[4]: must be a file's name, not 5",
            "include[5]: 'farm.toml' includes itself",
            "include[6]: must be a file's name, not ''",
        ],
    ),
}
