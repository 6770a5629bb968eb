"""Changes of the store's schema, in the order of their numbers; alembic carries them out (prepare.py calls it)."""
