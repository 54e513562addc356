"""Families as rows: one file names the modules of transformers' models, and what a row says is what is served."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import services
from services.core.errors import FailedPreconditionError, InvalidArgumentError
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import read_adapter, write_adapter
from services.model.adapters import AdapterWeights, init_adapter
from services.model.attention_arguments import refuse_arguments
from services.model.base import BaseModel, load_base_model
from services.model.families import SUPPORTED_FAMILIES, Family, LayerKind, check_architecture
from services.model.lora import MultiLoraLinear, install_lora
from services.sampler.engine.merged_model import write_merged
from services.sampler.engine.native import NativeSamplerEngine
from services.sampler.request import GenerationRequest, GenerationResult, SamplingParams
from services.trainer.engine.local import LocalTrainerEngine
from testing.passes import all_logprobs, run_alone
from testing.plain_peft import PlainPeft, largest_difference
from testing.rows import perturbed_adapter, random_tokens
from testing.tiny_models import save_model, tiny_config
from testing.training_data import ADAM, random_data, torch_adamw, work
from tests.model.renamed import RENAMED, renamed_config
from tests.model.tenants import shifted

SERVICES = Path(services.__file__).parent
ALLOWED = {
    "model/families.py": "the rows",
    "core/linears.py": "names of linears in the API; the gateway, which has no model, validates against them",
    "sampler/engine/merged_model.py": "writes transformers' own configuration, with tie_word_embeddings",
}
FIELDS = {"num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "layer_types"}
FIELDS |= {"tie_word_embeddings"}
GENERAL = {"model", "layers"}
"""Words that also mean other things: only looked for in paths of modules."""


def names_of_modules() -> set[str]:
    """Every part of a path in any row, and the configuration fields that rows and families.py read."""
    names = set(FIELDS)
    for family in SUPPORTED_FAMILIES.values():
        paths = [family.trunk, family.layers, family.embedding, family.unembedding, family.activation_field]
        for kind in family.kinds.values():
            paths += [kind.mixer, *kind.linears]
        if (block := family.feed_forward) is not None:
            paths += [block.path, block.activation, *block.linears]
        names.update(part for path in paths for part in path.split("."))
    return names


def named_in(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """Attributes, keywords and texts that name a module or a field of transformers' models."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names - {"model"}:
            yield f"line {node.lineno}: .{node.attr}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.{}]+", node.value):
            is_path = node.value == "layers" or node.value.startswith(("model.layers", "layers."))
            if is_path or set(node.value.split(".")) & (names - GENERAL):
                yield f"line {node.lineno}: {node.value!r}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get_submodule":
            for text in (a.value for a in node.args if isinstance(a, ast.Constant)):
                yield f"line {node.lineno}: get_submodule({text!r})"


def test_no_other_file_names_a_module_of_transformers_models() -> None:
    names, found = names_of_modules(), {}
    assert {"lm_head", "self_attn", "linear_attn", "mlp", "act_fn", "embed_tokens", "q_proj", "hidden_act"} <= names
    for path in sorted(SERVICES.rglob("*.py")):
        if lines := list(named_in(ast.parse(path.read_text()), names)):
            found[path.relative_to(SERVICES).as_posix()] = lines
    assert found.keys() == ALLOWED.keys(), {file: lines for file, lines in found.items() if file not in ALLOWED}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def renamed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directory of a model of a family with other module names; the row is all that the services know of it."""
    monkeypatch.setitem(SUPPORTED_FAMILIES, "renamed", RENAMED)
    return save_model(tmp_path / "renamed", renamed_config(tied=request.param))


FREE = ("mistral", "ministral3", "olmo2", "qwen2", "seed_oss", "smollm3")
"""Families whose row is all that they need."""


@pytest.fixture(params=["renamed", *FREE])
def other(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directory of a model of a family that differs from others by its row alone; norms and biases say something."""
    if request.param == "renamed":
        monkeypatch.setitem(SUPPORTED_FAMILIES, "renamed", RENAMED)
        return save_model(tmp_path / "renamed", renamed_config(tied=False))
    return save_model(tmp_path / request.param, tiny_config(request.param, tied=request.param == "qwen2"), spread=0.2)


