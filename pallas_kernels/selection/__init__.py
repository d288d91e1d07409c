"""From where attention went to what the draft reads: masses, and the pages that hold the most."""

from pallas_kernels.selection.api import page_mass, select_pages

__all__ = ["page_mass", "select_pages"]
