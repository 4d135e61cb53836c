"""The storage pool manager: creates and deletes volumes under its lease."""
