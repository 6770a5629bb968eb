"""LUTs: what ops cost on one target, as versioned parquet files.

`Lut.load` opens one, `make_rows` and `merge` make the rows of the next version, `publish` writes it atomically.
"""

from lutbuilder.lut.lut import Lut, collect_command, preferred
from lutbuilder.lut.merge import merge, merge_rows
from lutbuilder.lut.rows import LATENCY_FLOOR_MS, make_rows
from lutbuilder.lut.schema import COLUMNS, SCHEMA_VERSION, Column, LutMeta, QualitySummary, Row
from lutbuilder.lut.store import LutEntry, list_luts, publish, write_samples

__all__ = [
    "COLUMNS",
    "LATENCY_FLOOR_MS",
    "SCHEMA_VERSION",
    "Column",
    "Lut",
    "LutEntry",
    "LutMeta",
    "QualitySummary",
    "Row",
    "collect_command",
    "list_luts",
    "make_rows",
    "merge",
    "merge_rows",
    "preferred",
    "publish",
    "write_samples",
]
