"""The paper's tables as far as arithmetic goes: every number of operations and parameters, computed again."""

from openmvit.tables.compare import Cell, compare, parse_changes, summary
from openmvit.tables.listing import summary_line, tables_data, tables_text

__all__ = ["Cell", "compare", "parse_changes", "summary", "summary_line", "tables_data", "tables_text"]
