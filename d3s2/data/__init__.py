"""Data sets: one type, the layouts it is read from, the embedded scenes, fetching."""
