"""Other people's training systems beside ours: same model, weights and batches, one machine."""
