"""The whole job on real frameworks, small; and what becomes of a peer that is missing, crashes or hangs."""

import json
import os
import subprocess
import sys
import time
from multiprocessing import active_children

import numpy as np
import pytest

from tinynet.compare import bounds, networks, report, worker
from tinynet.compare.job import Job, Settings
from tinynet.compare.worker import PeerFailed, PeerProcess
from tinynet.data import load_digits
from tinynet.kernels.cpu.target import TARGET


def settings(**changes) -> Settings:
    base = dict(networks=("pytorch",), peers=("tinynet", "pytorch"), modes=("eager",), batch_sizes=(1, 8), threads=2, rounds=2, block_s=0.01, epochs=1)
    return Settings(**{**base, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    result = Job(settings(), out, lambda *_: None).run()
    return result, report.write(result, out), out


def test_the_result_holds_a_row_for_each_thing_that_was_asked(finished):
    result, _, _ = finished
    assert [p["status"] for p in result["peers"]] == ["ok", "ok"]
    assert result["failures"] == []
    assert all(check["ok"] for row in result["parity"] for check in row["checks"])
    assert {(r["peer"], r["kind"], r["batch"]) for r in result["speed"]} == {(p, k, b) for p in ("tinynet", "pytorch") for k in ("forward", "training") for b in (1, 8)}
    assert all(len(r["rounds"]) == 2 and r["low_s"] <= r["median_s"] <= r["high_s"] for r in result["speed"])
    assert all(len(r["losses"]) == 45 for r in result["training"])
    assert all(p["peak_mb"] > p["memory_mb"] / 2 > 0 for p in result["peers"])


def test_one_epoch_is_too_few_and_so_the_job_is_not_ok(finished):
    result, _, _ = finished
    assert all(r["epochs"][-1]["accuracy"] < 0.95 and r["passed_in"] is None for r in result["training"])
    assert result["ok"] is False


def test_peers_train_from_equal_weights_on_equal_batches(finished):
    training, _ = load_digits()
    first = np.random.default_rng([0, 0]).permutation(len(training.images))[:32]
    network = networks.get("pytorch")
    loss = bounds.truth(network, networks.canonical_state(network), training.images[first], training.classes[first]).loss
    for row in finished[0]["training"]:
        assert abs(row["losses"][0] - loss.value) <= loss.bound
        assert np.mean(row["losses"][-10:]) < 0.5 * row["losses"][0]


def test_the_three_reports_say_the_same_and_need_no_network(finished):
    result, page, out = finished
    html, markdown = page.read_text(), (out / "report.md").read_text()
    assert json.loads((out / "report.json").read_text()) == json.loads(report.as_json(result))
    for text in (html, markdown):
        assert "tinynet" in text and "PyTorch" in text and f"({TARGET})" in text
    assert "http://" not in html.replace("http://www.w3.org", "") and 'src="http' not in html and "<script" not in html
    assert "class</span>" in html and "data:image/png" in html  # listings and plots


def test_digits_are_split_once_and_for_all():
    training, held_out = load_digits()
    assert training.images.shape == (1437, 3, 32, 32) and held_out.images.shape == (360, 3, 32, 32)
    assert training.images.dtype == np.float32 and 0 <= training.images.min() and training.images.max() <= 1
    counts = np.bincount(held_out.classes)
    assert counts.min() >= 35 and counts.max() <= 37
    assert not {i.tobytes() for i in held_out.images} & {i.tobytes() for i in training.images}


def die():
    os._exit(3)


def hang():
    time.sleep(60)


def test_a_peer_that_hangs_at_its_start_is_ended_too(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_begin", hang_at_start)
    others = {child.pid for child in active_children()}
    with pytest.raises(PeerFailed) as failed:
        PeerProcess("tinynet", 1, tmp_path / "log.txt", timeout=3)
    assert failed.value.status == "timed out"
    time.sleep(0.5)
    assert {child.pid for child in active_children()} <= others


def hang_at_start(*_):
    time.sleep(60)


def test_a_peer_without_the_chosen_mode_is_a_row_that_says_so_and_no_failure(tmp_path):
    result = Job(settings(peers=("tinynet", "keras"), batch_sizes=(1,), rounds=1), tmp_path / "out", lambda *_: None).run()
    (left_out,) = [p for p in result["peers"] if p["status"] != "ok"]
    assert left_out["name"] == "keras" and "none of the chosen modes" in left_out["reason"] and result["failures"] == []
    assert report.write(result, tmp_path / "out").exists()


def test_no_two_of_tinynet_s_lines_are_drawn_alike():
    eager, compiled = report._line("tinynet eager"), report._line("tinynet compiled")
    assert eager != compiled and eager["color"] == compiled["color"] == "black"
    assert "color" not in report._line("pytorch eager")


def test_json_holds_no_infinity_and_markdown_no_broken_lines(finished, tmp_path):
    result, _, _ = finished
    broken = json.loads(json.dumps(result))
    broken["parity"][0]["checks"][1].update(ok=False, ratio=float("inf"), error=float("nan"), explanation="output: WRONG\n  worst | of all")
    broken["failures"] = [{"peer": "pytorch", "mode": "compile", "network": "keras", "stage": "parity", "status": "failed", "reason": "first\nsecond [/tmp/x] | third", "install": "", "log": "log"}]
    report.write(broken, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)["parity"][0]["checks"][1]["ratio"] is None
    assert "first second [/tmp/x] \\| third" in (tmp_path / "report.md").read_text()
    assert "output: WRONG" in (tmp_path / "report.html").read_text()


def test_a_peer_that_crashes_is_reported(tmp_path):
    process = PeerProcess("tinynet", 1, tmp_path / "log.txt")
    with pytest.raises(PeerFailed) as failed:
        process._wait(process.pool.submit(die), 60)
    assert failed.value.status == "crashed"


def test_a_peer_that_hangs_is_killed(tmp_path):
    process = PeerProcess("tinynet", 1, tmp_path / "log.txt")
    with pytest.raises(PeerFailed) as failed:
        process._wait(process.pool.submit(hang), 1)
    assert failed.value.status == "timed out"


def test_a_missing_framework_is_a_row_that_says_how_to_install_it(tmp_path, monkeypatch):
    blocked = tmp_path / "blocked" / "torch"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    monkeypatch.syspath_prepend(blocked.parent)  # a spawned process inherits the path
    result = Job(settings(batch_sizes=(1,), rounds=1), tmp_path / "out", lambda *_: None).run()
    rows = {p["name"]: p for p in result["peers"]}
    assert rows["tinynet"]["status"] == "ok" and rows["pytorch"]["status"] == "missing"
    assert "pip install torch" in result["failures"][0]["install"]
    assert {r["peer"] for r in result["speed"]} == {"tinynet"}
    assert result["ok"] is False


@pytest.mark.parametrize("arguments, expected", [(["--networks", "lenet"], "there is no network 'lenet'"), (["--peers", "mxnet"], "there is no peer 'mxnet'"), (["--batch-sizes", "1,x"], "batch sizes must be numbers")])
def test_wrong_arguments_are_refused_with_what_is_allowed(arguments, expected):
    done = subprocess.run([sys.executable, "-c", "from tinynet.cli import main; main()", "compare", *arguments], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 2 and expected in done.stderr


def test_threads_are_limited_before_anything_is_imported():
    assert worker.limits(3)["OMP_NUM_THREADS"] == "3"
