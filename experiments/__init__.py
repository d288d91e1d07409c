"""Programs: run them from the repository's root as `python -m experiments.<name>`."""
