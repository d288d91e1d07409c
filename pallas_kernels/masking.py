"""The one number that stands for "no key here" in logits and log-sum-exps."""

# Finite, so that exp(NOTHING - NOTHING) is no NaN; whatever is below half of it is nothing too.
NOTHING = -1e30
