"""Pixels are counted from headers before they are decoded: what a header says, and who is let in by it."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from base64 import b64encode
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from starlette.testclient import TestClient

from serving.entry.decode_memory import DecodeMemory, Reservation
from sovit.artifact import Artifact
from sovit.decode import DecodeOptions, decode
from sovit.errors import InvalidImage, QueueFull, SoViTError, TooLarge
from sovit.header import ImageHeader, read_header, sniff
from sovit.runtime.fake import FakeRuntime
from tests.hostile import corpus
from tests.served import assert_problem, encoded, model_of, running, until, worker_of

LONG = 60.0


def flat(image_format: str, width: int = 300, height: int = 200, mode: str = "RGB", **options: Any) -> bytes:
    return encoded(Image.new(mode, (width, height)), image_format, **options)


FLAT = {
    "JPEG": flat("JPEG"),
    "progressive JPEG": flat("JPEG", progressive=True),
    "CMYK JPEG": flat("JPEG", mode="CMYK"),
    "PNG": flat("PNG"),
    "PNG with alpha": flat("PNG", mode="RGBA"),
    "palette PNG": flat("PNG", mode="P"),
    "WebP": flat("WEBP"),
    "lossless WebP": flat("WEBP", lossless=True),
    "WebP with alpha": flat("WEBP", mode="RGBA"),
    "WebP with EXIF": flat("WEBP", exif=b"Exif\x00\x00"),
    "GIF": flat("GIF", mode="P"),
    "BMP": flat("BMP"),
    "palette BMP": flat("BMP", mode="P"),
}


@pytest.mark.parametrize("name", FLAT)
def test_a_header_says_what_a_decoder_finds(name: str) -> None:
    header = read_header(FLAT[name])
    assert header is not None
    assert (header.width, header.height) == (300, 200)
    assert header.decoded_bytes >= 300 * 200 * 12


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what is in the files
def test_no_image_is_decoded_to_more_pixels_than_its_header_was_read_to_have() -> None:
    compared = 0
    for case in corpus(max_body_bytes=2**22, max_images=8):
        if case.content_type.lower().startswith(("multipart", "application/json")):
            continue
        header = read_header(case.body)
        try:
            image = decode(case.body, DecodeOptions())
        except SoViTError:
            continue
        assert header is not None, case.name
        assert image.width * image.height <= header.width * header.height, case.name
        compared += 1
    assert compared >= 150


@given(st.sampled_from(sorted(FLAT)), st.data())
def test_a_broken_header_is_read_or_not_and_never_fails(name: str, data: st.DataObject) -> None:
    content = bytearray(FLAT[name][: data.draw(st.integers(0, 400))])
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    header = read_header(bytes(content))
    assert header is None or header.format == sniff(bytes(content))


def test_a_frame_beyond_its_gifs_screen_counts() -> None:
    content = bytearray(flat("GIF", 30, 20, mode="P"))
    content[6:10] = b"\x01\x00\x01\x00"
    assert read_header(bytes(content)) == ImageHeader("GIF", 30, 20)
    assert Image.open(io.BytesIO(content)).size == (30, 20)


def test_a_decoder_that_finds_more_than_was_announced_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sovit.decode.read_header", lambda _: ImageHeader("PNG", 10, 10))
    with pytest.raises(InvalidImage, match="more pixels"):
        decode(FLAT["PNG"], DecodeOptions())


def test_a_progressive_jpeg_costs_by_its_scans() -> None:
    usual = read_header(FLAT["progressive JPEG"])
    plain = read_header(FLAT["JPEG"])
    assert usual is not None
    assert plain is not None
    assert (plain.scans, usual.scans) == (1, 10)
    assert usual.decoded_bytes == plain.decoded_bytes
    first = FLAT["progressive JPEG"].index(b"\xff\xda")
    last = FLAT["progressive JPEG"].rindex(b"\xff\xda")
    many = FLAT["progressive JPEG"][:first] + FLAT["progressive JPEG"][last:-2] * 90 + b"\xff\xd9"
    hostile = read_header(many)
    assert hostile is not None
    assert hostile.scans == 90
    assert hostile.decoded_bytes == 9 * plain.decoded_bytes


def test_what_lies_behind_a_jpeg_is_no_scan_of_it() -> None:
    plain = read_header(FLAT["progressive JPEG"])
    assert read_header(FLAT["progressive JPEG"] + b"\xff\xda\x00\x02" * 5_000) == plain


def test_cmyk_and_compressed_texts_count() -> None:
    plain, cmyk = read_header(FLAT["JPEG"]), read_header(FLAT["CMYK JPEG"])
    assert plain is not None
    assert cmyk is not None
    assert cmyk.decoded_bytes * 3 == plain.decoded_bytes * 4
    texts = PngImagePlugin.PngInfo()
    for _ in range(5):
        texts.add_text("a", "b" * 100_000, zip=True)
    heavy = read_header(flat("PNG", 8, 8, pnginfo=texts))
    assert heavy is not None
    assert heavy.decoded_bytes >= 5 << 20


@pytest.mark.parametrize(
    "content",
    [
        b"GIF89a" + b"\x01\0\x01\0\0\0\0" + b"\x21\xfe" + b"\x01a" * 10_000_000,
        b"\xff\xd8" + b"\xff" * 20_000_000 + b"\0",
        b"\xff\xd8\xff\xda" + b"\xff\xd0" * 10_000_000,
    ],
    ids=["sub-blocks", "fill bytes", "restart markers"],
)
def test_a_header_is_not_looked_for_for_long(content: bytes) -> None:
    assert read_header(content) is None  # though a decoder would go on to look for its end


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 10))


def test_requests_wait_in_order_and_what_is_given_back_lets_them_in() -> None:
    async def scenario() -> None:
        memory = DecodeMemory(800)  # 700 and 100 for small ones
        first = await memory.reserve(600, LONG, 1)
        order: list[int] = []

        async def wait(size: int) -> None:
            reservation = await memory.reserve(size, LONG, 1)
            order.append(size)
            threading.Thread(target=reservation.give_back, args=(size,)).start()

        waiting = [asyncio.create_task(wait(size)) for size in (650, 30, 200)]
        await asyncio.sleep(0.01)
        small = await memory.reserve(25, LONG, 1)
        assert memory.used == 625
        first.give_back(300)
        await asyncio.sleep(0.01)
        assert order == []
        first.give_back(300)
        await asyncio.gather(*waiting)
        assert order == [650, 30, 200]
        small.give_back(25)
        while memory.used:
            await asyncio.sleep(0.001)

    run(scenario())


def test_who_does_not_fit_in_time_is_told_when_to_come_back_and_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        memory = DecodeMemory(800)
        with pytest.raises(TooLarge):
            await memory.reserve(701, LONG, 1)
        first = await memory.reserve(700, LONG, 1)
        with pytest.raises(QueueFull) as caught:
            await memory.reserve(100, 0.01, 7)
        assert caught.value.retry_after == 7
        gone = asyncio.create_task(memory.reserve(100, LONG, 1))
        await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        first.give_back(700)
        await asyncio.sleep(0.01)
        assert memory.used == 0
        assert isinstance(await memory.reserve(700, 0.01, 1), Reservation)

    run(scenario())


@given(st.lists(st.tuples(st.integers(0, 700), st.booleans()), max_size=30))
def test_all_that_is_reserved_is_given_back(steps: list[tuple[int, bool]]) -> None:
    async def scenario() -> None:
        memory = DecodeMemory(800)

        async def one(size: int, leaves: bool) -> None:
            task = asyncio.create_task(memory.reserve(size, LONG, 1))
            if leaves:
                await asyncio.sleep(0)
                task.cancel()
            try:
                reservation = await task
            except asyncio.CancelledError:
                return
            assert memory.used <= 800
            await asyncio.sleep(0)
            reservation.give_back(size)

        await asyncio.gather(*(one(size, leaves) for size, leaves in steps))
        await asyncio.sleep(0.001)
        assert memory.used == 0

    run(scenario())


def post(client: TestClient, *images: bytes, **headers: str) -> Any:
    body = {"images": [b64encode(image).decode() for image in images]}
    return client.post("/embed", content=json.dumps(body), headers={"content-type": "application/json", **headers})


@pytest.mark.parametrize("name", FLAT)
def test_a_request_of_too_many_pixels_is_refused_before_one_is_decoded(
    exported: Artifact, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(exported, decode_memory=2 << 20) as client:
        assert post(client, FLAT[name]).status_code == 200
        monkeypatch.setattr("sovit.preprocess.decode", lambda *_: pytest.fail("it was decoded"))
        assert_problem(post(client, *[FLAT[name]] * 3), 413, "decoding these images takes")
        monkeypatch.undo()
        assert post(client, FLAT[name]).status_code == 200
        assert worker_of(client).decode_memory.used == 0


def test_what_will_be_refused_takes_no_memory(exported: Artifact) -> None:
    with running(exported, decode_memory=2 << 20, decode=DecodeOptions(max_pixels=100_000)) as client:
        huge = flat("WEBP", 4_000, 4_000)
        assert_problem(post(client, *[huge] * 20), 422, "over the limit of 100,000 pixels")
        assert_problem(post(client, *[b"RIFF\0\0\0\0WEBPVP8 "] * 20), 422, "header cannot be read")
        assert worker_of(client).decode_memory.used == 0


def test_images_that_failed_or_were_given_up_give_their_memory_back(exported: Artifact) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    with running(exported, runtime, decode_memory=8 << 20) as client:
        assert_problem(post(client, FLAT["PNG"], FLAT["PNG"][:-30]), 422)
        runtime.gate.clear()
        late = {"x-request-timeout": "0.2"}
        assert_problem(post(client, *[FLAT["PNG"]] * 3, **late), 504)
        runtime.gate.set()
        until(lambda: worker_of(client).decode_memory.used == 0)
        assert "\nsovit_decode_bytes_limit 8.388608e+06\n" in client.get("/metrics").text


def test_large_requests_take_turns_and_a_small_one_does_not_wait_behind_them(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three requests that fill the budget, held in their decoders: a small one is answered meanwhile."""
    from sovit.preprocess import Preprocess

    gate, decoding = threading.Event(), threading.Semaphore(0)
    whole = Preprocess.__call__

    def held(self: Preprocess, content: Any, options: Any = None) -> Any:
        if content == FLAT["WebP"]:
            decoding.release()
            assert gate.wait(10)
        return whole(self, content, options)

    monkeypatch.setattr(Preprocess, "__call__", held)
    with running(exported, decode_memory=5 << 20, decode_threads=4) as client:
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(post(client, *[FLAT["WebP"]] * 3).status_code))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for _ in range(3):
            assert decoding.acquire(timeout=10)
        memory = worker_of(client).decode_memory
        assert memory.used == 3 * 20 * 300 * 200
        assert post(client, flat("PNG", 20, 20)).status_code == 200
        late = {"x-request-timeout": "0.2"}
        refused = post(client, *[FLAT["WebP"]] * 3, **late)
        assert int(refused.headers["retry-after"]) == assert_problem(refused, 429)["retry_after_seconds"]
        gate.set()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 3
        assert memory.used == 0
        assert model_of(client).engine.depth == 0


def test_the_default_is_a_quarter_of_the_memory(exported: Artifact) -> None:
    from sovit.machine import total_memory

    with running(exported) as client:
        assert worker_of(client).decode_memory.limit == max(128 << 20, total_memory() // 4)
    assert total_memory() > 1 << 28
