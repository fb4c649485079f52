# make run    everything, from nothing: sets up on first use, executes notebooks 00 to 04, prints the result table
# make test   sets up on first use, then all tests, the notebooks included
# make unit   the tests that start no processes and no notebooks, two minutes on two cores
# make lab    JupyterLab on the notebooks
# make assignments  the graded assignments as students get them, checked; docs/teaching.md
# make book   the committed notebooks and documents as a site: build/book/index.html
# make mutants  breaks the code line by line: do the tests notice? Hours, see docs/mutants.md
# make lint   one layout (ruff format), ruff over code and notebooks, and the contracts of imports
# make clean  removes the virtual environment and caches; runs/ and data/ stay

.PHONY: run test unit mutants lab assignments book lint clean setup setup-course
export PYTHON

# A worker for every core, at most four: whole runs take 2 GB each
AT_ONCE = -n logical --maxprocesses 4

run: setup
	@.venv/bin/d3s2 run $(ARGS)

test: setup-course
	@.venv/bin/python -m pytest $(AT_ONCE) $(ARGS)

unit: setup-course
	@.venv/bin/python -m pytest $(AT_ONCE) -m "not notebooks and not processes" $(ARGS)

mutants: setup-course
	@.venv/bin/python tests/mutants.py $(ARGS)

assignments: setup-course
	@.venv/bin/python -m d3s2.course.assignments $(ARGS)

lab: setup
	@.venv/bin/d3s2 lab $(ARGS)

book: setup-course
	@.venv/bin/python docs/book/build.py $(ARGS)

lint: setup
	@.venv/bin/ruff format --check d3s2 tests
	@.venv/bin/ruff check $(ARGS)
	@.venv/bin/lint-imports

setup:
	@./install.sh

setup-course:
	@./install.sh course

clean:
	rm -rf .venv .venv.old.* build .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find d3s2 tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
