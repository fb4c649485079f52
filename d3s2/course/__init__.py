"""Checks of what a reader writes; assignments and their grading."""
