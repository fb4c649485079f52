"""Chapter 03: the two losses, the sampler they steer, painting a set, judging it."""
