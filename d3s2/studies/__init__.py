"""What made the figures of README and appendices: ablation, curves, benchmarks, memory."""
