# make demo   the quickstart notebook, live: a plain ViT fails on the tail, LiVT and DeiT-LT recover it
# make test   lint, unit tests, and every notebook executed and compared with its stored outputs
# make lab    JupyterLab on notebooks/
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m
RUNS := $(or $(LTVIT_RUNS),runs)
PAGES ?= $(wildcard notebooks/*.py)

.PHONY: demo test lint unit nbval lab notebooks table ledger readme recipes measures bench clean

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: .venv/installed
	@mkdir -p runs/figures
	LTVIT_FIGURES=$(CURDIR)/runs/figures $(RUN) papermill notebooks/00_quickstart.ipynb runs/quickstart.ipynb --cwd notebooks
	@echo && $(BIN)/python workflow/pages.py show runs/quickstart.ipynb
	@echo "The executed notebook: runs/quickstart.ipynb. Its figures: runs/figures/*.svg, each beside the data it shows."

test: lint unit nbval

lint: .venv/installed
	$(RUN) ruff check .
	$(RUN) ruff format --check .

# Tests and notebooks in several processes of one thread each; a notebook's cells stay together.
SEVERAL := -n auto --maxprocesses 4
unit: .venv/installed
	OMP_NUM_THREADS=1 $(RUN) pytest $(SEVERAL) tests

nbval: .venv/installed
	LTVIT_FIGURES=$(CURDIR)/runs/figures TQDM_DISABLE=1 OMP_NUM_THREADS=1 \
	  $(RUN) pytest $(SEVERAL) --dist loadscope --nbval-lax --nbval-current-env --nbval-cell-timeout=300 notebooks/*.ipynb

lab: .venv/installed
	$(BIN)/jupyter lab --notebook-dir=notebooks

# The .py is edited, the .ipynb beside it is the same cells plus outputs. Runners in notebooks/full keep no outputs.
notebooks: .venv/installed
	$(BIN)/jupytext --quiet --to ipynb --update notebooks/full/*.py
	for page in $(PAGES); do \
	  $(BIN)/jupytext --quiet --to ipynb --update $$page && \
	  TQDM_DISABLE=1 $(RUN) jupyter nbconvert --log-level=WARN --to notebook --inplace --execute $${page%.py}.ipynb || exit 1; \
	done
	$(BIN)/python workflow/pages.py tidy notebooks/*.ipynb

# Every run that a table needs, teachers first, as many at once as GPUs; what is finished is left alone (workflow/Snakefile).
# make table T=deit_lt_2 SEEDS=3; with DRY=1 only says which, and what they cost; LENGTH=0.01 tries it in short.
# DATA=path trains the same recipes on images of your own: make table T=laptop_livt,laptop_deit_lt DATA=path SEEDS=3
# SET='{"batch_size": 64}' changes fields of all recipes.
SEEDS ?= 1
table: .venv/installed
	$(BIN)/snakemake --snakefile workflow/Snakefile $(if $(DRY),--dry-run --quiet host progress rules) --cores all \
	  --resources gpu=$(or $(GPUS),$(shell $(BIN)/python workflow/gpus.py)) \
	  --config table=$(T) seeds=$(SEEDS) $(if $(LENGTH),length=$(LENGTH)) $(if $(DATA),data="$(DATA)") $(if $(SET),overrides='$(SET)')

measures: .venv/installed
	for part in measure teachers experts analyses; do $(BIN)/python workflow/$$part.py $(RUNS) || exit 1; done

readme: .venv/installed
	$(BIN)/python workflow/readme.py

recipes: .venv/installed
	$(BIN)/python workflow/recipes_table.py

ledger: .venv/installed
	$(RUN) ltvit_lib.runs $(RUNS)

# Speed on this machine, six minutes on two cores; drawn in notebook 19. On a GPU also: benchmarks/steps.py --scales paper
bench: .venv/installed
	for part in steps growth loss_cost augmentation; do $(BIN)/python benchmarks/$$part.py || exit 1; done

clean:
	rm -rf .venv build *.egg-info
