# make demo   set up, then run the main job on a checkpoint of more than 1 GiB
# make test   set up, then format, lint, types, C++ tests, Python tests
# make bench  set up, then measure against plain mmap and all peers, quickly (10 minutes)
# make bench-full  the same in full (hours, 25 GiB of disk, 24 GiB of memory; goes on
#             where it was stopped)
# make bench-iterate  against plain mmap alone, in full (some minutes, 6 GiB of disk)
# make bench-open   opening and reading files, against torch.load and safetensors
# make bench-apply  the same for loading into models, against load_state_dict (15 GiB memory)
# make bench-scripts  loops in C++ and TorchScript, and loading TorchScript archives
# make bench-cold  the same for a file that is not in the page cache
# make bench-convert  converting a file, against dd and safetensors' save_file
# make bench-limits   the most that is resident, of many cases, and what watching costs
# make bench-cgroup  the same in a container that just fits (root, cgroups version 1)
# make check-sanitizers   C++ tests under ASan and UBSan, and under TSan
# make check-faults   every system call fails in turn, in each way it can (an hour)
# make fuzz   libFuzzer on every reader, FUZZ_SECONDS each (needs Clang with libFuzzer)
# make check-real   published checkpoints against torch (downloads 340 MB)
# make check-differential   generated checkpoints against torch, ten thousands
# make check-writers   threads that write while tensors are streamed, WRITER_SECONDS
# make docs   the reference documentation, into .cache/docs
# make check-torch TORCH=2.14.1   compile for another release of torch, run the Python tests
# make wheel  a wheel for the torch in .venv, into dist/, tested in a new environment
# make sdist  the source distribution, into dist/, compiled and tested in a new one
# make tidy   clang-tidy over the layers below torch
# make clean  remove what the others made
#
# PYTHON=python3.12 make test   picks the interpreter of the environment.
# ORIGINAL=PATH make bench      measures a checkout of the original project as well.