def loaded(source: Path) -> BaseModel:
    return load_base_model(str(source), name="renamed", device="cpu")


def test_a_family_with_other_names_is_adapted_everywhere(renamed: Path) -> None:
    base = loaded(renamed)
    assert base.has_linear_attention is False
    names = list(base.adaptable_linears())
    assert names[:4] == [f"backbone.blocks.0.attn.{last}" for last in ("wq", "wk", "wv", "wo")]
    assert (len(names), names[-1]) == (2 * 7 + 1, "output")
    mlp = init_adapter(base, AdapterConfig(2, train_attn=False, train_unembed=False, seed=1))
    assert {name.rpartition(".")[2] for name in mlp.linears} == {"w1", "w2", "w3"}
    with pytest.raises(InvalidArgumentError, match=r"must be some of wq, wk, .*output \(got \['q_proj'\]\)"):
        init_adapter(base, AdapterConfig(2, target_modules=("q_proj",), seed=1))


def test_a_family_of_one_row_trains_as_plain_peft(other: Path) -> None:
    engine = LocalTrainerEngine(loaded(other), most_bytes=1)
    assert engine.share_rows, "its activation was found, and can be row-wise"
    configs = [AdapterConfig(4, seed=1), AdapterConfig(3, train_attn=False, seed=2)]
    data = [random_data("cross_entropy", (9, 1, 17), seed=index) for index in range(2)]
    for index, config in enumerate(configs):
        state = engine.create_run(f"r{index}", config)
        state.weights.flat.copy_(perturbed_adapter(engine.base, config).flat)
    plains = [PlainPeft(other, config, engine.run(f"r{index}").weights) for index, config in enumerate(configs)]
    jobs = [work(f"r{index}", own) for index, own in enumerate(data)]
    outcomes = engine.run_pass(jobs)
    together = [engine.run(f"r{index}").gradient.clone() for index in range(2)]
    for index, (job, outcome) in enumerate(zip(jobs, outcomes, strict=True)):
        engine.run(f"r{index}").gradient.zero_()
        assert torch.equal(all_logprobs(run_alone(engine, job)), all_logprobs(outcome)), "the same bits in company"
        assert torch.equal(engine.run(f"r{index}").gradient, together[index])
    for index, (plain, job, outcome) in enumerate(zip(plains, jobs, outcomes, strict=True)):
        optimizer = torch_adamw(plain.parameters(), ADAM)
        logprobs = [
            plain.logprobs(example.tokens.tolist(), torch.from_numpy(example.targets[:, 0])) for example in job.examples
        ]
        weights = [torch.from_numpy(example.inputs["weights"][:, 0]) for example in job.examples]
        sum(-(own * factor).sum() for own, factor in zip(logprobs, weights, strict=True)).backward()
        torch.testing.assert_close(all_logprobs(outcome), torch.cat(logprobs).detach(), rtol=0, atol=1e-5)
        state = engine.run(f"r{index}")
        gradient = AdapterWeights(state.config, state.weights.layout, state.gradient)
        reference = {name: tuple(m.grad for m in plain.matrices(name)) for name in gradient.linears}
        assert largest_difference(dict(gradient.linears), reference) < 1e-5
        optimizer.step()
        engine.optim_step(f"r{index}", ADAM)
        trained = {name: tuple(m.detach() for m in plain.matrices(name)) for name in gradient.linears}
        assert largest_difference(dict(state.weights.linears), trained) < 1e-5


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_family_of_one_row_samples_and_exports_as_plain_peft(
    other: Path, tmp_path: Path, deterministic: bool
) -> None:
    base, directory, merged = loaded(other), tmp_path / "adapter", tmp_path / "merged"
    directory.mkdir()
    merged.mkdir()
    weights = perturbed_adapter(base, AdapterConfig(4, seed=1))
    write_adapter(directory, weights, base)
    config = json.loads((directory / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == set(base.family.last_names())
    assert torch.equal(read_adapter(directory, base).flat, weights.flat)
    write_merged(merged, base, weights)
    (tokens,) = random_tokens(base, (23,))
    expected = PlainPeft(other, weights.config, weights).logprobs(tokens, shifted(tokens)).detach()[:-1]
    whole = AutoModelForCausalLM.from_pretrained(merged)(input_ids=torch.tensor([tokens])).logits[0].detach()
    own = whole.log_softmax(-1)[:-1].gather(1, torch.tensor(tokens)[1:, None])[:, 0]
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-4)
    engine = NativeSamplerEngine(
        base,
        max_sequences=2,
        max_tokens_per_step=16,
        max_cached_tokens=64,
        max_adapters=1,
        deterministic=deterministic,
    )
    params = SamplingParams(max_tokens=0)
    engine.submit(GenerationRequest("r", tuple(tokens), 0, params, adapter=directory, include_prompt_logprobs=True))
    finished = [end for _ in range(3) for end in engine.step()]
    (result,) = [end.outcome for end in finished]
    assert isinstance(result, GenerationResult)
    assert result.prompt_logprobs is not None
    torch.testing.assert_close(torch.tensor(result.prompt_logprobs[1:]), expected, rtol=0, atol=1e-4)


def test_a_tower_beside_the_language_model_is_not_adapted(load: Callable[..., BaseModel]) -> None:
    base, plain = load(), load()
    layer = nn.ModuleDict({"self_attn": nn.ModuleDict({"q_proj": nn.Linear(4, 4), "o_proj": nn.Linear(4, 4)})})
    base.module.add_module("vision", nn.ModuleDict({"layers": nn.ModuleList([layer]), "lm_head": nn.Linear(4, 4)}))
    assert list(base.adaptable_linears()) == list(plain.adaptable_linears())
    assert init_adapter(base, AdapterConfig(2, seed=0)).layout == init_adapter(plain, AdapterConfig(2, seed=0)).layout
    install_lora(base)
    assert not any(isinstance(module, MultiLoraLinear) for module in base.module.get_submodule("vision").modules())


def test_a_model_that_lacks_a_linear_of_its_family_is_refused(load: Callable[..., BaseModel]) -> None:
    base = load()
    base.module.set_submodule("model.layers.1.mlp.up_proj", nn.Identity())
    with pytest.raises(InvalidArgumentError, match=r"family, qwen3 \(got tiny-qwen3 without model\.layers\.1\.mlp\.up"):
        base.adaptable_linears()


def activations(base: BaseModel) -> list[type]:
    layers = base.module.get_submodule("model.layers").children()
    return [type(getattr(layer.get_submodule("mlp"), "act_fn", None)) for layer in layers]


def test_bits_are_promised_only_where_every_activation_can_be_replaced(load: Callable[..., BaseModel]) -> None:
    """A block without an activation of its own (a router's) would take the attribute and never call it."""
    whole, partly = load(), load()
    before = activations(partly)
    assert install_lora(whole).rowwise
    assert activations(whole) != before
    del partly.module.get_submodule("model.layers.1.mlp").act_fn
    assert not install_lora(partly).rowwise
    assert activations(partly) == [before[0], type(None)]


@pytest.mark.parametrize("lacks", ["an mlp in the row", "an activation in a layer"])
def test_the_deterministic_sampler_refuses_a_model_it_cannot_repeat(load: Callable[..., BaseModel], lacks: str) -> None:
    base = load()
    if lacks == "an mlp in the row":
        base = dataclasses.replace(base, family=dataclasses.replace(base.family, feed_forward=None))
    else:
        del base.module.get_submodule("model.layers.1.mlp").act_fn
    with pytest.raises(FailedPreconditionError, match="tiny-qwen3") as refused:
        NativeSamplerEngine(
            base, max_sequences=1, max_tokens_per_step=8, max_cached_tokens=8, max_adapters=1, deterministic=True
        )
    assert refused.value.reason == "NOT_DETERMINISTIC"


def test_without_an_mlp_in_the_row_attention_and_unembedding_are_adapted(load: Callable[..., BaseModel]) -> None:
    base = load()
    base = dataclasses.replace(base, family=dataclasses.replace(base.family, feed_forward=None))
    weights = init_adapter(base, AdapterConfig(2, seed=0))
    assert {name.rpartition(".")[2] for name in weights.linears} == {"q_proj", "k_proj", "v_proj", "o_proj", "lm_head"}
    with pytest.raises(InvalidArgumentError, match="adapts something"):
        init_adapter(base, AdapterConfig(2, train_attn=False, train_unembed=False, seed=0))
    assert not install_lora(base).rowwise


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"logit_scale": 0.5}, r"with logit_scale = 0\.5"),
        ({"nonlinearity": "relu"}, None),
        ({"logit_scale": 1.0}, None),
        ({"unknown_to_transformers": 3}, None),
        ({"architectures": ["RenamedForSequenceClassification"]}, "architecture RenamedForSequenceClassification"),
    ],
)
def test_a_field_that_changes_numbers_unknown_to_us_is_refused_by_name(
    renamed: Path, change: dict[str, object], complaint: str | None
) -> None:
    path = renamed / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if complaint is None:
        loaded(renamed)
        return
    with pytest.raises(InvalidArgumentError, match=complaint) as refused:
        loaded(renamed)
    assert refused.value.violations[0].field == "base_model"


