#!/bin/busybox sh
# A freeze hook that takes its time: longer than the caller's patience, if the test says so. One that cannot wait fails:
# a freeze that goes through at once would be taken for a slow one. It says on the console that it has begun.
if [ "$1" = freeze ]; then echo "HOOK freeze" >/dev/console; sleep "$(cat /run/hook_s)" || exit 4; fi
exit 0
