"""`python -m serve`: the HTTP server. The environment is set before anything imports torch; see `serve.engine` for why."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    TORCHDYNAMO_DISABLE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    TOKENIZERS_PARALLELISM="false",
)

from serve.program import main

if __name__ == "__main__":
    raise SystemExit(main())
