#!/bin/busybox sh
# What the guest agent calls for guest-shutdown ("shutdown -h -P|-H +0 ..." or "shutdown -r +0 ..."): end the writers,
# unmount, stop. A writer ends only when its fsync returns, and until then its file system is busy: hence the tries.
killall writer 2>/dev/null
for mount_point in $(cut -d' ' -f2 /proc/mounts | grep '^/mnt/'); do
    tries=0
    until umount "$mount_point" 2>/dev/null || [ $tries -ge 500 ]; do usleep 20000; tries=$((tries + 1)); done
    [ $tries -lt 500 ] || echo "GUEST SHUTDOWN leaves $mount_point mounted"
done
echo "GUEST SHUTDOWN $1"
case $1 in
-r) reboot -f ;;
*) poweroff -f ;;
esac
