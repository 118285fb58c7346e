"""Hot swaps under requests on real vLLM: none fails, the new version answers, and no damaged adapter ever does."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from attune.frozen import NUM_SCALARS
from attune.reward import Anchors, RewardModel
from attune.style import NUM_LOOKS
from learner import sft_command
from tests.fixtures.engine import Bench, Files

pytestmark = pytest.mark.engine
BODY = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 8}


@contextmanager
def traffic(bench: Bench) -> Iterator[list[tuple[int, int]]]:
    """Yield what a client in a loop sees: (HTTP status, policy version) of every request."""
    seen: list[tuple[int, int]] = []
    stop = threading.Event()

    def loop() -> None:
        with bench.http() as http:
            while not stop.is_set():
                response = http.post("/v1/chat/completions", json=BODY)
                seen.append((response.status_code, response.json().get("attune", {}).get("policy_version", -1)))

    threads = [threading.Thread(target=loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_swaps_disturb_nobody(bench: Bench) -> None:
    with traffic(bench) as seen:
        for seed in range(6):
            version = bench.publish(seed=seed)
            bench.wait(lambda s, n=version.number: s["policy_version"] == n)  # type: ignore[misc]
            time.sleep(0.3)
    assert {status for status, _ in seen} == {200}
    assert max(version for _, version in seen) == version.number
    assert len({v for _, v in seen}) >= 5
    with bench.client() as client:  # a version that came before is still there by its number, the base always
        names = {m.id for m in client.models.list()}
    assert {f"attune@{version.number - 1}", "attune@0"} <= names
    assert f"attune@{version.number - 5}" not in names


def nan(files: Files) -> Files:
    tensors = load(files["adapter_model.safetensors"])
    next(iter(tensors.values()))[0, 0] = torch.nan
    return files | {"adapter_model.safetensors": save(tensors)}


def missing(files: Files) -> Files:
    tensors = load(files["adapter_model.safetensors"])
    tensors.pop(sorted(tensors)[0])
    return files | {"adapter_model.safetensors": save(tensors)}


def too_large(files: Files) -> Files:
    tensors = load(files["adapter_model.safetensors"])
    name = sorted(tensors)[0]
    tensors[name] = torch.cat([tensors[name], tensors[name]], 1)
    return files | {"adapter_model.safetensors": save(tensors)}


def truncated(files: Files) -> Files:
    return files | {"adapter_model.safetensors": files["adapter_model.safetensors"][:-1000]}


def huge(files: Files) -> Files:
    tensors = {name: tensor * 1e4 for name, tensor in load(files["adapter_model.safetensors"]).items()}
    return files | {"adapter_model.safetensors": save(tensors)}


def high_rank(files: Files) -> Files:
    return files | {"adapter_config.json": json.dumps(json.loads(files["adapter_config.json"]) | {"r": 64}).encode()}


def not_lora(files: Files) -> Files:
    return files | {"adapter_config.json": b'{"peft_type": "IA3"}'}


def no_op(files: Files) -> Files:
    tensors = {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in load(files["adapter_model.safetensors"]).items()}
    return files | {"adapter_model.safetensors": save(tensors)}


def strange_file(files: Files) -> Files:
    return files | {"adapter_model.bin": b"a pickle"}


def pushed_far(files: Files) -> Files:
    """Every number within its bound, and yet no change that training makes."""
    tensors = {name: tensor.sign() * 10 for name, tensor in load(files["adapter_model.safetensors"]).items()}
    return files | {"adapter_model.safetensors": save(tensors)}


def unknown_tokens(files: Files) -> Files:
    fingerprint = json.loads(files["fingerprint.json"])
    fingerprint["sequences"][0]["token_ids"][0] = 1_000_000
    return files | {"fingerprint.json": json.dumps(fingerprint).encode()}


def no_fingerprint(files: Files) -> Files:
    return {name: data for name, data in files.items() if name != "fingerprint.json"}


DAMAGES = [
    nan, missing, too_large, truncated, huge, high_rank, not_lora, no_op, strange_file, pushed_far, unknown_tokens, no_fingerprint,
]  # fmt: skip


@pytest.mark.parametrize("spoil", DAMAGES)
def test_a_damaged_adapter_is_refused_and_the_old_one_goes_on(bench: Bench, spoil: Callable[[Files], Files]) -> None:
    before = bench.wait(lambda s: True)["policy_version"]
    snapshot = bench.policy.snapshot()
    with traffic(bench) as seen:
        version = bench.publish(seed=99, spoil=spoil)
        status = bench.wait(lambda s: any(r["number"] == version.number for r in s["refused"]))
    bench.policy.restore(snapshot)
    assert status["policy_version"] == before
    assert {code for code, _ in seen} == {200}
    assert {v for _, v in seen} == {before}
    (refused,) = [r for r in status["refused"] if r["number"] == version.number]
    assert refused["reason"]
    bench.registry.roll_back("policy", by="test", reason="damaged")


def test_files_changed_after_publishing_are_refused(bench: Bench) -> None:
    before = bench.wait(lambda s: True)["policy_version"]
    snapshot = bench.policy.snapshot()
    version = bench.publish(seed=98, promote=False)
    file = bench.registry.folder("policy", version.number) / "report.json"
    file.write_bytes(file.read_bytes() + b" ")
    bench.registry.promote("policy", version.number, by="test", reason="test")
    status = bench.wait(lambda s: any(r["number"] == version.number for r in s["refused"]))
    assert "sha256" in next(r["reason"] for r in status["refused"] if r["number"] == version.number)
    assert status["policy_version"] == before
    bench.policy.restore(snapshot)
    bench.registry.roll_back("policy", by="test", reason="damaged")


def test_rolling_back_serves_the_version_before(bench: Bench) -> None:
    before = bench.wait(lambda s: True)["policy_version"]
    version = bench.publish(seed=5)
    bench.wait(lambda s: s["policy_version"] == version.number)
    assert bench.registry.roll_back("policy", by="test", reason="test") == before
    bench.wait(lambda s: s["policy_version"] == before)


def rewards(width: int, **changes: np.ndarray) -> RewardModel:
    """Return a random model whose particles agree with half of its mean: with zeros, one spread taken off would leave nothing."""
    mean_D = np.random.default_rng(0).normal(size=width)
    parts = {"center_D": np.zeros(width), "scale_D": np.ones(width), "mean_D": mean_D, "particles_KD": np.tile(mean_D / 2, (2, 1))}
    arrays = {name: array.astype(np.float32) for name, array in (parts | changes).items()}
    return RewardModel(1, **arrays, anchors=Anchors())


def publish_reward(bench: Bench, model: RewardModel) -> int:
    version = bench.registry.publish(
        "reward", model.to_files(), parent=bench.registry.champion("reward"), base_model=bench.config.model_identity, base_revision="",
        trained_through=0, report={},
    )  # fmt: skip
    bench.registry.promote("reward", version.number, by="test", reason="test")
    return version.number


def test_a_reward_version_ranks_and_one_that_does_not_fit_is_refused(bench: Bench) -> None:
    width = NUM_LOOKS + 3 * 128 + NUM_SCALARS
    number = publish_reward(bench, rewards(width))
    bench.wait(lambda s: s["reward_version"] == number)
    with bench.http() as http:
        response = http.post("/v1/chat/completions", json=BODY | {"n": 4}).json()
        off = http.post("/v1/chat/completions", json=BODY | {"n": 4, "rerank": "off"}).json()["attune"]
    reply = response["attune"]
    totals = [c["scores"]["total"] for c in reply["choices"]]
    empty = sum(not c["message"]["content"].strip() for c in response["choices"])  # these share the last place
    assert reply["reward_version"] == number
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == 4 - max(0, empty - 1) > 1
    assert {c["propensity"] for c in reply["choices"][: 4 - empty]} == {1.0}
    assert [c["candidate"] for c in off["choices"]] == [0, 1, 2, 3]
    for model in (rewards(width + 1), rewards(width, scale_D=np.zeros(width)), rewards(width, mean_D=np.full(width, np.nan))):
        bad = publish_reward(bench, model)
        status = bench.wait(lambda s, n=bad: any((r["kind"], r["number"]) == ("reward", n) for r in s["refused"]))  # type: ignore[misc]
        assert status["reward_version"] == number
    with bench.http() as http:
        assert "attune_scorer_failures_total 0.0" in http.get("/metrics").text
    while bench.registry.champion("reward"):
        bench.registry.roll_back("reward", by="test", reason="test")
    bench.wait(lambda s: s["reward_version"] == 0)


def test_the_operator_promotes_and_rolls_back_over_http(bench: Bench) -> None:
    before = bench.wait(lambda s: True)["policy_version"]
    version = bench.publish(seed=6, promote=False)
    with bench.http() as http:
        path = f"/v1/attune/versions/policy/{version.number}/promote"
        assert http.post(path).json() == {"kind": "policy", "champion": version.number}
        assert http.post(path).status_code == 409
        bench.wait(lambda s: s["policy_version"] == version.number)
        assert http.post("/v1/attune/versions/policy/rollback").json() == {"kind": "policy", "champion": before}
    bench.wait(lambda s: s["policy_version"] == before)


def test_a_manifest_that_cannot_be_read_hides_no_other_version(bench: Bench) -> None:
    version = bench.publish(seed=7, promote=False)
    manifest = bench.registry.folder("policy", version.number) / "manifest.json"
    whole = manifest.read_bytes()
    bench.registry.version("policy", version.number)  # the publisher has read it before it was damaged
    manifest.write_bytes(whole[:-20])
    bench.registry.promote("policy", version.number, by="test", reason="test")
    status = bench.wait(lambda s: any(r["number"] == version.number for r in s["refused"]))
    shown = next(v for v in status["versions"] if (v["kind"], v["number"]) == ("policy", version.number))
    assert "damaged" in shown["refused"]
    manifest.write_bytes(whole)
    bench.registry.roll_back("policy", by="test", reason="damaged")


def core(bench: Bench) -> int:
    """Return the process id of the engine's core: the server's child that is a fork of it (vLLM does not always rename it)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == bench.process.pid and b"multiprocessing" not in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    (pid,) = found
    return pid


