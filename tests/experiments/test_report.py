"""The report is one well-formed file that says what the runs say."""

import html.parser
import shutil

import pytest

from experiments.report import html as pieces
from experiments.report import page
from experiments.tables import training

_VOID = {"meta", "img", "rect", "br"}


class _Page(html.parser.HTMLParser):
  """Collects what the checks below ask for, and fails on tags that do not nest."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.images, self.text = [], [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in _VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    if tag not in _VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


@pytest.fixture(scope="module")
def folder(finished_runs, tmp_path_factory):
  """Finished runs with their report."""
  copy = shutil.copytree(finished_runs, tmp_path_factory.mktemp("report") / "quickstart")
  page.write(copy)
  return copy


@pytest.fixture(scope="module")
def report(folder):
  return _Page((folder / "report.html").read_text())


def test_it_is_one_file_without_scripts(report):
  names = [tag for tag, _ in report.tags]
  assert "script" not in names and "link" not in names
  links = [a[key] for _, a in report.tags for key in ("src", "href") if key in a]
  assert links and all(link.startswith("data:image/png;base64,") for link in links)


def test_every_picture_is_described_and_every_png_lies_beside_the_page(report, folder):
  images = [attributes for tag, attributes in report.tags if tag == "img"]
  assert len(images) == 4 and all(len(image["alt"]) > 20 for image in images)
  for name in ("bytes", "timeline", "loss", "decoding"):
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_it_says_what_the_runs_say(report, folder):
  ratio = training.vertical_over_horizontal(folder)
  text = " ".join("".join(report.text).split())
  for said in ("149 MB", f"{ratio:.2f}×", "2.61 bits", "1.62×", "def area(self, width):", "JAX"):
    assert said in text


def test_an_unfinished_run_is_named(runs):
  (runs / "decode_window/summary.json").unlink()
  with pytest.raises(ValueError, match="holds no finished run of window"):
    page.write(runs)


def test_text_is_escaped():
  assert "<b>" not in pieces.paragraphs("<b>") + pieces.tiles([("<b>", "<b>")])
