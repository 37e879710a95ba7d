"""The demo's folder as everything else relies on it: sizes, layout, labels, and a model that reads unseen fonts."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from agent.architectures import build, recognise

FOLDER = Path(__file__).parents[2] / "deploy" / "demo" / "kanji"
FILES = {"checkpoint_best.pt", "evaluation.safetensors", "classes.json", "README.md"}
LARGEST_BYTES = 8_000_000
FEWEST_CLASSES = 200
LEAST_ACCURACY = 0.9

# The jōyō kanji of the first two school years, in code-point order.
JOYO = frozenset(
    "一七万三上下中丸九二五交京人今休会体何作元兄先光入八公六内円冬出刀分切前力北十千午半南原友口古右台合同名四回図国園土地場"
    "声売夏夕外多夜大天太女妹姉子字学室家寺小少山岩川工左市帰年広店弓引弟弱強当形後心思戸手才教数文新方日早明星春昼時晴曜書月"
    "朝木本村来東林校森楽歌止正歩母毎毛気水池汽活海火点父牛犬玉王理生用田男町画番白百目直矢知石社秋科空立竹答算米糸紙細組絵線"
    "羽考耳聞肉自船色花茶草虫行西見親角言計記話語読谷貝買赤走足車近通週道遠里野金長門間雨雪雲電青音頭顔風食首馬高魚鳥鳴麦黄黒",
)


@cache
def checkpoint() -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(FOLDER / "checkpoint_best.pt", map_location="cpu", weights_only=True)
    return loaded


@cache
def evaluation() -> tuple[torch.Tensor, torch.Tensor, dict[str, str]]:
    with safe_open(FOLDER / "evaluation.safetensors", framework="pt") as file:
        return file.get_tensor("inputs"), file.get_tensor("labels"), file.metadata()


@cache
def classes() -> list[str]:
    listed: list[str] = json.loads((FOLDER / "classes.json").read_text(encoding="utf-8"))["classes"]
    return listed


@cache
def answers() -> torch.Tensor:
    model = build("cnn", len(classes()))
    model.load_state_dict(checkpoint()["model_state_dict"], strict=True)
    with torch.inference_mode():
        predicted: torch.Tensor = model.eval()(evaluation()[0].float()).argmax(dim=1)
    return predicted


def held_out_fonts() -> list[str]:
    fonts: list[str] = json.loads(evaluation()[2]["fonts"])
    return fonts


def test_the_folder_holds_its_four_files_in_less_than_eight_megabytes() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(sizes) == FILES
    assert sum(sizes.values()) < LARGEST_BYTES, sizes


def test_the_checkpoint_has_the_keys_of_a_training_run_names_its_classes_and_has_no_optimizer_state() -> None:
    saved = checkpoint()
    assert list(saved) == [
        "epoch",
        "classes",
        "model_state_dict",
        "optimizer_state_dict",
        "scheduler_state_dict",
        "metrics",
    ]
    assert saved["classes"] == classes()
    assert saved["optimizer_state_dict"] == {}
    assert saved["scheduler_state_dict"] is None
    assert list(saved["metrics"]) == ["train_loss", "train_acc", "val_loss", "val_acc"]


def test_the_checkpoint_is_recognised_as_a_cnn_for_as_many_classes_as_are_named() -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint()["model_state_dict"].items()}
    recognised = recognise(shapes)
    assert (recognised.model_type, recognised.num_classes) == ("cnn", len(classes()))


def test_the_classes_are_distinct_joyo_kanji() -> None:
    assert len(classes()) >= FEWEST_CLASSES
    assert len(set(classes())) == len(classes())
    assert set(classes()) <= JOYO


def test_every_class_is_drawn_once_by_each_held_out_font() -> None:
    _inputs, labels, _metadata = evaluation()
    fonts = held_out_fonts()
    assert len(set(fonts)) == len(fonts) >= 2
    assert labels.dtype == torch.int64
    for index in range(len(fonts)):
        assert sorted(labels[index :: len(fonts)].tolist()) == list(range(len(classes())))


def test_the_inputs_are_small_grey_images_bright_on_dark() -> None:
    inputs, labels, _metadata = evaluation()
    assert inputs.shape == (len(labels), 1, 64, 64)
    assert inputs.dtype == torch.float16
    assert inputs.amin() == 0
    assert inputs.flatten(1).amax(dim=1).min() > 0.9
    assert inputs.flatten(1).mean(dim=1, dtype=torch.float32).max() < 0.5


def test_the_model_reads_each_held_out_font_and_its_file_states_the_accuracy_honestly() -> None:
    right = answers() == evaluation()[1]
    fonts = held_out_fonts()
    by_font = {font: right[index :: len(fonts)].float().mean().item() for index, font in enumerate(fonts)}
    assert min(by_font.values()) > LEAST_ACCURACY, by_font
    one_image = 100 / len(right)
    assert abs(checkpoint()["metrics"]["val_acc"] - 100 * right.float().mean().item()) <= one_image + 1e-6


def test_the_readme_names_every_held_out_font_with_its_count_of_right_answers() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    right = answers() == evaluation()[1]
    fonts = held_out_fonts()
    rows = {
        font: next(line for line in text.splitlines() if line.startswith(f"| {font} ")).split("|")[2].split()
        for font in fonts
    }
    for index, (font, row) in enumerate(rows.items()):
        assert abs(int(row[0]) - int(right[index :: len(fonts)].sum())) <= 1, font
        assert int(row[2]) == len(classes()), font
