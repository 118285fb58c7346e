"""The trunk: layers of the reward model's own that start as the frozen ones, learn from votes, and go live only if they judge better."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from attune.errors import ConfigError, RegistryError
from attune.frozen import Answer, FrozenBase, fastest_dtype, load_base
from attune.packing import pack
from attune.reward import RewardModel, Scale, unpack
from attune.style import NUM_LOOKS
from attune.trunk import WEIGHTS, Trunk, as_tensors, part, run
from attune.types import Interaction, Kind, Signal
from learner import refit, trunk_trainer
from learner.cycle import Cycle
from learner.eye import look_again
from learner.likelihoods import Batch, nll, thumb_bias
from learner.replay import Replay
from learner.trunk_trainer import Fitted, Lesson, fit
from serve.scorer import Scorer, Wish
from tests.fixtures.world import QUICK, World

PROMPT = list(range(10, 31))
ANSWERS = [list(range(40, 52)), [7], list(range(60, 83)), []]


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> FrozenBase:
    return FrozenBase(load_base(str(tiny_model), None, torch.float32))


def a_trunk(base: FrozenBase) -> Trunk:
    rng = np.random.default_rng(0)
    width = base.feature_width
    return Trunk(base, as_tensors(np.zeros(width), np.ones(width), rng.normal(size=width) * 0.02))


def moved(trunk: Trunk) -> Trunk:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trunk.weights:
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return trunk


def said(base: FrozenBase, trunk: Trunk) -> np.ndarray:
    return unpack([look.features for look in base.look(PROMPT, [Answer(a, True) for a in ANSWERS], 0.7, trunk)])[:, -1]


def test_parts_in_a_row_are_the_whole(base: FrozenBase) -> None:
    trunk = a_trunk(base)
    packed = pack(PROMPT, ANSWERS, torch.float32)
    with torch.no_grad():
        whole = base.network.base_model(
            input_ids=packed.input_ids_1T, position_ids=packed.position_ids_1T, attention_mask=packed.mask_11TT, output_hidden_states=True
        ).hidden_states
        states = run(part(base.network, 0, trunk.first), base.network.get_input_embeddings()(packed.input_ids_1T)[0], packed)
        assert torch.allclose(states, whole[trunk.first][0], atol=1e-5)
        assert torch.allclose(run(trunk.body, states, packed), whole[base.mid_layer][0], atol=1e-5)


def test_a_trunk_starts_as_its_readout_of_the_frozen_features(base: FrozenBase) -> None:
    trunk = a_trunk(base)
    frozen = unpack([look.features for look in base.look(PROMPT, [Answer(a, True) for a in ANSWERS], 0.7)])
    expected = np.clip(frozen, -10, 10) @ trunk.readout.weight_D.numpy()
    assert said(base, trunk) == pytest.approx(expected, abs=0.02)  # fp16
    assert base.look(PROMPT, [Answer([7], True)], 0.7)[0].features == base.look(PROMPT, [Answer([7], True)], 0.7, trunk)[0].features[:-2]


def test_an_adapter_changes_what_the_trunk_says_and_nothing_of_the_base(base: FrozenBase) -> None:
    before = base.look(PROMPT, [Answer(a, True) for a in ANSWERS], 0.7)
    trunk = a_trunk(base)
    plain = said(base, trunk)
    assert abs(said(base, moved(trunk)) - plain)[:3].min() > 0.01
    assert base.look(PROMPT, [Answer(a, True) for a in ANSWERS], 0.7) == before


def test_a_saved_trunk_says_the_same(base: FrozenBase, tmp_path: Path) -> None:
    trunk = moved(a_trunk(base))
    (tmp_path / WEIGHTS).write_bytes(trunk.to_bytes())
    assert said(base, Trunk.load(base, tmp_path)).tolist() == said(base, trunk).tolist()


@pytest.mark.parametrize("harm", ["gone", "cut", "nan", "other"])
def test_a_trunk_that_is_none_is_refused(base: FrozenBase, tmp_path: Path, harm: str) -> None:
    trunk = a_trunk(base)
    whole = trunk.to_bytes()
    with torch.no_grad():
        trunk.weights[0].fill_(torch.nan)
    other = replace(trunk.readout, weight_D=torch.zeros(3))
    data = {"cut": whole[: len(whole) // 2], "nan": trunk.to_bytes()}
    trunk.readout = other
    data["other"] = trunk.to_bytes()
    if harm in data:
        (tmp_path / WEIGHTS).write_bytes(data[harm])
    with pytest.raises(RegistryError, match="holds no trunk"):
        Trunk.load(base, tmp_path)


def test_how_readily_people_put_the_thumb_up_is_no_merit_of_the_trunk(world: World) -> None:
    cycle = world.learner()
    for number in range(160):
        one = world.interaction()
        world.store.write([one, world.vote(one, 1 if number % 7 else -1, Kind.THUMB)])
    cycle.once()
    report = cycle.refit.make(cycle.lesson()).report
    assert report["probe_log_loss"] < 0.5  # six of seven are up: whoever knows that much needs .41 nats, and .69 whoever does not
    assert report["trunk_log_loss"] == pytest.approx(report["probe_log_loss"], abs=0.03)


def test_thumbs_and_stars_are_known_from_the_linear_model_and_their_prior_counts_once_an_epoch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle = world.learner()
    for number in range(60):
        one = world.interaction()
        world.store.write([one, world.vote(one, 1 if number % 7 else -1, Kind.THUMB)])
    cycle.once()
    steps, scales = list[tuple[float, float]](), list[Scale]()

    def stepped(batch: Batch, f_M: torch.Tensor, nuisance: torch.Tensor, offset_U: torch.Tensor, prior: float) -> torch.Tensor:
        steps.append((thumb_bias(nuisance.detach()), prior))
        return nll(batch, f_M, nuisance, offset_U, prior)

    def predicted(lesson: Lesson, signals: Sequence[Signal], said: Mapping[str, Sequence[float]], scale: Scale) -> tuple[float, float]:
        scales.append(scale)
        return judged(lesson, signals, said, scale)

    judged = trunk_trainer._predicted
    monkeypatch.setattr(trunk_trainer, "nll", stepped)
    monkeypatch.setattr(trunk_trainer, "_predicted", predicted)
    lesson = cycle.lesson()
    cycle.refit.make(replace(lesson, asked={name: replace(asked, present=[0.0] * 9) for name, asked in lesson.asked.items()}))
    trunk, probe, present = scales
    assert trunk.thumb_bias != probe.thumb_bias
    assert steps[0][0] == pytest.approx(probe.thumb_bias)
    assert probe.thumb_bias > 0.5
    assert sum(prior for _, prior in steps) == pytest.approx(trunk_trainer.EPOCHS)
    assert 0.0 < abs(trunk.thumb_bias - steps[-1][0]) <= 1.1 * trunk_trainer.NUISANCE_LR  # as after the last step
    assert present == probe


def taught(world: World, votes: int) -> tuple[Cycle, Fitted]:
    """Return a learner that knows some votes, and the trunk that they teach."""
    cycle = world.learner()
    world.votes(votes)
    world.store.write([world.vote(world.interaction(), "a longer and better answer", Kind.EDIT)])
    cycle.once()
    return cycle, cycle.refit.make(cycle.lesson())


def test_votes_teach_a_trunk_the_same_twice(world: World) -> None:
    cycle, fitted = taught(world, 24)
    again = cycle.refit.make(cycle.lesson())
    assert fitted.files() == again.files()
    untaught = RewardModel.load(world.registry.folder("reward", 1))
    assert fitted.trunk.weights[1].abs().max() > 0  # what was zero has been learned
    longer = [numbers for name, numbers in fitted.said.items() if name.startswith("i")]
    assert np.mean([n[3] > n[0] for n in longer]) > 0.9
    assert set(fitted.said) >= {*cycle.journal.judged, *cycle.journal.anchors, *cycle.edits}
    assert untaught.trunk == 0
    assert fitted.report["trunk_from"] == 1


def test_what_is_no_better_is_not_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.config = world.config.model_copy(update={"learner": QUICK.model_copy(update={"trunk_votes": 20})})
    cycle = world.learner()
    for votes, better in ((20, False), (40, True)):
        monkeypatch.setattr(Fitted, "better", better)
        world.votes(votes)
        cycle.once()
        cycle.refit.wait()
        cycle.once()
        assert bool(cycle.reward.trunk) is better
        assert cycle.refit.due_at == 2 * votes


def test_what_came_while_a_trunk_was_made_is_looked_at_beside_the_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fitted, "better", True)
    monkeypatch.setattr(refit, "FEW", 0)
    world.config = world.config.model_copy(update={"learner": QUICK.model_copy(update={"trunk_votes": 20})})
    cycle = world.learner()
    world.votes(20)
    cycle.once()
    late = world.interaction()
    world.store.write([late, world.vote(late), world.vote(late, "a longer and better answer", Kind.EDIT)])
    cycle.refit.wait()
    cycle.once()
    cycle.refit.wait()
    assert not cycle.reward.trunk  # its votes are learned without the new trunk for as long as that takes
    with monkeypatch.context() as loop:
        loop.setattr(cycle.base, "look", None)  # nobody waits for the loop to look at anything
        cycle.once()
    assert cycle.reward.trunk
    seen = look_again(cycle.base, cycle.eye.trunk, late)
    assert [c.features for c in cycle.journal.judged[late.id].candidates] == [c.features for c in seen.candidates]


def test_versions_stand_on_a_trunk_and_go_back_to_none(world: World) -> None:
    cycle, fitted = taught(world, 24)
    cycle.refit.ready = fitted
    assert cycle.once() is True
    width = NUM_LOOKS + world.base.feature_width
    assert (cycle.reward.trunk, cycle.reward.mean_D.shape) == (2, (width + 1,))
    judged = next(iter(cycle.journal.judged.values())).candidates
    texts = [c.text for c in judged]
    before = cycle.reward.utility([c.features or b"" for c in judged], texts)[0].tolist()

    again = world.learner()  # a restart sees the same
    world.votes(1)  # ranked by the prior: what the trunk says of them is not known
    again.once()
    assert (again.reward.version, again.reward.trunk) == (3, 2)
    features = [c.features or b"" for c in again.journal.judged["i0"].candidates] if "i0" in again.journal.judged else None
    assert features is None or cycle.reward.utility(features, texts)[0].tolist() == pytest.approx(before, abs=0.05)
    world.registry.roll_back("reward", by="operator", reason="a matter of taste")
    world.registry.roll_back("reward", by="operator", reason="a matter of taste")
    world.votes(1)
    again.once()
    assert (again.reward.version, again.reward.trunk, again.reward.mean_D.shape) == (4, 0, (width,))


async def test_serve_ranks_with_the_trunk_of_the_live_version(world: World) -> None:
    cycle, fitted = taught(world, 24)
    cycle.refit.ready = fitted
    cycle.once()
    scorer = Scorer(world.base, 0.5)
    model = RewardModel.load(world.registry.folder("reward", 2))
    scorer.adopt(model, scorer.trunk(model.trunk, lambda number: world.registry.folder("reward", number)))
    asked = bare(world.interaction())
    scored = await scorer.score(asked.prompt_token_ids, asked.candidates, 0.7, Wish("x", {}))
    (known,) = [cycle.eye.seen(replace(asked, candidates=scored.candidates, reward_version=2))]
    assert [c.features for c in known.candidates] == [c.features for c in scored.candidates]  # nothing is looked at again
    looked = cycle.eye.seen(asked)
    assert [c.features for c in looked.candidates] == [c.features for c in scored.candidates]


def bare(interaction: Interaction) -> Interaction:
    return replace(interaction, candidates=tuple(replace(c, features=None) for c in interaction.candidates))


def test_a_past_with_a_trunk_can_be_made_again(tmp_path: Path, tiny_model: Path) -> None:
    world = World(tmp_path, tiny_model, dtype=fastest_dtype())
    cycle, fitted = taught(world, 24)
    world.votes(3, version=cycle.at.policy)
    cycle.once()
    cycle.refit.ready = fitted  # ready only now: it was made beside the loop
    world.votes(3, version=cycle.at.policy)
    cycle.once()
    made = world.registry.numbers("policy")
    assert cycle.reward.trunk
    outcomes = list(Replay(world.config, tmp_path / "again").until(made[-1]))
    assert [f"{o.version.kind} {o.version.number}" for o in outcomes if not o.same] == []
    world.store.close()


def test_a_trunk_that_votes_no_longer_bear_out_goes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.config = world.config.model_copy(update={"learner": QUICK.model_copy(update={"trunk_votes": 20})})
    cycle = world.learner()
    monkeypatch.setattr(Fitted, "better", True)
    world.votes(20)
    for _ in range(3):
        cycle.once()
        cycle.refit.wait()
    assert cycle.reward.trunk
    monkeypatch.setattr(Fitted, "better", False)
    for votes, dismisses in ((20, False), (40, True)):
        monkeypatch.setattr(Fitted, "dismisses", dismisses)
        world.votes(votes)
        for _ in range(3):
            cycle.once()
            cycle.refit.wait()
        assert bool(cycle.reward.trunk) is not dismisses
    assert "present_log_loss" in world.registry.version("reward", cycle.reward.version).report
    assert world.learner().reward.trunk == 0


def test_the_trunk_in_force_is_held_against_the_frozen_features(world: World) -> None:
    cycle, fitted = taught(world, 24)
    assert "present_log_loss" not in fitted.report
    cycle.refit.ready = fitted
    cycle.once()
    world.votes(24)
    cycle.once()
    lesson = cycle.lesson()
    loss = cycle.refit.make(lesson).report["present_log_loss"]
    assert loss < 0.6  # it knows what people like
    wrong = {name: replace(asked, present=[-x for x in asked.present]) for name, asked in lesson.asked.items()}
    assert cycle.refit.make(replace(lesson, asked=wrong)).report["present_log_loss"] > loss + 0.05
    report = {"trunk_log_loss": 0.5, "probe_log_loss": 0.4}
    verdicts = [replace(fitted, report=report | more).dismisses for more in ({}, {"present_log_loss": 0.3}, {"present_log_loss": 0.5})]
    assert verdicts == [False, False, True]


def test_a_lesson_holds_what_fits_into_rows_and_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cycle, _ = taught(world, 24)
    world.store.write([world.vote(next(iter(cycle.journal.judged.values())), "a longer and better answer", Kind.EDIT)])
    cycle.once()
    every = cycle.lesson()
    edited = next(asked for asked in every.asked.values() if asked.edits)
    assert edited.num_tokens > edited.interaction.num_tokens
    with monkeypatch.context() as short:
        short.setattr(refit, "MAX_ROW_TOKENS", edited.num_tokens - 1)
        assert edited.interaction.id not in cycle.lesson().asked
    monkeypatch.setattr(refit, "MAX_STATES", world.base.width * sum(asked.num_tokens for asked in list(every.asked.values())[-10:]))
    few = cycle.lesson()
    assert list(few.asked) == list(every.asked)[-10:]
    assert {signal.interaction_id for signal in few.signals} == few.asked.keys()


def test_models_that_scale_what_we_do_not_see_are_named(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    GraniteForCausalLM(GraniteConfig(vocab_size=64, embedding_multiplier=12.0, **sizes)).save_pretrained(tmp_path / "scaled")
    scaling = FrozenBase(load_base(str(tmp_path / "scaled"), None, torch.float32))
    with pytest.raises(RegistryError, match="takes embeddings as they are"):
        a_trunk(scaling)
    GraniteForCausalLM(GraniteConfig(vocab_size=64, logits_scaling=8.0, **sizes)).save_pretrained(tmp_path / "granite")
    with pytest.raises(ConfigError, match="scales, caps or shifts its logits"):
        load_base(str(tmp_path / "granite"), None, torch.float32)


def test_a_lesson_needs_a_place_for_the_trunk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cycle, _ = taught(world, 24)
    monkeypatch.delattr(cycle.base.network.base_model, "norm")
    with pytest.raises(RegistryError, match="needs a base model whose layers"):
        fit(cycle.base, cycle.lesson(), 0)
