# Everything a person or CI runs. `make demo` is the shortest way to a result, `make check` what must pass before a commit.
PYTHON ?= python3.11
BIN := .venv/bin
EXTRAS := sim,rl,tracking,pipelines,s3,gs,kube,dev
# Most tests wait most of the time. Those of a file stay together: they share Ray clusters, servers and checkpoints.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
DRAWS := $(BIN)/python -c 'from gripline.envs.gl import main; main()'
BROWSES := command -v chromium || command -v chromium-browser || command -v google-chrome
export OMP_NUM_THREADS ?= 1

.PHONY: demo setup gl browser lint format test test-quick check test-cluster images e2e-cluster e2e-kfp compile bench clean

demo: setup gl ## set up, then demonstrations → SFT → RL → evaluation on this machine, eight to fifteen minutes
	$(BIN)/gripline run laptop

setup: .venv/ready ## virtual environment with pinned dependencies

.venv/ready: Makefile pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing; install it or set PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt pip uv
	@# uv takes one minute where pip takes six; pip is the fallback where only pip is configured for the local index
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]' \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

gl: setup ## a software renderer, where none works yet
	@$(DRAWS) || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && apt-get install -y -q libegl1 libgl1-mesa-dri libopengl0 && $(DRAWS); \
	  else echo "no renderer works; run: sudo apt-get install libegl1 libgl1-mesa-dri libopengl0" >&2; exit 2; fi; }

browser: ## a browser for the tests of pages, which are skipped without one: 155 MB to download on a bare Debian
	@$(BROWSES) || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && apt-get install -y -q --no-install-recommends chromium fonts-dejavu-core && $(BROWSES); \
	  else echo "no browser is installed; run: sudo apt-get install chromium fonts-dejavu-core" >&2; exit 2; fi; }

lint: setup ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup gl ## every test that needs no cluster and no GPU
	$(PYTEST) -m "not gpu and not cluster"

test-quick: setup gl ## the same without the tests of more than a minute
	$(PYTEST) -m "not slow and not gpu and not cluster"

test-cluster: setup ## tests on a real Kubernetes API: KUBECONFIG's, if it is a test cluster, else one of simulated nodes
	.ci/with-cluster $(BIN)/python -m pytest tests/cluster --ignore tests/cluster/e2e

check: lint test

images: ## container images with podman, buildah or docker: `make images IMAGES=policy TAG=1`; variables: images/build
	images/build $(IMAGES)

e2e-cluster: setup gl ## RL on three real nodes with KubeRay's operator: needs KUBECONFIG and KUBERAY_OPERATOR
	$(BIN)/python -m pytest tests/cluster/e2e/test_e2e_cluster.py

e2e-kfp: setup gl ## the whole pipeline on Kubeflow Pipelines over these nodes: needs KFP_HOST besides
	$(BIN)/python -m pytest tests/cluster/e2e/test_e2e_kfp.py

compile: setup ## write the compiled pipeline that is committed
	$(BIN)/gripline compile

bench: setup gl ## the figures of docs/results.md that need no cluster, on an idle machine: more than an hour
	$(BIN)/python benchmarks/envs.py --json build/envs.json
	$(BIN)/python benchmarks/laptop.py --seeds 81 82 83 --json build/laptop.json
	$(BIN)/python benchmarks/overlap.py --from build/laptop-runs/laptop-32452843-81/sft/checkpoint --json build/overlap.json
	$(BIN)/python benchmarks/rollout.py --scale --json build/rollout.json
	$(BIN)/python benchmarks/evaluation.py --json build/evaluation.json
	$(BIN)/python benchmarks/write_results.py build/laptop.json build/rollout.json

clean:
	rm -rf .venv build *.egg-info
