"""The sampling loop equals plain forwards without a cache."""

from __future__ import annotations

import torch

from opd_probe.lab.demo import SHIPPED
from opd_probe.lab.models import EOS_ID, PAD_ID, ModelRecipe, build_model, load_model
from opd_probe.lab.pretrain import states_of
from opd_probe.lab.sampling import Decoder, response_text, sample_responses
from opd_probe.lab.task import VOCABULARY, encode, sample_problems, seeded

TINY = ModelRecipe(hidden_size=32, layers=2, heads=2, intermediate_size=48)


def prompts(count: int) -> torch.Tensor:
    return torch.tensor([encode(p.prompt) for p in sample_problems(seeded(0, "test"), count)])


def test_cached_loop_draws_what_full_forwards_draw() -> None:
    model = build_model(TINY, seed=0)
    ids = prompts(5)
    sample = sample_responses(model, ids, 12, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    sequence = ids
    with torch.no_grad():
        for step in range(sample.response_ids.shape[1]):
            probabilities = model(input_ids=sequence, use_cache=False).logits[:, -1].softmax(-1)
            drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
            active = sample.mask[:, step]
            assert torch.equal(sample.response_ids[active, step], drawn[active])
            sequence = torch.cat([sequence, sample.response_ids[:, step : step + 1]], dim=1)


def test_states_predict_the_response_tokens() -> None:
    model = build_model(TINY, seed=0)
    sample = sample_responses(model, prompts(3), 6, torch.Generator().manual_seed(0))
    states = states_of(model, sample.input_ids, sample.first_state)
    full = model(input_ids=sample.input_ids).logits
    start = sample.prompt_ids.shape[1] - 1
    assert states.shape[:2] == sample.response_ids.shape
    torch.testing.assert_close(states, full[:, start:-1])


def test_a_response_ends_with_eos_and_is_padded_after_it() -> None:
    model = build_model(TINY, seed=0)
    with torch.no_grad():  # an output layer that has EOS among a few likely tokens
        model.model.embed_tokens.weight[EOS_ID] *= 3
    sample = sample_responses(model, prompts(64), 20, torch.Generator().manual_seed(1), temperature=2.0)
    for ids, mask in zip(sample.response_ids.tolist(), sample.mask.tolist(), strict=True):
        length = sum(mask)
        assert mask == [True] * length + [False] * (len(mask) - length)
        assert EOS_ID not in ids[: length - 1]
        assert length == len(ids) or ids[length - 1] == EOS_ID
        assert set(ids[length:]) <= {PAD_ID}


def test_generator_decides_the_draws() -> None:
    model = build_model(TINY, seed=0)
    first, second = (sample_responses(model, prompts(4), 8, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.response_ids, second.response_ids)


def test_text_leaves_out_eos_and_padding() -> None:
    word = VOCABULARY.index("answer")
    assert response_text([word, VOCABULARY.index("7"), EOS_ID, PAD_ID]) == "answer 7"


def test_decoder_has_the_logits_of_the_model_on_trained_weights() -> None:
    model = load_model(SHIPPED / "student")
    ids = prompts(4)
    with torch.no_grad():
        full = model(input_ids=ids).logits
        decoder = Decoder(model, len(ids), ids.shape[1])
        torch.testing.assert_close(decoder.logits(ids[:, :10]), full[:, 9], atol=1e-4, rtol=1e-4)
        for place in range(10, ids.shape[1]):
            torch.testing.assert_close(decoder.logits(ids[:, place : place + 1]), full[:, place], atol=1e-4, rtol=1e-4)


def test_a_response_that_has_begun_is_continued() -> None:
    model = build_model(TINY, seed=0)
    whole = sample_responses(model, prompts(3), 9, torch.Generator().manual_seed(0))
    begun = torch.cat([whole.prompt_ids, whole.response_ids[:, :4]], dim=1)
    rest = sample_responses(model, begun, 5, torch.Generator().manual_seed(0))
    assert rest.prompt_ids.shape[1] == whole.prompt_ids.shape[1] + 4
    assert rest.response_ids.shape[1] <= 5
