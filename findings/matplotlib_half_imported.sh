#!/bin/sh
# matplotlib 3.11.2: an import that failed for a bad MPLBACKEND cannot be tried again.
#
# Seen: with MPLBACKEND naming the notebooks' backend where matplotlib-inline is not installed (a
# notebook of another environment passes it on to its children), the first import raises a
# ValueError; any other module:// name would pass. With the variable mended, the second import in
# the same process raises
#     AttributeError: module 'matplotlib' has no attribute '_docstring'
# since parts of the package stay in sys.modules. So "try, set agg, import again" does not work; the
# variable has to be out of the way before the first import.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q matplotlib==3.11.2

cat > "$folder/twice.py" <<'PYTHON'
import os

try:
    import matplotlib.figure
except ValueError as error:
    print("first:", str(error).partition(" is not")[0])
os.environ["MPLBACKEND"] = "agg"
try:
    import matplotlib.figure
    print("second: imported")
except AttributeError as error:
    print("second:", error)
PYTHON

seen=$(MPLBACKEND=module://matplotlib_inline.backend_inline "$folder/venv/bin/python" "$folder/twice.py")
echo "$seen"
[ "$seen" = "first: Key backend: 'module://matplotlib_inline.backend_inline'
second: module 'matplotlib' has no attribute '_docstring'" ]
