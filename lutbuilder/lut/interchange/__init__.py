"""Published latency tables in and out: `import_tables` makes a LUT of a file, `export_table` a file of a LUT.

One module a family of formats; `registry` names them. What a table says is imported as it is (evidence imported, the
original text beside it) or refused whole, naming file and row.
"""

from lutbuilder.lut.interchange.exports import Exported, export_table, space_of, with_evidence
from lutbuilder.lut.interchange.format import Format
from lutbuilder.lut.interchange.imports import Coverage, Imported, import_tables
from lutbuilder.lut.interchange.records import Entry, Reading, ReadOptions, Statistic
from lutbuilder.lut.interchange.registry import FORMATS, get, names

__all__ = [
    "FORMATS", "Coverage", "Entry", "Exported", "Format", "Imported", "ReadOptions", "Reading", "Statistic",
    "export_table", "get", "import_tables", "names", "space_of", "with_evidence",
]  # fmt: skip  # one list
