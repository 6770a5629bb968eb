"""Search spaces: the sites-and-variables model, and one file a preset; `get("proxyless")` builds one by name."""

from __future__ import annotations

from lutbuilder.spaces.registry import SPACES, get, names
from lutbuilder.spaces.space import Assignment, Condition, SearchSpace, Site, Value, Variable

__all__ = ["SPACES", "Assignment", "Condition", "SearchSpace", "Site", "Value", "Variable", "get", "names"]
