"""How many drafts stand: every selector against the KV budget, on prompts of two kinds.

    python -m experiments.tables acceptance --measure     # about 8 minutes on 2 quiet cores

One run for each kind of held-out prompt (`experiments.prompts`): plain continuation, and editing,
whose answer repeats far-back text. Budgets have no floor, so that small ones mean what they say.
Nothing is timed.
"""

import math
from pathlib import Path
from typing import Any

from experiments import machine
from experiments.generate_report import acceptance_length
from experiments.tables import runs
from experiments.tables.runs import Run
from experiments.tables.table import NOT_MEASURED, Table

KINDS = ("continuation", "editing")
BUDGETS = ("0.01", "0.02", "0.05", "0.07", "0.1", "0.2", "0.5")
ASSESSED, AT = ("0.02", "0.05", "0.07", "0.1", "0.2"), "0.07"
LENGTH, COUNT, TOKENS = 4096, 8, 64
# A head that copies byte by byte reads one place further with each draft. The first and the last
# row vote for two of these places; spread over two rounds' rows, their scores find those between
# them and those that the next drafts will want.
TUNED = "smoothing=15,recent=32"
# Cases by their names in tables and pictures.
CASES = {
  "full": "full",
  "oracle": "oracle",
  "specattn": "specattn",
  "specattn, pages of 16": "specattn,page_size=16",
  "specattn, tuned": f"specattn,{TUNED}",
  "pillar": "pillar",
  "pillar, pages of 16": "pillar,page_size=16",
  "pillar, tuned": f"pillar,{TUNED}",
  "quest": "quest,dense_layers=0",
  "quest, 2 dense layers": "quest",
  "snapkv": "snapkv",
  "h2o": "h2o",
  "window": "window",
  "random": "random",
}
RULES = ("pillar", "quest", "snapkv", "h2o", "window", "random")
# What each of ours is held against: rules as published, and settings like its own.
RIVALS = {
  "specattn": RULES,
  "specattn, pages of 16": (*RULES, "pillar, pages of 16"),
  "specattn, tuned": (*RULES, "pillar, tuned"),
}
_SEED = 1  # prompts other than those that settings were chosen on
_QUICK = ("--max_new_tokens=8", "--kv_budgets=0.07,0.2")
_CHECKPOINT = "experiments/checkpoints/retrieval"


def check(folder: Path, *, quick: bool) -> None:
  del quick
  runs.check(folder / "acceptance")


def measure(folder: Path, *, quick: bool) -> None:
  """Makes the runs, and the pictures."""
  from experiments.report import acceptance as pictures  # not above: other tables draw nothing

  own = (f"--kv_budgets={','.join(BUDGETS)}", *(f"--case={case}" for case in CASES.values()))
  runs.measure(folder / "acceptance", todo(folder / "acceptance", own, quick=quick), 1)
  found = read(folder / "acceptance")
  pictures.lengths(folder / "acceptance.png", {kind: lengths(found, kind) for kind in KINDS})
  at = {kind: positions(found, kind) for kind in KINDS}
  pictures.positions(folder / "acceptance_by_position.png", at)


def todo(folder: Path, flags: tuple[str, ...], *, quick: bool) -> dict[str, Run]:
  """The runs in a folder: prompts, and what `flags` say of those of each kind."""
  length, count = (2048, 2) if quick else (LENGTH, COUNT)
  own = (f"--lengths={length}", f"--count={count}", f"--seed={_SEED}")
  made = {"prompts": Run(own, "prompts")}
  for kind in KINDS:
    file = folder / "prompts.0" / f"{kind}-{length}.jsonl"
    own = (f"--checkpoint={_CHECKPOINT}", f"--prompts_jsonl={file}", "--kv_floor=1")
    own += (f"--max_new_tokens={TOKENS}", *flags)
    made[kind] = Run((*own, *_QUICK * quick), "acceptance")
  return made


Rows = dict[tuple[str, str], dict[str, Any]]  # of a run, by case and budget


def read(folder: Path) -> dict[str, dict[str, Any]]:
  """Summaries of the finished runs by kind, their rows by case and budget."""
  found = {kind: each[0] for kind, each in runs.read(folder).items() if kind in KINDS}
  of = lambda summary: {(row["case"], row["kv_budget"]): row for row in summary["rows"]}
  return {kind: summary | {"rows": of(summary)} for kind, summary in found.items()}


def lengths(found: dict[str, dict[str, Any]], kind: str) -> dict[str, list[tuple[float, float]]]:
  """(budget, acceptance length) of each measured case; flat where it takes no budget."""
  rows = found[kind]["rows"] if kind in found else {}
  points = {}
  for name, case in CASES.items():
    cell = {budget: row_of(rows, case, budget) for budget in BUDGETS}
    points[name] = [(float(b), row["acceptance_length"]) for b, row in cell.items() if row]
  return {name: of_case for name, of_case in points.items() if of_case}


