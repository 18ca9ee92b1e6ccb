"""The programs on the page about serving run as they stand there."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from export_cases import fitted, waves

PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
ONNX, PROGRAM, SERVER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("code", "file"), [(ONNX, "model.onnx"), (PROGRAM, "model.pt2")])
def test_programs_that_run_a_file(code, file, tmp_path):
    fitted("ridge").export(tmp_path / file, check=False)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1, 3, 3" in done.stdout
    assert len(ONNX.strip().splitlines()) <= 11


def answer(process, port: int, document: dict) -> dict:
    body = json.dumps(document).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json"})
    for _ in range(240):
        assert process.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except (urllib.error.URLError, ConnectionError):  # not up yet
            time.sleep(0.5)
    raise TimeoutError("the server did not answer in two minutes")


@pytest.mark.slow
def test_server(tmp_path):
    pytest.importorskip("litserve", reason="litserve is not installed")
    est = fitted("ridge")
    est.save(tmp_path / "model")
    (tmp_path / "serve.py").write_text(SERVER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path / "log").open("w")
    words = [sys.executable, "serve.py", "model", str(port)]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        frame = waves()[:20]
        history = json.loads(frame.reset_index().to_json(orient="records", date_format="iso"))
        found = pd.DataFrame(answer(process, port, {"history": history})["forecast"])
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the server's workers too, which outlive it otherwise
        process.wait(timeout=60)
        log.close()
    expected = est.predict(frame)
    np.testing.assert_allclose(found[["a", "b", "c"]], expected, rtol=1e-8)
    assert pd.DatetimeIndex(found["time"]).tz_localize(None).tolist() == expected.index.tolist()
