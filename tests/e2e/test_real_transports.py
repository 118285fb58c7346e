"""The loop once more over the transports of a real deployment: events through Kafka, rows in PostgreSQL, people from `attune simulate`."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from tests.fixtures.kafka import Broker
from tests.fixtures.running import Running, started

pytestmark = pytest.mark.e2e
VOTES = 9


@pytest.fixture
def deployed(demo_model: Path, kafka_broker: Broker, postgres_url: str, tmp_path: Path) -> Iterator[Running]:
    transports = {
        "ATTUNE_BUS__KIND": "kafka",
        "ATTUNE_BUS__BOOTSTRAP": kafka_broker.bootstrap,
        "ATTUNE_BUS__TOPIC_PREFIX": f"e2e-{uuid.uuid4().hex[:8]}",
        "ATTUNE_STORE__URL": postgres_url,
        "ATTUNE_LEARNER__MAX_VOTE_WAIT_S": "10",
    }
    with started(tmp_path / "home", demo_model, transports) as deployment:
        yield deployment


@pytest.mark.timeout(420)
def test_simulated_people_teach_a_policy_through_kafka_and_postgresql(deployed: Running, postgres_url: str, tmp_path: Path) -> None:
    options = f"--taste short --kinds ranking comparison --votes {VOTES} --clients 3 --max-tokens 24 --wait-s 90"
    options += " --judge-prompts 4 --judge-samples 2"
    command = [sys.executable, "-m", "attune", "simulate", "--url", deployed.url, "--out", str(tmp_path), *options.split()]
    done = subprocess.run(
        command, env=os.environ | {"ATTUNE_HOME": str(deployed.home)}, cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr + deployed.logs()
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["votes"], result["lost"], result["failed_requests"]) == (VOTES, 0, 0)
    assert result["receipts"] == {"live": VOTES}, deployed.logs()
    assert result["policy_version"] >= 1
    assert {row["arm"] for row in result["judgements"]} == {"alone", "reranked"}
    judged = [json.loads(line)["arm"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert (judged.count("alone"), judged.count("reranked")) == (8, 4), "where answers are ranked, half as many are judged"
    assert Path(result["curve"]).read_bytes().startswith(b"\x89PNG")
    assert not (deployed.home / "store.sqlite").exists(), "rows went to SQLite as well"
    engine = create_engine(postgres_url)
    tables = inspect(engine).get_table_names()
    engine.dispose()
    assert {"interactions", "feedback"} <= set(tables)
