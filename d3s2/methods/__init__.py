"""Chapter 05: one table of methods, and their comparison."""
