import io
import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from dioptra_assets.robustness.data import DataError, ImageFolderSource, base
from dioptra_assets.robustness.data.image_file import decode
from dioptra_assets.robustness.data.image_folder import imagenet_classes

pytestmark = pytest.mark.quick


def _picture(seed: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    """Noise of (width, height), so that every pixel can tell."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def _encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def _folder(root: Path, classes: dict[str, list[str]]) -> Path:
    """`{"training/cat": ["a.png"]}` as a folder of small pictures."""
    for number, (folder, names) in enumerate(classes.items()):
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(_encode(_picture(number)))
    return root


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return _folder(
        tmp_path / "animals",
        {"training/cat": ["a.png"], "training/dog": ["a.png"], "testing/cat": ["t.png"], "testing/dog": ["t.png"]},
    )


def _source(root: Path, **fields: object) -> ImageFolderSource:
    return ImageFolderSource.model_validate({"directory": root, "image_size": (10, 12), **fields})


def _refusal(root: Path, **fields: object) -> str:
    with pytest.raises(DataError) as refused:
        _source(root, **fields).load("training")
    return str(refused.value)


# What is read


def test_pixels_ids_and_labels_are_those_of_the_files(animals: Path) -> None:
    loaded = _source(animals).load("training")
    assert list(loaded.index["image_id"]) == ["cat/a.png", "dog/a.png"]
    assert loaded.class_names == ("cat", "dog")
    images, labels = loaded.to_numpy()
    assert images.dtype == np.float32
    expected = np.stack([np.asarray(_picture(number)) for number in (0, 1)])
    np.testing.assert_array_equal(images, expected.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(labels, [0, 1])


def test_classes_are_numbered_in_natural_order(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)] + ["a 9", "a 10", "\u00e9t\u00e9", "\u732b"]
    root = _folder(tmp_path / "many", {f"training/{name}": ["x 10.png", "x 9.png"] for name in reversed(names)})
    loaded = _source(root).load("training")
    assert loaded.class_names == tuple(names)
    assert list(loaded.index["image_id"][:4]) == ["0/x 9.png", "0/x 10.png", "1/x 9.png", "1/x 10.png"]
    assert list(loaded.labels[-2:]) == [15, 15]


def test_both_splits_share_one_list_of_classes(tmp_path: Path) -> None:
    root = _folder(tmp_path, {f"{split}/{name}": ["a.png"] for split in ("training", "testing") for name in "ba"})
    assert _source(root).load("testing").class_names == _source(root).load("training").class_names == ("a", "b")


def test_a_folder_to_evaluate_on_needs_no_training(tmp_path: Path) -> None:
    root = _folder(tmp_path, {"testing/cat": ["a.png"]})
    assert _source(root).load("testing").class_names == ("cat",)
    assert f"{root}: there is no folder training/" in _refusal(root)


def test_listed_classes_give_the_labels_of_a_pretrained_model(tmp_path: Path) -> None:
    root = _folder(tmp_path / "data", {"testing/cat": ["a.png"], "testing/dog": ["a.png"]})
    listed = ("zebra", "dog", "ape", "cat")
    (tmp_path / "classes.txt").write_text("\n".join(listed) + "\n")
    for fields in ({"classes": listed}, {"classes_file": tmp_path / "classes.txt"}):
        source = _source(root, **fields)
        assert source.class_count() == 4
        loaded = source.load("testing")
        assert loaded.class_names == listed
        assert dict(zip(loaded.index["image_id"], loaded.labels, strict=True)) == {"dog/a.png": 1, "cat/a.png": 3}


def test_the_number_of_classes_is_unknown_until_the_folders_are_read(animals: Path) -> None:
    assert _source(animals).class_count() is None


def test_a_relative_folder_is_found_here_and_then_among_the_data(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = _folder(tmp_path / "data/many/animals", {"training/cow": ["a.png"]}).parent
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv(base.DATA_VARIABLE, str(elsewhere.parent))
    assert _source(Path("many/animals")).load("training").class_names == ("cow",)
    (tmp_path / "work/many").mkdir()
    animals.rename(tmp_path / "work/many/animals")
    assert _source(Path("many/animals")).load("training").class_names == ("cat", "dog")


def test_a_relative_folder_does_not_lead_out_of_the_data(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link").symlink_to(animals.parent)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv(base.DATA_VARIABLE, str(tmp_path / "data"))
    assert f"{tmp_path}/data/link: is a link" in _refusal(Path("link/animals"))
    # It is there, seen from the data and not from the working directory.
    monkeypatch.chdir("/")
    assert (tmp_path / "data/../animals").is_dir()
    assert "../animals: is not a folder in /, nor in the data" in _refusal(Path("../animals"))


def test_the_classes_of_imagenet_are_shipped_in_the_order_of_the_pretrained_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asks the network"))
    ids = imagenet_classes()
    assert len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    assert (ids[0], ids[207], ids[999]) == (
        "n01440764",
        "n02099601",
        "n15075141",
    )  # tench, golden retriever, toilet tissue
    root = _folder(tmp_path, {f"testing/{ids[position]}": ["a.png"] for position in (10, 2, 999)})
    source = _source(root, classes="imagenet")
    assert source.class_count() == 1000
    loaded = source.load("testing")
    assert loaded.class_names == ids
    assert dict(zip(loaded.index["image_id"], loaded.labels, strict=True)) == {
        f"{ids[position]}/a.png": position for position in (2, 10, 999)
    }


def test_a_folder_that_is_no_class_of_imagenet_is_refused(animals: Path) -> None:
    assert "class 'cat' is not in the list of classes" in _refusal(animals, classes="imagenet")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA"])
def test_every_mode_becomes_the_declared_channels_and_size(tmp_path: Path, mode: str, channels: int) -> None:
    root = _folder(tmp_path, {"training/cat": []})
    (root / "training/cat/a.png").write_bytes(_encode(_picture(mode=mode, size=(40, 30))))
    source = _source(root, image_size=(6, 8), channels=channels)
    loaded = source.load("training")
    assert loaded.image_shape == source.image_shape == (6, 8, channels)
    images, _ = loaded.to_numpy()
    assert images.shape == (1, 6, 8, channels)
    expected = _picture(mode=mode, size=(40, 30)).convert("L" if channels == 1 else "RGB")
    expected = expected.resize((8, 6), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.rint(images[0] * 255), np.asarray(expected).reshape(6, 8, channels))


def test_a_picture_is_turned_as_its_exif_orientation_says(tmp_path: Path) -> None:
    root = _folder(tmp_path, {"training/cat": []})
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    lying = _picture(size=(10, 12))
    (root / "training/cat/a.png").write_bytes(_encode(lying, exif=exif.tobytes()))
    images, _ = _source(root).load("training").to_numpy()
    np.testing.assert_array_equal(np.rint(images[0] * 255), np.rot90(np.asarray(lying), -1))


def test_the_content_decides_the_format_and_not_the_name(tmp_path: Path) -> None:
    root = _folder(tmp_path, {"training/cat": []})
    (root / "training/cat/a.JPEG").write_bytes(_encode(_picture(), "PNG"))
    (root / "training/cat/b").write_bytes(_encode(_picture(), "JPEG", quality=100, subsampling=0))
    png, jpeg = _source(root).load("training").to_numpy()[0]
    np.testing.assert_allclose(png, jpeg, atol=0.05)


def test_images_are_decoded_only_when_they_are_read(animals: Path) -> None:
    loaded = _source(animals).load("training")
    path = animals / "training/dog/a.png"
    path.write_bytes(b"gone bad")
    assert loaded.pixels[0:1].shape == (1, 10, 12, 3)
    with pytest.raises(DataError, match=str(path)):
        loaded.pixels[1:2]


def test_files_with_a_leading_dot_are_passed_over(animals: Path) -> None:
    (animals / "training/.DS_Store").write_bytes(b"x")
    (animals / "training/cat/._a.png").write_bytes(b"x")
    (animals / "training/.ipynb_checkpoints").mkdir()
    assert len(_source(animals).load("training")) == 2


def test_a_link_that_stays_inside_is_followed(animals: Path) -> None:
    (animals / "training/cat/b.png").symlink_to(animals / "training/dog/a.png")
    (animals / "training/cow").symlink_to(animals / "training/dog")
    (animals / "testing/cow").symlink_to(animals / "testing/dog")
    loaded = _source(animals).load("training")
    assert list(loaded.index["image_id"]) == ["cat/a.png", "cat/b.png", "cow/a.png", "dog/a.png"]
    images, _ = loaded.to_numpy()
    np.testing.assert_array_equal(images[1], images[3])


# What is refused


def _gif() -> bytes:
    return _encode(_picture(), "GIF")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, depth: int, colour: int, rows: bytes, *, cut: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    packed = zlib.compress(rows)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", packed[: len(packed) - cut]) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _flipped(content: bytes) -> bytes:
    broken = bytearray(content)
    broken[len(broken) // 2] ^= 4
    return bytes(broken)


def _see_through() -> bytes:
    image = _picture(mode="RGBA")
    image.putpixel((3, 3), (1, 2, 3, 254))
    return _encode(image)


REFUSED = {
    "zero bytes": (b"", "zero bytes"),
    "text": (b"hello", "not a PNG or JPEG"),
    "gif": (_gif(), "not a PNG or JPEG"),
    "truncated jpeg": (_encode(_picture(size=(64, 64)), "JPEG")[:-200], "truncated"),
    "jpeg without its end": (_encode(_picture(), "JPEG")[:-2], "truncated"),
    "truncated png": (_encode(_picture())[:-40], "truncated"),
    "flipped bit in a png": (_flipped(_encode(_picture(), compress_level=0)), "cannot be read"),
    "cut pixels in whole chunks": (_png(12, 10, 8, 0, bytes(range(130)), cut=20), "cannot be read"),
    "16 bits grey": (_png(2, 2, 16, 0, bytes(10)), "16 bits"),
    "16 bits RGB": (_png(2, 2, 16, 2, bytes(26)), "16 bits"),
    "shows through": (_see_through(), "show through"),
    "shows through by palette": (_encode(_picture(mode="P"), transparency=_picture(mode="P").getpixel((0, 0))), "show"),
    "animated": (_encode(_picture(), save_all=True, append_images=[_picture(1)]), "animated"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_file_is_refused_by_name_before_anything_is_read(animals: Path, case: str) -> None:
    content, reason = REFUSED[case]
    path = animals / "training/cat/z.png"
    path.write_bytes(content)
    message = _refusal(animals)
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_a_bomb_is_refused_by_its_header_within_memory(tmp_path: Path) -> None:
    root = _folder(tmp_path, {"training/cat": []})
    # Pillow alone would decode the first: 81 million pixels are under its own guard.
    for side in (9_000, 20_000):
        bomb = _png(side, side, 1, 0, bytes((side // 8 + 1) * side))
        assert len(bomb) < 100_000
        (root / f"training/cat/{side}.png").write_bytes(bomb)
    code = (
        "import resource, sys; import PIL.PngImagePlugin\n"
        "from dioptra_assets.robustness.data import DataError, ImageFolderSource\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: ImageFolderSource(directory=sys.argv[1], image_size=(8, 8)).load('training')\n"
        "except DataError as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    message, grown_mib = done.stdout.splitlines()
    for side in (9_000, 20_000):
        assert f"{root}/training/cat/{side}.png: declares " in message
    assert int(grown_mib) < 30


def test_a_link_that_leaves_the_folder_is_refused(animals: Path, tmp_path: Path) -> None:
    outside = _folder(tmp_path / "outside", {"cat": ["secret.png"]})
    for link, target in (
        (animals / "training/cat/b.png", outside / "cat/secret.png"),
        (animals / "training/cow", outside / "cat"),
        (animals / "training/cat/up.png", Path("../../../outside/cat/secret.png")),
    ):
        link.symlink_to(target)
        assert f"{link}: is a link that leaves {animals}" in _refusal(animals)
        link.unlink()


def test_a_split_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    outside = _folder(tmp_path / "outside", {"cat": ["secret.png"]})
    (tmp_path / "data").mkdir()
    (tmp_path / "data/training").symlink_to(outside)
    assert f"{tmp_path}/data/training: is a link that leaves" in _refusal(tmp_path / "data")


def test_a_link_that_leads_nowhere_or_in_a_circle_is_refused(animals: Path) -> None:
    for target in ("nothing", "b.png"):
        link = animals / "training/cat/b.png"
        link.symlink_to(target)
        assert f"{link}: is a link that leads nowhere" in _refusal(animals)
        link.unlink()


def test_the_folder_itself_may_be_a_link(animals: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(animals)
    assert len(_source(tmp_path / "link").load("training")) == 2


def test_what_is_no_image_file_is_refused_by_name(animals: Path) -> None:
    pipe = animals / "training/cat/pipe"
    os.mkfifo(pipe)  # opening it would wait for ever
    assert f"{pipe}: is not a regular file" in _refusal(animals)
    pipe.unlink()
    nested = animals / "training/cat/nested"
    nested.mkdir()
    assert f"{nested}: is not a regular file" in _refusal(animals)
    nested.rmdir()
    stray = animals / "training/notes.txt"
    stray.write_text("hello")
    assert f"{stray}: is not a class folder" in _refusal(animals)


def test_a_name_that_no_table_can_hold_is_refused(animals: Path) -> None:
    for name in (b"\xff.png", b"a\nb.png"):
        path = os.fsencode(animals / "training/cat") + b"/" + name
        with open(path, "wb") as stream:  # noqa: PTH123
            stream.write(_encode(_picture()))
        message = _refusal(animals)
        assert "rename it" in message
        assert message.isprintable()
        os.unlink(path)  # noqa: PTH108


def test_an_empty_class_is_refused_by_name(animals: Path) -> None:
    (animals / "training/dog/a.png").unlink()
    assert f"{animals}/training/dog: class 'dog' is empty" in _refusal(animals)


def test_a_testing_class_unknown_to_training_is_refused_from_either_split(animals: Path) -> None:
    (animals / "testing/cow").mkdir()
    for split in ("training", "testing"):
        with pytest.raises(DataError, match=rf"{animals}/testing/cow: class 'cow' is not in training/"):
            _source(animals).load(split)


def test_a_training_class_without_testing_images_must_be_meant(animals: Path) -> None:
    (animals / "testing/dog/t.png").unlink()
    (animals / "testing/dog").rmdir()
    with pytest.raises(DataError, match=r"class 'dog' of training/ has no folder.*`classes`"):
        _source(animals).load("testing")
    assert list(_source(animals, classes=["cat", "dog"]).load("testing").labels) == [0]


def test_a_class_folder_that_is_not_listed_is_refused(animals: Path) -> None:
    assert "class 'dog' is not in the list of classes" in _refusal(animals, classes=["cat", "cow"])


def test_a_folder_without_splits_or_classes_is_refused(tmp_path: Path) -> None:
    assert "no folder training/" in _refusal(tmp_path / "nowhere")
    (tmp_path / "training").mkdir()
    assert f"{tmp_path}/training: holds no class folder" in _refusal(tmp_path)


def test_several_bad_files_are_named_at_once(animals: Path) -> None:
    for number in range(12):
        (animals / f"training/cat/bad{number}.png").write_bytes(b"")
    message = _refusal(animals)
    assert "bad0.png" in message
    assert "bad9.png" in message
    assert message.endswith("and 2 more files")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"classes": ["a", "a"]}, "'a' stands twice"),
        ({"classes": ["a/b"]}, "'a/b' cannot be a class folder"),
        ({"classes": []}, "at least 1"),
        ({"classes": "cifar"}, "'imagenet'"),
        ({"classes": "imagenet", "classes_file": "x"}, "give one"),
        ({"classes": ["a"], "classes_file": "x"}, "give one"),
        ({"max_pixels": 100_000_000}, "max_pixels"),
    ],
)
def test_wrong_settings_are_refused_when_declared(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        _source(Path("anywhere"), **fields)


@pytest.mark.parametrize(("content", "reason"), [(b"", "names no class"), (b"a\n\nb", "''"), (b"\xff", "cannot be")])
def test_a_bad_classes_file_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path}.*{reason}"):
        _source(tmp_path, classes_file=path).class_count()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_of_any_kind_ends_in_an_image_or_in_one_error_that_names_the_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = [
        _encode(_picture(), "PNG", exif=exif.tobytes()),
        _encode(_picture(mode="P"), "PNG", transparency=3),
        _encode(_picture(), "JPEG", exif=exif.tobytes()),
        _encode(_picture(), "JPEG", progressive=True),
    ]
    path = tmp_path / "damaged"
    draw = random.Random(0)
    refused = 0
    for _ in range(500):
        content = bytearray(draw.choice(whole))
        for _ in range(draw.randrange(1, 6)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
        try:
            image = decode(path, shape=(8, 8, 3), resize="bilinear", max_pixels=10_000)
        except DataError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
        else:
            assert image.shape == (8, 8, 3)
    assert refused > 200


def test_real_photographs_load_at_the_size_of_a_pretrained_model() -> None:
    folder = base.local_data("imagenet-sample")
    if folder is None:
        pytest.skip("the sample of photographs is not on this machine")
    loaded = ImageFolderSource(directory=folder, image_size=(224, 224)).load("testing")
    assert len(loaded) == len(loaded.class_names) == 63
    assert sum(len(batch.images) for batch in loaded.batches(25)) == 63
    for batch in loaded.batches(25):
        assert batch.images.shape[1:] == (224, 224, 3)
        # A photograph has contrast, and is neither all dark nor all bright.
        assert batch.images.std(axis=(1, 2, 3)).min() > 0.05
        assert 0.0 <= batch.images.min() < batch.images.max() <= 1.0


# What is cut off


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"exif": b"Exif\x00\x00" + b"\xff\xd9" * 9}]
)
def test_a_jpeg_without_its_end_marker_is_refused_by_name(animals: Path, options: dict[str, object]) -> None:
    path = animals / "training/cat/a.png"
    whole = _encode(_picture(size=(40, 30)), "JPEG", **options)
    path.write_bytes(whole)
    assert len(_source(animals).load("training")) == 2
    for content in (whole[:-2], whole[:-1]):
        path.write_bytes(content)
        assert _refusal(animals) == f"{path}: is truncated: the end marker of the JPEG is missing"
    path.write_bytes(whole + b"a tail that some cameras write")
    assert len(_source(animals).load("training")) == 2


def test_a_png_without_its_end_is_refused_by_name(animals: Path) -> None:
    path = animals / "training/cat/a.png"
    path.write_bytes(path.read_bytes()[:-12])
    assert _refusal(animals) == f"{path}: is truncated: the end of the PNG is missing"


# How images are brought to size


@pytest.mark.parametrize("size", [(50, 31), (31, 50), (32, 32)])
def test_the_short_side_is_brought_to_length_and_the_middle_cut_out(animals: Path, size: tuple[int, int]) -> None:
    picture = _picture(size=size)
    (animals / "training/cat/a.png").write_bytes(_encode(picture))
    loaded = _source(animals, image_size=(16, 16), resize={"short_side": 20, "crop": 16}).load("training")
    width, height = {(50, 31): (32, 20), (31, 50): (20, 32), (32, 32): (20, 20)}[size]
    left, top = round((width - 16) / 2), round((height - 16) / 2)
    expected = picture.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 16, top + 16))
    np.testing.assert_array_equal(loaded.to_numpy()[0][0], np.asarray(expected, np.float32) / np.float32(255))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"image_size": (8, 8), "resize": {"short_side": 20, "crop": 16}}, "is not that of the crop"),
        ({"image_size": (16, 16), "resize": {"short_side": 12, "crop": 16}}, "does not fit into short_side 12"),
        ({"resize": {"short_side": 12}}, "crop"),
        ({"resize": "lanczos"}, "bicubic"),
    ],
)
def test_a_cut_that_does_not_fit_is_refused(animals: Path, fields: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        _source(animals, **fields)


def test_cmyk_becomes_rgb_as_pillow_converts_it(animals: Path) -> None:
    path = animals / "training/cat/a.png"
    path.write_bytes(_encode(_picture(mode="CMYK"), "JPEG", quality=95))
    with Image.open(path) as image:
        assert image.mode == "CMYK"
        expected = np.asarray(image.convert("RGB"), np.float32) / np.float32(255)
    np.testing.assert_array_equal(_source(animals).load("training").to_numpy()[0][0], expected)
