# What a clone does to become somebody: stdin says who, a line each.
failed=0 # a bit for each kind of thing: 1, and 2 and 4 for what there is another cure for
written() { # a file that is there, or that is to be
    echo "$1" 2>/dev/null >"$2" || { echo "cannot write $2" >&2; failed=$((failed | 1)); }
}
hostname_is() {
    read -r old </proc/sys/kernel/hostname
    written "$1" /proc/sys/kernel/hostname
    written "$1" /etc/hostname
    [ -w /etc/hosts ] && sed -i "s/\\b$old\\b/$1/g" /etc/hosts
}
machine_id_is() {
    written "$1" /etc/machine-id
    [ -f /var/lib/dbus/machine-id ] && [ ! -L /var/lib/dbus/machine-id ] &&
        written "$1" /var/lib/dbus/machine-id
}
instance_id_is() {
    for file in /var/lib/cloud/data/instance-id /run/cloud-init/.instance-id; do
        [ -e "$file" ] && written "$1" "$file"
    done
}
address_is() { # the NIC with the first address gets the second
    for nic in /sys/class/net/*; do
        read -r now <"$nic/address"
        [ "$now" = "$1" ] || continue
        nic=${nic##*/}
        ip link set dev "$nic" address "$2" 2>/dev/null && return
        ip link set dev "$nic" down && ip link set dev "$nic" address "$2" &&
            ip link set dev "$nic" up && return
    done
    echo "no NIC took the address $2 instead of $1" >&2
    failed=$((failed | 1))
}
new_host_keys() {
    rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
    ssh-keygen -A >/dev/null || failed=$((failed | 2))
    by_system restart ssh </dev/null >/dev/null 2>&1 ||
        by_system restart sshd </dev/null >/dev/null 2>&1
}
by_system() {
    if command -v systemctl >/dev/null; then systemctl "$1" "$2"; else service "$2" "$1"; fi
}
while read -r key first second; do
    case "$key" in
    hostname) hostname_is "$first" ;;
    machine-id) machine_id_is "$first" ;;
    instance-id) instance_id_is "$first" ;;
    mac) address_is "$first" "$second" ;;
    ssh-host-keys) new_host_keys ;;
    service) by_system "$second" "$first" </dev/null || failed=$((failed | 4)) ;;
    esac
done
rm -f "$0" "${0%.sh}"
exit "$failed"
