# Sourced by the launchers: sets PYTHON, the Python that has torch. That is
# PYTHON if it is set, the shell's own, or the one of this tree's .venv.
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
has_torch() {
    command -v "$1" >/dev/null 2>&1 && "$1" - 2>/dev/null <<'END'
import importlib.util, sys
sys.exit(importlib.util.find_spec('torch') is None)
END
}
if [ -z "${PYTHON:-}" ]; then
    if has_torch python; then
        PYTHON=python
    elif has_torch "$tree/.venv/bin/python"; then
        PYTHON=$tree/.venv/bin/python
        echo "The python of this shell has no torch, so $PYTHON is used;" \
            "source $tree/.venv/bin/activate makes it the shell's." >&2
    else
        echo "No Python with torch was found: not the python of this shell," \
            "nor $tree/.venv; run make setup, or set PYTHON." >&2
        exit 2
    fi
fi
export PYTHON
