"""Chapter 04: one training, several side by side, the network, the loop, the evaluation."""
