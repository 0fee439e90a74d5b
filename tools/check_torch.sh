#!/usr/bin/env bash
# Compiles for another release of torch, in an environment of its own, and runs the
# Python tests there.
#
#   tools/check_torch.sh PYTHON TORCH [PYTEST ARGUMENT...]
#
# All is done in .cache/torch-TORCH, from the source distribution, so that what it
# lacks shows too. The environment is kept: a second run compiles what changed.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/environment.sh

python=$1 torch=$2
shift 2
work=$PWD/.cache/torch-$torch
environment=$work/venv
mkdir -p "$work"

if [ ! -e "$environment/.made" ]; then
  make_environment "$environment" "$python" "$torch"
  touch "$environment/.made"
fi
if [ requirements-dev.txt -nt "$environment/.tools" ]; then
  install_test_tools "$environment"
  touch "$environment/.tools"
fi

make_sdist "$work/sdist" "$python"
mkdir -p "$work/source"
# Only what the compiler made is kept. Files have their times from the archive:
# what is as it was is not compiled again.
find "$work/source" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
tar -xzf "$work"/sdist/*.tar.gz -C "$work/source" --strip-components=1

cd "$work/source"
"$environment/bin/pip" install --quiet --no-deps --no-build-isolation .
"$environment/bin/python" -P -c "
import torch, ckpt_streamer
print('torch', torch.__version__, ckpt_streamer.library_path())
"
# What torch warns of differs between releases; what we warn of is an error still.
exec "$environment/bin/pytest" -q -W default -W error:ckpt_streamer "$@"
