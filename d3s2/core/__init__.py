"""Leaves: errors, files, machine, code version, parallel work. They import nothing of d3s2 but each
other.
"""
