#!/bin/busybox sh
# A freeze hook during which the agent hangs: it stops the agent, which goes on to freeze once it is continued.
[ "$1" = freeze ] && kill -STOP $PPID
exit 0
