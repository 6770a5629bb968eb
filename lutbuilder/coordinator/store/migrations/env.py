"""What alembic runs: the migrations, inside the transaction that prepare.py holds."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
