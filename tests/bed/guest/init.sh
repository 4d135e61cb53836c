#!/bin/busybox sh
# The test guest: one kernel and initramfs for every test, its behaviour chosen on the kernel command line.
#   guest.ga=MODE                                       the guest agent, see agent.sh
#   guest.hook_s=SECONDS                                how long hookslow takes to freeze
#   guest.fs=ext4|xfs                                   the file system tried first on each disk
#   guest.load=writer|idle                              records on every mounted disk, or nothing
#   guest.pace_ms=MS                                    the writer's pause between two records
#   guest.disks=N                                       how many disks to wait for
#   guest.printk=LEVEL                                  what the kernel says on the console
#   guest.panic=0|1                                     tell QEMU of a kernel panic
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /run /var /mnt /tmp
ln -s /run /var/run
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1

read -r cmdline </proc/cmdline
setting() { # name, default
    for word in $cmdline; do
        case $word in "guest.$1="*) echo "${word#*=}"; return ;; esac
    done
    echo "$2"
}
ga=$(setting ga normal)
fs=$(setting fs ext4)
load=$(setting load writer)
pace_ms=$(setting pace_ms 20)
setting hook_s 3 >/run/hook_s

load_modules() { for name in $(cat "/modules/$1"); do insmod "/modules/$name"; done; }
load_modules base.list
if grep -qx 0x0008 /sys/bus/virtio/devices/*/device; then
    load_modules scsi.list
    # A bus is scanned in its own time: on a busy host, seconds after the other disks are there.
    tries=0
    until ls /sys/block | grep -q '^sd' || [ $tries -ge 600 ]; do usleep 50000; tries=$((tries + 1)); done
fi
[ "$fs" = xfs ] && load_modules xfs.list
[ "$(setting panic 0)" = 1 ] && load_modules panic.list

disks() { ls /sys/block | grep -E '^(vd|sd)'; }
tries=0
until [ "$(disks | wc -l)" -ge "$(setting disks 0)" ] || [ $tries -ge 600 ]; do usleep 50000; tries=$((tries + 1)); done

# From here on the console shows what the file systems say ("recovery complete"); the boot before it would only cost time.
# A test whose disks fail keeps the kernel's words about it from falling into the writers' lines.
dmesg -n "$(setting printk 7)"
mounted=
for disk in $(disks); do
    mkdir -p "/mnt/$disk"
    if [ "$fs" = xfs ] && mount -t xfs -o nouuid "/dev/$disk" "/mnt/$disk" 2>/dev/null; then mounted="$mounted $disk"
    elif mount -t ext4 "/dev/$disk" "/mnt/$disk" 2>/dev/null; then mounted="$mounted $disk"
    fi
done

agent "$ga"

# A shell for the test, beside the agent and whatever becomes of that. While nobody is connected, reading ends at once; the
# port can be opened once.
control=$(grep -lx org.livesnap.control.0 /sys/class/virtio-ports/*/name 2>/dev/null | cut -d/ -f5)
if [ -n "$control" ]; then
    while :; do sh <>"/dev/$control" >&0 2>&1; usleep 500000; done &
fi

echo "GUEST STARTS"
if [ "$load" = writer ]; then
    for disk in $mounted; do writer "$disk" "/mnt/$disk/records" "$pace_ms" & done
fi
echo "GUEST READY disks:$mounted"

# The first process must not end. The power button is not wired up: tests stop the guest through its agent.
while :; do sleep 3600 & wait; done
