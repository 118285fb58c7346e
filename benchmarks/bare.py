"""The loop without engine and clock, to compare settings: `python -m benchmarks.bare TASTE [--seed 0] [--set learner.policy_lr=1e-3]`.

The learner's own cycle over a store of its own, the people of `attune simulate`, and the judge. But the policy answers in this process,
eight requests at a time, and an update is made as soon as it is due, so nothing it says goes into a table of figures. One thread: two runs
fit on two cores. Shapes: N answers, T tokens, H hidden width, V vocabulary.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import torch

from attune import config as configuration
from attune.config import Config
from attune.frozen import Answer as Tokens
from attune.frozen import load_base
from attune.registry import Registry
from attune.simulate import prompts
from attune.simulate.judge import Verdict, judge
from attune.simulate.tastes import SENSE, TASTES, Answer, Ask, Taste
from attune.simulate.users import ANSWERS_WANTED, KINDS, choose_kind, vote
from attune.types import Candidate, Feedback, Interaction, Sampling
from benchmarks.deployment import lend_model
from feedback.store import Store
from learner.cycle import Cycle
from learner.program import assemble
from serve.rerank import choose

TEMPERATURE, MAX_TOKENS, CANDIDATES = 0.7, 48, 4
AT_ONCE = 8
"""Requests that are answered together."""
JUDGED_AT_ONCE = 30


def main() -> int:
    """Run one session and print what the judge says along it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("taste", choices=sorted(TASTES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--votes", type=int, default=300)
    parser.add_argument("--judge-every", type=int, default=100)
    parser.add_argument("--judge-prompts", type=int, default=60)
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="attune-bare-") as folder:
        environment = {"ATTUNE_HOME": folder, "ATTUNE_LEARNER__SEED": str(arguments.seed), "ATTUNE_LEARNER__TOP_UP_GROUPS": "0"}
        environment |= {f"ATTUNE_{name.replace('.', '__')}": value for name, _, value in (s.partition("=") for s in arguments.settings)}
        lend_model(Path(folder))
        found = Bare(configuration.load(None, environment), TASTES[arguments.taste], arguments.seed).run(
            arguments.votes, arguments.judge_every, arguments.judge_prompts
        )
    print(json.dumps({"taste": arguments.taste, "seed": arguments.seed, "settings": arguments.settings} | found))
    return 0


class Bare:
    """A learner, a policy that answers here, and people."""

    def __init__(self, config: Config, taste: Taste, seed: int) -> None:
        self.config, self.taste, self.seed = config, taste, seed
        self.store = Store.open(config.store_url)
        self.cycle: Cycle = assemble(config, self.store, Registry(config.registry_folder), threading.Event())
        self.tokenizer = self.cycle.tokenizer
        self.generator = Random(seed)
        self.base: dict[Ask, list[Answer]] = {}
        self.speaker, self.spoken_by = load_base(config.model_folder, None, torch.float32), 0

    def run(self, votes: int, judge_every: int, judge_prompts: int) -> dict[str, Any]:
        """Return what was judged every so many votes, and at the end also what ranking adds and what other tasks lose."""
        torch.manual_seed(self.seed)
        asks, judged = prompts.training(self.taste.name), prompts.held_out(self.taste.name)[:judge_prompts]
        Random(self.seed).shuffle(asks)
        numbered = list(enumerate(islice(cycle(asks), votes)))
        others = prompts.off_task()
        self.base, plain, started = self.answers(judged), self.answers(others), time.monotonic()
        points = []
        for start in range(0, votes, AT_ONCE):
            self.serve(numbered[start : start + AT_ONCE])
            while self.cycle.once():
                pass
            done = min(votes, start + AT_ONCE)
            if done == votes or start // judge_every < done // judge_every:
                points.append({"votes": done} | self.judged(judged))
                print(f"{time.monotonic() - started:5.0f} s", points[-1], flush=True)
        best = dict(zip(judged, self.ranked(judged), strict=True))
        ranked = judge(self.taste, best, self.base)
        off_task = judge(SENSE, self.answers(others), plain)
        return {"points": points, "best_of_4": share_of_ceiling(ranked), "off_task": off_task.preference}

    def judged(self, asks: Sequence[Ask]) -> dict[str, float]:
        """Return how the policy alone stands against the base."""
        verdict = judge(self.taste, self.answers(asks), self.base)
        report = self.cycle.registry.version("policy", self.cycle.at.policy).report if self.cycle.at.policy else {}
        figures = {
            "share": share_of_ceiling(verdict),
            "preference": verdict.preference,
            "decided": verdict.decided_share,
            "decided_preference": verdict.decided_preference or 0.5,
            "distinct": verdict.distinct_share,
            "finished": verdict.finished_share,
            "words": verdict.mean_words,
            "version": float(self.cycle.at.policy),
        } | {name: float(report.get(name, 0.0)) for name in ("kl_to_ref", "entropy", "base_logprob")}
        return {name: round(value, 3) for name, value in figures.items()}

    def serve(self, asked: Sequence[tuple[int, Ask]]) -> None:
        """Answer requests, have people vote on them, and store both."""
        version = self.cycle.at.policy
        for (index, ask), (prompt, candidates) in zip(asked, self.drawn([ask for _, ask in asked]), strict=True):
            random = Random(f"{self.seed}/{index}")
            kind = choose_kind(list(KINDS), random)
            candidates, totals = self.scored(prompt, candidates)
            choice = choose(totals, ANSWERS_WANTED[kind], rerank=True, rng=self.generator)
            name, at = f"seed {self.seed}, request {index}", time.time()
            self.store.write([
                Interaction(
                    name, at, ({"role": "user", "content": ask.text},), tuple(prompt), Sampling(TEMPERATURE, max_tokens=MAX_TOKENS),
                    tuple(candidates), choice.shown, choice.propensities, version, self.cycle.reward.version, "bare",
                )
            ])  # fmt: skip
            shown = [said(candidates[k]) for k in choice.shown]
            given = vote(kind, self.taste, ask, shown, choice.shown, 0.1, random)
            user = f"user {index % 4}"
            self.store.write([Feedback(f"vote {name}", f"event {name}", name, given.kind, given.value, given.choice, at, None, user)])

    def scored(self, prompt: Sequence[int], candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[float]]:
        """Return the candidates with what the frozen pass saw, and what ranks them."""
        looks = self.cycle.base.look(prompt, [Tokens(c.token_ids, finished(c)) for c in candidates], TEMPERATURE)
        seen = [v.at(c) for c, v in zip(candidates, looks, strict=True)]
        total = self.cycle.reward.total([v.features for v in looks], [c.text for c in candidates], self.config.serve.pessimism)
        return seen, total.tolist()

    def ranked(self, asks: Sequence[Ask]) -> list[list[Answer]]:
        """Return the best of four answers to each prompt."""
        found = []
        for prompt, candidates in self.drawn(asks):
            candidates, totals = self.scored(prompt, candidates)
            found.append([said(candidates[totals.index(max(totals))])])
        return found

    def answers(self, asks: Sequence[Ask]) -> dict[Ask, list[Answer]]:
        """Return what the policy says to each prompt."""
        found: dict[Ask, list[Answer]] = {}
        for start in range(0, len(asks), JUDGED_AT_ONCE):
            part = asks[start : start + JUDGED_AT_ONCE]
            for ask, (_, candidates) in zip(part, self.drawn(part), strict=True):
                found[ask] = [said(c) for c in candidates]
        return found

    @torch.inference_mode()
    def drawn(self, asks: Sequence[Ask]) -> list[tuple[list[int], list[Candidate]]]:
        """Return each prompt's tokens and what the policy says to it, four times."""
        asked = [
            list(self.tokenizer.apply_chat_template([{"role": "user", "content": a.text}], add_generation_prompt=True)["input_ids"])
            for a in asks
        ]
        ids, logprobs = sample(self._speaker(), asked, CANDIDATES, self.tokenizer.eos_token_id)
        made = [self._candidate(n % CANDIDATES, row, chosen) for n, (row, chosen) in enumerate(zip(ids, logprobs, strict=True))]
        return [(prompt, made[k * CANDIDATES : (k + 1) * CANDIDATES]) for k, prompt in enumerate(asked)]

    def _speaker(self) -> Any:
        """Return a network in fp32 with the adapter merged in: fastest to draw from where there are no units for bf16."""
        if self.spoken_by != self.cycle.at.policy:
            self.spoken_by = self.cycle.at.policy
            mine = dict(self.speaker.named_modules())
            for name, module in self.cycle.policy.network.named_modules():
                if hasattr(module, "get_delta_weight"):
                    plain = module.base_layer.weight.float()
                    mine[name.removeprefix("base_model.model.")].weight.copy_(plain + module.get_delta_weight("default").float())
        return self.speaker

    def _candidate(self, index: int, ids: list[int], logprobs: list[float]) -> Candidate:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Candidate(index, text, tuple(ids), tuple(logprobs), "stop" if ids[-1] == self.tokenizer.eos_token_id else "length")


def finished(candidate: Candidate) -> bool:
    """Whether an answer ended by itself."""
    return candidate.finish_reason == "stop"


def said(candidate: Candidate) -> Answer:
    """Return what people and judges see of a candidate."""
    return Answer(candidate.text, finished(candidate))


def share_of_ceiling(verdict: Verdict) -> float:
    """Return the preference as a share of what ties with the base leave."""
    return verdict.preference / (1 - (1 - verdict.decided_share) / 2)


def sample(network: Any, prompts: Sequence[Sequence[int]], draws: int, end: int) -> tuple[list[list[int]], list[list[float]]]:
    """Return `draws` continuations of each prompt, and their log-probs."""
    width = max(map(len, prompts))
    padded_NT = torch.tensor([[end] * (width - len(p)) + list(p) for p in prompts])
    mask_NT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    place_NT = (mask_NT.cumsum(1) - 1).clamp_min(0)
    out = network.base_model(input_ids=padded_NT, attention_mask=mask_NT, position_ids=place_NT, use_cache=True)
    past, last_NH = out.past_key_values, out.last_hidden_state[:, -1].repeat_interleave(draws, 0)
    past.batch_repeat_interleave(draws)
    mask_NT, place_N = mask_NT.repeat_interleave(draws, 0), place_NT[:, -1].repeat_interleave(draws)
    head_VH = network.get_output_embeddings().weight
    ids, chosen = [list[int]() for _ in last_NH], [list[float]() for _ in last_NH]
    going = list(range(len(ids)))
    for _ in range(MAX_TOKENS):
        log_NV = (last_NH @ head_VH.t() / TEMPERATURE).log_softmax(-1)
        drawn_N1 = log_NV.exp().cumsum_(1).ge_(torch.rand(len(log_NV), 1)).max(1, keepdim=True).indices
        for n, token, logprob in zip(going, drawn_N1[:, 0].tolist(), log_NV.gather(1, drawn_N1)[:, 0].tolist(), strict=True):
            ids[n].append(token)
            chosen[n].append(logprob)
        keep = [i for i, n in enumerate(going) if ids[n][-1] != end]
        if not keep:
            break
        if len(keep) < len(going):
            going = [going[i] for i in keep]
            past.batch_select_indices(torch.tensor(keep))
            mask_NT, place_N, drawn_N1 = mask_NT[keep], place_N[keep], drawn_N1[keep]
        mask_NT, place_N = torch.cat([mask_NT, torch.ones(len(place_N), 1, dtype=torch.long)], 1), place_N + 1
        out = network.base_model(
            input_ids=drawn_N1, attention_mask=mask_NT, position_ids=place_N[:, None], past_key_values=past, use_cache=True
        )
        last_NH = out.last_hidden_state[:, -1].contiguous()
    return ids, chosen


if __name__ == "__main__":
    raise SystemExit(main())
