"""Tests of what decides and does nothing: no process, no server, no file but a temporary one."""