def test_groups_of_linears_must_differ_in_their_last_names() -> None:
    kinds = {"full_attention": LayerKind("attn", ("q_proj", "up_proj"))}
    with pytest.raises(ValueError, match="up_proj"):
        Family(("A",), kinds, frozenset())


@pytest.mark.parametrize("family", FREE)
def test_greedy_samples_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    source = save_model(tmp_path / family, tiny_config(family), spread=0.2)
    base = loaded(source)
    prompts = random_tokens(base, (3, 17, 40))
    engine = NativeSamplerEngine(base, max_sequences=3, max_tokens_per_step=16, max_cached_tokens=256, max_adapters=1)
    params = SamplingParams(max_tokens=20, temperature=0.0)
    for index, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(f"r{index}", tuple(prompt), 1, params))
    ends = {end.name: end.outcome for _ in range(60) for end in engine.step()}
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    for index, prompt in enumerate(prompts):
        outcome = ends[f"r{index}"]
        assert isinstance(outcome, GenerationResult)
        tokens = list(prompt)
        for _ in range(20):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
            tokens.append(int(logits.argmax()))
        assert list(outcome.sequences[0].tokens) == tokens[len(prompt) :]


@pytest.mark.parametrize(("family", "given"), [("mistral", {}), ("mistral", {"sliding_window": 4096})])
def test_a_window_is_refused_also_where_it_is_a_default(family: str, given: dict[str, object]) -> None:
    config = {"model_type": family, "architectures": ["MistralForCausalLM"], **given}
    with pytest.raises(InvalidArgumentError, match="sliding_window"):
        check_architecture(config, "m")
    check_architecture({**config, "sliding_window": None}, "m")


@pytest.mark.parametrize("arguments", [{"sliding_window": 16}, {"softcap": 50.0}, {"s_aux": 1}, {"dropout": 0.1}])
def test_an_argument_that_attention_does_not_compute_is_refused(arguments: dict[str, object]) -> None:
    refuse_arguments({"dropout": 0.0, "position_ids": 1, "use_cache": False, "sliding_window": None})
    with pytest.raises(TypeError, match=next(iter(arguments))):
        refuse_arguments(arguments)
