"""Loading of the weights and the tokenizer of a base model, and the refusal of a directory that lacks some of them.

transformers fills a missing tensor with random numbers and makes a tokenizer of special tokens alone where there are no
files for it. Both are refused here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from services.core.errors import InvalidArgumentError, broken_rule
from services.model.tokenizer_files import MODEL_CONFIG, PATTERNS, TokenizerFiles, read_files

MAX_NAMES = 3
"""Most tensors that a refusal names of each kind."""


def load_weights(source: str, dtype: torch.dtype) -> PreTrainedModel:
    """Loads the weights of a base model, on the CPU.

    Parts that transformers itself leaves out of the language model, e.g. a vision tower, may be in the files. A tied
    unembedding need not be.

    Args:
        source: Hugging Face name or local directory.
        dtype: what the weights are converted to.

    Raises:
        InvalidArgumentError: there are no weights, or they are not the tensors of the model's configuration.
    """
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained  # declared without the report
    module: PreTrainedModel
    try:
        module, report = from_pretrained(
            source,
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported instead, and refused below
        )
    except OSError as error:
        raise unreadable("a directory or a Hugging Face name with weights", source, str(error)) from None
    except SafetensorError as error:
        fault = f"{_damaged_file(source)}: {error}"
        raise unreadable("a model with whole files of weights", source, fault) from None
    if faults := _faults(report):
        raise unreadable("a model with the tensors of its configuration", source, "; ".join(faults))
    return module


def load_tokenizer(source: str, vocab_size: int) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a base model.

    Args:
        source: Hugging Face name or local directory.
        vocab_size: rows of the model's embedding. Tokens added to the tokenizer's own vocabulary may exceed it.

    Raises:
        InvalidArgumentError: files of the tokenizer are missing, or it is of a model with a larger vocabulary.
    """
    rule = "a model with its tokenizer: tokenizer.json, or the vocabulary files of its tokenizer_class"
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise unreadable(rule, source, str(error)) from None
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if not tokenizer.get_vocab().keys() - added - set(tokenizer.all_special_tokens):
        raise unreadable(rule, source, "tokenizer files are missing")
    if tokenizer.vocab_size > vocab_size:
        fault = f"the tokenizer has {tokenizer.vocab_size} tokens, the model a vocab_size of {vocab_size}"
        raise unreadable("a model with its own tokenizer", source, fault)
    return tokenizer


def read_tokenizer_files(source: str, tokenizer: PreTrainedTokenizerBase) -> TokenizerFiles:
    """The files of a base model's tokenizer.

    Args:
        source: Hugging Face name or local directory, which has been loaded.
        tokenizer: what was loaded from it.
    """
    directory = model_directory(source)
    named_by_class = (name for name in tokenizer.vocab_files_names.values() if name)
    with tempfile.TemporaryDirectory() as resaved:
        tokenizer.save_pretrained(resaved)
        return TokenizerFiles(
            own=read_files(directory, [*PATTERNS, *named_by_class]),
            model_config=(directory / MODEL_CONFIG).read_bytes(),
            resaved=read_files(Path(resaved), ["**/*"]),
        )


def model_directory(source: str) -> Path:
    """The directory with a base model's files: the source itself, or its place in the Hugging Face cache.

    Args:
        source: Hugging Face name or local directory, whose config.json has been read.
    """
    config = cached_file(source, MODEL_CONFIG, local_files_only=True)
    if config is None:
        raise unreadable("a model with a config.json", source, "it is gone")
    return Path(config).parent


def unreadable(rule: str, source: str, fault: str) -> InvalidArgumentError:
    """The refusal of a base model whose files cannot be used.

    Args:
        rule: what completes "must be".
        source: Hugging Face name or local directory.
        fault: what is wrong with it.
    """
    return InvalidArgumentError.at(
        "base_model", f"{broken_rule(rule, source)}: {fault}", reason="UNREADABLE_BASE_MODEL"
    )


def _damaged_file(source: str) -> str:
    """Name of the first file of weights that cannot be opened."""
    for path in sorted(model_directory(source).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            return path.name
    return "a file of weights"


def _faults(report: dict[str, Any]) -> list[str]:
    """What transformers reports of a load, a text for each kind of fault; none for a whole model."""
    reshaped = [f"{name} {list(stored)} instead of {list(own)}" for name, stored, own in report["mismatched_keys"]]
    kinds: dict[str, Collection[str]] = {
        "missing": report["missing_keys"],
        "unexpected": report["unexpected_keys"],
        "of another shape": reshaped,
        "unreadable": report["error_msgs"],
    }
    return [f"{_listed(names)} {kind}" for kind, names in kinds.items() if names]


def _listed(names: Collection[str]) -> str:
    """How many tensors, and the first of them."""
    first = ", ".join(sorted(names)[:MAX_NAMES])
    more = ", ..." if len(names) > MAX_NAMES else ""
    return f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'} ({first}{more})"
