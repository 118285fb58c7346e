"""Hot swaps under requests on real vLLM: none fails, the new version answers, and no damaged adapter ever does."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load, save

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


def no_fingerprint(files: Files) -> Files:
    return {name: data for name, data in files.items() if name != "fingerprint.json"}


@pytest.mark.parametrize("spoil", [nan, missing, too_large, truncated, huge, high_rank, not_lora, no_op, no_fingerprint])
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
