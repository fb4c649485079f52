"""A run: parameters and profiles, stages on disk, notebooks through papermill, sweeps, the command
line.
"""
