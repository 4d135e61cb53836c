#!/bin/busybox sh
# Starts the guest agent, in the place of one that runs: agent MODE
#   normal     none (not started)     stop (started, then SIGSTOPped)     block (freezing disabled)
#   hookfail (the freeze hook fails)  hookslow (it takes /run/hook_s seconds)  hookstop (it SIGSTOPs the agent)
port=$(grep -lx org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name 2>/dev/null | cut -d/ -f5)
while killall -9 qemu-ga 2>/dev/null; do usleep 20000; done # its port can be opened once
if [ "$1" = none ] || [ -z "$port" ]; then exit 0; fi
case $1 in
block) options="-b guest-fsfreeze-freeze,guest-fsfreeze-freeze-list" ;;
hook*) options="-F/hooks/$1" ;;
*) options= ;;
esac
# shellcheck disable=SC2086  # the options are words
qemu-ga -m virtio-serial -p "/dev/$port" -t /run $options </dev/null >/run/qemu-ga.log 2>&1 &
if [ "$1" = stop ]; then
    until ls -l /proc/$!/fd | grep -q "$port"; do usleep 20000; done
    kill -STOP $!
fi
