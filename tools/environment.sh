# Sourced by the scripts beside it.

# No interpreter's settings reach the environments, nor a package of the caller's.
unset PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1

# make_environment FOLDER PYTHON TORCH: a new one, that has this release of torch
# and nothing else but what it needs.
make_environment() {
  rm -rf "$1"
  "$2" -m venv "$1"
  "$1/bin/pip" install --quiet "torch==$3"
}

# install_test_tools FOLDER: what the tests need beside torch and the package.
install_test_tools() {
  "$1/bin/pip" install --quiet -r <(grep -v '^torch==' requirements-dev.txt)
}

# make_sdist FOLDER PYTHON: the source distribution, and nothing else, into it.
make_sdist() {
  rm -rf "$1"
  "$2" -m build --no-isolation --sdist --outdir "$1" . >"$1.log" 2>&1 ||
    { tail -n 40 "$1.log" && return 1; }
}

# test_installed FOLDER TORCH: the package as it is installed there, first with
# nothing but its dependencies, then by the tests of what is in the package.
test_installed() {
  local folder root=$PWD
  folder=$(mktemp -d)
  # From another folder, which has no ckpt_streamer.
  (cd "$folder" && "$1/bin/python" "$root/tools/smoke.py" "$2") || return 1
  rm -rf "$folder"
  install_test_tools "$1"
  "$1/bin/pytest" -q tests/test_install.py tests/test_cpp_package.py tests/test_script.py
}
