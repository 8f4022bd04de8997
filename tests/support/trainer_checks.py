"""The trainer's mathematics, compared with torch and PEFT. PYTHONPATH must have the payloads."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from trainer.data import AdamStep, LoraSpec, LossRequest
from trainer.losses import LOSSES
from trainer_reference import (
    ADAM,
    LLAMA,
    MODELS,
    SMALL,
    VOCABULARY,
    Reference,
    assert_all_close,
    assert_close,
    assert_refused,
    compare_with_peft,
    compute,
    gradients,
    make_engine,
    make_model,
    new_folder,
    request,
    run,
    train,
    weights,
)


def every_loss_agrees_with_peft():
    """Losses, gradients and two steps; with their defaults and with other parameters."""
    others = {
        "ppo": {"clip_low_threshold": 0.95, "clip_high_threshold": 1.05},
        "cispo": {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1},
        "dro": {"beta": 0.5},
        "gspo": {"clip_low_threshold": 0.99, "clip_high_threshold": 1.01},
        "stable_reinforce": {"kl_coeff": 0.3},
    }
    for loss in LOSSES:
        for config in ({}, others.get(loss)):
            if config is not None:
                compare_with_peft(
                    LLAMA, LoraSpec(rank=4, seed=1), request("ours", loss, config=config)
                )


def several_targets_agree_with_peft():
    """Cross-entropy with [N, K] targets and weights, some of which are negative."""
    compare_with_peft(LLAMA, LoraSpec(rank=4, seed=1), request("ours", targets=3))


def every_architecture_agrees_with_peft():
    """All modules of each."""
    for name, config in MODELS.items():
        try:
            compare_with_peft(
                make_model(config), LoraSpec(rank=4, seed=1), request("ours"), steps=1
            )
        except AssertionError as error:
            raise AssertionError(name) from error


def every_flag_chooses_its_modules():
    """And agrees with PEFT; on a tied model."""
    expected = {"train_attn": 8, "train_mlp": 6, "train_unembed": 1}
    for chosen in itertools.product((True, False), repeat=3):
        flags = dict(zip(expected, chosen, strict=True))
        spec = LoraSpec(rank=4, seed=1, **flags)
        engine = make_engine()
        if not any(chosen):
            nothing = functools.partial(engine.create, "ours", spec)
            assert_refused(nothing, "train_unembed are all False")
            continue
        engine.create("ours", spec)
        assert len(engine._adapters["ours"].places) == sum(
            count for flag, count in expected.items() if flags[flag]
        )
        compare_with_peft(LLAMA, spec, request("ours"), steps=1)


def a_mixed_batch_equals_each_alone():
    """Ranks 4, 8 and 32, other modules, losses, lengths and targets; and several small passes."""
    specs = {
        "four": LoraSpec(rank=4, seed=1),
        "eight": LoraSpec(rank=8, seed=2, train_unembed=False),
        "large": LoraSpec(rank=32, alpha=16, seed=3, train_mlp=False),
        "head": LoraSpec(rank=8, seed=4, train_attn=False, train_mlp=False),
    }
    asked = {
        "four": request("four", "ppo", lengths=(3, 17, 8), seed=10),
        "eight": request("eight", lengths=(6, 1), targets=3, seed=20),
        "large": request("large", "gspo", lengths=(30, 12), seed=30),
        "head": request("head", "stable_reinforce", lengths=(9, 9), seed=40),
    }
    for tokens, logits in ((1024, 2**24), (40, 5 * VOCABULARY), (1, 1)):
        alone, together = (make_engine(tokens_per_pass=t) for t in (1024, tokens))
        together._head._size = max(1, logits // VOCABULARY)
        for engine in (alone, together):
            for name, spec in specs.items():
                engine.create(name, spec)
                train(engine, name)
        results = compute(together, *asked.values())
        for result, (name, one) in zip(results, asked.items(), strict=True):
            (single,) = compute(alone, one)
            assert_close(result.metrics["loss:sum"], single.metrics["loss:sum"])
            for ours, theirs in zip(result.outputs, single.outputs, strict=True):
                assert ours["logprobs"].shape == theirs["logprobs"].shape
                assert_close(ours["logprobs"], theirs["logprobs"])
            assert_all_close(gradients(together, name), gradients(alone, name))


def the_default_step_is_torchs():
    """AdamW with the SDK's own parameters, on gradients of which some are as small as its eps."""
    adam = AdamStep()
    assert adam.eps == 1e-12
    engine = make_engine()
    engine.create("ours", LoraSpec(rank=4, seed=1))
    engine.save("ours", saved := new_folder(), state=False)
    reference = Reference(LLAMA, saved, adam=adam)
    for step, scale in enumerate((1, 1e-11, 1e-12, 1)):
        compute(engine, request("ours", seed=step))
        engine._adapters["ours"].gradient.mul_(scale)
        for name, gradient in gradients(engine, "ours").items():
            reference.trained[name].grad = gradient
        engine.optim_step("ours", adam)
        reference.optimizer.step()
        for name, tensor in weights(engine, "ours").items():
            moved = float((tensor - reference.trained[name].detach()).abs().max())
            assert moved <= 1e-3 * adam.learning_rate, (step, name, moved)


def the_norm_of_many_gradients_is_exact():
    """A single float32 sum over as many squares would be wrong in its fourth digit."""
    engine = make_engine()
    engine.create("ours", LoraSpec(rank=4, seed=1))
    adapter = engine._adapters["ours"]
    adapter.weights = torch.zeros(4_000_000)
    torch.manual_seed(0)
    adapter.gradient = torch.randn(4_000_000) ** 3
    expected = float(torch.linalg.vector_norm(adapter.gradient.double()))
    norm = engine.optim_step("ours", ADAM)["grad_norm:mean"]
    assert abs(norm - expected) <= 1e-5 * expected, (norm, expected)


