"""Writes corpus/: `python -m tests.fuzz.make_corpus`. What fuzzing found (`found-*`) is kept."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import struct
import tarfile
import zipfile
from collections import OrderedDict
from typing import Any

import safetensors.torch
import torch
from checkpoint_files import Call, Name, pickled, storage, tensor
from rtsp_nals import PPS, PPS5, SPS, SPS5, VPS5, aggregate5, fragments, fragments5, idr, inter, nal5, stap
from tiny_model import colour_model

from .files import manifest_of, torch_archive
from .network import HANDSHAKE
from .targets import CORPUS


def main() -> None:
    for target, inputs in {**_files(), **_network()}.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("made-*"):
            old.unlink()
        for name, content in inputs.items():
            (folder / f"made-{name}").write_bytes(content)


def _files() -> dict[str, dict[str, bytes]]:
    pickles = _pickles()
    model = colour_model()
    picture = {"id": 1, "file_name": "a.png", "width": 64, "height": 48}
    coco = {
        "images": [picture, {"id": 2, "file_name": "b.png", "width": 48, "height": 64}],
        "categories": [{"id": 3, "name": "car"}, {"id": 7, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 30.5, 20], "area": 610, "iscrowd": 0,
             "segmentation": [[1, 2, 31, 2, 31, 22, 1, 22]]},
            {"id": 2, "image_id": 2, "category_id": 7, "bbox": [-5, 0, 70, 1e3], "iscrowd": 1,
             "segmentation": {"counts": "abc", "size": [64, 48]}},
        ],
    }  # fmt: skip
    voc = (
        "<?xml version='1.0' encoding='utf-8'?>\n<annotation><source><database>The VOC2007 Database</database></source>"
        "<size><width>64</width><height>48</height><depth>3</depth></size><object><name>car</name>"
        "<difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40.5</ymax></bndbox></object>"
        "<object><name>person</name><bndbox><xmin>-1</xmin><ymin>x</ymin></bndbox></object></annotation>"
    )
    return {
        "checkpoint": {
            **{f"torch-{name}": torch_archive(content) for name, content in pickles.items()},
            "saved": _saved({"model": OrderedDict({"model.0.conv.weight": torch.zeros(2, 3)}), "epoch": 3}),
            "safetensors": safetensors.torch.save(
                {"model.0.conv.weight": torch.zeros(2, 3), "model.1.cv3.0.2.weight": torch.zeros(2, 4, 1, 1)},
                {"names": '{"0": "car", "1": "person"}', "class_width": "4", "box_groups": "1", "widths": "{}"},
            ),
            "legacy": torch_legacy(),
        },
        "pickle": pickles,
        "bundle": {
            "list": manifest_of(b"\x08\x08"),
            "table": manifest_of(b"\x08\x08").replace(b'["red", "blue"]', b'{"0": "red", "1": "blue"}'),
            "newer": b'{"format": 2, "more": true}',
            "outside": manifest_of(b"\x08\x08").replace(b'"model.onnx"', b'"../model.onnx"'),
        },
        "onnx": {"colour": model, "head": model[:200]},
        "zip": {"top": _archive("zip", ""), "folder": _archive("zip", "tiny/")},
        "tar": {
            "top": _archive("tar", ""),
            "folder": _archive("tar", "tiny/"),
            "gzip": gzip.compress(_archive("tar", ""), mtime=0),
        },
        "yolo": {
            "boxes": b"0 0.5 0.5 0.2 0.3\n1 .1 .1 .2 .2\n",
            "polygon": b"1 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\r\n0 1e-3 2e-3 1 1\n",
            "broken": b"\xef\xbb\xbf7 nan inf 0 0\n0 5 5 5 5\n0.5 1 1 1 1\n0 1 1\n",
        },
        "data-yaml": {
            "list": b"path: .\ntrain: images/train\nval: images/train\nnc: 2\nnames: [car, person]\n",
            "table": b"train: [images/train]\nnames:\n  0: car\n  1: person\n",
            "anchors": b"a: &a [1, *a]\nnames: *a\ntrain: images\n",
        },
        "coco": {"two": json.dumps(coco).encode(), "none": b'{"images": [], "categories": [], "annotations": []}'},
        "settings": {
            "some": b"host: 127.0.0.1\nport: 81\ntoken: null\nmedia: [/media, b]\nconfidence: 0.5\nlog_format: json\n",
            "typed": b"a: &a [1, *a]\nport: 2001-99-99\ndata: !!binary abc\niou: 1:30\nmax_batch: 0x_1\n",
            "unknown": b"engines: {x: 1}\n",
        },
        "voc": {"pascal": voc.encode(), "entity": b"<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&b;</annotation>"},
    }


def _archive(kind: str, folder: str) -> bytes:
    """A bundle as it is uploaded, with a link and a file of nobody's beside it."""
    model = colour_model()
    contents = {f"{folder}model.json": manifest_of(model), f"{folder}model.onnx": model, f"{folder}notes.txt": b"x"}
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in contents.items():
                zipped.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        return stream.getvalue()
    with tarfile.open(fileobj=stream, mode="w") as tarred:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tarred.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo(f"{folder}link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tarred.addfile(link)
    return stream.getvalue().rstrip(b"\0") + b"\0" * 1024


def _pickles() -> dict[str, bytes]:
    """Of every layout a few tensors: enough to be recognised, small enough for a million cases."""
    weight = tensor(storage("0", 24), 0, (2, 3, 2, 2), (12, 4, 2, 1))
    bias = tensor(storage("1", 24), 4, (4,), (1,))
    count = tensor(storage("2", 1, "LongStorage"), 0, (), ())
    plain = {
        "model.0.conv.weight": weight, "model.0.bn.num_batches_tracked": count, "model.1.cv3.0.2.weight": weight,
        "model.1.cv2.0.1.conv.weight": weight,
    }  # fmt: skip
    table = Call(Name("collections", "OrderedDict"))

    def module(name: str, parts: dict[str, Any], **inside: Any) -> Call:
        state = {"_parameters": table, "_buffers": {}, "_modules": parts, "training": False, **inside}
        return Call(Name(*name.rsplit(".", 1)), (), state)

    layer = module("models.common.Conv", {}, _parameters={"weight": weight, "bias": bias})
    root = module(
        "models.yolo.DetectionModel",
        {"model": module("torch.nn.modules.container.Sequential", {"0": layer})},
        names=["car", "person"], yaml={"nc": 2},
    )  # fmt: skip
    numpy_type = Call(Name("numpy", "dtype"), ("f8", 0, 1), (3, "<", None, None, None, -1, -1, 0))
    return {
        "state-dict": pickled(plain),
        "lightning": pickled({"pytorch-lightning_version": "2", "state_dict": {
            "model.model.0.conv.weight": weight, "ema.model.1.heads.0.class_conv.2.weight": weight,
            "ema.model.1.heads.0.anchor_conv.1.conv.weight": weight,
            "ema.model.1.heads.0.anc2vec.anc2vec.weight": weight}}),
        "r1": pickled({"epoch": -1, "model": root, "ema": None, "optimizer": {"state": {0: {"step": 1.5}}},
                       "best_fitness": Call(Name("numpy.core.multiarray", "scalar"), (numpy_type, b"\0" * 8))}),
        "protocol-4": pickled(plain, 4),
        "hostile": pickled({"model": Call(Name("posix", "system"), ("true",))}),
        "set": pickled({"names": {1, 2, 3}, "model": {}, "path": Call(Name("pathlib", "PosixPath"), ("a", "b"))}),
    }  # fmt: skip


def _saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def torch_legacy() -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _network() -> dict[str, dict[str, bytes]]:
    full = {
        "url": "rtsp://viewer:p%40ss@10.0.0.7:554/stream?a=b", "id": "door", "transport": "tcp", "max_fps": 5.5,
        "confidence": 0.3, "class_confidence": {"person": 0.5}, "iou": 0.6, "classes": ["person"], "weight": 2,
        "max_staleness_ms": 300, "track": True, "loop": False,
        "zones": [{"name": "yard", "polygon": [[0, 0], [1, 0], [1, 1]]}],
        "lines": [{"name": "gate", "from": [0, 0.5], "to": [1, 0.5]}],
    }  # fmt: skip
    return {
        "streams": {
            "full": json.dumps(full).encode(),
            "pasted": b'{"url": "rtsp://admin:p@ss/w#rd@10.0.0.7:554/cam/realmonitor?channel=1&subtype=0"}',
            "ipv6": b'{"url": "rtsps://[fe80::1%25eth0]:322/a", "username": "u", "password": "\\u00e4"}',
            "file": b'{"url": "/media/a.mp4", "loop": true, "every_frame": true, "realtime": null}',
        },
        "playlist": {
            "media": b'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="key.bin",IV=0x01\n#EXTINF:2,\na.ts\n/b/2.ts\n',
            "master": b'#EXTM3U\r\n#EXT-X-STREAM-INF:BANDWIDTH=1\r\nlow/b.m3u8?x=1\r\n#EXT-X-MEDIA:URI="a.m3u8"\r\n',
            "elsewhere": b"#EXTM3U\nfile:///etc/passwd\n//host/a.ts\nhttp://[::1/a\nconcat:a|b\n",
        },
        "sdp": _descriptions(),
        "rtsp": _conversations(),
        "rtp": {"h264": _stream(0), "hevc": _stream(1), "jpeg": _stream(2), "h264-tcp": _stream(0x81)},
        "websocket": {
            "text": _frame(0x81, b"hello"), "ping": _frame(0x89, b"x") + _frame(0x8A, b"x"),
            "close": _frame(0x88, b"\x03\xe8bye"), "pieces": _frame(0x01, b"a") + _frame(0x80, b"b"),
            "long": _frame(0x82, b"z" * 300),
        },
        "http": {
            "upgrade": HANDSHAKE + _frame(0x81, b"hello"),
            "get": b"GET /streams HTTP/1.1\r\nHost: localhost\r\n\r\nGET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "post": b"POST /streams HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b'Content-Length: 25\r\n\r\n{"url": "rtsp://camera/"}',
            "chunked": b"POST /detect?confidence=0.5 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
                       b"3\r\nabc\r\n0\r\n\r\n",
            "query": b"GET /streams/a/snapshot.jpg?annotate=true&token=x HTTP/1.1\r\nHost: localhost\r\n"
                     b"Origin: http://localhost\r\nAuthorization: Bearer x\r\n\r\n",
        },
    }  # fmt: skip


def _frame(head: int, payload: bytes) -> bytes:
    """A masked frame, as clients send it."""
    mask = b"\x11\x22\x33\x44"
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else bytes([0xFE]) + struct.pack(">H", len(payload))
    return bytes([head]) + size + mask + bytes(a ^ b for a, b in zip(payload, itertools.cycle(mask), strict=False))


def _descriptions() -> dict[str, bytes]:
    head = "v=0\r\no=- 1 1 IN IP4 10.0.0.7\r\ns=a\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=control:*\r\na=range:npt=0-\r\n"
    h264 = (
        "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1;profile-level-id=42c01f;"
        "sprop-parameter-sets=Z0LAH9oBQBboQAAAAwBAAAAMg8YMqA==,aM4PyA==\r\na=control:track1\r\na=framerate:25.0\r\n"
    )
    return {
        "h264": (head + h264 + "m=audio 0 RTP/AVP 0\r\na=control:track2\r\n").encode(),
        "hevc": (head + "m=video 0 RTP/AVP 98 97\r\na=rtpmap:98 H265/90000\r\na=fmtp:98 sprop-vps=QAEMAf//;"
                 "sprop-sps=QgEB;sprop-pps=RAHB\r\na=control:rtsp://10.0.0.7/a/track1\r\nb=AS:4000\r\n").encode(),
        "jpeg": (head + "m=video 0 RTP/AVP 26\r\na=control:trackID=0\r\na=framesize:26 640-480\r\n").encode(),
        "audio": (head + "m=audio 0 RTP/AVP 0\r\n").encode(),
    }  # fmt: skip


def _conversations() -> dict[str, bytes]:
    body = _descriptions()["h264"]
    described = b"RTSP/1.0 200 OK\r\nCSeq: 2\r\nContent-Base: rtsp://10.0.0.7/a/\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    packet = _rtp(1, 1000, True, SPS)
    frames = b"".join(struct.pack(">cBH", b"$", channel, len(packet)) + packet for channel in (0, 0, 1))
    return {
        "described": b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: OPTIONS, DESCRIBE\r\n\r\n" + described + body,
        "challenge": b'RTSP/1.0 401 Unauthorized\r\nCSeq: 2\r\nWWW-Authenticate: Digest realm="a\\"b", nonce="c", '
                     b'qop="auth,auth-int", algorithm=SHA-256, opaque="d"\r\nWWW-Authenticate: Basic realm="a"\r\n\r\n',
        "request": b"OPTIONS * RTSP/1.0\r\nCSeq: 7\r\n\r\nGET_PARAMETER rtsp://a/ RTSP/1.0\r\nCSeq: 8\r\n"
                   b"Content-Length: 3\r\n\r\nabc",
        "frames": frames + b"RTSP/1.0 200 OK\nCSeq: 9\n\n" + frames + b"stray" + frames,
        "digest": b'RTSP/1.0 401 No\r\nWWW-Authenticate: Digest realm="a", nonce="b", algorithm=MD5-sess\r\n\r\n',
    }  # fmt: skip


def _rtp(sequence: int, timestamp: int, marker: bool, payload: bytes, kind: int = 96) -> bytes:
    return struct.pack(">BBHII", 0x80, marker << 7 | kind, sequence & 0xFFFF, timestamp, 0x1234) + payload


def _record(kind: int, packet: bytes) -> bytes:
    return bytes([kind]) + len(packet).to_bytes(2, "big") + packet


def _stream(first: int) -> bytes:
    """Two access units with all kinds of packets, a sender report, a gap, a duplicate, a BYE."""
    if first % 3 == 1:
        long = nal5(19, b"k" * 80)
        units = [[aggregate5(VPS5, SPS5, PPS5), *fragments5(long, 30, 60)], [nal5(1, b"p" * 20)], [nal5(1)]]
    elif first % 3 == 2:
        head = bytes([0, 0, 0, 0, 1, 80, 8, 8])
        tables = bytes([0, 0, 0, 128]) + bytes(range(1, 65)) * 2
        quality = bytes([0, 0, 0, 0, 1, 255, 8, 8])
        units = [[head + b"scan", bytes([0, 0, 0, 4, 1, 80, 8, 8]) + b"more"], [quality + tables + b"scan"]]
    else:
        units = [
            [stap(SPS, PPS), *fragments(idr(b"i" * 80), 30, 60)],
            [inter(b"p" * 20)],
            [inter(), inter(first=False)],
        ]
    out, sequence = bytes([first]), 65_534
    for number, payloads in enumerate(units):
        for index, payload in enumerate(payloads):
            packet = _rtp(sequence, 9000 * number, index == len(payloads) - 1, payload, 96)
            out += _record(4, packet) + (_record(0, packet) if number == 1 else b"")
            sequence += 1 + (number == 1)
        report = struct.pack(">BBHIIIIII", 0x80, 200, 6, 0x1234, 3_900_000_000, 1 << 31, 9000 * number, 9, 999)
        out += _record(1, report) + _record(42, b"")
    return out + _record(1, struct.pack(">BBHI", 0x81, 203, 1, 0x1234))


if __name__ == "__main__":
    main()
