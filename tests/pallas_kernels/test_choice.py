"""Which implementation runs."""

import logging

import pytest

from pallas_kernels import choice

takes_all, refuses = (lambda *_, **__: None), (lambda *_, **__: "head size 7 is odd.")


@pytest.mark.parametrize(
  ("platform", "capability", "names"),
  [
    ("cpu", 0.0, ("xla",)),
    ("gpu", 7.5, ("xla",)),
    ("gpu", 8.9, ("triton", "xla")),
    ("gpu", 9.0, ("mosaic_gpu", "triton", "xla")),
    ("gpu", 10.0, ("triton", "xla")),  # wgmma is Hopper's alone
  ],
)
def test_the_fastest_of_a_platform_comes_first(platform, capability, names):
  assert choice.preferred(platform, capability) == names


def test_what_an_implementation_does_not_support_goes_to_the_next(monkeypatch):
  monkeypatch.setattr(choice, "of_this_machine", lambda: ("mosaic_gpu", "triton", "xla"))
  known = {"xla": (min, takes_all), "triton": (max, refuses), "mosaic_gpu": (sum, refuses)}
  assert choice.choose("attention", known, None) is min
  with pytest.raises(ValueError, match="attention cannot run as triton: head size 7 is odd"):
    choice.choose("attention", known, "triton")


def test_what_goes_first_is_still_asked_whether_it_can(monkeypatch):
  monkeypatch.setattr(choice, "of_this_machine", lambda: ("mosaic_gpu", "triton"))
  known = {"triton": (max, takes_all), "mosaic_gpu": (sum, takes_all)}
  assert choice.choose("attention", known, None, first="triton") is max
  assert choice.choose("attention", known, None) is sum
  assert choice.choose("attention", known, "mosaic_gpu", first="triton") is sum
  known["triton"] = max, refuses
  assert choice.choose("attention", known, None, first="triton") is sum
  monkeypatch.setattr(choice, "of_this_machine", lambda: ("mosaic_gpu",))
  known["triton"] = max, takes_all
  assert choice.choose("attention", known, None, first="triton") is sum


def test_a_choice_is_logged_once(caplog, monkeypatch):
  monkeypatch.setattr(choice, "of_this_machine", lambda: ("xla",))
  with caplog.at_level(logging.INFO):
    for _ in range(2):
      choice.choose("an operation of its own", {"xla": (min, takes_all)}, None)
  assert caplog.text.count("an operation of its own runs as xla.") == 1


@pytest.fixture
def preferring():
  yield choice.prefer
  choice.prefer(None)


def test_a_preference_holds_for_every_operation_that_has_it(preferring, monkeypatch):
  monkeypatch.setattr(choice, "of_this_machine", lambda: ("xla",))
  known = {"xla": (min, takes_all), "reference": (max, takes_all)}
  preferring("reference")
  assert choice.choose("attention", known, None) is max
  assert choice.choose("attention", known, "xla") is min
  assert choice.choose("append", {"xla": (sum, takes_all)}, None) is sum
  assert choice.chosen()["append"] == "xla"


def test_a_preference_that_cannot_run_here_is_refused(preferring, monkeypatch):
  monkeypatch.setattr(choice, "of_this_machine", lambda: ("xla",))
  with pytest.raises(ValueError, match="triton kernels cannot run here: it needs an NVIDIA GPU"):
    preferring("triton")


def test_a_preference_is_not_given_up_silently(preferring, monkeypatch):
  monkeypatch.setattr(choice, "of_this_machine", lambda: ("triton", "xla"))
  preferring("triton")
  with pytest.raises(ValueError, match="cannot run as triton: head size 7 is odd"):
    choice.choose("attention", {"xla": (min, takes_all), "triton": (max, refuses)}, None)
