"""Checks of the hf server's inner parts on tiny random models, run by its environment's Python.

PYTHONPATH must have the payloads. Prints one JSON object on the last line: the name of each check
and what went wrong, "" if nothing.
"""

# ruff: noqa: ANN003, B023, BLE001, D102, D103, T201 (a program: checks are called where they stand)
from __future__ import annotations

import copy
import json
import tempfile
import traceback
from collections import Counter

import peft
import torch
import transformers
from hf_server import batches, sampling
from hf_server.adapters import Adapters
from hf_server.model import Model, choose_dtype
from hf_server.padded import PaddedBatch
from hf_server.requests import Sampling
from hf_server.rows import Job, Row, Sequence
from hf_server.scoring import score as score_tokens
from hf_server.slots import ATTENTION, SlotBatch

VOCABULARY = 160
CHECKS = []
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA = transformers.LlamaConfig(**SMALL)
WITH_SLOTS = {
    "llama": LLAMA,
    "one head for each": transformers.LlamaConfig(**SMALL | {"num_key_value_heads": 4}),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=8),
    "gpt2": transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4),
}
PADDED = {
    "gemma2": transformers.Gemma2Config(**SMALL, head_dim=8, sliding_window=8),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=8),
    "mamba": transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4
    ),
}
PROMPTS = [[5, 9, 3], [7, 8, 20, 31, 4, 90, 17], [11], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49]]


class NoText:
    """A vocabulary whose texts nobody reads."""

    ends = frozenset({2})

    def decode(self, ids, *, skip_special_tokens):
        return " ".join(map(str, ids))


def check(function):
    """Register a check."""
    CHECKS.append(function)
    return function


def make_model(config) -> Model:
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    # Larger weights than a fresh model's: else every answer repeats one token.
    for name, weight in module.named_parameters():
        if weight.ndim > 1 and "norm" not in name:
            weight.data.normal_(0, 0.3)
    return Model(module, device=torch.device("cpu"), ends=NoText.ends)


def make_batch(model: Model, *, chunk: int = 64):
    if model.module.config._attn_implementation == ATTENTION:
        model.module.set_attn_implementation("sdpa")  # a server makes one batch, and compares
    return batches.make_batch(model, NoText(), most_rows=8, chunk=chunk)


def make_sequence(ids, *, n=1, most=8, stream=False, score=None, **how) -> Sequence:
    how = {"temperature": 0.0, "ignore_eos": True} | how
    job = Job.__new__(Job)
    job.stream, job.rows, job.prompts, job.error, job.cancelled = stream, [], [], None, False
    for index in range(n):
        row = Row(
            job,
            index=index,
            prompt=ids,
            sampling=Sampling(**how),
            most=most,
            vocabulary=NoText(),
            adapter=None,
        )
        job.rows.append(row)
    sequence = Sequence(job, ids, list(job.rows), None, score)
    job.prompts.append(sequence)
    return sequence


def reference(model: Model, ids: list[int], count: int) -> list[int]:
    """Greedy tokens without a cache, batch or mask: nothing that could be wrong."""
    ids = list(ids)
    for _ in range(count):
        model._keep = None
        logits = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[-count:]


def take(batch, rows, logits):
    for row, token in zip(rows, sampling.choose(logits.float(), rows), strict=True):
        row.advance(token)
    for row in [row for row in batch.rows if row.finish_reason]:
        batch.leave(row)


def run_alone(batch, sequences):
    """One group to its end."""
    lines = [at for at, s in enumerate(sequences) for _ in s.rows]
    logits = batch.prefill(sequences)[lines]
    take(batch, [r for s in sequences for r in s.rows], logits)
    while batch.rows:
        take(batch, list(batch.rows), batch.decode())


def with_own_attention(model, wanted):
    """The reference of the model's own attention, not of ours."""
    name = model.module.config._attn_implementation
    model.module.set_attn_implementation("eager")
    try:
        return wanted()
    finally:
        model.module.set_attn_implementation(name)


