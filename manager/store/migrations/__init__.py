"""Alembic's migrations of the Manager's database."""
