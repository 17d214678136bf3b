"""Tables on the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from avfmae.files import printable


def print_table(rows: Sequence[Mapping[str, object]], title: str, to: Console) -> None:
    """Prints rows of the same columns; as columns, where that fits the terminal and the table as it is does not."""
    first, *names = rows[0]
    heads = [str(row[first]) for row in rows]
    upright = _made(rows, title)
    turned = _made([{first: name} | {h: row[name] for h, row in zip(heads, rows, strict=True)} for name in names], title)
    fits = len(set(heads)) == len(heads) and _width(turned, to) <= to.width < _width(upright, to)
    to.print(turned if fits else upright)


def _made(rows: Sequence[Mapping[str, object]], title: str) -> Table:
    heads = (Column(Text(printable(name)), overflow="fold") for name in rows[0])
    table = Table(*heads, title=Text(printable(title)), title_justify="left")
    for row in rows:
        table.add_row(*(Text(printable(str(value))) for value in row.values()))
    return table


def _width(table: Table, to: Console) -> int:
    return table.__rich_measure__(to, to.options.update(max_width=10_000)).maximum
