"""The `llm` program against `mlxr serve`, configured as its manual says: a file that names the models and the server."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

URL = os.environ["MLXR_URL"]
LLM = Path(sys.executable).with_name("llm")
PROMPT = "Tell me a story about a cat."
GREEDY = ("-o", "temperature", "0", "-o", "max_tokens", "40")
MODELS = f"""
- model_id: mlxr
  model_name: mlxr-27m
  api_base: "{URL}/v1"
- model_id: mlxr-complete
  model_name: mlxr-27m
  api_base: "{URL}/v1"
  completion: true
- model_id: nothing
  model_name: nothing
  api_base: "{URL}/v1"
"""


def run(*arguments, code=0, text=None):
    done = subprocess.run([LLM, *arguments], input=text, capture_output=True, text=True)
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return done


def check_prompts():
    text = run(PROMPT, "-m", "mlxr", *GREEDY, "--no-stream").stdout
    assert len(text) > 20
    streamed = run("-m", "mlxr", *GREEDY, "-u", text=PROMPT)
    assert streamed.stdout == text, (streamed.stdout, text)
    assert "40 output" in streamed.stderr, streamed.stderr
    # It remembers the conversation and sends all of it.
    follow = run("-c", "What was its name?", *GREEDY)
    assert follow.stdout and follow.stdout != text
    logged = json.loads(run("logs", "--json", "-n", "0").stdout)
    assert [entry["prompt"] for entry in logged] == [PROMPT, PROMPT, "What was its name?"], logged
    assert logged[1]["output_tokens"] == 40 and logged[1]["input_tokens"] < logged[2]["input_tokens"], logged
    completed = run("Once upon a time", "-m", "mlxr-complete", *GREEDY).stdout
    assert len(completed) > 20 and completed == run("Once upon a time", "-m", "mlxr-complete", *GREEDY).stdout


def check_errors():
    unknown = run("Hi", "-m", "nothing", code=1).stderr
    assert "mlxr-27m" in unknown, unknown
    long = run("-m", "mlxr", code=1, text="word " * 5000).stderr
    assert "2048" in long, long


with tempfile.TemporaryDirectory() as folder:
    os.environ["LLM_USER_PATH"] = folder
    (Path(folder) / "extra-openai-models.yaml").write_text(MODELS)
    check_prompts()
    check_errors()
print("ok")