@check
def every_kind_of_model_gives_its_own_greedy_tokens():
    """Ragged prompts of different ends, in slots or padded."""
    for kinds, wanted in ((WITH_SLOTS, SlotBatch), (PADDED, PaddedBatch)):
        for name, config in kinds.items():
            model = make_model(config)
            batch = make_batch(model)
            assert isinstance(batch, wanted), f"{name} got a {type(batch).__name__}"
            sequences = [make_sequence(p, most=3 + 4 * at) for at, p in enumerate(PROMPTS)]
            run_alone(batch, sequences)
            for sequence in sequences:
                (row,) = sequence.rows
                expected = with_own_attention(
                    model, lambda row=row: reference(model, row.prompt, len(row.ids))
                )
                assert row.ids == expected, f"{name}: {row.ids} is not {expected}"


@check
def rows_join_and_leave_at_any_step():
    """Slots are reused, moved and grown while others are being generated."""
    model = make_model(LLAMA)
    batch = make_batch(model)
    everyone = []
    for step in range(40):
        if step % 3 == 0 and step < 24:
            prompts = [PROMPTS[(step + at) % 4] * (1 + step % 2) for at in range(2)]
            joining = [make_sequence(p, most=4 + (7 * step) % 19) for p in prompts]
            everyone += joining
            take(batch, [r for s in joining for r in s.rows], batch.prefill(joining))
        if batch.rows:
            take(batch, list(batch.rows), batch.decode())
    assert not batch.rows
    for sequence in everyone:
        (row,) = sequence.rows
        assert row.ids == reference(model, row.prompt, len(row.ids)), row.prompt


@check
def one_long_row_after_many_short_ones_takes_the_memory_of_one():
    """The cache's places are some more than are in use, whatever was in use before."""
    batch = make_batch(make_model(LLAMA))
    run_alone(batch, [make_sequence(PROMPTS[at % 4]) for at in range(8)])
    run_alone(batch, [make_sequence([5] * 200, most=40)])
    assert batch._cache.slots * batch._cache.length < 3 * 240


@check
def several_answers_of_one_prompt_share_its_computation():
    """They all go on as the prompt alone would."""
    for config in (LLAMA, PADDED["gemma2"]):
        model = make_model(config)
        sequences = [make_sequence(PROMPTS[0], n=3), make_sequence(PROMPTS[1], n=2)]
        run_alone(make_batch(model), sequences)
        for sequence in sequences:
            expected = with_own_attention(model, lambda s=sequence: reference(model, s.ids, 8))
            assert [row.ids for row in sequence.rows] == [expected] * len(sequence.rows)


@check
def a_long_prompt_in_chunks_is_the_same_prompt():
    """Next tokens and scores, whatever the size of the pieces."""
    model = make_model(LLAMA)
    ids = [(17 * place) % 150 + 3 for place in range(50)]
    found = []
    for chunk in (64, 50, 49, 7, 1):
        sequence = make_sequence(ids, score=2)
        run_alone(make_batch(model, chunk=chunk), [sequence])
        found.append((sequence.rows[0].ids, sequence.scores))
    for tokens, scores in found[1:]:
        assert tokens == found[0][0]
        assert [s.rank for s in scores] == [s.rank for s in found[0][1]]
        for one, other in zip(scores, found[0][1], strict=True):
            assert abs(one.logprob - other.logprob) < 1e-4


@check
def scores_are_the_models_log_probabilities():
    """Of every place, beside prompts without scores, in slots and padded; ranks and the top."""
    for config in (LLAMA, PADDED["gemma2"]):
        model = make_model(config)
        plain, scored = make_sequence(PROMPTS[0]), make_sequence(PROMPTS[3], score=4)
        run_alone(make_batch(model), [plain, scored])
        model._keep = None
        logits = with_own_attention(
            model, lambda: model.module(input_ids=torch.tensor([PROMPTS[3]])).logits[0]
        )
        logprobs = logits.float().log_softmax(-1)
        assert not plain.scores
        assert len(scored.scores) == len(PROMPTS[3]) - 1
        for place, found in enumerate(scored.scores):
            token = PROMPTS[3][place + 1]
            assert found.token == token
            assert abs(found.logprob - float(logprobs[place, token])) < 1e-4
            assert found.rank == 1 + int((logprobs[place] > logprobs[place, token]).sum())
            best = logprobs[place].topk(4)
            assert [t for t, _ in found.top] == best.indices.tolist()


