"""The HTML frame of report pages: one self-contained file each, figures included."""

import html
import pathlib
import string
from collections.abc import Iterable, Sequence

_TEMPLATE = pathlib.Path(__file__).parent / "page_template.html"


def page(title: str, lead: str, tiles: Iterable[tuple[str, str, str]], cards: Iterable[str]) -> str:
    """A page, as HTML: a title, a lead sentence, tiles of (number, label, CSS class `"main"` or `""`), and cards."""
    return string.Template(_TEMPLATE.read_text()).substitute(
        title=html.escape(title),
        lead=html.escape(lead),
        tiles="".join(
            f'<div class="tile {kind}"><b>{value}</b><span>{label}</span></div>' for value, label, kind in tiles
        ),
        cards="".join(cards),
    )


def card(heading: str, text: str, body: str, *, wide: bool = False) -> str:
    """A card, as HTML: a heading, an optional line of plain text, and a body of HTML."""
    paragraph = f"<p>{html.escape(text)}</p>" if text else ""
    return f'<section class="card{" wide" if wide else ""}"><h2>{html.escape(heading)}</h2>{paragraph}{body}</section>'


def html_table(columns: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]]) -> str:
    """A table, as HTML, of rows (cells, whether the row is highlighted)."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)

    body = "".join(f"<tr{' class=searched' if marked else ''}>{cells('td', row)}</tr>" for row, marked in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{cells("th", columns)}</tr></thead><tbody>{body}</tbody></table></div>'
    )
