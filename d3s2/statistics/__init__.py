"""Chapter 01: what a segmentation data set is made of, in pixels and in features."""
