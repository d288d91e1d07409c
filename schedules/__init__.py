"""Orders of computations and everything that is derived from them; no arrays in here."""

from schedules.registry import SCHEDULES

__all__ = ["SCHEDULES"]
