"""Run the migrations on the connection, inside the transaction and under the lock, of `Database.upgrade`."""

from alembic import context

from manager.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