def positions(found: dict[str, dict[str, Any]], kind: str) -> dict[str, list[float]]:
  """At one budget, the share of rounds in which the first, the second, ... draft stood."""
  rows = found[kind]["rows"] if kind in found else {}
  at = {name: row_of(rows, case, AT) for name, case in CASES.items()}
  return {name: row["acceptance_by_position"] for name, row in at.items() if row}


def row_of(rows: Rows, case: str, budget: str) -> dict[str, Any] | None:
  """A row; that of everything where a case takes no budget."""
  return rows.get((case, budget)) or rows.get((case, "1.0"))


def table(folder: Path) -> Table:
  """The table of the runs in `folder/acceptance`; each may be missing."""
  found = read(folder / "acceptance")
  some = next(iter(found.values()), None)
  return Table(
    name="acceptance",
    title="Decoding: tokens a round, by what drafts attend to",
    columns=("prompts and rule", *(f"{float(budget):.0%}" for budget in BUDGETS)),
    rows=tuple(_row(found, kind, name) for kind in KINDS for name in CASES),
    notes=(
      "Acceptance length: the drafts that stand and one token more. Each rule as its authors have"
      " it, but for quest: its two dense layers are half of this model, so that with them it reads"
      " over half of the cache at any budget, and is held against nothing. Of all, pillar alone"
      " charges the tail behind its candidates to the budget.",
      f"Tuned: {TUNED}, the best for specattn of some twenty settings, on other editing prompts"
      " (seed 0) at 2%, 7% and 20%.",
      "Margins in tokens a round, ± the jackknife's standard error over prompts:",
      *(
        f"{kind}: {name} {said}."
        for kind in KINDS
        for name in RIVALS
        if kind in found and (said := verdict(found[kind]["rows"], name))
      ),
      settings_text(found),
    ),
    machine=machine.sentence(some["machine"]) if some else "",
  )


def _row(found: dict[str, dict[str, Any]], kind: str, name: str) -> tuple[str, ...]:
  rows = found[kind]["rows"] if kind in found else {}
  cells = [row_of(rows, CASES[name], budget) for budget in BUDGETS]
  return (
    f"{kind}: {name}",
    *(f"{row['acceptance_length']:.2f}" if row else NOT_MEASURED for row in cells),
  )


def verdict(rows: Rows, ours: str) -> str:
  """At which budgets from 2% to 20% ours is above every rival, and else which are above it;
  nothing where none was measured.

  Margins are in tokens a round, with the jackknife's standard error over prompts.
  """
  above, below = [], []
  for budget in ASSESSED:
    own = row_of(rows, CASES[ours], budget)
    rivals = {name: row_of(rows, CASES[name], budget) for name in RIVALS[ours]}
    margins = {name: margin(rival, own) for name, rival in rivals.items() if rival and own}
    better = [f"{name} by {d:.2f} ± {e:.2f}" for name, (d, e) in margins.items() if d >= 0]
    if better:
      below.append(f"at {float(budget):.0%} below {', '.join(better)}")
    elif margins:
      above.append(f"{float(budget):.0%}")
  where = f"is above every rule but oracle at {', '.join(above)}" if above else ""
  return "; ".join([*[where] * bool(where), *below])


def margin(a: dict[str, Any], b: dict[str, Any]) -> tuple[float, float]:
  """How much longer a's acceptance length is than b's of the same prompts, and its error."""
  pair = [row["rounds_by_accepted_drafts"] for row in (a, b)]
  numbers = range(len(pair[0]))
  without = [_difference(pair, [i for i in numbers if i != left_out]) for left_out in numbers]
  mean, n = sum(without) / len(without), len(without)
  error = math.sqrt((n - 1) / n * sum((each - mean) ** 2 for each in without))
  return _difference(pair, list(numbers)), error


def _difference(pair: list[list[list[int]]], prompts: list[int]) -> float:
  of = lambda rounds: [sum(column) for column in zip(*(rounds[i] for i in prompts), strict=True)]
  return acceptance_length(of(pair[0])) - acceptance_length(of(pair[1]))


def settings_text(found: dict[str, dict[str, Any]]) -> str:
  """What was decoded, and how much of it repeats far-back text."""
  if not found:
    return "Nothing is measured: give --measure."
  some = next(iter(found.values()))
  tokens, prompts = len(some["completions"][0]), some["prompt_bytes"]
  copied = ", ".join(f"{kind} {each['copied_share']:.0%}" for kind, each in found.items())
  return (
    f"{some['checkpoint']}: {len(prompts)} prompts of {max(prompts):,} bytes of each kind, {tokens}"
    f" bytes decoded greedily behind each, draft length {some['draft_length']}, no floor. Of what"
    f" was decoded, in runs of 16 bytes that stand over 1,000 bytes back: {copied}."
  )
