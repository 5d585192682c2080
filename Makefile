# Two commands: `make quickstart` to see it work, `make test` to see that it works.
VENV := .venv
PYTHON := $(VENV)/bin/python
export HF_HUB_OFFLINE := 1
export PYTHONDONTWRITEBYTECODE :=  # every program that a test starts would compile the package anew

# Packages whose tests need no training, and three runs of the behaviour matrix.
FAST := tests/core tests/data tests/evaluation tests/probe tests/report tests/test_config.py tests/test_structure.py \
	tests/behaviour/test_matrix.py::test_transfer_learns \
	"tests/behaviour/test_matrix.py::TestEveryCase::test_predictions_have_one_row_an_example_and_match_the_saved_model[full-text]"

.PHONY: quickstart test test-fast slow style site clean

# Not compiled here: Python compiles what it imports, which is a third of the files.
$(VENV)/installed-%: pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --no-compile --editable ".[$*]"
	touch $@

quickstart: $(VENV)/installed-starter
	$(PYTHON) scripts/quickstart.py

test: $(VENV)/installed-test
	$(PYTHON) -m pytest -n 2 --dist loadfile

test-fast: $(VENV)/installed-test
	$(PYTHON) -m pytest -n 2 --dist loadfile $(FAST)

slow: $(VENV)/installed-test $(VENV)/installed-starter
	$(PYTHON) -m pytest -m "slow or real"

style: $(VENV)/installed-test
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

site: $(VENV)/installed-test
	$(PYTHON) -m mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info
