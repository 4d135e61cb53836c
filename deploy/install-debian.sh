#!/bin/sh
# Install the Debian packages that livesnap's suite and demo need, without starting a single service of theirs.
#
#   deploy/install-debian.sh           everything
#   deploy/install-debian.sh --build   only what it takes to build the virtual environment
#
# With everything there it asks dpkg once and is done. With something missing and no root it prints the one command
# that helps, and fails. Killed half-way, it has at worst left policy-rc.d behind (it says so when it finds it).
set -eu

BUILD='gcc libc6-dev libvirt-dev make pkg-config python3 python3-dev python3-venv'
# systemd is there for its tools (systemd-analyze, -sysusers, -tmpfiles): nothing of it is started.
RUN='busybox-static chromium-headless-shell cpio e2fsprogs fonts-dejavu-core fuse3 hostname iproute2 kmod
libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system lz4 postgresql procps prometheus
prometheus-node-exporter python3-libvirt qemu-guest-agent qemu-system-x86 qemu-utils rabbitmq-server redis-server
systemd util-linux xfsprogs'
POLICY=/usr/sbin/policy-rc.d

say() { printf 'install-debian.sh: %s\n' "$*" >&2; }

# Print those of "$@" that are not installed, one a line.
missing() {
    # dpkg-query fails when it knows nothing of one of them, which is just what is asked here.
    installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null |
        sed -n 's/^installed //p') || true
    for package in "$@"; do
        printf '%s\n' "$installed" | grep -qxF "$package" || printf '%s\n' "$package"
    done
}

# Have every service start refused while packages are unpacked: a started redis or libvirtd would be in the way of
# whatever this machine does already. 101 is "forbidden by policy" (invoke-rc.d(8)).
forbid_services() {
    if [ -e "$POLICY" ]; then
        rc=0
        "$POLICY" redis-server start </dev/null >/dev/null 2>&1 || rc=$?
        [ "$rc" -eq 101 ] && return 0
        say "$POLICY exists and lets services start (it answered $rc, not 101); it is not ours to change."
        say "Move it away, or let it exit with 101, and run this again."
        exit 1
    fi
    trap 'rm -f "$POLICY"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\n# Made by livesnap install-debian.sh; safe to remove.\nexit 101\n' >"$POLICY"
    chmod 0755 "$POLICY"
}

main() {
    packages="$BUILD $RUN"
    case "${1-}" in
        '') ;;
        --build) packages=$BUILD ;;
        *) say "usage: $0 [--build]"; exit 2 ;;
    esac
    if ! command -v dpkg-query >/dev/null; then
        say 'this is no Debian; install the counterparts of:' $packages
        exit 0
    fi
    wanted=$(missing $packages)
    [ -n "$wanted" ] || exit 0
    if [ "$(id -u)" -ne 0 ]; then
        say 'missing:' $wanted
        say "run once:  sudo $0${1:+ $1}"
        exit 1
    fi
    say 'installing' $wanted
    forbid_services
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -o DPkg::Lock::Timeout=300 update
    apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $wanted </dev/null
}

main "$@"
