"""From which table of which source each Bronze table is, as a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bronze.delta.properties import TableProperties
from bronze.errors import BronzeError
from bronze.operate.report.charts import details
from bronze.operate.report.material import Material
from bronze.operate.report.sections.parts import Section, more
from bronze.operate.view import TableView
from bronze.operate.web.markup.layout import TONES, grid
from bronze.operate.web.markup.tags import Safe, join, tag
from bronze.printable import count
from bronze.tables.lake import LakeTable

_MOST = 40
_WIDTH = 960
_HIGH, _GAP, _TOP = 42, 12, 28
_LEFTS = (0, 330, 660)
_WIDES = (180, 240, 300)
_LETTERS = (22, 30, 38)
_HEADS = ("Source", "Table", "Bronze table")


@dataclass(frozen=True)
class _Node:
    """A box: its column, its row (which may be between two), its two lines, and its tone."""

    column: int
    row: float
    name: str
    below: str
    tone: str = ""

    @property
    def left(self) -> int:
        return _LEFTS[self.column]

    @property
    def right(self) -> int:
        return self.left + _WIDES[self.column]

    @property
    def top(self) -> float:
        return _TOP + self.row * (_HIGH + _GAP)

    @property
    def middle(self) -> float:
        return self.top + _HIGH / 2

    def shape(self) -> Safe:
        """The box, with its whole name as its title."""
        most = _LETTERS[self.column]
        x = self.left + 14
        return tag(
            "g",
            tag("title", f"{self.name}, {self.below}"),
            tag(
                "rect",
                class_="box",
                x=self.left,
                y=f"{self.top:.1f}",
                width=_WIDES[self.column],
                height=_HIGH,
                rx=6,
            ),
            tag(
                "rect",
                class_=f"stripe {self.tone}",
                x=self.left,
                y=f"{self.top + 6:.1f}",
                width=4,
                height=_HIGH - 12,
            )
            if self.tone
            else None,
            tag("text", _short(self.name, most), class_="name", x=x, y=f"{self.top + 18:.1f}"),
            tag(
                "text", _short(self.below, most + 6), class_="about", x=x, y=f"{self.top + 33:.1f}"
            ),
        )


def section(material: Material) -> Section:
    """The section."""
    tables = material.view.tables
    if not tables:
        return Section("lineage", "Lineage", tag("p", "No table has a lineage yet."))
    shown = sorted(tables[:_MOST], key=lambda table: (table.source, table.table))
    sources = count(len({table.source for table in tables}), "source")
    return Section(
        "lineage",
        "Lineage",
        tag("p", f"{count(len(tables), 'table')} of {sources}.", class_="lead"),
        tag(
            "div",
            _graph(material, shown),
            class_="card graph",
            tabindex="0",
            role="group",
            aria_label="Lineage",
        ),
        more(len(tables), _MOST, "table", "which have more time left"),
        details("Lineage as a table", _table(material, shown)),
    )


def _graph(material: Material, tables: Sequence[TableView]) -> Safe:
    nodes, edges = [], []
    for source, rows in _rows_of(tables).items():
        origin = _Node(0, (rows[0] + rows[-1]) / 2, source, count(len(rows), "table"))
        nodes.append(origin)
        for row in rows:
            view = tables[row]
            own = _Node(1, row, view.table, _pattern(view))
            target = _Node(
                2, row, view.target, _stored(material.stored.get(view.target)), TONES[view.state]
            )
            nodes += [own, target]
            edges += [_edge(origin, own), _edge(own, target)]
    high = _TOP + len(tables) * (_HIGH + _GAP)
    heads = [
        tag("text", head, class_="head", x=left, y=14)
        for head, left in zip(_HEADS, _LEFTS, strict=True)
    ]
    return tag(
        "svg",
        heads,
        join(edges),
        join(node.shape() for node in nodes),
        viewBox=f"0 0 {_WIDTH} {high}",
        role="img",
        aria_label=f"Lineage of {count(len(tables), 'table')}; the same is in a table below",
        focusable="false",
    )


def _rows_of(tables: Sequence[TableView]) -> Mapping[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for number, table in enumerate(tables):
        rows.setdefault(table.source, []).append(number)
    return rows


def _edge(one: _Node, other: _Node) -> Safe:
    bend = (one.right + other.left) / 2
    return tag(
        "path",
        class_="edge",
        d=f"M{one.right} {one.middle:.1f}C{bend:.0f} {one.middle:.1f} {bend:.0f}"
        f" {other.middle:.1f} {other.left} {other.middle:.1f}",
    )


def _pattern(view: TableView) -> str:
    return f"{view.pattern.replace('_', '-')}, {view.schedule}"


def _stored(table: LakeTable | None) -> str:
    if table is None or table.state is None:
        return "not in the lake"
    parts = [f"version {table.state.version}"]
    rows = [file.rows for file in table.state.listed_files]
    if all(number >= 0 for number in rows):
        parts.insert(0, count(sum(rows), "row"))
    protected = _protected(table)
    if protected:
        parts.append(f"{protected} protected")
    return ", ".join(parts)


def _protected(table: LakeTable) -> int:
    """How many columns are protected."""
    try:
        return len(TableProperties.read(table.state.properties).protection) if table.state else 0
    except BronzeError:
        return 0


def _table(material: Material, tables: Sequence[TableView]) -> Safe:
    heads = ("Source", "Table", "Pattern", "Bronze table", "What it has")
    rows = [
        [
            view.source,
            view.table,
            _pattern(view),
            view.target,
            _stored(material.stored.get(view.target)),
        ]
        for view in tables
    ]
    return grid("Lineage", heads, rows)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
