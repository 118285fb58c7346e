"""`python -m learner`: the learner. One thread, set before anything imports torch, so that it does not slow the engine beside it."""

import os

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

from learner.program import main

if __name__ == "__main__":
    raise SystemExit(main())
