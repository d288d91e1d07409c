"""Decoding: autoregressive, and self-speculative in rounds of select, draft, verify, accept.

    prefill -> [ select -> gather -> draft -> verify (mass) -> accept -> observe ] -> tokens

One model, one cache, one loop (`loop.py`); what differs between methods is a selector
(`selectors/`). An autoregressive decoder is the same loop with a draft length of zero.
"""
