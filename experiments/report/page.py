"""The quickstart's page: what was run, what it shows, and how far to trust it."""

import json
import statistics
from pathlib import Path
from typing import Any

from experiments import run_log
from experiments.report import drawing, gantt, html, plots
from experiments.tables import decoding, training
from experiments.tables.table import bytes_text, steady_seconds, times_text

SHOWN_OF_PROMPT, SHOWN_OF_TEXT = 400, 500  # bytes


def write(folder: Path) -> Path:
  """Draws the plots and writes report.html beside the run folders of a quickstart.

  Raises ValueError if a run that the page is about has not finished.
  """
  runs = {name: run_log.read_summary(folder / name) for name in (*training.SCHEDULES, "training")}
  decode_runs = decoding.read(folder)
  missing = [method for method in decoding.METHODS if method not in decode_runs]
  if missing:
    raise ValueError(f"{folder} holds no finished run of {', '.join(missing)}; run the quickstart.")
  decode = decoding.compare(decode_runs)
  _draw(folder, runs, decode)
  body = "".join(
    [
      _opening(runs, decode),
      _training(folder, runs),
      _learning(folder, runs["training"]),
      _decoding(folder, decode),
      _sample(folder, decode_runs),
      _trust(),
      _machine(runs["vertical"]["machine"]),
    ]
  )
  style = (Path(__file__).parent / "style.css").read_text()
  path = folder / "report.html"
  path.write_text(html.page("Quickstart report", style, body))
  return path


def _draw(folder: Path, runs: dict[str, dict[str, Any]], decode: dict[str, Any]) -> None:
  plots.bytes_per_link(folder / "bytes.png", runs)
  gantt.gantt(folder / "timeline.png", [_third_iteration(folder / n) for n in training.SCHEDULES])
  plots.loss_curve(folder / "loss.png", run_log.read_metrics(folder / "training"), runs["training"])
  plots.decoding_speed(folder / "decoding.png", decode)


def _third_iteration(run: Path) -> gantt.Panel:
  """The window of a run's third iteration, or its last if there are fewer."""
  seconds = run_log.read_summary(run)["seconds_per_iteration"]
  events = json.loads((run / "timeline.json").read_text())["traceEvents"]
  third = min(2, len(seconds) - 1)
  first = min(event["ts"] for event in events if event["ph"] == "X") / 1e6
  median = statistics.median(seconds[1:] or seconds)
  title = f"{run.name}: one iteration, {seconds[third]:.2f} s (median {median:.2f} s)"
  return gantt.Panel(title, events, first + sum(seconds[:third]), seconds[third])


def _opening(runs: dict[str, dict[str, Any]], decode: dict[str, Any]) -> str:
  reads = [runs[name]["bytes"]["ssd_read"] for name in training.SCHEDULES]
  heldout, bigram = (runs["training"][f"{who}_bits_per_byte"] for who in ("heldout", "bigram"))
  best = max(decode["speedup"], key=decode["speedup"].__getitem__)
  ratio = steady_seconds(runs["horizontal"]) / steady_seconds(runs["vertical"])
  tiles = [
    (times_text(ratio), "training throughput of vertical order over horizontal order"),
    (f"{reads[1] / reads[0]:.0%}" if reads[0] else "0", "of horizontal order's SSD reads are left"),
    (f"{heldout:.2f} bits", f"a byte of unseen text; a bigram model needs {bigram:.2f}"),
    (times_text(decode["speedup"][best]), f"decoding speed by {best} over one token at a time"),
  ]
  training_text, decoding_text = (
    " A model whose parameters and optimizer states do not fit into memory keeps them on SSD, and"
    " every layer has to be fetched before it can be computed. How often depends on the order of"
    " work alone (GreedySnake, arXiv 2512.17570).",
    " To write one token, a model reads its weights and everything it remembers of the text so far:"
    " the KV cache. At long contexts the cache dominates. Speculation drafts some tokens by reading"
    " a small part of the cache, then checks them all in one full pass, which keeps exactly the"
    " tokens that it would have written itself; how many survive depends on which part was read"
    " (SpecAttn, also Vegas, arXiv 2602.07223).",
  )
  return (
    "<h1>A model trained from SSD, then decoded with sparse drafts</h1>"
    '<p class="lead">What one command, <code>scripts/quickstart</code>, did on this machine.</p>'
    + html.tiles(tiles)
    + html.paragraphs(
      "Large language models are slow where bytes move, not where numbers multiply. Two papers take"
      " that view of the two ends of a model's life, and this page shows both effects on a small"
      " model of Python source text, byte by byte.",
    )
    + f"<p><strong>Training.</strong>{html.escape(training_text)}</p>"
    + f"<p><strong>Decoding.</strong>{html.escape(decoding_text)}</p>"
  )


