"""Tables on the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from avfmae.files import printable


def print_table(rows: Sequence[Mapping[str, object]], title: str, to: Console) -> None:
    """Prints rows of the same columns; as columns, where that fits the terminal and the table as it is does not. Heads may be
    wrapped for it, numbers may not."""
    first, *names = rows[0]
    heads = [str(row[first]) for row in rows]
    table = _made(rows, title)
    if _width(table, to).maximum > to.width and len(set(heads)) == len(heads):
        turned = _made([{first: name} | {h: row[name] for h, row in zip(heads, rows, strict=True)} for name in names], title)
        table = turned if _width(turned, to).minimum <= to.width else table
    to.print(table)


def _made(rows: Sequence[Mapping[str, object]], title: str) -> Table:
    heads = (Column(Text(printable(name)), overflow="fold") for name in rows[0])
    table = Table(*heads, title=Text(printable(title)), title_justify="left")
    for row in rows:
        table.add_row(*(Text(printable(str(value)).replace(" ± ", "\u00a0±\u00a0")) for value in row.values()))
    return table


def _width(table: Table, to: Console) -> Measurement:
    """Of a table at its widest, and with all words whole."""
    return table.__rich_measure__(to, to.options.update(max_width=10_000))
