"""The quickstart's report: plots, drawings and one self-contained page."""