PYTHON ?= python3
BIN := .venv/bin
PEERS_BIN := .venv-peers/bin
WITH_ORIGINAL := $(if $(ORIGINAL),--original $(ORIGINAL))
CXX_FILES := $(wildcard csrc/*/*.h csrc/*/*.cpp tests/cpp/*.h tests/cpp/*.cpp tests/cpp_consumer/*.cpp \
  tests/fuzz/*.h tests/fuzz/*.cpp tests/faults/*.cpp ckpt_streamer/include/*/*.h examples/*/*.cpp bench/*.cpp)
PACKAGE_DATA := csrc/api/exports.map $(wildcard ckpt_streamer/share/cmake/*/*.cmake)
PY_FILES := $(wildcard *.py ckpt_streamer/*.py)

# The layers below torch, with their tests: one program, no libtorch.
UNAME := $(shell uname -s)
PLATFORM := $(if $(filter Darwin,$(UNAME)),macos,linux)
CORE_SOURCES := $(wildcard $(addprefix csrc/,base/*.cpp format/*.cpp plan/*.cpp stream/*.cpp write/*.cpp os/*_posix.cpp os/*_$(PLATFORM).cpp))
TEST_SOURCES := $(CORE_SOURCES) $(wildcard tests/cpp/*.cpp)
TEST_FLAGS := -std=c++20 -g -pthread -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -MMD -Icsrc -Itests/cpp
TEST_OBJECTS := $(TEST_SOURCES:%.cpp=.cache/cpp/%.o)
SANITIZED_OBJECTS := $(TEST_SOURCES:%.cpp=.cache/cpp-sanitized/%.o)
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
THREAD_SANITIZED_OBJECTS := $(TEST_SOURCES:%.cpp=.cache/cpp-threads/%.o)
# GCC warns of std::optional under it; the plain build has all warnings.
SANITIZE_THREADS := -fsanitize=thread -w -DTHREAD_SANITIZED
# The tests fork, and their children make threads.
TSAN_SETTINGS := halt_on_error=1 die_after_fork=0 suppressions=tests/cpp/tsan.supp

# Fuzz targets: with libFuzzer, and as programs that run them on files.
FUZZ_TARGETS := zip pickle legacy safetensors index
FUZZ_SECONDS ?= 60
CLANG_NAMES := clang++ clang++-21 clang++-20 clang++-19 clang++-18 clang++-17
FUZZ_CXX ?= $(firstword $(foreach name,$(CLANG_NAMES),$(shell command -v $(name))))
FUZZ_FLAGS := -rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=10 -print_final_stats=1
FUZZED_SOURCES := $(wildcard $(addprefix csrc/,base/*.cpp format/*.cpp plan/*.cpp))
FUZZED_OBJECTS := $(FUZZED_SOURCES:%.cpp=.cache/fuzz/%.o)
REPLAY_OBJECTS := .cache/cpp/tests/fuzz/replay_main.o $(FUZZED_SOURCES:%.cpp=.cache/cpp/%.o)

.PHONY: demo test bench bench-full bench-iterate bench-figures bench-peers bench-open bench-apply bench-scripts bench-convert bench-cold bench-cgroup bench-limits bench-rss build check \
  cpp-tests check-sanitizers check-faults check-writers check-real fuzz fuzz-replay \
  check-differential check-torch wheel sdist docs format tidy clean

demo: build
	$(BIN)/python bench/demo.py

test: check build
	$(BIN)/pytest

bench: build .venv-peers/.installed
	$(BIN)/python bench/iterate.py --quick $(WITH_ORIGINAL)
	$(PEERS_BIN)/python bench/figures.py --quick $(WITH_ORIGINAL)
	$(PEERS_BIN)/python bench/peers.py --quick $(WITH_ORIGINAL)
	$(PEERS_BIN)/python bench/plot.py --quick
	$(PEERS_BIN)/python bench/tables.py --quick

bench-full: bench-iterate bench-figures bench-peers

bench-iterate: build
	$(BIN)/python bench/iterate.py $(WITH_ORIGINAL)
	$(BIN)/python bench/plot.py

bench-figures: build .venv-peers/.installed
	$(PEERS_BIN)/python bench/figures.py $(WITH_ORIGINAL)
	$(PEERS_BIN)/python bench/plot.py

bench-peers: build .venv-peers/.installed
	$(PEERS_BIN)/python bench/peers.py $(WITH_ORIGINAL)
	$(PEERS_BIN)/python bench/plot.py
	$(PEERS_BIN)/python bench/tables.py

bench-open: build
	$(BIN)/python bench/open.py
	$(BIN)/python bench/open.py --settled

bench-apply: build
	$(BIN)/python bench/apply.py --full
	$(BIN)/python bench/apply_memory.py --full

bench-convert: build
	$(BIN)/python bench/convert.py --usual --write

bench-cold: build
	$(BIN)/python bench/cold.py

bench-limits: build
	$(BIN)/python bench/limits.py
	$(BIN)/python bench/watch.py

bench-scripts: build
	$(BIN)/python bench/small_tensors.py
	$(BIN)/python bench/jit_load.py

bench-cgroup: build
	$(BIN)/python bench/container.py

bench-rss: build
	$(BIN)/python bench/rss.py

build: .venv/.installed

cpp-tests: .cache/cpp/run_tests

.cache/cpp/run_tests: $(TEST_OBJECTS)
	$(CXX) -pthread $^ -o $@

.cache/cpp/%.o: %.cpp
	@mkdir -p $(dir $@)
	$(CXX) $(TEST_FLAGS) -O1 -c $< -o $@

check-sanitizers: .cache/cpp-sanitized/run_tests .cache/cpp-threads/run_tests
	.cache/cpp-sanitized/run_tests
	TSAN_OPTIONS="$(TSAN_SETTINGS)" .cache/cpp-threads/run_tests

.cache/cpp-sanitized/run_tests: $(SANITIZED_OBJECTS)
	$(CXX) -pthread $(SANITIZE) $^ -o $@

.cache/cpp-sanitized/%.o: %.cpp
	@mkdir -p $(dir $@)
	$(CXX) $(TEST_FLAGS) $(SANITIZE) -O1 -c $< -o $@

.cache/cpp-threads/run_tests: $(THREAD_SANITIZED_OBJECTS)
	$(CXX) -pthread $(SANITIZE_THREADS) $^ -o $@

.cache/cpp-threads/%.o: %.cpp
	@mkdir -p $(dir $@)
	$(CXX) $(TEST_FLAGS) $(SANITIZE_THREADS) -O1 -c $< -o $@

fuzz: $(FUZZ_TARGETS:%=run-fuzz-%)

# What it finds is kept in .cache/fuzz, and so is the corpus that it grows.
run-fuzz-%: .cache/fuzz/fuzz_%
	@mkdir -p .cache/fuzz/corpus/$*
	@$< $(FUZZ_FLAGS) -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=.cache/fuzz/$*- \
	  .cache/fuzz/corpus/$* tests/fuzz/corpus/$* >.cache/fuzz/$*.log 2>&1 || \
	  { tail -n 60 .cache/fuzz/$*.log; exit 1; }
	@echo "$*: $$(sed -n 's/stat::number_of_executed_units: *//p' .cache/fuzz/$*.log) executions"

.cache/fuzz/fuzz_%: .cache/fuzz/tests/fuzz/fuzz_%.o $(FUZZED_OBJECTS)
	$(FUZZ_CXX) $(SANITIZE) -fsanitize=fuzzer $^ -o $@

.cache/fuzz/%.o: %.cpp
	@mkdir -p $(dir $@)
	$(FUZZ_CXX) $(TEST_FLAGS) -Wno-deprecated-declarations $(SANITIZE) \
	  -fsanitize=fuzzer-no-link -O1 -c $< -o $@

fuzz-replay: $(FUZZ_TARGETS:%=.cache/cpp/replay_%)

.cache/cpp/replay_%: .cache/cpp/tests/fuzz/fuzz_%.o $(REPLAY_OBJECTS)
	$(CXX) -pthread $^ -o $@

.PRECIOUS: .cache/fuzz/%.o .cache/cpp/%.o
-include $(FUZZED_OBJECTS:.o=.d) $(FUZZ_TARGETS:%=.cache/fuzz/tests/fuzz/fuzz_%.d)
-include $(FUZZ_TARGETS:%=.cache/cpp/tests/fuzz/fuzz_%.d)

check-faults: build
	CKPT_STREAMER_EVERY_CALL=1 $(BIN)/pytest -q tests/test_faults.py

check-real: build
	$(BIN)/python tests/real/check_real.py

# Others each time; FACTOR times as many as in `make test`.
FACTOR ?= 50
check-differential: build
	CKPT_STREAMER_EXAMPLE_FACTOR=$(FACTOR) $(BIN)/pytest tests/test_differential.py tests/test_safetensors.py

WRITER_SECONDS ?= 600
check-writers: build
	CKPT_STREAMER_WRITER_SECONDS=$(WRITER_SECONDS) $(BIN)/pytest tests/test_watch.py -k no_write

docs: build
	$(BIN)/sphinx-build -q -W --keep-going docs .cache/docs

TORCH ?= 2.14.1
check-torch: .venv/.requirements
	tools/check_torch.sh $(BIN)/python $(TORCH)

wheel: build
	tools/make_wheel.sh $(BIN)/python

sdist: .venv/.requirements
	tools/make_sdist.sh $(BIN)/python

-include $(TEST_OBJECTS:.o=.d) $(SANITIZED_OBJECTS:.o=.d) $(THREAD_SANITIZED_OBJECTS:.o=.d)

check: .venv/.requirements
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/codespell
	$(BIN)/mypy

format: .venv/.requirements
	$(BIN)/clang-format -i $(CXX_FILES)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

tidy: .venv/.requirements
	$(BIN)/clang-tidy --quiet $(CORE_SOURCES) -- -std=c++20 -Icsrc

clean:
	rm -rf .venv .venv-peers .cache build dist *.egg-info

.venv/.requirements: requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# The peers beside what .venv has, so that torch is the same: they see it, and pip
# brings in no other. What they bring in themselves stays out of .venv.
SITE_PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
.venv-peers/.installed: .venv/.requirements requirements-peers.txt
	$(PYTHON) -m venv --without-pip .venv-peers
	$(abspath $(BIN))/python $(SITE_PACKAGES) > \
	  "$$($(PEERS_BIN)/python $(SITE_PACKAGES))/beside.pth"
	$(PEERS_BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c requirements-dev.txt -r requirements-peers.txt
	touch $@

# As a user installs it. The compiler's output stays in build/, so that only
# what changed is compiled again.
.venv/.installed: .venv/.requirements pyproject.toml $(PY_FILES) $(CXX_FILES) $(PACKAGE_DATA)
	$(BIN)/pip install --quiet --disable-pip-version-check .
	touch $@