def _training(folder: Path, runs: dict[str, dict[str, Any]]) -> str:
  equal = runs["horizontal"]["losses"] == runs["vertical"]["losses"]
  sameness = (
    "Both runs gave the same losses, to the last bit."
    if equal
    else "The two orders add up gradients in a different order, so losses agree up to rounding: "
    + f"{_relative_difference(runs):.1e} relative at most."
  )
  order = (
    "Gradients are gathered over several micro-batches before the optimizer takes a step."
    " Horizontal order sends one micro-batch through all units (here a unit is a layer) before the"
    " next begins, so every unit's parameters come and go once for each micro-batch. Vertical order"
    " sends all micro-batches through a unit before it moves on: parameters are fetched once a"
    " pass, and what travels instead are the activations between units, which are smaller. It turns"
    " like a snake, so the last micro-batch of a unit is still on the device for the next."
  )
  return (
    "<h2>Training: the order of work decides what moves</h2>"
    + html.paragraphs(order)
    + f"<figure>{drawing.orders()}<figcaption>The forward pass of 3 units and 4 micro-batches; the"
    " numbers are the order of work. A filled cell needs its unit's parameters loaded anew."
    "</figcaption></figure>"
    + html.paragraphs(
      "Both ran from the same seed, with the same memory budget. Everything that moved was"
      " predicted before the run and counted during it; the two must agree to the byte. " + sameness
    )
    + html.table(training.table(folder))
    + html.image(
      folder / "bytes.png",
      "Bars of bytes moved over each link, horizontal beside vertical: " + _bytes_alt(runs),
      "Bytes that each order moved over each link. The dark line is the prediction.",
    )
    + html.image(
      folder / "timeline.png",
      "Timeline of six queues during one iteration of each schedule; horizontal takes"
      f" {steady_seconds(runs['horizontal']):.2f} seconds, vertical"
      f" {steady_seconds(runs['vertical']):.2f}.",
      "What each queue did during the third iteration. All six work at once; gaps are waits.",
    )
  )


def _learning(folder: Path, summary: dict[str, Any]) -> str:
  heldout, bigram = summary["heldout_bits_per_byte"], summary["bigram_bits_per_byte"]
  verdict = "below" if heldout < bigram else "not yet below"
  peak = summary["peak_bytes"]
  return (
    "<h2>Learning: it is a real training run</h2>"
    + html.paragraphs(
      f"A larger run then trained under vertical order for {summary['run_seconds'] / 60:.1f}"
      f" minutes and {len(summary['losses']):,} iterations, with {bytes_text(peak['host'])} of"
      f" host buffers and {bytes_text(peak['ssd'])} on SSD. On source files that it never saw it"
      f" needs {heldout:.2f} bits a byte, {verdict} the {bigram:.2f} of a bigram model, which knows"
      " how often each byte follows each other one."
    )
    + html.image(
      folder / "loss.png",
      f"Training loss in bits per byte falling over {len(summary['losses'])} iterations;"
      f" {heldout:.2f} on held-out text, bigram model {bigram:.2f}.",
      "Each iteration's loss (faint), their moving mean, and the bigram model's figure.",
    )
  )


