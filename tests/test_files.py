"""What is written is there whole or not at all, and what was cut short is told apart from what is whole."""

import errno
import json

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mistral_lab import files


def test_a_folder_that_somebody_made_in_the_meantime_stays(tmp_path):
    target = tmp_path / "m"

    def meanwhile():
        with files.folder_written_whole(target) as place:
            (place / "ours").touch()
            target.mkdir()
            (target / "theirs").touch()

    with pytest.raises(FileExistsError, match="m exists: choose another name"):
        meanwhile()
    assert [file.name for file in target.iterdir()] == ["theirs"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["m"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(folder, text):
    with files.folder_written_whole(folder, replace=True) as place:
        (place / "a").write_text(text)


def test_a_folder_appears_when_it_is_done_and_its_place_is_gone(tmp_path):
    target = tmp_path / "new" / "deeper" / "m"
    with files.folder_written_whole(target) as place:
        (place / "a").write_text("1")
        assert place.name == "m"  # some libraries write the folder's name into its files
        assert not target.exists()
    assert names(target.parent) == ["m"]
    assert (target / "a").read_text() == "1"


def test_a_folder_that_failed_leaves_nothing_and_no_parent_that_was_made_for_it(tmp_path):
    def interrupted():
        with files.folder_written_whole(tmp_path / "new" / "m") as place:
            (place / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_a_folder_is_replaced_only_where_that_is_asked_for(tmp_path):
    fill(tmp_path / "m", "1")
    (tmp_path / "m" / "b").touch()
    message = r"m exists: choose another name, or delete it first$"
    with pytest.raises(FileExistsError, match=message), files.folder_written_whole(tmp_path / "m"):
        pytest.fail("it began")
    assert names(tmp_path / "m") == ["a", "b"]
    fill(tmp_path / "m", "2")
    assert names(tmp_path) == ["m"]
    assert names(tmp_path / "m") == ["a"]
    assert (tmp_path / "m" / "a").read_text() == "2"


def test_a_folder_that_cannot_be_moved_into_place_leaves_the_one_before(tmp_path, monkeypatch):
    fill(tmp_path / "m", "1")
    rename = type(tmp_path).rename

    def refuse_the_new_one(self, target):
        if self.name == target.name == "m" and self.parent != tmp_path:
            raise OSError(errno.EIO, "input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", refuse_the_new_one)
    with pytest.raises(OSError, match="input/output error"):
        fill(tmp_path / "m", "2")
    assert names(tmp_path) == ["m"]
    assert (tmp_path / "m" / "a").read_text() == "1"


def test_shards_hold_every_tensor_once_under_an_index_that_says_where(tmp_path):
    tensors = {f"t{n}": torch.full((4, 8), float(n)) for n in range(5)}  # 128 bytes each
    files.write_shards(iter(tensors.items()), tmp_path, shard_bytes=256)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 5 * 128}
    assert index["weight_map"] == {f"t{n}": f"model-0000{n // 2 + 1}.safetensors" for n in range(5)}
    found = {name: tensor for file in files.weight_files(tmp_path) for name, tensor in load_file(file).items()}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert files.has_weights(tmp_path)
    second = tmp_path / "model-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-1])
    assert files.has_weights(tmp_path)  # there, but cut short
    with pytest.raises(OSError, match=r"model-00002.safetensors is truncated or damaged"):
        files.check_weights(tmp_path)
    second.unlink()
    assert not files.has_weights(tmp_path)


def test_one_shard_needs_no_index(tmp_path):
    files.write_shards([("t", torch.eye(2).T)], tmp_path, shard_bytes=2**20)
    assert names(tmp_path) == ["model.safetensors"]
    assert files.read_header(tmp_path / "model.safetensors")["t"]["shape"] == [2, 2]


@pytest.mark.parametrize("content", [None, "", '{"step": 4', "\udc80"])
def test_what_is_no_whole_json_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_text(content, errors="surrogateescape")
    assert files.read_json_if_whole(tmp_path / "a.json") is None
    files.write_json(tmp_path / "a.json", {"step": 4})
    assert files.read_json_if_whole(tmp_path / "a.json") == {"step": 4}
    assert names(tmp_path) == ["a.json"]


def test_checkpoints_are_in_the_order_of_their_steps_and_those_cut_short_are_left_out(tmp_path):
    for name, state in (("5", "{}"), ("20", "{}"), ("100", '{"global'), ("best", "{}"), ("5-copy", "{}")):
        (tmp_path / f"checkpoint-{name}").mkdir()
        (tmp_path / f"checkpoint-{name}" / "trainer_state.json").write_text(state)
    assert [path.name for path in files.trainer_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-20"]


def test_a_safetensors_file_is_whole_or_named(tmp_path):
    save_file({"t": torch.ones(3)}, tmp_path / "a")
    files.check_safetensors(tmp_path / "a")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-4])
    with pytest.raises(OSError, match=r"a is truncated or damaged \(.*\): copy or download it again$"):
        files.check_safetensors(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        files.check_safetensors(tmp_path / "b")


def test_a_full_disk_is_one_sentence_and_other_failures_are_not_called_so():
    with pytest.raises(OSError, match=r"^make room$") as caught, files.full_disk_explained(lambda: "make room"):
        raise OSError(errno.EDQUOT, "disk quota exceeded")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(ValueError, match="^bad$"), files.full_disk_explained(lambda: "make room"):
        raise ValueError("bad")


@pytest.mark.parametrize("error", [OSError, RuntimeError, SafetensorError])
def test_an_error_that_says_nothing_counts_where_too_little_is_free(tmp_path, error):
    for nbytes, expected in ((2**62, (OSError, "^make room$")), (1, (error, "^silent$"))):
        least = files.Need(tmp_path, nbytes, "for a checkpoint")
        with (
            pytest.raises(expected[0], match=expected[1]),
            files.full_disk_explained(lambda: "make room", least=least),
        ):
            raise error("silent")


# Files that are mapped


def test_large_tensors_begin_at_whole_cache_lines_and_come_back(tmp_path):
    random = torch.Generator().manual_seed(0)
    tensors = {
        "codes": torch.randint(256, (32, 96), generator=random, dtype=torch.uint8),
        "odd": torch.arange(83, dtype=torch.uint8),
        "a.norm": torch.randn(3, generator=random).to(torch.bfloat16),
        "scales": torch.randn(5, generator=random),
        "embedding": torch.randn(7, 64, generator=random).to(torch.float16),
        "one": torch.tensor(1.5, dtype=torch.float64),
        "none": torch.empty(0),
        "turned": torch.randn(64, 2, generator=random).T,
    }
    for padding in range(0, 70, 7):  # a header of any length
        path = tmp_path / f"{padding}.safetensors"
        files.write_aligned(tensors, path, {"format": "pt", "note": "x" * padding})
        files.check_safetensors(path)
        loaded = load_file(path)
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert torch.equal(loaded[name], tensor)
        with path.open("rb") as opened:
            begin = 8 + int.from_bytes(opened.read(8), "little")
        assert begin % 64 == 0
        for name, entry in files.read_header(path).items():
            place = begin + entry["data_offsets"][0]
            assert place % tensors[name].itemsize == 0
            assert place % 64 == 0 or tensors[name].nbytes % 64 > 0
        with safe_open(path, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt", "note": "x" * padding}
