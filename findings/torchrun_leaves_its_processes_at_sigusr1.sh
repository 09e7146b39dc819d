#!/bin/sh
# torchrun of torch 2.13.0: SIGUSR1, which clusters send before a time limit, ends it at once, while
# the processes that it started run on.
#
# Seen: torchrun handles SIGTERM, SIGINT, SIGHUP and SIGQUIT, and passes those on. For any other, the
# system's default holds: torchrun ends by SIGUSR1, and its process, which has a handler to save its
# work, is told nothing and goes on without it. With --signals-to-handle naming SIGUSR1, the process
# gets that very signal, and torchrun ends after it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy

cat > "$folder/work.py" <<'PYTHON'
import os
import signal
import sys
import time
from pathlib import Path

told = Path(sys.argv[1], "told")
signal.signal(signal.SIGUSR1, lambda *_: told.touch())
Path(sys.argv[1], "process").write_text(str(os.getpid()))
end = time.monotonic() + 120
while time.monotonic() < end and not told.exists():
    time.sleep(0.1)
PYTHON

cat > "$folder/launch.py" <<'PYTHON'
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1"]
for options in ([], ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"]):
    for name in ("told", "process"):
        (folder / name).unlink(missing_ok=True)
    torchrun = subprocess.Popen([*launch, *options, folder / "work.py", folder])
    while not (folder / "process").exists() or not (folder / "process").read_text():
        time.sleep(0.1)
    torchrun.send_signal(signal.SIGUSR1)
    by_the_signal = torchrun.wait() == -signal.SIGUSR1
    told = (folder / "told").exists()
    print(*options, f"torchrun ended by the signal: {by_the_signal}, process told: {told}", end="")
    try:
        os.kill(int((folder / "process").read_text()), signal.SIGUSR1)  # so that it ends, too
        print(", still there")
    except ProcessLookupError:
        print(", gone")
PYTHON

seen=$("$folder/venv/bin/python" "$folder/launch.py" "$folder" 2> "$folder/log")
echo "$seen"
[ "$seen" = "torchrun ended by the signal: True, process told: False, still there
--signals-to-handle SIGTERM,SIGINT,SIGUSR1 torchrun ended by the signal: False, process told: True, gone" ]
