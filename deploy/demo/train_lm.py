"""Trains a small language model from nothing, so that generated texts can be tried without anybody's weights.

    python -m deploy.demo.train_lm deploy/demo/out --steps 1500

It writes what a Hugging Face directory has (configuration, weights, tokenizer with a chat template), the same as
``lm.tar``, which a command can name, and ``evaluation.safetensors``: held-out texts, each with the token that follows.

It learns English as Python's standard library documents itself, and the repository's own pages. The question "What does
NAME do?" is answered as the docstring of NAME begins. So small a model writes words, not sense: what is measured on it
is the distance between methods. Everything is seeded; the same versions on the same machine give the same weights.
"""

from __future__ import annotations

import ast
import json
import math
import sysconfig
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
START, END, USER, ASSISTANT = "<|start|>", "<|end|>", "<|user|>", "<|assistant|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
VOCABULARY = 1024
CONTEXT = 512
SIZES: dict[str, Any] = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True,
}  # fmt: skip
HELD_OUT = 20
"""One text in so many is not learnt from."""
EVALUATION_ROWS, EVALUATION_STEPS = 256, 48


@dataclass(frozen=True)
class Recipe:
    """How long and how fast it learns."""

    steps: int = 1500
    batch: int = 16
    length: int = 128
    rate: float = 4e-3
    warm_up: int = 20
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Return the learning rate: a rise, then half a cosine down to a twentieth."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def texts() -> Iterator[str]:
    """Yield the repository's pages and the docstrings of the standard library, in a fixed order."""
    for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]):
        yield from page.read_text(encoding="utf-8").split("\n## ")
    for module in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(module.read_bytes())
        except SyntaxError:  # a test's file of deliberate mistakes
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (said := ast.get_docstring(node)):
                yield said
                if not isinstance(node, ast.Module) and (first := said.split("\n\n")[0].replace("\n", " ")):
                    yield f"{USER}What does {node.name} do?{END}{ASSISTANT}{first}"


def train_tokenizer(corpus: list[str]) -> Tokenizer:
    """Return a byte-level BPE, which knows every text there is."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START, END, USER, ASSISTANT],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def train(model: Any, ids: torch.Tensor, recipe: Recipe) -> float:
    """Teach ``model`` to continue ``ids``; returns the loss of the last tenth of the steps, in nats a token."""
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.05)
    losses = []
    model.train()
    for step in range(recipe.steps):
        starts = torch.randint(len(ids) - recipe.length - 1, (recipe.batch,), generator=generator)
        rows = torch.stack([ids[start : start + recipe.length + 1] for start in starts])
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's gap
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    tail = losses[-max(1, recipe.steps // 10) :]
    return sum(tail) / len(tail)


def make(output: Path, recipe: Recipe) -> dict[str, Any]:
    """Write everything into ``output``; returns what was learnt."""
    torch.manual_seed(recipe.seed)
    corpus = list(dict.fromkeys(texts()))
    known = [text for index, text in enumerate(corpus) if index % HELD_OUT]
    unseen = [text for index, text in enumerate(corpus) if not index % HELD_OUT]
    tokenizer = train_tokenizer(known)
    end, start = tokenizer.token_to_id(END), tokenizer.token_to_id(START)
    ids = torch.tensor([token for text in known for token in (*tokenizer.encode(text).ids, end)])
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, bos_token_id=start, eos_token_id=end, pad_token_id=end, **SIZES
    )
    model = transformers.LlamaForCausalLM(config)
    loss = train(model, ids, recipe)
    folder = output / "lm"
    model.save_pretrained(folder)
    wrapped: Any = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # the library's gap
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END, chat_template=TEMPLATE,
        extra_special_tokens=[USER, ASSISTANT], model_max_length=CONTEXT,
    )  # fmt: skip
    wrapped.save_pretrained(folder)
    with tarfile.open(output / "lm.tar", "w") as archive:
        archive.add(folder, arcname="lm")
    save_file(evaluation(tokenizer, unseen), output / "evaluation.safetensors")
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": len(ids),
        "steps": recipe.steps,
        "loss": round(loss, 3),
    }
    (output / "learnt.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return facts


def evaluation(tokenizer: Tokenizer, unseen: list[str]) -> dict[str, torch.Tensor]:
    """Return pieces of unseen texts as a gate reads them, each with the token that follows as its label."""
    size = EVALUATION_STEPS + 1
    encoded = [tokenizer.encode(text).ids for text in unseen]
    rows = torch.tensor([ids[:size] for ids in encoded if len(ids) >= size][:EVALUATION_ROWS])
    inputs = rows[:, :-1].contiguous()
    return {"input_ids": inputs, "attention_mask": torch.ones_like(inputs), "labels": rows[:, -1].contiguous()}


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--steps", default=Recipe.steps, show_default=True)
def main(output: Path, steps: int) -> None:
    """Train the model into the directory OUTPUT."""
    output.mkdir(parents=True, exist_ok=True)
    print(json.dumps(make(output, Recipe(steps=steps))))


if __name__ == "__main__":
    main()
