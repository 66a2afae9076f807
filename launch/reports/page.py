"""The HTML frame of report pages: one self-contained file each, figures included."""

import html
import pathlib
import re
import string
from collections.abc import Iterable, Sequence

_SMALLEST_SCALE = 0.97  # pixels per point of a picture: 8 points can be read on a phone
_LONG_CELL = 40  # characters
_TEMPLATE = pathlib.Path(__file__).parent / "page_template.html"


def page(title: str, *, lead: str, more: str, tiles: Iterable[tuple[str, str, str]], cards: Iterable[str]) -> str:
    """A page, as HTML.

    Args:
      title: the heading.
      lead: a sentence on what was gained, in large type.
      more: what else is to be said at the start.
      tiles: of (number, label, CSS class `"main"` or `""`).
      cards: as `card` and `picture_card` give them.
    """
    return string.Template(_TEMPLATE.read_text()).substitute(
        title=html.escape(title),
        lead=html.escape(lead),
        more=html.escape(more),
        tiles="".join(
            f'<div class="tile {kind}"><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'
            for value, label, kind in tiles
        ),
        cards="".join(cards),
    )


def card(heading: str, text: str, body: str, *, wide: bool = False) -> str:
    """A card, as HTML: a heading, an optional line of plain text, and a body of HTML."""
    paragraph = f"<p>{html.escape(text)}</p>" if text else ""
    return f'<section class="card{" wide" if wide else ""}"><h2>{html.escape(heading)}</h2>{paragraph}{body}</section>'


def picture_card(heading: str, text: str, svg: str, *, wide: bool = False) -> str:
    """A card with a picture; it scrolls inside its card where its text would be too small to read."""
    shape = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
    assert shape is not None
    least = round(_SMALLEST_SCALE * float(shape[1]))
    body = f'<div class="scroll"><div style="min-width: {least}px">{svg}</div></div>'
    return card(heading, text, body, wide=wide)


def html_table(columns: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]]) -> str:
    """A table, as HTML, of rows (cells, whether the row is highlighted); the text of long last cells is wrapped."""
    rows = list(rows)
    long = any(len(row[-1]) > _LONG_CELL for row, _ in rows)

    def cells(tag: str, texts: Sequence[str]) -> str:
        *first, last = (html.escape(text) for text in texts)
        before = "".join(f"<{tag}>{text}</{tag}>" for text in first)
        return f"{before}<{tag}{' class=long' if long else ''}>{last}</{tag}>"

    body = "".join(f"<tr{' class=searched' if marked else ''}>{cells('td', row)}</tr>" for row, marked in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{cells("th", columns)}</tr></thead><tbody>{body}</tbody></table></div>'
    )
