#!/bin/busybox sh
# A freeze hook that refuses: the agent's answer is an error and the file systems stay as they are.
[ "$1" = freeze ] && exit 3
exit 0
