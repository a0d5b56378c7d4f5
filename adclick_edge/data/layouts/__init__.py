"""How data sets lie on disk, one layout per file, and which of them a folder follows."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from adclick_edge.data.layouts import btad, ksdd2, mvtec, plain, visa
from adclick_edge.data.layouts.layout import Layout
from adclick_edge.errors import DataError, UsageError

__all__ = ["LAYOUTS", "Layout", "detect_layout", "layout_named"]

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {layout.name: layout for layout in (mvtec.LAYOUT, ksdd2.LAYOUT, btad.LAYOUT, visa.LAYOUT, plain.LAYOUT)}
)


def detect_layout(folder: Path) -> Layout | None:
    """The layout that a product's ``folder`` follows, None when it is no product. DataError when several match."""
    matching = [layout for layout in LAYOUTS.values() if layout.matches(folder)]
    if len(matching) > 1:
        names = " and ".join(layout.name for layout in matching)
        raise DataError(f"{folder}: looks like {names} at once; name the layout, or remove the folders of one")
    return matching[0] if matching else None


def layout_named(name: str) -> Layout:
    if name not in LAYOUTS:
        raise UsageError(f"no layout is called {name!r}; choose auto, {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
