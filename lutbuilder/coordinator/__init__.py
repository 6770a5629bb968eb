"""Who measures what, and what came of it: schedule (pure decisions), store (SQL), service (the calls), artifacts.

Import the modules themselves; this package stays light, because `store` loads SQLAlchemy and `service` gRPC.
"""
