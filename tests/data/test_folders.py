"""Folders as people have them: MVTec layouts, plain ones, odd names, loops and closed doors."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from haloae.data.folders import find_images, good_images, is_mask, load_category
from haloae.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_images(root).images]


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "bottle"
    touch(root, "train/good/000.png", "train/good/001.png")
    touch(root, "test/good/000.png", "test/crack/000.png", "test/crack/001.png", "test/dent/a.png")
    touch(root, "ground_truth/crack/000_mask.png", "ground_truth/dent/a.bmp", "license.txt")
    return root


def test_images_are_found_below_and_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.PNG", "b/1.jpeg", "a.Tiff", "c.webp", "d/e/f.pgm", "note.txt", "noending")
    touch(tmp_path, ".hidden.png", ".cache/thumb.png", "b/Thumbs.db")
    assert names(tmp_path) == ["a.Tiff", "b/1.jpeg", "b/2.PNG", "c.webp", "d/e/f.pgm"]
    assert find_images(tmp_path).skipped == ()


def test_relative_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "b/c.png")
    monkeypatch.chdir(tmp_path)
    assert find_images(".").images == (Path("a.png"), Path("b/c.png"))


def test_odd_names(tmp_path: Path) -> None:
    odd = ["two words.png", "tab\t.png", "line\nbreak.png", "naïve 测试.png", "tab\tdir/x.png"]
    touch(tmp_path, *odd)
    undecodable = os.fsdecode(b"\xff\xfe.png")
    touch(tmp_path, undecodable)
    assert sorted(names(tmp_path)) == sorted([*odd, undecodable])


def test_folder_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/1.png", "root/real/2.png")
    root = tmp_path / "root"
    (root / "a_link").symlink_to("../elsewhere")
    (root / "again").symlink_to("../elsewhere")
    (root / "b_link").symlink_to("real")
    (root / "real" / "up").symlink_to("..")
    (root / "real" / "above").symlink_to(tmp_path)
    (root / "self").symlink_to("self")
    (root / "self.png").symlink_to("self.png")
    found = find_images(root)
    assert names(root) == ["a_link/1.png", "real/2.png"]
    skipped = {item.path.relative_to(root).as_posix(): item.reason for item in found.skipped}
    assert skipped == {
        "again": "it links to a folder already searched",
        "b_link": "it links to a folder already searched",
        "real/above": "it links to a folder already searched",
        "real/up": "it links to a folder already searched",
        "self.png": "it is a link that leads back to itself",
    }


def test_links_that_multiply_end_soon(tmp_path: Path) -> None:
    for depth in range(40):
        (tmp_path / "x" / str(depth)).mkdir(parents=True)
        for twin in "ab":
            (tmp_path / "x" / str(depth) / twin).symlink_to(f"../{depth + 1}")
    touch(tmp_path, "x/39/1.png")
    assert names(tmp_path) == ["x/39/1.png"]


def test_names_that_are_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    touch(tmp_path, "folder.png/real.png")
    found = find_images(tmp_path)
    assert [path.name for path in found.images] == ["real.png"]
    assert [item.reason for item in found.skipped] == [
        "it links to a file that does not exist",
        "it is not a regular file",
    ]


def test_no_folder(tmp_path: Path) -> None:
    touch(tmp_path, "file.png")
    (tmp_path / "loop").symlink_to("loop")
    for call in (find_images, load_category, good_images):
        with pytest.raises(DataError, match=r"missing: no such folder: check the path\.$"):
            call(tmp_path / "missing")
        with pytest.raises(DataError, match="this is a file"):
            call(tmp_path / "file.png")
        with pytest.raises(DataError, match="leads back to itself"):
            call(tmp_path / "loop")
    with pytest.raises(DataError, match=r"a\\nb: no such folder"):
        find_images(tmp_path / "a\nb")


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder anyone can enter, and for root no rights of root: they would open everything."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if is_root:
                os.seteuid(0)


def test_closed_folders_are_reported(as_nobody: Path) -> None:
    touch(as_nobody, "open/1.png", "closed/2.png")
    (as_nobody / "closed").chmod(0)
    try:
        found = find_images(as_nobody)
        with pytest.raises(DataError, match="permission denied"):
            find_images(as_nobody / "closed")
    finally:
        (as_nobody / "closed").chmod(0o700)
    assert [path.name for path in found.images] == ["1.png"]
    assert [(item.path.name, item.reason) for item in found.skipped] == [
        ("closed", "permission denied")
    ]


@pytest.mark.parametrize("closed", ["train/good", "test", "test/crack", "ground_truth/crack"])
def test_closed_folders_of_a_category(as_nobody: Path, closed: str) -> None:
    touch(as_nobody, "train/good/1.png", "test/good/1.png", "test/crack/1.png")
    touch(as_nobody, "ground_truth/crack/1.png")
    (as_nobody / closed).chmod(0)
    try:
        category = load_category(as_nobody)
    finally:
        (as_nobody / closed).chmod(0o700)
    assert {item.path.relative_to(as_nobody).as_posix() for item in category.skipped} == {closed}


def test_category(mvtec: Path) -> None:
    category = load_category(mvtec)
    assert category.root == mvtec
    assert [path.name for path in category.train] == ["000.png", "001.png"]
    truth = mvtec / "ground_truth"
    assert [(s.label, s.path.name, s.mask, s.is_anomalous) for s in category.test] == [
        ("crack", "000.png", truth / "crack" / "000_mask.png", True),
        ("crack", "001.png", None, True),
        ("dent", "a.png", truth / "dent" / "a.bmp", True),
        ("good", "000.png", None, False),
    ]
    assert category.skipped == ()
    assert good_images(mvtec) == category.train


def test_masks_of_nested_images_and_dotted_names(tmp_path: Path) -> None:
    touch(tmp_path, "test/cut/lot 1/a.b.png", "test/cut/lot 2/a.b.png")
    touch(tmp_path, "ground_truth/cut/lot 2/a.b_mask.tif", "ground_truth/cut/lot 2/a.b.png")
    masks = [sample.mask for sample in load_category(tmp_path).test]
    assert masks == [None, tmp_path / "ground_truth" / "cut" / "lot 2" / "a.b_mask.tif"]


def test_masks_are_none_of_the_images_to_score(mvtec: Path, tmp_path: Path) -> None:
    names = {path.relative_to(mvtec).parts[0] for path in find_images(mvtec).images}
    assert names == {"train", "test", "ground_truth"}
    for path in find_images(mvtec).images:
        assert is_mask(path, mvtec) == (path.relative_to(mvtec).parts[0] == "ground_truth")
    plain = tmp_path / "plain" / "ground_truth" / "1.png"
    assert not is_mask(plain, tmp_path / "plain"), "it is no layout"


def test_plain_folder(tmp_path: Path) -> None:
    touch(tmp_path, "monday/1.png", "2.jpg")
    category = load_category(tmp_path)
    assert category.train == (tmp_path / "2.jpg", tmp_path / "monday" / "1.png")
    assert category.test == ()


def test_layout_without_training_images(tmp_path: Path) -> None:
    touch(tmp_path, "test/good/1.png", "test/cut/1.png")
    category = load_category(tmp_path)
    assert category.train == ()
    assert [sample.label for sample in category.test] == ["cut", "good"]
    with pytest.raises(DataError, match="none to fit on"):
        good_images(tmp_path)


def test_what_a_layout_leaves_out_is_said(mvtec: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(mvtec, "train/odd/1.png", "test/stray.png")
    with caplog.at_level(logging.WARNING):
        category = load_category(mvtec)
    assert len(category.train) == 2
    assert [item.path.relative_to(mvtec).as_posix() for item in category.skipped] == [
        "train/odd",
        "test/stray.png",
    ]
    assert "only train/good is used" in caplog.text
    assert "it has no label" in caplog.text


def test_a_link_out_of_a_defect_brings_no_other_images(mvtec: Path) -> None:
    (mvtec / "test" / "crack" / "up").symlink_to("..")
    assert len(load_category(mvtec).test) == 4


@pytest.mark.parametrize("folder", [".", "train/good", "test/good", "ground_truth/cut"])
def test_empty(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    touch(tmp_path, f"{folder}/note.txt")
    with pytest.raises(DataError, match="no image found"):
        load_category(tmp_path)


def test_several_categories_are_no_plain_folder(mvtec: Path) -> None:
    touch(mvtec.parent, "cable/train/good/1.png")
    with pytest.raises(DataError, match="it holds 2 categories, bottle first"):
        load_category(mvtec.parent)