def adapted(model: Model, folder: str, targets: list[str], seed: int):
    """A copy of the model's module with a new adapter of these targets, saved in `folder`."""
    module = copy.deepcopy(model.module)
    wrapped = peft.get_peft_model(module, peft.LoraConfig(r=2, target_modules=targets))
    torch.manual_seed(seed)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.3)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return wrapped.eval()


@check
def an_adapter_of_the_output_layer_answers_as_peft_does():
    """Tied embeddings or not; in slots and padded; beside others without one, scored and not."""
    tied, own = ({"tie_word_embeddings": value} for value in (True, False))
    for config in (
        transformers.LlamaConfig(**SMALL, **tied),
        transformers.LlamaConfig(**SMALL, **own),
        transformers.Gemma2Config(**SMALL, head_dim=8, sliding_window=8),
    ):
        model = make_model(config)
        batch = make_batch(model)
        with tempfile.TemporaryDirectory() as folder:
            kinds = (["lm_head"], ["q_proj", "lm_head"], ["q_proj"])
            wanted = [
                adapted(model, f"{folder}/{at}", targets, at) for at, targets in enumerate(kinds)
            ]
            held = Adapters(model, most=4, largest_rank=8)
            keys = [held.load(str(at), f"{folder}/{at}") for at in range(len(kinds))]
        sequences = [make_sequence(p, most=5, score=at) for at, p in enumerate(PROMPTS)]
        sequences[2].score = None
        for sequence, key in zip(sequences, [*keys, None], strict=True):
            sequence.adapter = key
            for row in sequence.rows:
                row.adapter = key
        run_alone(batch, sequences)
        base = make_model(config).module
        for sequence, module in zip(sequences, [*wanted, base], strict=True):
            (row,) = sequence.rows
            ids = torch.tensor([[*sequence.ids, *row.ids]])
            logprobs = module(input_ids=ids).logits[0].float().log_softmax(-1)
            answer = logprobs[len(sequence.ids) - 1 : -1].argmax(-1).tolist()
            assert row.ids == answer, f"{type(config).__name__}: {row.ids} is not {answer}"
            assert len(sequence.scores) == (0 if sequence.score is None else len(sequence.ids) - 1)
            for place, score in enumerate(sequence.scores):
                assert abs(score.logprob - float(logprobs[place, score.token])) < 1e-4
        held.unload(keys[0])


@check
def processed_log_probabilities_are_those_of_what_is_sampled():
    """After temperature and filters, in their order; greedy rows have the model's own."""
    shares = [0.4, 0.3, 0.15, 0.1, 0.05]
    logits = torch.tensor(shares).log()
    for how, wanted in (
        ({"temperature": 1.0}, shares),
        ({"temperature": 0.5}, [share**2 / sum(s**2 for s in shares) for share in shares]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.8}, [4 / 7, 3 / 7, 0, 0, 0]),
        ({"temperature": 1.0, "min_p": 0.7}, [4 / 7, 3 / 7, 0, 0, 0]),
        ({"temperature": 0.0, "top_k": 1}, shares),
    ):
        rows = make_sequence([1], **how).rows
        given = sampling.drawn_from(logits[None], rows).softmax(-1)[0]
        assert torch.allclose(given, torch.tensor(wanted), atol=1e-6), (how, given)
    (score,) = score_tokens(torch.tensor([[0.0, -torch.inf, -1.0]]), [0], top=3)
    assert [token for token, _ in score.top] == [0, 2]


def draw(count: int, logits: list[float], **how) -> Counter:
    sequence = make_sequence([1], n=count, temperature=1.0, seed=3, **how)
    table = torch.tensor(logits).repeat(count, 1)
    return Counter(sampling.choose(table, sequence.rows))


def expect(found: Counter, wanted: dict[int, float], count: int):
    assert set(found) <= set(wanted), f"{set(found) - set(wanted)} should never come"
    for token, share in wanted.items():
        spread = 5 * (share * (1 - share) / count) ** 0.5
        assert abs(found[token] / count - share) <= spread, (token, found[token] / count, share)


