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
mkdir -p /proc /sys /dev /run /var /mnt /tmp
ln -s /run /var/run
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1

# No process is started where the shell can do it: each costs an emulated CPU 10 to 20 ms.
ga=normal fs=ext4 load=writer pace_ms=20 hook_s=3 disks=0 printk=7 panic=0
read -r cmdline </proc/cmdline
for word in $cmdline; do
    case $word in guest.*=*) word=${word#guest.} && eval "${word%%=*}=\${word#*=}" ;; esac
done
echo "$hook_s" >/run/hook_s

load_modules() { while read -r name; do insmod "/modules/$name"; done <"/modules/$1"; }
load_modules base.list
if grep -qx 0x0008 /sys/bus/virtio/devices/*/device; then
    load_modules scsi.list
    # A bus is scanned in its own time: on a busy host, seconds after the other disks are there.
    tries=0
    until ls /sys/block | grep -q '^sd' || [ $tries -ge 600 ]; do usleep 50000; tries=$((tries + 1)); done
fi
[ "$fs" = xfs ] && load_modules xfs.list
[ "$panic" = 1 ] && load_modules panic.list

here() { # sets $found to the disks that are there, as they are called in /dev
    found=
    for disk in /sys/block/vd* /sys/block/sd*; do [ -e "$disk" ] && found="$found ${disk#/sys/block/}"; done
    set -- $found
    [ $# -ge "$disks" ]
}
# Linux names SCSI disks in the order in which it has looked at them, which is another one at each boot. libvirt puts seven
# on a controller, in the order of their targets.
target() { # disk
    case $1 in
    sd*)
        at=$(readlink "/sys/block/$1/device") # …/HOST:0:0:LUN
        at=${at##*/}
        number=$((${at%%:*} * 7 + ${at##*:}))
        set -- a b c d e f g h i j k l m n o p q r s t u v w x y z
        shift "$number"
        echo "sd$1" ;;
    *) echo "$1" ;;
    esac
}
tries=0
until here || [ $tries -ge 600 ]; do usleep 50000; tries=$((tries + 1)); done

# From here on the console shows what the file systems say ("recovery complete"); the boot before it would only cost time.
# A test whose disks fail keeps the kernel's words about it from falling into the writers' lines.
dmesg -n "$printk"
mounted=
for disk in $found; do
    name=$(target "$disk")
    mkdir -p "/mnt/$name"
    if [ "$fs" = xfs ] && mount -t xfs -o nouuid "/dev/$disk" "/mnt/$name" 2>/dev/null; then mounted="$mounted $name"
    elif mount -t ext4 "/dev/$disk" "/mnt/$name" 2>/dev/null; then mounted="$mounted $name"
    fi
done

# Whatever is only news (of its clock, a second after the boot) would fall into the writers' lines.
[ "$printk" -gt 6 ] && dmesg -n 6

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
