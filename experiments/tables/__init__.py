"""Tables, made from run folders alone: `python -m experiments.tables <name>` or `--all`."""
