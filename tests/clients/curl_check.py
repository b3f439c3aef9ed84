"""curl against `mlxr serve`: the commands in curl.txt print what stands below them there.

What differs from run to run (identifiers, times) is masked. `curl_check.py --write` takes what comes for right.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

TRANSCRIPT = Path(__file__).with_name("curl.txt")
MASKS = [
    (r'"((?:chatcmpl|cmpl|msg|req|resp)[-_])[0-9A-Za-z]+"', r'"\1ID"'),
    (r'"created":\d+', '"created":TIME'),
    (r'"created_at":"[^"]+"', '"created_at":"TIME"'),
    (r'"(\w+_duration)":\d+', r'"\1":DURATION'),
    (r"mlxr-\d+\.\d+\.\d+", "mlxr-VERSION"),
    (r'"version":"[^"]+"', '"version":"VERSION"'),
    (r"-\d+\.\d+(?=[,}\]])", "LOGPROB"),
    (r"(?m)^date: .*$", "date: DATE"),
    (r"(?m)^(request-id: req_)\w+$", r"\1ID"),
]


def mask(text):
    for pattern, replacement in MASKS:
        text = re.sub(pattern, replacement, text)
    return text


def run(command):
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.returncode, done.stderr)
    return mask(done.stdout.replace("\r\n", "\n")).rstrip("\n")


os.environ["HOST"] = os.environ["MLXR_URL"]
os.environ["SOCKET"] = os.environ["MLXR_SOCKET"]
expected = TRANSCRIPT.read_text()
# A command goes on over lines that end in a backslash.
commands = re.findall(r"(?m)^\$ ((?:.*\\\n)*.*)$", expected)
found = "\n\n".join(f"$ {command}\n{run(command)}" for command in commands) + "\n"
if sys.argv[1:] == ["--write"]:
    TRANSCRIPT.write_text(found)
elif found != expected:
    for was, now in zip(expected.splitlines(), found.splitlines()):
        assert was == now, f"expected: {was}\nfound:    {now}"
    raise AssertionError(f"expected {len(expected)} characters, found {len(found)}")
print("ok")
