"""What a run writes: metrics, curves, samples, checkpoints, a summary."""
