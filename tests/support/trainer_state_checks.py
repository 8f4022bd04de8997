"""The trainer's checkpoints and refusals. PYTHONPATH must have the payloads."""

# ruff: noqa: ANN003 (each check says what it is about)
from __future__ import annotations

import resource

import numpy as np
import torch
import transformers
from trainer.data import Datum, LoraSpec, LossRequest
from trainer.errors import RequestError
from trainer_reference import (
    ADAM,
    MODELS,
    SMALL,
    VOCABULARY,
    assert_all_close,
    assert_close,
    assert_raises,
    assert_refused,
    compute,
    gradients,
    make_datum,
    make_engine,
    make_model,
    new_folder,
    request,
    run,
    train,
)


def a_resumed_adapter_continues_to_the_bit():
    """From weights, moments, the number of steps, and the gradients that were pending."""
    engine = make_engine()
    engine.create("ours", LoraSpec(rank=4, seed=1, train_mlp=False))
    train(engine, "ours", steps=3)
    compute(engine, request("ours", seed=5))
    engine.save("ours", saved := new_folder(), state=True)
    again = make_engine()
    spec = again.load("ours", saved, optimizer=True, gradients=True)
    assert spec == LoraSpec(rank=4, seed=1, train_mlp=False)
    for one in (engine, again):
        compute(one, request("ours", seed=6))
        one.optim_step("ours", ADAM)
        train(one, "ours")
    assert torch.equal(engine._adapters["ours"].weights, again._adapters["ours"].weights)


def an_adapter_loads_without_its_optimizer():
    """Then the first step is as an adapter's that was never trained; gradients are dropped."""
    engine = make_engine()
    engine.create("ours", LoraSpec(rank=4, seed=1))
    train(engine, "ours")
    compute(engine, request("ours"))
    engine.save("ours", saved := new_folder(), state=True)
    engine.load("again", saved, optimizer=False, gradients=False)
    assert engine._adapters["again"].gradient is None
    assert engine._adapters["again"].moments is None
    engine.save("ours", bare := new_folder(), state=False)
    engine.load("bare", bare, optimizer=False, gradients=False)
    assert torch.equal(engine._adapters["bare"].weights, engine._adapters["ours"].weights)
    assert_refused(
        lambda: engine.load("bare", bare, optimizer=True, gradients=False), "no optimizer state"
    )


