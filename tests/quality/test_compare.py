"""The compare page: what is in the file, and what it does in a browser."""

import base64
import io
import json
import math
import re

import numpy as np
import pytest
from browser import chromium, watch
from helpers import LIBRARY, PLAIN, lively_file, photo, without_hidden
from PIL import Image, ImageCms

from aethernet.commands.main import main
from aethernet.metrics import measure
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture
from aethernet.quality import compare
from aethernet.quality.baselines import Bicubic
from aethernet.runtimes.registry import open_model
from aethernet.upscaling.planes import upscale_picture

# Names that a page must show and not obey; as hostile as a file system lets them be.
MODEL = "<img src=x onerror=\"document.title='hacked'\">"
PICTURE = "<!--<script>alert('é & more')"
RUNNING = ("--runtime", PLAIN, "--device", "cpu", "--precision", "float32")


def small(pixels):
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((width // 2, height // 2), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two LR pictures in lr, one HR picture for each in hr, two models."""
    folder = tmp_path_factory.mktemp("compare")
    for name, size in ((PICTURE, (96, 140)), ("z second", (64, 80))):
        hr = photo(*size)
        for kind, pixels in (("lr", small(hr)), ("hr", hr)):
            (folder / kind).mkdir(exist_ok=True)
            write_picture(Picture(pixels), folder / kind / f"{name}.png")
    for name, seed in ((MODEL, 0), ("other", 1)):
        lively_file(folder / f"{name}.safetensors", seed)
    return folder


@pytest.fixture(scope="module")
def report(folder):
    """Written through the command: two pictures, two models, HR."""
    target = folder / "report.html"
    models = [str(folder / f"{name}.safetensors") for name in (MODEL, "other")]
    words = ["compare", str(folder / "lr"), "--hr", str(folder / "hr"), *RUNNING]
    assert main([*words, "-o", str(target), "--model", *models]) == 0
    return target


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, report):
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.requests, page.complaints = watch(page)
    page.goto(report.as_uri())
    page.wait_for_function("images.every((image) => image.complete)")
    yield page
    page.close()


def content(page_file):
    """The JSON in the page, pictures decoded."""
    found = re.search(
        r'<script type="application/json" id="comparison">(.*?)</script>',
        page_file.read_text("utf-8"),
        re.DOTALL,
    )
    page = json.loads(found[1])
    for picture in page["pictures"]:
        for image in picture["images"]:
            kind, data = image["source"].split(",")
            assert kind in ("data:image/webp;base64", "data:image/png;base64")
            image["picture"] = Image.open(io.BytesIO(base64.b64decode(data)))
            image["pixels"] = np.asarray(image["picture"])
    return page


def drawn(page):
    """What the canvas shows."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => done(draw())))")
    data = page.evaluate("canvas.toDataURL()").partition(",")[2]
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    return np.asarray(image.convert("RGBA"))


def zoom(page):
    page.evaluate("draw()")
    return int(page.locator("#zoom").text_content().rstrip("%"))


class TestFile:
    def test_holds_the_pictures_without_loss(self, folder, report):
        lr = read_picture(folder / "lr" / f"{PICTURE}.png")
        model = open_model(
            folder / "other.safetensors", PLAIN, "cpu", precision="float32"
        )
        images = content(report)["pictures"][0]["images"]
        assert [image["name"] for image in images] == ["bicubic", MODEL, "other", "HR"]
        for image, runtime in ((images[0], Bicubic(2)), (images[2], model)):
            expected = upscale_picture(lr, runtime, 8).pixels
            assert np.array_equal(image["pixels"], expected)
        hr = read_picture(folder / "hr" / f"{PICTURE}.png")
        assert np.array_equal(images[3]["pixels"], hr.pixels)

    def test_states_the_figures(self, folder, report, capsys):
        page = content(report)
        for picture in page["pictures"]:
            hr = read_picture(folder / "hr" / picture["name"]).pixels
            for image in picture["images"][:-1]:
                figures = measure(image["pixels"], hr, 2)
                assert image["psnr"] == f"{figures.psnr:.2f} dB"
                assert image["ssim"] == f"{figures.ssim:.4f}"
        each = [p["images"][0]["psnr"].split()[0] for p in page["pictures"]]
        stated = page["methods"][0]["mean"]["psnr"].split()[0]
        assert float(stated) == pytest.approx(np.mean([*map(float, each)]), abs=0.011)

    def test_names_nothing_outside(self, report):
        text = report.read_text("utf-8")
        assert "//" not in re.sub(r"data:image/\w+;base64,[^\"]*|// .*", "", text)
        assert "default-src 'none'" in text
        assert text.count("</script>") == 2
        assert MODEL not in text

    @pytest.mark.parametrize("bands", [1, 2, 4])
    def test_gray_and_alpha_are_shown(self, folder, tmp_path, bands):
        pixels = photo(10, 12)[:, :, :1].repeat(bands, axis=2)
        write_picture(Picture(pixels), tmp_path / "in.png")
        page = content(self.written(tmp_path / "in.png", folder))
        modes = {image["picture"].mode for image in page["pictures"][0]["images"]}
        assert modes == {{1: "RGB", 2: "RGBA", 4: "RGBA"}[bands]}

    def test_16_bits_are_shown_and_measured_as_8(self, folder, tmp_path):
        hr = photo(30, 32).astype(np.uint16) * 257
        write_picture(Picture(hr), tmp_path / "hr.png")
        write_picture(Picture(hr[::2, ::2]), tmp_path / "in.png")
        words = ("--hr", tmp_path / "hr.png")
        page = content(self.written(tmp_path / "in.png", folder, *words))
        images = page["pictures"][0]["images"]
        assert np.array_equal(images[-1]["pixels"], hr // 257)
        assert "dB" in images[0]["psnr"]

    def test_the_colour_profile_is_in_every_picture(self, folder, tmp_path):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        image = Image.fromarray(photo(10, 12))
        image.save(tmp_path / "in.png", icc_profile=profile)
        page = content(self.written(tmp_path / "in.png", folder))
        for image in page["pictures"][0]["images"]:
            assert image["picture"].info["icc_profile"] == profile

    def test_a_part_of_the_pictures(self, folder, tmp_path):
        lr = folder / "lr" / f"{PICTURE}.png"
        words = ("--hr", folder / "hr" / f"{PICTURE}.png", "--crop", "5,3,20,18")
        page = content(self.written(lr, folder, *words, target=tmp_path / "r.html"))
        images = page["pictures"][0]["images"]
        hr = read_picture(folder / "hr" / f"{PICTURE}.png").pixels
        assert np.array_equal(images[-1]["pixels"], hr[6:42, 10:50])
        part = Picture(read_picture(lr).pixels[3:21, 5:25])
        expected = upscale_picture(part, Bicubic(2), 8).pixels
        assert np.array_equal(images[0]["pixels"], expected)

    def test_hr_larger_by_less_than_the_scale_is_cut(self, folder, tmp_path):
        hr = photo(31, 33)
        write_picture(Picture(hr), tmp_path / "hr.png")
        write_picture(Picture(small(hr[:30, :32])), tmp_path / "in.png")
        words = ("--hr", tmp_path / "hr.png")
        page = content(self.written(tmp_path / "in.png", folder, *words))
        pixels = page["pictures"][0]["images"][-1]["pixels"]
        assert np.array_equal(pixels, hr[:30, :32])

    def test_models_of_one_name_are_told_apart(self, folder, tmp_path):
        (tmp_path / "other.safetensors").write_bytes(
            (folder / "other.safetensors").read_bytes()
        )
        models = (folder / "other.safetensors", tmp_path / "other.safetensors")
        lr = folder / "lr/z second.png"
        target = self.written(lr, folder, models=models, target=tmp_path / "r.html")
        names = [method["name"] for method in content(target)["methods"]]
        assert names == ["bicubic", *map(str, models)]

    def test_a_large_page_is_reported(self, folder, tmp_path, capsys, monkeypatch):
        lr = folder / "lr/z second.png"
        self.written(lr, folder, target=tmp_path / "r.html")
        assert "--crop" not in capsys.readouterr().out
        monkeypatch.setattr(compare, "LARGE_PAGE", 1000)
        self.written(lr, folder, target=tmp_path / "r.html")
        assert "--crop" in capsys.readouterr().out

    def written(self, lr, folder, *words, models=None, target=None):
        target = target or lr.with_name("report.html")
        models = models or [folder / "other.safetensors"]
        words = ["compare", lr, "-o", target, *words, *RUNNING, "--model", *models]
        assert main([*map(str, words)]) == 0
        return target


class TestBadInput:
    def refused(self, capsys, tmp_path, *words):
        before = without_hidden(tmp_path)
        target = tmp_path / "report.html"
        assert main(["compare", "-o", str(target), *RUNNING, *map(str, words)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert without_hidden(tmp_path) == before
        return error

    @pytest.fixture
    def model(self, folder):
        return "--model", folder / "other.safetensors"

    @pytest.fixture
    def lr(self, folder):
        return folder / "lr/z second.png"

    def test_no_picture(self, capsys, tmp_path, model):
        assert "no such file" in self.refused(
            capsys, tmp_path, tmp_path / "a.png", *model
        )
        (tmp_path / "text.png").write_text("hello " * 99)
        said = self.refused(capsys, tmp_path, tmp_path / "text.png", *model)
        assert "no picture" in said
        (tmp_path / "empty").mkdir()
        said = self.refused(capsys, tmp_path, tmp_path / "empty", *model)
        assert "There are no pictures" in said

    def test_hr_that_does_not_fit(self, capsys, tmp_path, folder, model, lr):
        said = self.refused(capsys, tmp_path, lr, "--hr", lr, *model)
        assert "it needs 80x64 at 2x" in said
        said = self.refused(capsys, tmp_path, lr, lr, "--hr", lr, *model)
        assert "2 LR and 1 HR" in said
        write_picture(Picture(photo(8, 8)), tmp_path / "lonely.png")
        words = (tmp_path / "lonely.png", "--hr", folder / "hr")
        assert "no HR picture for lonely" in self.refused(
            capsys, tmp_path, *words, *model
        )

    def test_models_of_two_scales(self, capsys, tmp_path, folder, lr):
        lively_file(tmp_path / "three.safetensors", scale=3)
        words = (
            "--model",
            folder / "other.safetensors",
            tmp_path / "three.safetensors",
        )
        said = self.refused(capsys, tmp_path, lr, *words)
        assert "other 2x, three 3x" in said

    def test_too_large_for_a_page(self, capsys, tmp_path, model):
        Image.new("1", (8000, 4000)).save(tmp_path / "large.png")
        said = self.refused(capsys, tmp_path, tmp_path / "large.png", *model)
        assert "128 megapixels" in said
        assert "--crop" in said

    def test_a_part_that_is_not_inside(self, capsys, tmp_path, model, lr):
        said = self.refused(capsys, tmp_path, lr, "--crop", "30,0,11,5", *model)
        assert "not all inside" in said

    def test_the_page_never_replaces_a_picture(self, capsys, lr, model):
        before = lr.read_bytes()
        words = ["compare", lr, "-o", lr, *RUNNING, *model]
        assert main([*map(str, words)]) == 1
        assert "an .html file" in capsys.readouterr().err
        assert lr.read_bytes() == before

    @pytest.mark.parametrize("text", ["1,2,3", "1,2,3,0", "a,b,c,d", "-1,0,2,2"])
    def test_values_that_are_no_part(self, capsys, text):
        with pytest.raises(SystemExit) as stop:
            main(["compare", "a.png", "-o", "r.html", f"--crop={text}"])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: argument --crop")
        assert error.endswith("See aethernet compare --help.\n")


class TestBrowser:
    def test_nothing_is_asked_and_nothing_complained_of(self, page, report):
        page.locator("#next").click()
        page.wait_for_function("images.every((image) => image.complete)")
        outside = [url for url in page.requests if not url.startswith("data:")]
        assert outside == [report.as_uri()]
        assert page.complaints == []
        assert page.evaluate("document.body.dataset.failed ?? null") is None

    def test_names_are_shown_and_not_obeyed(self, page):
        assert page.title() == "AetherNet compare"
        assert page.locator("img").count() == 0
        assert page.locator("#second-tag").inner_text().startswith(MODEL)
        chosen = page.locator("#picture option:checked")
        assert chosen.text_content() == f"{PICTURE}.png"

    def test_each_side_shows_its_picture_to_the_pixel(self, page, report):
        page.locator("#one").click()
        shown = drawn(page)
        images = content(report)["pictures"][0]["images"]
        bicubic, model = images[0]["pixels"], images[1]["pixels"]
        height, width = bicubic.shape[:2]
        left = round(shown.shape[1] / 2 - width / 2)
        top = round(shown.shape[0] / 2 - height / 2)
        inside = shown[top : top + height, left : left + width, :3]
        cut = round(shown.shape[1] / 2) - left
        assert np.array_equal(inside[:, :cut], bicubic[:, :cut])
        assert np.array_equal(inside[:, cut:], model[:, cut:])

    def test_the_slider_moves_the_division(self, page):
        page.locator("#one").click()  # where drawing is exact
        box = page.locator("#stage").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        before = drawn(page)
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x - 40, y, steps=4)
        page.mouse.up()
        after = drawn(page)
        changed = np.flatnonzero((before != after).any(axis=(0, 2)))
        middle = before.shape[1] // 2
        assert (changed[0], changed[-1]) == (middle - 40, middle - 1)
        # The handle lies on the division, and keys move it too.
        division = page.locator("#division")
        handle = division.bounding_box()
        assert handle["x"] + handle["width"] / 2 == pytest.approx(x - 40, abs=1)
        share = division.get_attribute("aria-valuenow")
        assert int(share) == pytest.approx(50 - 100 * 40 / box["width"], abs=0.6)
        page.evaluate("divide(0.25)")
        division.focus()
        for key, value in (
            ("ArrowRight", "26"),
            ("Shift+ArrowLeft", "16"),
            ("End", "100"),
        ):
            page.keyboard.press(key)
            page.evaluate("draw()")
            assert division.get_attribute("aria-valuenow") == value

    def test_zoom_by_wheel_keeps_what_is_under_the_pointer(self, page):
        def under():
            return page.evaluate("[view.x + 200 / view.zoom, view.y - 90 / view.zoom]")

        box = page.locator("#stage").bounding_box()
        page.mouse.move(
            box["x"] + box["width"] / 2 + 200, box["y"] + box["height"] / 2 - 90
        )
        before, point = zoom(page), under()
        page.mouse.wheel(0, -300)
        page.wait_for_function("!view.opened")
        assert zoom(page) > 1.5 * before
        assert under() == pytest.approx(
            point, abs=0.6
        )  # the stage may have half pixels

    def test_it_opens_at_a_whole_zoom(self, page):
        width, height = page.evaluate("[picture().width, picture().height]")
        box = page.evaluate("[canvas.width, canvas.height]")
        opened = zoom(page)
        assert opened == 100 * max(min(box[0] // width, box[1] // height), 1)
        assert opened > 100
        # Every pixel is a square of pixels of the screen, none is between two.
        square = drawn(page)[:: opened // 100]
        page.evaluate("view.pixels = true")
        assert np.array_equal(drawn(page)[:: opened // 100], square)
        # What does not fit opens at 1:1.
        page.set_viewport_size({"width": 390, "height": 400})
        page.evaluate("picture().width = 3000; show(current)")
        for _ in range(100):  # until the change is drawn
            page.wait_for_timeout(20)
            if page.evaluate("canvas.width") < 390:
                break
        assert zoom(page) == 100
        page.locator("#fit").click()
        assert zoom(page) < 100

    def test_a_pixel_of_the_picture_is_one_of_the_screen(self, page, report):
        page.locator("#one").click()
        page.evaluate("divide(0)")
        shown = content(report)["pictures"][0]["images"]
        image = shown[int(page.locator("#second").input_value())]["pixels"]
        left, top = page.evaluate(
            "[canvas.width / 2 - view.x, canvas.height / 2 - view.y].map(Math.round)"
        )
        height, width = image.shape[:2]
        part = drawn(page)[top : top + height, left : left + width, :3]
        assert np.array_equal(part[:, 2:], image[:, 2:, :3])

    def test_zoom_by_buttons_and_keys(self, page):
        opened = zoom(page)
        page.locator("#larger").click()
        assert zoom(page) == opened + 100
        page.locator("#smaller").click()
        page.locator("#smaller").click()
        assert zoom(page) == opened - 100
        page.keyboard.press("1")
        assert zoom(page) == 100
        page.keyboard.press("-")
        page.keyboard.press("-")
        assert zoom(page) == 33
        for _ in range(3):
            page.keyboard.press("+")
        assert zoom(page) == 200
        page.keyboard.press("f")
        page.evaluate("draw()")
        fitted = page.evaluate("view.zoom")
        across, down = page.evaluate(
            "[canvas.width / picture().width, canvas.height / picture().height]"
        )
        assert fitted == pytest.approx(min(across, down))
        page.keyboard.press("+")
        assert zoom(page) == 100 * math.floor(fitted + 1)

    def test_dragging_and_arrows_move_both_pictures(self, page):
        box = page.locator("#stage").bounding_box()
        page.locator("#one").click()
        page.mouse.move(box["x"] + 100, box["y"] + 100)
        page.mouse.down()
        page.mouse.move(box["x"] + 130, box["y"] + 80, steps=3)
        page.mouse.up()
        assert page.evaluate("[view.x, view.y]") == pytest.approx([70 - 30, 48 + 20])
        page.locator("#stage").focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("view.x") == pytest.approx(100)

    def test_pixels_are_squares_unless_smoothed(self, page):
        for _ in range(3):
            page.locator("#larger").click()
        squares = drawn(page)[250:280]
        assert page.locator("#pixels").get_attribute("aria-pressed") == "true"
        page.locator("#pixels").click()
        smooth = drawn(page)[250:280]

        def repeated(rows):  # as much of its neighbour on the left
            return (rows[:, 1:] == rows[:, :-1]).all(axis=2).mean()

        assert repeated(squares) > 0.8
        assert repeated(smooth) < 0.5

    def test_any_two_can_be_chosen_and_swapped(self, page):
        page.locator("#first").select_option(label="other")
        page.locator("#second").select_option(label="HR")
        assert page.locator("#first-tag").inner_text().startswith("other")
        page.locator("#second").focus()
        page.keyboard.press("x")  # is for the list, which has the focus
        page.locator("#swap").click()
        assert page.locator("#first-tag").inner_text() == "HR"
        assert page.locator("#second-tag").inner_text().startswith("other")
        page.locator("#next").click()  # the choice stays
        assert page.locator("#first-tag").inner_text() == "HR"

    def test_figures_are_shown(self, page, report):
        stated = content(report)
        image = stated["pictures"][0]["images"][0]
        tag = page.locator("#first-tag").inner_text()
        assert image["psnr"] in tag
        assert image["ssim"] in tag
        rows = page.locator("tbody tr").all_inner_texts()
        assert len(rows) == 3
        for row, method in zip(rows, stated["methods"], strict=True):
            cells = row.split("\t")
            assert cells[0] == method["name"]
            assert cells[3:5] == [method["mean"]["psnr"], method["mean"]["ssim"]]
            library = "NumPy" if cells[0] == "bicubic" else LIBRARY
            assert cells[5].startswith(f"{library} float32 on cpu")
        assert "BT.601" in page.locator("#protocol").inner_text()

    def test_a_page_without_hr_speaks_of_no_figures(self, browser, folder, tmp_path):
        target = tmp_path / "report.html"
        words = ["compare", folder / "lr/z second.png", "-o", target, *RUNNING]
        words += ["--model", folder / "other.safetensors"]
        assert main([*map(str, words)]) == 0
        page = browser.new_page()
        page.goto(target.as_uri())
        assert "PSNR" not in page.locator("body").inner_text()
        assert not page.locator("#choice").is_visible()  # one picture
        page.close()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_on_a_phone(self, browser, report, scheme):
        context = browser.new_context(
            viewport={"width": 390, "height": 780},
            device_scale_factor=3,
            has_touch=True,
            is_mobile=True,
            color_scheme=scheme,
        )
        page = context.new_page()
        page.goto(report.as_uri())
        page.wait_for_function("images.every((image) => image.complete)")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        box = page.locator("#stage").bounding_box()
        assert box["height"] >= 340
        page.locator("#one").tap()
        assert zoom(page) == 100
        before = page.evaluate("view.zoom")
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        touch = context.new_cdp_session(page)
        for kind, apart in (("Start", 60), ("Move", 90), ("Move", 120), ("End", None)):
            points = (
                []
                if apart is None
                else [
                    {"x": x + side * apart, "y": y + 60, "id": i}
                    for i, side in enumerate((-1, 1))
                ]
            )
            touch.send(
                "Input.dispatchTouchEvent",
                {"type": f"touch{kind}", "touchPoints": points},
            )
        assert page.evaluate("view.zoom") == pytest.approx(2 * before, rel=0.05)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
        assert brightness < 60 if scheme == "dark" else brightness > 200
        context.close()
