# make run    everything, from nothing: sets up on first use, executes notebooks 00 to 04, prints the result table
# make test   sets up on first use, then all tests, the notebooks included
# make unit   the tests that start no processes and no notebooks, under two minutes
# make lab    JupyterLab on the notebooks
# make mutants  breaks the code line by line: do the tests notice? An hour, see docs/mutants.md
# make lint   one layout (ruff format), ruff over code and notebooks, and the contracts of imports
# make clean  removes the virtual environment and caches; runs/ and data/ stay

.PHONY: run test unit mutants lab lint clean setup
export PYTHON

run: setup
	@.venv/bin/d3s2 run $(ARGS)

test: setup
	@.venv/bin/python -m pytest $(ARGS)

unit: setup
	@.venv/bin/python -m pytest -m "not notebooks and not processes" $(ARGS)

mutants: setup
	@.venv/bin/python tests/mutants.py $(ARGS)

lab: setup
	@.venv/bin/python -m jupyterlab --notebook-dir=notebooks $(ARGS)

lint: setup
	@.venv/bin/ruff format --check d3s2 tests
	@.venv/bin/ruff check $(ARGS)
	@.venv/bin/lint-imports

setup:
	@./install.sh

clean:
	rm -rf .venv .venv.old.* build .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find d3s2 tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