def test_a_killed_engine_comes_back_with_the_champion(bench: Bench) -> None:
    version = bench.publish(seed=8)
    bench.wait(lambda s: s["policy_version"] == version.number)
    ident = core(bench)
    with traffic(bench) as seen:
        time.sleep(0.5)
        os.kill(ident, signal.SIGKILL)
        killed = time.monotonic()
        time.sleep(0.3)
        with bench.http() as http:
            while http.get("/readyz").status_code != 200:
                assert time.monotonic() - killed < 60
                time.sleep(0.05)
        away_s = time.monotonic() - killed
        time.sleep(1)
    assert {status for status, _ in seen} <= {200, 503}
    assert {v for status, v in seen if status == 200} == {version.number}  # never the bare model in between
    assert seen[-1][0] == 200
    assert away_s < 20
    assert core(bench) != ident
    assert bench.process.poll() is None
    with bench.http() as http:
        assert "attune_engine_deaths_total 1.0" in http.get("/metrics").text


def test_a_server_that_is_killed_takes_its_engine_along_and_the_next_one_walks_down_to_a_sound_champion(
    bench: Bench, tmp_path: Path
) -> None:
    sound = bench.wait(lambda s: True)["policy_version"]
    snapshot = bench.policy.snapshot()
    bad = [bench.publish(seed=90 + i, spoil=spoil).number for i, spoil in enumerate((nan, truncated))]
    bench.policy.restore(snapshot)
    bench.wait(lambda s: {r["number"] for r in s["refused"]} >= set(bad))
    ident = core(bench)
    bench.restart()
    assert not Path(f"/proc/{ident}").exists()
    with bench.http() as http:
        reply = http.post("/v1/chat/completions", json=BODY)
    assert reply.json()["attune"]["policy_version"] == sound  # from the first request on
    for _ in bad:
        bench.registry.roll_back("policy", by="test", reason="damaged")


def test_a_second_server_on_the_port_says_so_at_once(bench: Bench) -> None:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "serve"], env=bench.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert str(bench.config.serve.port) in done.stderr.splitlines()[-1]
    assert time.monotonic() - started < 15


def test_what_demonstrations_taught_goes_live(bench: Bench, tmp_path: Path) -> None:
    data = tmp_path / "demonstrations.jsonl"
    lines = [{"prompt": f"Question {n}?", "completion": "The same answer to all."} for n in range(12)]
    data.write_text("\n".join(map(json.dumps, lines)))
    assert sft_command.run(bench.config, data, epochs=2, batch=4, learning_rate=1e-3) == 0
    taught = bench.registry.champion("policy")
    bench.wait(lambda s: s["policy_version"] == taught)
    bench.registry.roll_back("policy", by="test", reason="test")
