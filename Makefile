# Two commands: `make quickstart` to see it work, `make test` to see that it works.
VENV := .venv
PYTHON := $(VENV)/bin/python
export HF_HUB_OFFLINE := 1

.PHONY: quickstart test slow style clean

$(VENV)/installed-%: pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --editable ".[$*]"
	touch $@

quickstart: $(VENV)/installed-starter
	$(PYTHON) scripts/quickstart.py

test: $(VENV)/installed-test
	$(PYTHON) -m pytest -n 2 --dist loadfile

slow: $(VENV)/installed-test $(VENV)/installed-starter
	$(PYTHON) -m pytest -m "slow or real"

style: $(VENV)/installed-test
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info