@check
def sampling_has_the_shares_that_it_should():
    """Five standard errors; every filter leaves exactly its tokens."""
    shares = [0.4, 0.3, 0.15, 0.1, 0.05]
    logits = torch.tensor(shares).log().tolist() + [-float("inf")] * 300
    count = 4000
    everything = dict(enumerate(shares))
    first = {0: 4 / 7, 1: 3 / 7}
    expect(draw(count, logits), everything, count)
    expect(draw(count, logits, top_k=2), first, count)
    expect(draw(count, logits, top_p=0.69), first, count)
    expect(draw(count, logits, min_p=0.7), first, count)
    expect(draw(count, logits, top_k=3, top_p=0.8), first, count)  # 0.7 of 0.85 is above 0.8
    expect(draw(count, logits, top_k=1), {0: 1.0}, count)
    assert draw(9, logits, top_p=1e-6) == {0: 9}


@check
def filters_that_reach_behind_the_sorted_head():
    """4,000 tokens of one likelihood: top_p 0.9 leaves 3,600 of them, and top_k 3,000 so many."""
    for how, kept in (({"top_p": 0.9}, 3600), ({"top_k": 3000}, 3000), ({"min_p": 0.5}, 4000)):
        found = draw(6000, [0.0] * 4000, **how)
        assert len(found) <= kept
        assert len(found) > 0.7 * kept, (how, len(found))


@check
def a_seed_gives_the_same_answer_whatever_else_is_in_the_batch():
    """Alone, with others, and with others that have filters."""
    model = make_model(LLAMA)
    how = {"temperature": 1.0, "seed": 5, "most": 20}
    alone = make_sequence(PROMPTS[0], **how)
    run_alone(make_batch(model), [alone])
    among = make_sequence(PROMPTS[0], **how)
    others = [make_sequence(p, temperature=1.0, top_k=5, seed=None) for p in PROMPTS[1:]]
    run_alone(make_batch(model), [*others, among])
    assert alone.rows[0].ids == among.rows[0].ids
    assert len(set(alone.rows[0].ids)) > 5


@check
def penalties_are_those_of_their_definitions():
    """Repetition as transformers has it, over prompt and answer; OpenAI's over the answer."""
    torch.manual_seed(1)
    logits = torch.randn(1, VOCABULARY)
    row = make_sequence([3, 4, 4], repetition_penalty=1.5).rows[0]
    row.ids = [7, 7, 3]
    found = logits.clone()
    sampling._penalise(found, [row])
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.5)
    assert torch.allclose(found, processor(torch.tensor([[3, 4, 4, 7, 7, 3]]), logits.clone()))
    row = make_sequence([3, 4], presence_penalty=0.5, frequency_penalty=0.25).rows[0]
    row.ids = [7, 7, 9]
    found = logits.clone()
    sampling._penalise(found, [row])
    expected = logits.clone()
    expected[0, 7] -= 0.5 + 2 * 0.25
    expected[0, 9] -= 0.5 + 0.25
    assert torch.allclose(found, expected)


@check
def min_tokens_keeps_the_end_away():
    """The end token cannot be chosen before."""
    row = make_sequence([3], ignore_eos=False, min_tokens=2).rows[0]
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 2] = 9
    assert sampling.choose(logits.clone(), [row]) != [2]
    row.ids = [5, 5]
    assert sampling.choose(logits.clone(), [row]) == [2]


@check
def auto_is_float32_on_a_cpu_unless_the_weights_are_quantized():
    """Users whose CPU has bfloat16 may ask for it; a quantization demands its own type."""
    cpu = torch.device("cpu")
    plain = LLAMA
    quantized = transformers.LlamaConfig(**SMALL, quantization_config={"quant_method": "awq"})
    assert choose_dtype("auto", cpu, plain) is torch.float32
    assert choose_dtype("auto", cpu, quantized) is torch.bfloat16
    for name in ("bfloat16", "float16", "float32"):
        assert choose_dtype(name, cpu, plain) is getattr(torch, name)


def main() -> None:
    """Run them all."""
    found = {}
    with torch.inference_mode():
        for function in CHECKS:
            try:
                function()
            except Exception:
                found[function.__name__] = traceback.format_exc()
            else:
                found[function.__name__] = ""
    print(json.dumps(found))


if __name__ == "__main__":
    main()
