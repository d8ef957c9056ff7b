"""What a run leaves behind: metrics, curves, samples, checkpoints, a summary."""
