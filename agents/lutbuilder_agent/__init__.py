"""What runs beside the device: the agent, its worker process, and the types both sides share."""

__version__ = "0.1.0"