def _decoding(folder: Path, decode: dict[str, Any]) -> str:
  speeds = ", ".join(f"{name} {ratio:.2f} times" for name, ratio in decode["speedup"].items())
  return (
    "<h2>Decoding: draft from a part of the cache, check with all of it</h2>"
    + html.paragraphs(
      "The trained model then continued held-out files of at least 8,192 bytes. Drafts by"
      " «window» read the beginning and the newest part of the cache; drafts by «specattn» read"
      " the entries that the last check paid most attention to. Both then check their drafts"
      " against the whole cache, so the text must be the one that autoregressive decoding writes."
    )
    + html.table(decoding.table(folder))
    + html.image(
      folder / "decoding.png",
      f"Speed-up over autoregressive decoding: {speeds}.",
      "Measured speed-up; the dark mark is what the bytes alone predict.",
    )
  )


def _sample(folder: Path, decode_runs: dict[str, dict[str, Any]]) -> str:
  prompt_file = sorted((folder / "prompts").iterdir())[0]
  tail = prompt_file.read_bytes()[-SHOWN_OF_PROMPT:].decode("utf-8", "replace")
  tokens = decode_runs["specattn"]["completions"][0][:SHOWN_OF_TEXT]
  text = bytes(tokens).decode("utf-8", "replace")
  return (
    "<h2>What it writes</h2>"
    + html.paragraphs(
      f"The end of a held-out prompt of {prompt_file.stat().st_size:,} bytes, and what the model"
      " wrote behind it (marked). An hour of training taught it the shape of Python, not its"
      " meaning."
    )
    + f'<pre><span class="prompt">…{html.escape(tail)}</span><mark>{html.escape(text)}</mark></pre>'
  )


def _trust() -> str:
  points = (
    "The model is tiny, and so is a layer's weight against a computer's caches. What carries over"
    " to large models are the byte counts, which are exact, not these seconds.",
    "The device here is the processor itself: «host to device» is a hand-over of memory within one"
    " machine, the files may sit in the system's page cache, and all queues share its cores. On a"
    " GPU with an SSD both effects have more to gain.",
    "Plain text is mostly foretold by nearby text, so the window may well accept more drafts than"
    " specattn. Where far text matters, as where code is edited, the order turns.",
    "The most likely text of so small a model soon repeats itself, and repetitions are easy to"
    " draft: acceptance lengths on varied text are lower.",
    "One run each, on a machine that may be doing other things: expect the ratios to move by a"
    " tenth or two, and the byte counts by nothing.",
  )
  items = "".join(f"<li>{html.escape(point)}</li>" for point in points)
  return f"<h2>How far to trust this page</h2><ul>{items}</ul>"


def _machine(described: dict[str, Any]) -> str:
  memory = described["memory_bytes"]
  return (
    "<h2>The machine</h2>"
    + html.definitions(
      [
        ("processor", described["cpu"]),
        ("cores", str(described["cores"])),
        ("memory", f"{memory / 2**30:.0f} GiB" if memory else "unknown"),
        ("devices", ", ".join(described["devices"])),
        (
          "software",
          f"Python {described['python']}, JAX {described['jax']}, {described['system']}",
        ),
      ]
    )
    + "<footer>Every number comes from the summary.json of a run folder beside this page; the"
    " flags.txt in it runs it again. <code>python -m experiments.tables --all</code> prints the"
    " tables.</footer>"
  )


def _bytes_alt(runs: dict[str, dict[str, Any]]) -> str:
  return "; ".join(
    f"{title} {bytes_text(runs['horizontal']['bytes'][link])} against"
    f" {bytes_text(runs['vertical']['bytes'][link])}"
    for link, title in training.LINKS.items()
  )


def _relative_difference(runs: dict[str, dict[str, Any]]) -> float:
  pairs = zip(runs["horizontal"]["losses"], runs["vertical"]["losses"], strict=True)
  return max(abs(a - b) / abs(a) for a, b in pairs)