def chunks_of_one_request_add_up():
    """Two requests of one adapter, in one call or in two, are as one request with all data."""
    engine = make_engine()
    for name in ("whole", "apart", "together"):
        engine.create(name, LoraSpec(rank=4, seed=1))
        train(engine, name)
    first, second = (request("x", lengths=(7, 4), seed=seed) for seed in (50, 60))

    def of(name, data):
        return LossRequest(model_id=name, loss="cross_entropy", data=data)

    (whole,) = compute(engine, of("whole", first.data + second.data))
    one, two = compute(engine, of("together", first.data), of("together", second.data))
    compute(engine, of("apart", first.data))
    compute(engine, of("apart", second.data))
    assert_close(one.metrics["loss:sum"] + two.metrics["loss:sum"], whole.metrics["loss:sum"])
    for name in ("apart", "together"):
        assert_all_close(gradients(engine, name), gradients(engine, "whole"))


def a_forward_pass_leaves_no_gradients():
    """And gives the same log-probabilities."""
    engine = make_engine()
    engine.create("ours", LoraSpec(rank=4, seed=1))
    train(engine, "ours")
    (forward,) = compute(engine, request("ours", backward=False))
    assert engine._adapters["ours"].gradient is None
    (both,) = compute(engine, request("ours"))
    for ours, theirs in zip(forward.outputs, both.outputs, strict=True):
        assert_close(ours["logprobs"], theirs["logprobs"], limit=1e-6)
    assert_refused(lambda: engine.optim_step("nobody", ADAM), "nobody")


def the_same_seed_makes_the_same_adapter():
    """Whatever was created before; A is drawn as PEFT draws it, and B is zero."""
    first, second = make_engine(), make_engine()
    second.create("before", LoraSpec(rank=8))
    for engine in (first, second):
        engine.create("ours", LoraSpec(rank=4, seed=7))
    second.create("other", LoraSpec(rank=4, seed=8))
    ours, same, other = (
        weights(first, "ours"),
        weights(second, "ours"),
        weights(second, "other"),
    )
    assert all(torch.equal(ours[name], same[name]) for name in ours)
    assert not any(torch.equal(ours[name], other[name]) for name in ours if name.endswith("A"))
    drawn = first.create("drawn", LoraSpec(rank=4)).seed
    assert drawn is not None
    assert drawn != second.create("drawn", LoraSpec(rank=4)).seed
    module = transformers.AutoModelForCausalLM.from_pretrained(LLAMA)
    theirs = get_peft_model(module, LoraConfig(r=512, target_modules=["q_proj"]))
    (wide,) = (
        value
        for name, value in theirs.named_parameters()
        if "layers.0.self_attn.q_proj.lora_A" in name
    )
    mine = make_engine()
    mine.create("wide", LoraSpec(rank=512, seed=1))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora"
    a, b = (weights(mine, "wide")[f"{name}_{side}"] for side in "AB")
    assert not b.any()
    assert_close(a.abs().max(), wide.abs().max(), limit=1e-3)
    assert_close(a.std(), wide.std(), limit=2e-3)


def tied_embeddings_are_left_alone():
    """Training the output layer changes what the model says, and not what it reads."""
    engine = make_engine()
    engine.create("ours", LoraSpec(rank=4, seed=1, train_attn=False, train_mlp=False))
    before = engine._trunk.get_input_embeddings().weight.clone()
    train(engine, "ours")
    assert torch.equal(engine._trunk.get_input_embeddings().weight, before)
    assert weights(engine, "ours")["base_model.model.lm_head.lora_B"].any()


def mixtures_of_experts_are_trained_without_their_mlps():
    """What cannot be adapted is refused; the rest agrees with PEFT."""
    config = transformers.Qwen3MoeConfig(
        **SMALL, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    )
    folder = make_model(config)
    engine = make_engine(folder)
    assert_refused(lambda: engine.create("ours", LoraSpec(rank=4)), "train_mlp=False")
    engine.create("ours", LoraSpec(rank=4, seed=1, train_mlp=False))
    (result,) = compute(engine, request("ours"))
    engine.save("ours", saved := new_folder(), state=False)
    _, total = Reference(folder, saved).compute(request("ours"))
    assert_close(result.metrics["loss:sum"], total)


def bfloat16_is_near_float32():
    """Adapters stay float32, and so do log-probabilities."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        engine = make_engine(dtype=dtype)
        engine.create("ours", LoraSpec(rank=4, seed=1))
        (result,) = compute(engine, request("ours"))
        assert result.outputs[0]["logprobs"].dtype == np.float32
        engine.optim_step("ours", ADAM)
        assert engine._adapters["ours"].weights.dtype == torch.float32
        found.append(np.concatenate([output["logprobs"] for output in result.outputs]))
    difference = np.abs(found[0] - found[1])
    assert 0 < difference.mean() < 0.05, difference


if __name__ == "__main__":
    run(
        every_loss_agrees_with_peft,
        several_targets_agree_with_peft,
        every_architecture_agrees_with_peft,
        every_flag_chooses_its_modules,
        a_mixed_batch_equals_each_alone,
        the_default_step_is_torchs,
        the_norm_of_many_gradients_is_exact,
        chunks_of_one_request_add_up,
        a_forward_pass_leaves_no_gradients,
        the_same_seed_makes_the_same_adapter,
        tied_embeddings_are_left_alone,
        mixtures_of_experts_are_trained_without_their_mlps,
        bfloat16_is_near_float32,
    )