def a_save_is_whole_or_nothing():
    """A write that fails leaves no folder; an existing one is not touched."""
    engine = make_engine()
    engine.create("ours", LoraSpec(rank=4, seed=1))
    parent = new_folder()
    parent.mkdir()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, most))  # bytes: the weights do not fit
    try:
        assert_raises(OSError, lambda: engine.save("ours", parent / "x", state=True), "too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert list(parent.iterdir()) == []
    engine.save("ours", parent / "x", state=True)
    assert [path.name for path in parent.iterdir()] == ["x"]
    assert_raises(FileExistsError, lambda: engine.save("ours", parent / "x", state=True), "exists")


def a_damaged_checkpoint_is_refused():
    """Whatever is wrong with it; the adapter in memory stays."""
    engine = make_engine()
    engine.create("ours", LoraSpec(rank=4, seed=1))
    engine.save("ours", saved := new_folder(), state=True)
    other = make_engine(make_model(MODELS["qwen3"]))
    other.create("ours", LoraSpec(rank=4, seed=1))
    before = other._adapters["ours"]
    load = {"optimizer": True, "gradients": True}
    assert_refused(lambda: other.load("ours", saved / "no", **load), "cannot be loaded")
    narrow = transformers.LlamaConfig(**SMALL | {"intermediate_size": 40})
    narrow = make_engine(make_model(narrow))
    assert_refused(lambda: narrow.load("ours", saved, **load), "cannot be loaded")
    (saved / "adapter_model.safetensors").write_text("not tensors")
    assert_refused(lambda: other.load("ours", saved, **load), "cannot be loaded")
    assert other._adapters["ours"] is before


def bad_requests_are_refused_alone():
    """Each says what is wrong; the good one beside it is computed, and nobody has its gradients."""
    good = make_datum("ppo", 6, seed=1)

    def changed(loss="ppo", config=None, tokens=good.tokens, sampled=None, **inputs):
        merged = {**good.inputs, **inputs}
        merged = {name: array for name, array in merged.items() if array is not None}
        datum = Datum(tokens=tokens, inputs=merged, sampled=sampled)
        return LossRequest(model_id="ours", loss=loss, data=(good, datum), config=config or {})

    short = good.inputs["advantages"][:3]
    nan = np.full(6, np.nan, np.float32)
    far = np.full(6, -1e4, np.float32)
    beyond = np.full(6, VOCABULARY)
    long = np.zeros(65, np.int32)
    cases = {
        "'what' is not known": changed("what"),
        "no adapter 'nobody'": LossRequest(model_id="nobody", loss="ppo", data=(good,)),
        "has no data": LossRequest(model_id="ours", loss="ppo", data=()),
        "(3,)": changed(advantages=short),
        "advantages holds NaN": changed(advantages=nan),
        "token id 96": changed(target_tokens=beyond),
        "token id -1": changed(tokens=-np.ones(6, np.int32)),
        "65 tokens": changed(tokens=long),
        "0 tokens": changed(tokens=long[:0]),
        "it has logprobs, target_tokens": changed(advantages=None),
        "weights": changed(weights=nan),
        "no parameter 'beta'": changed(config={"beta": 0.1}),
        "not a finite number": changed(config={"clip_low_threshold": "low"}),
        "is above": changed(config={"clip_low_threshold": 2}),
        "were sampled": changed("stable_reinforce"),
        "not integers": changed(target_tokens=good.inputs["logprobs"]),
        "the loss is": changed("importance_sampling", logprobs=far, advantages=-far),
    }
    engine = make_engine()
    for name in ("ours", "good"):
        engine.create(name, LoraSpec(rank=4, seed=1))
    results = engine.compute([*cases.values(), request("good")])
    for words, result in zip(cases, results, strict=False):
        assert isinstance(result, RequestError), words
        assert words in str(result), (words, str(result))
    assert not isinstance(results[-1], RequestError)
    assert engine._adapters["ours"].gradient is None
    assert engine._adapters["good"].gradient is not None


def a_request_that_overflows_leaves_no_gradients():
    """Between two good ones of its adapter, in the same pass; an adapter beside it is untouched."""
    far = np.full(6, -1e4, np.float32)
    good = make_datum("importance_sampling", 6, seed=1)
    inputs = {**good.inputs, "logprobs": far, "advantages": -far}
    bad = LossRequest(
        model_id="ours",
        loss="importance_sampling",
        data=(good, Datum(tokens=good.tokens, inputs=inputs)),
    )
    engine = make_engine()
    for name in ("ours", "other", "expected"):
        engine.create(name, LoraSpec(rank=4, seed=1))
        train(engine, name)
    asked = [request(name, seed=seed) for name, seed in (("ours", 5), ("other", 6), ("ours", 7))]
    results = engine.compute([asked[0], bad, asked[1], bad, asked[2]])
    assert [isinstance(one, RequestError) for one in results] == [False, True, False, True, False]
    for before, after in ((5, 7), (6, None)):
        name = "ours" if after else "other"
        expected = [request("expected", seed=seed) for seed in (before, after) if seed]
        compute(engine, *expected)
        assert_all_close(gradients(engine, name), gradients(engine, "expected"))
        engine.drop_gradients("expected")


def many_small_requests_take_the_memory_of_one():
    """That of a gradient and a copy of the weights, and not of one for each request."""
    engine = make_engine(dtype=torch.bfloat16)
    engine.create("ours", LoraSpec(rank=2048, seed=1))
    train(engine, "ours")
    asked = [request("ours", lengths=(3,), seed=seed) for seed in range(100)]
    compute(engine, *asked[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB
    compute(engine, *asked)
    more = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    adapter = 4 * engine._adapters["ours"].weights.numel()
    assert more < 10 * adapter, f"{more / adapter:.1f} times the adapter"


def a_step_needs_finite_gradients():
    """Without any it is refused; with NaN they are dropped, and the weights stay."""
    engine = make_engine()
    engine.create("ours", LoraSpec(rank=4, seed=1))
    assert_refused(lambda: engine.optim_step("ours", ADAM), "no gradients")
    compute(engine, request("ours"))
    adapter = engine._adapters["ours"]
    before = adapter.weights.clone()
    adapter.gradient[3] = float("nan")
    assert_refused(lambda: engine.optim_step("ours", ADAM), "not finite")
    assert torch.equal(adapter.weights, before)
    assert adapter.gradient is None
    assert adapter.steps == 0


def memory_that_runs_out_makes_passes_smaller():
    """And then gives what a small pass gives; a sequence that is too long by itself fails."""
    found = []
    for most in (1000, 8):
        engine = make_engine(tokens_per_pass=100)
        engine.create("ours", LoraSpec(rank=4, seed=1))
        train(engine, "ours")
        compute_pass = engine._pass

        def limited(batch, most=most, compute_pass=compute_pass):
            compute_pass(batch)
            if batch.ids.numel() > most:
                raise torch.OutOfMemoryError("CUDA out of memory")

        engine._pass = limited
        (result,) = compute(engine, request("ours", lengths=(8, 7, 6)))
        found.append((result.metrics["loss:sum"], gradients(engine, "ours")))
    assert_close(found[1][0], found[0][0])
    assert_all_close(found[1][1], found[0][1])
    long = request("ours", lengths=(9,))
    assert_raises(torch.OutOfMemoryError, lambda: engine.compute([long]), "out of memory")
    assert_all_close(gradients(engine, "ours"), found[1][1])


def models_that_change_their_logits_are_refused():
    """Gemma 2 caps them; to ignore that would train another model."""
    config = transformers.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5)
    folder = make_model(config)
    assert_raises(RuntimeError, lambda: make_engine(folder), "changes its logits")


if __name__ == "__main__":
    run(
        a_resumed_adapter_continues_to_the_bit,
        an_adapter_loads_without_its_optimizer,
        a_save_is_whole_or_nothing,
        a_damaged_checkpoint_is_refused,
        bad_requests_are_refused_alone,
        a_request_that_overflows_leaves_no_gradients,
        many_small_requests_take_the_memory_of_one,
        a_step_needs_finite_gradients,
        memory_that_runs_out_makes_passes_smaller,
        models_that_change_their_logits_are_refused,
    )
