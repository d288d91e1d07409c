"""Small pieces of HTML; every text that goes in is escaped here."""

import base64
import html
from pathlib import Path

from experiments.tables.table import Table

escape = html.escape


def table(content: Table) -> str:
  """A table with its notes as the caption below it."""
  head = "".join(f'<th scope="col">{escape(column)}</th>' for column in content.columns)
  body = "".join(
    f'<tr><th scope="row">{escape(row[0])}</th>'
    + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
    + "</tr>"
    for row in content.rows
  )
  notes = " ".join((*content.notes, f"Measured on {content.machine}." if content.machine else ""))
  return (
    f'<figure><div class="scroll"><table><thead><tr>{head}</tr></thead>'
    f"<tbody>{body}</tbody></table></div><figcaption>{escape(notes)}</figcaption></figure>"
  )


def image(path: Path, alt: str, caption: str) -> str:
  """A PNG inside the page, so that the page is one file."""
  data = base64.b64encode(path.read_bytes()).decode()
  return (
    f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alt)}">'
    f"<figcaption>{escape(caption)}</figcaption></figure>"
  )


def tiles(pairs: list[tuple[str, str]]) -> str:
  """Headline numbers, each with what it says."""
  items = "".join(
    f"<li><strong>{escape(number)}</strong><span>{escape(text)}</span></li>"
    for number, text in pairs
  )
  return f'<ul class="tiles">{items}</ul>'


def definitions(pairs: list[tuple[str, str]]) -> str:
  items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in pairs)
  return f"<dl>{items}</dl>"


def paragraphs(*texts: str) -> str:
  return "".join(f"<p>{escape(text)}</p>" for text in texts)


def page(title: str, style: str, body: str) -> str:
  """A whole document: one file, nothing loaded from anywhere, no script."""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>{body}</body></html>\n"
  )
