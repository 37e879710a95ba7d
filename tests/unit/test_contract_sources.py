"""Addresses of files in registries: what they name, and that nothing is taken that could move."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.secrets import redacted
from agent.contract.sources import HuggingFaceFile, MlflowFile, OciFile, parse

COMMIT, DIGEST = "0123456789abcdef0123456789abcdef01234567", "5" * 64


@pytest.mark.parametrize(
    ("url", "file"),
    [
        (f"hf://timm/resnet18.a1_in1k@{COMMIT}/model.safetensors",
         HuggingFaceFile("timm/resnet18.a1_in1k", COMMIT, "model.safetensors")),
        (f"hf://Acme/Kanji@{COMMIT}/a b/漢字 100%.pt", HuggingFaceFile("Acme/Kanji", COMMIT, "a b/漢字 100%.pt")),
        (f"hf://datasets/acme/fonts@{COMMIT}/eval.safetensors",
         HuggingFaceFile("datasets/acme/fonts", COMMIT, "eval.safetensors")),
        ("models:/kanji/7", MlflowFile("kanji", "7", None)),
        ("models:/Kanji types@plant/12/data/model.pth", MlflowFile("Kanji types@plant", "12", "data/model.pth")),
        (f"oci://ghcr.io/acme/kanji@sha256:{DIGEST}", OciFile("ghcr.io", "acme/kanji", DIGEST, None)),
        (f"oci://127.0.0.1:5000/kanji@sha256:{DIGEST}/a b.pt", OciFile("127.0.0.1:5000", "kanji", DIGEST, "a b.pt")),
        ("https://files.example.com/kanji.pt", None),
        ("s3://models/kanji.pt", None),
        ("kanji.pt", None),
    ],
)  # fmt: skip
def test_an_address_names_a_file_of_a_registry_or_none(url: str, file: object) -> None:
    assert parse(url) == file


@pytest.mark.parametrize(
    ("url", "detail", "hint"),
    [
        ("hf://acme/kanji@main/x.pt", "revision 'main'", "git ls-remote https://huggingface.co/acme/kanji main prints"),
        ("hf://acme/kanji@v1.0/x.pt", "revision 'v1.0'", "acme/kanji v1.0 prints the commit"),
        ("hf://acme/kanji/x.pt", "names no commit", "acme/kanji HEAD prints the commit"),
        (f"hf://acme/kanji@{COMMIT[:12]}/x.pt", "no commit of 40 hexadecimal digits", COMMIT[:12]),
        (f"hf://datasets/acme/fonts@{'x' * 40}/x.pt", "branches and tags move", "datasets/acme/fonts xxx"),
        ("models:/kanji@champion", "models:/kanji@champion is not models:/NAME/VERSION", "registered-models/alias"),
        ("models:/kanji/Production", "aliases, stages and latest move", "name the version"),
        ("models:/kanji/latest/x.pt", "aliases, stages and latest move", "name the version"),
        ("oci://ghcr.io/acme/kanji:v1", "tags move", "oras resolve ghcr.io/acme/kanji:TAG prints the digest"),
        ("oci://ghcr.io/acme/kanji", "names no digest", "oras resolve"),
        (f"oci://ghcr.io/acme/kanji@sha256:{DIGEST[1:]}", "names no digest", "oras resolve"),
    ],
)
def test_what_could_move_is_refused_with_the_way_to_what_it_means_now(url: str, detail: str, hint: str) -> None:
    with pytest.raises(RefusalError) as caught:
        parse(url)
    assert caught.value.code is ErrorCode.FORBIDDEN_SOURCE
    assert detail in caught.value.detail
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    "url",
    [
        f"hf://acme/kanji@{COMMIT}",
        f"hf://acme/kanji@{COMMIT}/",
        f"hf://kanji@{COMMIT}/x.pt",
        f"hf://acme/kanji@{COMMIT}/../x.pt",
        f"hf://acme/kanji@{COMMIT}//x.pt",
        f"hf://acme/kanji@{COMMIT}/x.pt?token=canary",
        f"hf://acme/kanji@{COMMIT}/x.pt\n",
        f"HF://acme/kanji@{COMMIT}/x.pt",
        "models://kanji/7",
        "models:/kanji",
        "models:/kanji/0",
        "models:/kanji/7/../x.pt",
        "models:/kanji/7/x.pt#canary",
        f"models:/m-{COMMIT}",
        f"oci://acme@sha256:{DIGEST}",
        f"oci://ghcr.io/Acme/kanji@sha256:{DIGEST}",
        f"oci://ghcr.io/acme/../kanji@sha256:{DIGEST}",
        f"oci://user:canary@ghcr.io/acme/kanji@sha256:{DIGEST}",
        f"oci://ghcr.io/acme/kanji@sha256:{DIGEST}/x?canary",
    ],
)
def test_what_is_malformed_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(RefusalError) as caught:
        parse(url)
    assert "canary" not in f"{caught.value.detail} {caught.value.hint}"


@given(st.sampled_from(["hf://", "models:/", "oci://"]), st.text(max_size=80))
def test_any_text_is_a_file_or_refused(head: str, rest: str) -> None:
    with contextlib.suppress(RefusalError):
        assert parse(head + rest) is not None


def test_an_address_without_slashes_is_kept_and_shown_without_its_secrets() -> None:
    assert (
        redacted("fetching models:/kanji@champion/x.pt?token=canary now") == "fetching models:/kanji@champion/x.pt now"
    )
    assert redacted("models:/kanji/7") == "models:/kanji/7"
