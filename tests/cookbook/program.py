"""One of the cookbook's training loops, unmodified, on local data.

python program.py <loop> <model name> <log directory> runs with the cookbook's own packages, in a directory where the
model's name is the path of its tokenizer. Address and key come from TINKER_BASE_URL and TINKER_API_KEY.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import chz
import tinker_cookbook
from tinker_cookbook.distillation import train_on_policy
from tinker_cookbook.distillation.datasets import DistillationDatasetConfig, TeacherConfig
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.preference_datasets import ComparisonBuilderFromJsonl
from tinker_cookbook.recipes.math_rl.arithmetic_env import ArithmeticDatasetBuilder
from tinker_cookbook.renderers import TrainOnWhat, get_renderer
from tinker_cookbook.rl import train as rl
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.types import RLDataset, RLDatasetBuilder
from tinker_cookbook.supervised import train as supervised
from tinker_cookbook.supervised.data import FromConversationFileBuilder
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.tokenizer_utils import get_tokenizer

LOOP, MODEL, LOG = sys.argv[1], sys.argv[2], Path(sys.argv[3])
RENDERER = "role_colon"
COMMON: dict[str, Any] = {
    "recipe_name": "tests",
    "model_name": MODEL,
    "log_path": str(LOG),
    "lora_rank": 4,
    "learning_rate": 1e-3,
}
BATCHES = 3
STABLE_BATCHES = 30


def chat(batch_size: int) -> ChatDatasetBuilderCommonConfig:
    return ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=MODEL,
        renderer_name=RENDERER,
        max_length=256,
        batch_size=batch_size,
        train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    )


def supervised_loop() -> Any:
    conversations = Path(tinker_cookbook.__file__).parent / "example_data" / "conversations.jsonl"
    data = FromConversationFileBuilder(common_config=chat(2), file_path=str(conversations))
    return supervised.main(supervised.Config(**COMMON, dataset_builder=data, eval_every=0, save_every=2))


def arithmetic() -> ArithmeticDatasetBuilder:
    return ArithmeticDatasetBuilder(
        batch_size=2, model_name_for_tokenizer=MODEL, renderer_name=RENDERER, n_batches=BATCHES, group_size=4
    )


def rl_loop(**options: Any) -> Any:
    config = rl.Config(**COMMON, dataset_builder=arithmetic(), max_tokens=6, eval_every=0, save_every=2, **options)
    return rl.main(config)


class LetterEnv(ProblemEnv):
    """Any answer with a w in it is right, which a model without any training can find by itself."""

    def get_question(self) -> str:
        return "Is the lamp lit?"

    def check_answer(self, sample_str: str) -> bool:
        return "w" in sample_str

    def check_format(self, sample_str: str) -> bool:
        return True

    def get_reference_answer(self) -> str:
        return "w"


class LetterDataset(RLDataset):
    """The one question, STABLE_BATCHES times."""

    def get_batch(self, index: int) -> list[ProblemGroupBuilder]:
        renderer = get_renderer(RENDERER, get_tokenizer(MODEL))
        env = partial(LetterEnv, renderer, format_coef=0.0)
        return [ProblemGroupBuilder(env_thunk=env, num_envs=16) for _ in range(2)]

    def __len__(self) -> int:
        return STABLE_BATCHES


@chz.chz
class LetterDatasetBuilder(RLDatasetBuilder):
    """Builds it."""

    async def __call__(self) -> tuple[LetterDataset, None]:
        return LetterDataset(), None


def stable_loop() -> Any:
    config = rl.Config(
        **{**COMMON, "learning_rate": 1e-2},
        dataset_builder=LetterDatasetBuilder(),
        loss_fn="stable_reinforce",
        max_tokens=6,
        eval_every=0,
        save_every=0,
    )
    return rl.main(config)


def dpo_loop() -> Any:
    comparisons = LOG.with_suffix(".jsonl")
    prompt = [{"role": "user", "content": "Is the lamp lit?"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("Yes, it is.", "No.")]
    entry = {"prompt_conversation": prompt, "completion_A": answers[0], "completion_B": answers[1]}
    comparisons.write_text("".join(json.dumps({"comparison": entry, "label": "A"}) + "\n" for _ in range(6)))
    data = DPODatasetBuilderFromComparisons(
        common_config=chat(2), comparison_builder=ComparisonBuilderFromJsonl(train_path=str(comparisons))
    )
    return train_dpo.main(train_dpo.Config(**COMMON, dataset_builder=data, eval_every=0, save_every=2))


def distillation_loop() -> Any:
    teacher = TeacherConfig(base_model=MODEL)
    data = DistillationDatasetConfig(dataset_builder=arithmetic(), teacher_config=teacher, groups_per_batch=2)
    config = train_on_policy.Config(**COMMON, dataset_configs=[data], max_tokens=6, eval_every=0, save_every=2)
    return train_on_policy.main(config)


LOOPS: dict[str, Any] = {
    "supervised": supervised_loop,
    "rl": rl_loop,
    # No trajectory is too old, else the number of steps would be a matter of time.
    "rl-async": lambda: rl_loop(async_config=rl.AsyncConfig(max_steps_off_policy=BATCHES, groups_per_batch=2)),
    "rl-stable": stable_loop,
    "dpo": dpo_loop,
    "distillation": distillation_loop,
}

if __name__ == "__main__":
    made = LOOPS[LOOP]()
    if asyncio.iscoroutine(made):
        asyncio.run(made)
