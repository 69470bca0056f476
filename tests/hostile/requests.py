"""Request bodies: multipart, JSON and base64, broken or strange, and bodies over a limit."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.hostile import jpeg
from tests.hostile.case import Case, encode, picture, reference
from tests.hostile.formats import grey_dot

FORM = "multipart/form-data; boundary=xyz"
JSON = "application/json"
SOURCE = picture(24, 32)
PNG = encode(SOURCE, "PNG")
BASE64 = b64encode(PNG).decode()
FILE = b'Content-Disposition: form-data; name="images"; filename="a.png"'


def part(head: bytes, content: bytes) -> bytes:
    """One part of a form, behind its delimiter."""
    return b"--xyz\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


def field(name: str, content: bytes) -> bytes:
    """A text field of a form."""
    return part(f'Content-Disposition: form-data; name="{name}"'.encode(), content)


def form(*parts: bytes) -> bytes:
    """A whole form."""
    return b"".join(parts) + b"--xyz--\r\n"


IMAGE = part(FILE, PNG)


def cases(max_body_bytes: int, max_images: int) -> Iterator[Case]:
    """Every case of this module."""
    yield from _empty()
    yield from _bad_multipart()
    yield from _bad_json()
    yield from _bad_base64()
    yield from _urls()
    yield from _too_large(max_body_bytes)
    yield from _too_many(max_images)
    yield from _good_and_bad()
    yield from _accepted_forms()
    yield from _accepted_json()


def request(kind: str, name: str, status: int, body: bytes, content_type: str, **more: Any) -> Case:
    return Case(kind, f"{kind}-{name}".replace(" ", "-"), status, body, content_type, **more)


def as_json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def _empty() -> Iterator[Case]:
    for content_type in ("image/jpeg", "image/png", "application/octet-stream", JSON, FORM):
        yield request("empty body", content_type.split(";")[0], 400, b"", content_type)
    yield request("empty body", "chunked", 400, b"", "image/jpeg", chunked=True)
    yield request("empty image", "form", 400, form(part(FILE, b"")), FORM)
    yield request("empty image", "form beside a good one", 400, form(IMAGE, part(FILE, b""), IMAGE), FORM)
    yield request("empty image", "json", 400, as_json(images=[""]), JSON)
    yield request("empty image", "json beside a good one", 400, as_json(images=[BASE64, ""]), JSON)
    yield request("empty image", "data uri", 400, as_json(images=["data:image/png;base64,"]), JSON)


def _bad_multipart() -> Iterator[Case]:
    good = form(IMAGE)
    boundaries = {
        "no boundary": "multipart/form-data",
        "empty boundary": "multipart/form-data; boundary=",
        "quoted empty boundary": 'multipart/form-data; boundary=""',
        "wrong boundary": "multipart/form-data; boundary=abc",
        "longer boundary": "multipart/form-data; boundary=xyzz",
        "upper case boundary": "multipart/form-data; boundary=XYZ",
        "boundary of 300 bytes": "multipart/form-data; boundary=" + "x" * 300,
        "boundary of 8000 bytes": "multipart/form-data; boundary=" + "x" * 8000,
        "boundary in another parameter": "multipart/form-data; charset=xyz",
    }
    for name, content_type in boundaries.items():
        yield request("bad multipart", name, 400, good, content_type)
    name_only = b"Content-Disposition: form-data; name="
    bodies = {
        "garbage": bytes(range(256)) * 10,
        "a bare image": PNG,
        "line ends only": b"\r\n" * 1000,
        "a megabyte of line ends": b"\r\n" * 500_000,
        "a megabyte of dashes": b"-" * 1_000_000,
        "delimiter then a megabyte of dashes": b"--xyz" + b"-" * 1_000_000,
        "delimiter only": b"--xyz",
        "open delimiter only": b"--xyz\r\n",
        "last delimiter only": b"--xyz--\r\n",
        "unterminated": good[: -len(b"--xyz--\r\n")],
        "half a last delimiter": good[:-4],
        "cut in the image": good[: len(good) // 2],
        "cut in the headers": good[:40],
        "cut behind the headers": good[: good.index(b"\r\n\r\n") + 4],
        "bare line feeds": b'--xyz\nContent-Disposition: form-data; name="images"\n\nx\n--xyz--\n',
        "bare carriage returns": b'--xyz\rContent-Disposition: form-data; name="images"\r\rx\r--xyz--\r',
        "header without a colon": form(part(b"Content-Disposition form-data", PNG)),
        "header without a name": form(part(b": form-data", PNG)),
        "header name with a space": form(part(b"Content Disposition: form-data", PNG)),
        "header name with a NUL": form(part(b"Content\0Disposition: form-data", PNG)),
        "header name in UTF-8": form(part("Größe: 1".encode(), PNG)),
        "header of binary": form(part(bytes(range(128, 256)), PNG)),
        "no headers": form(b"--xyz\r\n\r\n" + PNG + b"\r\n"),
        "no disposition": form(part(b"Content-Type: image/png", PNG)),
        "nameless part": form(part(b"Content-Disposition: form-data", PNG)),
        "nameless file": form(part(b'Content-Disposition: form-data; filename="a.png"', PNG)),
        "empty name": form(part(name_only + b'""', PNG)),
        "another disposition": form(part(b"Content-Disposition: attachment", PNG)),
        "starred name only": form(part(b"Content-Disposition: form-data; name*=utf-8''images", PNG)),
        "name with a NUL": form(IMAGE, part(name_only + b'"top_k\0"', b"1")),
        "name images with a NUL": form(part(name_only + b'"images\0"', PNG)),
        "name of binary": form(IMAGE, part(name_only + b'"\xff\xfe\x80"', b"1")),
        "name of 4 KB": form(IMAGE, part(name_only + b'"' + b"a" * 4000 + b'"', b"1")),
        "name of 1 MB": form(IMAGE, part(name_only + b'"' + b"a" * 1_000_000 + b'"', b"1")),
        "header name of 1 MB": form(part(b"X" * 1_000_000 + b": 1\r\n" + FILE, PNG)),
        "header value of 1 MB": form(part(b"X: " + b"1" * 1_000_000 + b"\r\n" + FILE, PNG)),
        "1000 headers": form(part(b"X: 1\r\n" * 1000 + FILE, PNG)),
        "1000 parameters": form(part(name_only + b'"a"' + b"; a=1" * 800, PNG)),
        "open quote": form(part(name_only + b'"images', PNG)),
        "other case of images": form(part(name_only + b'"Images"', PNG)),
        "images with brackets": form(part(name_only + b'"images[]"', PNG)),
        "file in another field": form(IMAGE, part(name_only + b'"image"; filename="a.png"', PNG)),
        "file in an option": form(IMAGE, part(name_only + b'"top_k"; filename="a.txt"', b"1")),
        "no file": form(field("top_k", b"1")),
        "field twice": form(IMAGE, field("top_k", b"1"), field("top_k", b"1")),
        "unknown field": form(IMAGE, field("colour", b"red")),
        "prototype field": form(IMAGE, field("__class__", b"x")),
        "text before the first delimiter": b"hello" + form(IMAGE),
        "10000 unknown fields": form(IMAGE, *(field(f"f{number}", b"") for number in range(10_000))),
    }
    for name, body in bodies.items():
        yield request("bad multipart", name, 400, body, FORM)


def _bad_json() -> Iterator[Case]:
    def around(images: str, rest: str = "") -> bytes:
        return f'{{"images": {images}{rest}}}'.encode()

    good = f'["{BASE64}"]'
    bodies = {
        "one brace": b"{",
        "text": b"hello",
        "truncated": as_json(images=[BASE64])[:-1],
        "cut in the image": as_json(images=[BASE64])[:200],
        "trailing comma": around(good, ","),
        "trailing text": as_json(images=[BASE64]) + b"x",
        "two documents": as_json(images=[BASE64]) * 2,
        "single quotes": b"{'images': []}",
        "comment": b'/* x */ {"images": []}',
        "spaces only": b" " * 1000,
        "NULs": bytes(100),
        "form encoded": b"images=" + BASE64.encode(),
        "raw image": PNG,
        "control character": around('["\n"]'),
        "wrong escape": around(r'["\x41"]'),
        "invalid UTF-8": b'{"images": ["\xff\xfe"]}',
        "invalid UTF-8 in a name": b'{"\xff": 1}',
        "top null": b"null",
        "top number": b"1",
        "top NaN": b"NaN",
        "top string": json.dumps(BASE64).encode(),
        "top list": json.dumps([BASE64]).encode(),
        "empty object": b"{}",
        "images null": around("null"),
        "images string": around(json.dumps(BASE64)),
        "images number": around("1"),
        "images NaN": around("NaN"),
        "images object": around(f'{{"0": "{BASE64}"}}'),
        "images empty": around("[]"),
        "images in another case": as_json(Images=[BASE64]),
        "image singular": as_json(image=BASE64),
        "item null": around(f'["{BASE64}", null]'),
        "item number": around("[1]"),
        "item true": around("[true]"),
        "item NaN": around("[NaN]"),
        "item list": around(f"[{good}]"),
        "item object": around(f'[{{"image": "{BASE64}"}}]'),
        "item of bytes": around(str(list(PNG[:1]))),
        "images twice": around(good, f', "images": {good}'),
        "option twice": around(good, ', "top_k": 1, "top_k": 1'),
        "unknown field": around(good, ', "url": "x"'),
        "unknown field of 1 MB": around(good, f', "{"a" * 1_000_000}": 1'),
        "unknown field with a NUL": around(good, r', "a\u0000b": 1'),
        "unknown field of a lone surrogate": around(good, r', "\ud800": 1'),
        "unknown field of markup": around(good, ', "<script>alert(1)</script>": 1'),
        "prototype field": around(good, ', "__proto__": {"top_k": 1}'),
        "lone surrogate": around(r'["\ud800"]'),
        "number of 100000 digits": around(good, f', "top_k": {"9" * 100_000}'),
        "number of 4000 digits": around(good, f', "top_k": {"9" * 4000}'),
        "exponent of 999999": around(good, ', "top_k": 1e999999'),
        "Infinity": around(good, ', "top_k": -Infinity'),
        "NaN option": around(good, ', "top_k": NaN'),
        "100000 open lists": b"[" * 100_000,
        "100000 lists": b"[" * 100_000 + b"]" * 100_000,
        "100000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "images 100000 deep": b'{"images":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "100000 fields": around(good, "".join(f', "f{number}": 1' for number in range(100_000))),
    }
    for name, body in bodies.items():
        yield request("bad json", name, 400, body, JSON)


def _bad_base64() -> Iterator[Case]:
    # Bytes whose base64 differs between the two alphabets and ends in padding.
    dashes = urlsafe_b64encode(b"\xfb\xff\xbf" * 10 + b"\xfb").decode()
    texts = {
        "no alphabet": "!!!!",
        "one character": "A",
        "three characters": "QUJ",
        "padding missing": b64encode(PNG + bytes(1 + -len(PNG) % 3)).decode().rstrip("="),
        "padding too long": "QUJD====",
        "padding in the middle": "QQ==" + BASE64,
        "padding only": "====",
        "url-safe alphabet": dashes,
        "space inside": BASE64[:40] + " " + BASE64[40:],
        "space before": " " + BASE64,
        "line end behind": BASE64 + "\n",
        "lines of 76": "\r\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)),
        "tab inside": BASE64[:40] + "\t" + BASE64[40:],
        "NUL inside": BASE64[:40] + "\0" + BASE64[40:],
        "umlaut inside": BASE64[:40] + "ä" + BASE64[41:],
        "wide letters": "\uff21\uff22\uff23\uff24",
        "emoji": "\U0001f408" * 4,
        "percent encoded": BASE64[:40] + "%2B" + BASE64[43:],
        "hexadecimal with a prefix": "0x" + PNG.hex() + "!",
        "text": "a cat on a mat, sleeping.",
        "markup": "<img src=x onerror=alert(1)>",
        "broken behind 1 MB": "A" * 1_000_000 + "!",
        "data uri without base64": "data:image/png," + BASE64,
        "data uri without a comma": "data:image/png;base64" + BASE64,
        "data uri of text": "data:text/html,<script>alert(1)</script>",
        "data uri in percents": "data:image/svg+xml,%3Csvg%3E%3C/svg%3E",
        "data uri with base64 elsewhere": "data:image/png;base64;x=1," + BASE64,
        "data uri with another name": "data:image/png;base65," + BASE64,
        "data uri alone": "data:",
        "data uri twice": f"data:image/png;base64,data:image/png;base64,{BASE64}",
        "data uri with a broken image": "data:image/png;base64,!" + BASE64,
        "data uri behind a space": " data:image/png;base64," + BASE64,
    }
    for name, text in texts.items():
        yield request("bad base64", name, 400, as_json(images=[text]), JSON)


def _urls() -> Iterator[Case]:
    """The server fetches nothing, whatever the scheme, its case or the host."""
    urls = (
        "http://example.com/cat.jpg", "https://example.com/cat.jpg", "HTTP://EXAMPLE.COM/", "hTTpS://example.com/",
        "http://169.254.169.254/latest/meta-data/", "http://localhost:3000/metrics", "http://[::1]/", "http://0/",
        "http://2130706433/", "http://user:key@example.com/", " https://example.com/", "\thttp://example.com/",
        "http:example.com", "file:///etc/passwd", "FILE:///etc/passwd", "ftp://example.com/a.png", "gopher://x/_1",
        "s3://bucket/key.png", "jar:http://x!/a", "ldap://x/a", "javascript:alert(1)", "blob:http://x/1",
        "../../etc/passwd", "C:\\windows\\win.ini", "\\\\host\\share\\a.png",
    )  # fmt: skip
    for number, url in enumerate(urls):
        yield request("url", f"{number:02}", 400, as_json(images=[url]), JSON)
    yield request("url", "behind a good image", 400, as_json(images=[BASE64, urls[0]]), JSON)
    yield request("url", "openai form", 400, as_json(images=[{"image_url": {"url": urls[0]}}]), JSON)


def _too_large(limit: int) -> Iterator[Case]:
    def padded(start: bytes, end: bytes, filler: bytes) -> bytes:
        return start + filler * (limit + 1 - len(start) - len(end)) + end

    raw = padded(jpeg.BASELINE, b"", b"\0")
    head, tail = IMAGE[:-2], b"\r\n" + form()
    # Good but for their size. Each is sent with its length, and without.
    bodies = {
        "raw": (raw, "image/jpeg"),
        "form": (padded(head, tail, b"\0"), FORM),
        "json": (padded(as_json(images=[BASE64]), b"", b" "), JSON),
    }
    for name, (body, content_type) in bodies.items():
        yield request("too large", name, 413, body, content_type)
        yield request("too large", f"{name} chunked", 413, body, content_type, chunked=True)
    exact = raw[:-1]
    pixels = reference(jpeg.BASELINE)
    yield request("largest", "raw", 200, exact, "image/jpeg", pixels=pixels)
    yield request("largest", "raw chunked", 200, exact, "image/jpeg", chunked=True, pixels=pixels)
    for name, size in (("top_k", 4097), ("model", 100_000), ("on_error", 1_000_000)):
        yield request("too large", f"field {name}", 413, form(IMAGE, field(name, b"1" * size)), FORM)


def _too_many(limit: int) -> Iterator[Case]:
    dot = grey_dot()
    pixels = np.full((1, 1, 3), 128, np.uint8)
    one, encoded = part(FILE, dot), b64encode(dot).decode()
    yield request("most images", "form", 200, form(*[one] * limit), FORM, pixels=pixels)
    yield request("most images", "json", 200, as_json(images=[encoded] * limit), JSON, pixels=pixels)
    yield request("too many images", "form", 413, form(*[one] * (limit + 1)), FORM)
    yield request("too many images", "json", 413, as_json(images=[encoded] * (limit + 1)), JSON)
    yield request("too many images", "json empty strings", 413, as_json(images=[""] * (limit + 100_000)), JSON)
    yield request("too many images", "json nulls", 413, as_json(images=[None] * (limit + 100_000)), JSON)
    lists = b'{"images": [' + b"[]," * (limit + 300_000) + b"0]}"
    yield request("bad json", "lists for images", 400, lists, JSON)
    many = max(10_000, limit + 1)
    yield request("10k parts", "images", 413, form(*[one] * many), FORM)
    yield request("10k parts", "empty images", 413, form(*[part(FILE, b"")] * many), FORM)
    yield request("10k parts", "without names of files", 413, form(*[field("images", b"x")] * many), FORM)


def _good_and_bad() -> Iterator[Case]:
    """A bad image fails its request, unless its neighbours are asked for."""
    bad = {"truncated": (jpeg.BASELINE[:2000], 422), "text": (b"a cat", 415), "svg": (b"<svg/>", 415)}
    for name, (content, status) in bad.items():
        body = form(IMAGE, part(FILE, content), IMAGE)
        yield request("good and bad", f"form {name}", status, body, FORM)
        yield request("good and bad", f"form {name} by item", 200, body, FORM, query="on_error=item")
        body = as_json(images=[BASE64, b64encode(content).decode()])
        yield request("good and bad", f"json {name}", status, body, JSON)
        body = as_json(images=[b64encode(content).decode()], on_error="item")
        yield request("good and bad", f"json {name} alone by item", 200, body, JSON)
    both = form(part(FILE, bad["truncated"][0]), part(FILE, bad["text"][0]))
    yield request("good and bad", "form truncated and text", 422, both, FORM)


def _accepted_forms() -> Iterator[Case]:
    def file(names: bytes) -> bytes:
        return form(part(b"Content-Disposition: form-data; " + names, PNG))

    heads = {
        "plain": b'name="images"; filename="a.png"',
        "path traversal": b'name="images"; filename="../../../etc/passwd"',
        "absolute path": b'name="images"; filename="/etc/passwd"',
        "windows path": b'name="images"; filename="C:\\\\windows\\\\win.ini"',
        "share": b'name="images"; filename="\\\\\\\\host\\\\a.png"',
        "quotes": b'name="images"; filename="a\\"b;c=\\"d.png"',
        "semicolons": b'name="images"; filename="a; name=top_k; b.png"',
        "markup": b'name="images"; filename="<script>alert(1)</script>.png"',
        "shell": b'name="images"; filename="$(reboot);`reboot`|reboot.png"',
        "UTF-8": 'name="images"; filename="Kätzchen \U0001f408.png"'.encode(),
        "binary": b'name="images"; filename="\xff\xfe\x80.png"',
        "NUL": b'name="images"; filename="a\0.php.png"',
        "empty file name": b'name="images"; filename=""',
        "no file name": b'name="images"',
        "name without quotes": b"name=images; filename=a.png",
        "starred file name": b'name="images"; filename="a.png"; filename*=utf-8\'\'%2e%2e%2fetc',
        "long file name": b'name="images"; filename="' + b"a" * 4000 + b'"',
    }
    for name, head in heads.items():
        yield request("form", name, 200, file(head), FORM, pixels=SOURCE)
    body = form(IMAGE)
    forms: dict[str, tuple[bytes, str]] = {
        "quoted boundary": (body, 'multipart/form-data; boundary="xyz"'),
        "other case of the type": (body, "Multipart/Form-Data; boundary=xyz"),
        "more parameters": (body, "multipart/form-data; charset=utf-8; boundary=xyz"),
        "strange boundary": (body.replace(b"xyz", b"'()+_,-./:=?"), 'multipart/form-data; boundary="\'()+_,-./:=?"'),
        "epilogue": (body + b"more text" * 1000, FORM),
        "a megabyte of dashes behind": (body.rstrip() + b"-" * 1_000_000, FORM),
        "a megabyte of line ends behind": (body + b"\r\n" * 500_000, FORM),
        "options": (form(field("top_k", b"2"), IMAGE, field("on_error", b"item")), FORM),
        "lower case header": (body.replace(b"Content-Disposition", b"content-disposition"), FORM),
        "seven more headers": (form(part(b"X: 1\r\n" * 7 + FILE, PNG)), FORM),
        "almost delimiters in the image": (form(part(FILE, PNG + b"\r\n--xy" * 50_000)), FORM),
    }
    for name, (content, content_type) in forms.items():
        yield request("form", name, 200, content, content_type, pixels=SOURCE)
    encoded = form(part(FILE + b"\r\nContent-Transfer-Encoding: base64", BASE64.encode()))
    yield request("form", "transfer encoding", 415, encoded, FORM)


def _accepted_json() -> Iterator[Case]:
    pad = {size: PNG + bytes((size - len(PNG)) % 3) for size in (0, 1, 2)}
    texts = {
        "base64": BASE64,
        "one padding sign": b64encode(pad[2]).decode(),
        "two padding signs": b64encode(pad[1]).decode(),
        "no padding": b64encode(pad[0]).decode(),
        "data uri": "data:image/png;base64," + BASE64,
        "upper case data uri": "DATA:IMAGE/PNG;BASE64," + BASE64,
        "data uri without a type": "data:;base64," + BASE64,
        "data uri of a lying type": "data:text/html;base64," + BASE64,
        "data uri with parameters": 'data:image/png;name="a;b";charset=utf-8;base64,' + BASE64,
        "data uri of a long type": f"data:image/{'x' * 10_000};base64," + BASE64,
        "data uri of no type at all": "data:<script>;base64," + BASE64,
    }
    for name, text in texts.items():
        yield request("json", name, 200, as_json(images=[text]), JSON, pixels=SOURCE)
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in BASE64)
    good = as_json(images=[BASE64])
    bodies: dict[str, tuple[bytes, str]] = {
        "escaped": (f'{{"images": ["{escaped}"]}}'.encode(), JSON),
        "spaces": (b" \r\n\t" * 1000 + good + b" \r\n\t" * 1000, JSON),
        "charset": (good, "application/json; charset=utf-8"),
        "other case of the type": (good, "Application/JSON"),
        "options": (as_json(images=[BASE64], top_k=2, on_error="item"), JSON),
        "option as text": (as_json(images=[BASE64], top_k="2"), JSON),
        "options first": (as_json(top_k=2, images=[BASE64]), JSON),
    }
    for name, (body, content_type) in bodies.items():
        yield request("json", name, 200, body, content_type, pixels=SOURCE)
    yield request("json", "chunked", 200, good, JSON, chunked=True, pixels=SOURCE)
    identities = ("<script>alert(1)</script>", "x" * 4000, "../../etc", "${jndi:ldap://x}", "")
    for number, identity in enumerate(identities):
        headers = (("x-request-id", identity),)
        yield request("request id", str(number), 200, PNG, "image/png", headers=headers, pixels=SOURCE)
