#!/usr/bin/env bash
# Makes a wheel in dist/ for the torch of an environment, and tests it in a new one.
#
#   tools/make_wheel.sh PYTHON
#
# The wheel is for one minor release of torch, which its metadata requires and its
# build tag names; torch's libraries are not in it. Its platform is the oldest glibc
# that has the symbols it needs: build where that is old enough for your users.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/environment.sh

python=$1
bin=$(dirname "$python")
torch=$("$python" -c 'import torch; print(torch.__version__.split("+")[0])')
work=$PWD/.cache/wheel
rm -rf "$work"
mkdir -p "$work" dist

# The objects are kept; a file of an earlier version, or one beside it, is not.
rm -rf build/lib.* build/bdist.*
"$python" -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$work/built" .

# Nothing is put into it, so that the library keeps its name and its run path.
PATH="$bin:$PATH" "$python" -m auditwheel repair \
  --exclude 'libtorch*.so' --exclude 'libc10*.so' \
  --wheel-dir "$work/wheel" "$work"/built/*.whl
"$python" -m wheel tags --remove \
  --build "$(cut -d. -f1,2 <<<"$torch" | tr -d .)torch" "$work"/wheel/*.whl

make_environment "$work/venv" "$python" "$torch"
"$work/venv/bin/pip" install --quiet "$work"/wheel/*.whl
test_installed "$work/venv" "$torch"

cp "$work"/wheel/*.whl dist/
echo "made and tested: dist/$(basename "$work"/wheel/*.whl)"
