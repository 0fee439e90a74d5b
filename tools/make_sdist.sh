#!/usr/bin/env bash
# Makes the source distribution in dist/, and tests it: in a new environment, pip
# compiles it as a user's does, with build isolation.
#
#   tools/make_sdist.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/environment.sh

python=$1
torch=$("$python" -c 'import torch; print(torch.__version__.split("+")[0])')
work=$PWD/.cache/sdist-check
rm -rf "$work"
mkdir -p "$work" dist

make_sdist "$work/sdist" "$python"
make_environment "$work/venv" "$python" "$torch"
"$work/venv/bin/pip" install --quiet "$work"/sdist/*.tar.gz
test_installed "$work/venv" "$torch"

cp "$work"/sdist/*.tar.gz dist/
echo "made and tested: dist/$(basename "$work"/sdist/*.tar.gz)"
