#!/bin/sh
# tqdm 4.70.1: `delay` keeps a bar hidden for that many seconds, but any tqdm.write draws it at once.
#
# Seen: a bar with delay=60 draws nothing by itself; after one tqdm.write of a line to standard
# output, standard error holds the bar. tqdm.write clears and refreshes every bar of the two standard
# streams, and a refresh does not ask whether the delay has passed. So whoever delays bars to keep
# short work quiet gets them back as soon as anything is written the way tqdm asks for.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tqdm==4.70.1

cat > "$folder/bar.py" <<'PYTHON'
import sys

from tqdm import tqdm

bar = tqdm(total=3, delay=60, leave=False)
bar.update()
if sys.argv[1] == "write":
    tqdm.write("a line")
PYTHON

quiet=$("$folder/venv/bin/python" "$folder/bar.py" nothing 2>&1 >/dev/null | grep -c "1/3" || true)
written=$("$folder/venv/bin/python" "$folder/bar.py" write 2>&1 >/dev/null | grep -c "1/3" || true)
echo "bars drawn without a write: $quiet, with one: $written"
[ "$quiet" = 0 ] && [ "$written" = 1 ]
