"""nbgrader's settings for this course: `make assignments` copies them into the course's folder.

nbgrader's own commands and its formgrader read this file when they are started there.
"""

from pathlib import Path

from d3s2.course import preprocessors

c = get_config()  # noqa: F821 - nbgrader gives it

c.CourseDirectory.course_id = "d3s2"
c.CourseDirectory.root = str(Path(__file__).resolve().parent)

# Seconds of a cell, or of one call of a function; of a submission; MB beside Python's libraries
c.JudgeApart.cell_seconds = 20
c.JudgeApart.whole_seconds = 120
c.JudgeApart.memory = 1024

# Where the tests run beside the submission and not in it: see docs/teaching.md
c.Autograde.sanitize_preprocessors = preprocessors.SANITIZE
c.Autograde.autograde_preprocessors = preprocessors.AUTOGRADE
c.GenerateFeedback.preprocessors = preprocessors.FEEDBACK

# For whoever takes nbgrader's own Execute all the same: 30 s are too few on a busy laptop
c.Execute.timeout = 120
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError()"}
