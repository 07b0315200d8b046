"""What a broadcast says of its channels: carried, or named."""

import random
import struct

import pytest
from video_beside import h264
from video_helpers import FrameRepeat, av, make_clip

from aethernet.commands.main import main
from aethernet.video.services import read_broadcast
from aethernet.video.upscale import upscale_video

NULL, SERVICES, TIME, NETWORK, EVENTS, CHANNELS = 0x1FFF, 0x11, 0x14, 0x10, 0x12, 0x1FFB
PROGRAM = 1  # libav's number for the only one
PICTURE = 0x100  # and for its stream


def checksum(data):
    """CRC-32 of MPEG-2, as a division of polynomials."""
    number = int.from_bytes(data, "big") << 32
    number ^= 0xFFFFFFFF << 8 * len(data)
    for place in range(8 * len(data) + 31, 31, -1):
        if number >> place & 1:
            number ^= 0x104C11DB7 << (place - 32)
    return struct.pack(">I", number)


def section(table, number, content):
    length = 5 + len(content) + 4
    data = struct.pack(">BHHBBB", table, 0xB000 | length, number, 0xC1, 0, 0) + content
    return data + checksum(data)


def packets(stream, data, counter=0):
    """A section in packets of 188 bytes."""
    data, made, begins = b"\0" + data, b"", 0x4000
    while data:
        flags = 0x10 | counter & 0xF
        head = struct.pack(">BHB", 0x47, begins | stream, flags)
        made += head + data[:184].ljust(184, b"\xff")
        data, begins, counter = data[184:], 0, counter + 1
    return made


def service(name, provider=b"", program=PROGRAM, network=0x2114, filling=0):
    """A table with one service, behind a descriptor of so many bytes."""
    texts = b"\1" + bytes([len(provider)]) + provider + bytes([len(name)]) + name
    descriptors = bytes([0x5D, filling]) + bytes(filling) if filling else b""
    descriptors += bytes([0x48, len(texts)]) + texts
    row = struct.pack(">HBH", program, 0xFC, 0x8000 | len(descriptors)) + descriptors
    return section(0x42, 1, struct.pack(">HB", network, 0xFF) + row)


def broadcast(path, *added):
    """A transport stream whose own table of services is replaced by these packets."""
    content = bytearray(h264(path, size=(64, 32)).read_bytes())
    for at in range(0, len(content), 188):
        if (content[at + 1] & 0x1F) << 8 | content[at + 2] == SERVICES:
            content[at + 1] |= 0x1F
            content[at + 2] = 0xFF
    made = bytes(content[:564]) + b"".join(added) + bytes(content[564:])
    path.write_bytes(made)
    return path


def with_times(path):
    """The same as discs store it: each packet behind four bytes of time."""
    content = path.read_bytes()
    units = [content[at : at + 188] for at in range(0, len(content), 188)]
    path.write_bytes(b"".join(struct.pack(">I", n) + u for n, u in enumerate(units)))
    return path


def metadata(path):
    with av.open(str(path)) as container:
        return {key.lower(): value for key, value in container.metadata.items()}


TEXTS = {
    "Arte": b"Arte",
    "München": b"M\xc8unchen",
    "Čás Łódź €ø": b"\xcfC\xc2as \xe8\xc2od\xc2z \xa4\xf9",
    "Первый": b"\1" + "Первый".encode("iso8859_5"),
    "Ελλάς": b"\3" + "Ελλάς".encode("iso8859_7"),
    "Żółty": b"\x10\0\2" + "Żółty".encode("iso8859_2"),
    "東京": b"\x11" + "東京".encode("utf-16-be"),
    "한국": b"\x12" + "한국".encode("euc_kr"),
    "中文": b"\x13" + "中文".encode("gb2312"),
    "Ünïcode 東": b"\x15" + "Ünïcode 東".encode(),
    "as older programs write: é": "as older programs write: é".encode(),
    "emphasis here": b"\x86emphasis\x87\x8ahere",
}


@pytest.mark.parametrize("text", TEXTS)
def test_each_coding_of_texts_is_read(tmp_path, text):
    table = service(TEXTS[text], b"\x15" + "Länder".encode())
    path = tmp_path / "tables.ts"
    path.write_bytes(program() + packets(SERVICES, table) + packets(NULL, b""))
    found = read_broadcast(path, PICTURE)
    assert found.metadata == {"service_provider": "Länder", "service_name": text}
    assert not found.others


def program():
    """Tables of a program with one stream of pictures."""
    streams = struct.pack(">HHBHH", 0xE100, 0xF000, 0x1B, 0xE000 | PICTURE, 0xF000)
    return packets(0, section(0, 1, struct.pack(">2H", PROGRAM, 0xE020))) + packets(
        0x20, section(2, PROGRAM, streams)
    )


@pytest.mark.parametrize("as_disc", [False, True])
def test_a_name_is_carried_to_its_place_or_named(tmp_path, as_disc, caplog):
    table = service(b"\x15" + "Ünser Kanal".encode(), b"Die Anstalt", filling=200)
    clip = broadcast(tmp_path / "in.ts", packets(SERVICES, table))
    clip = with_times(clip) if as_disc else clip
    expected = {
        ".mkv": ("service_name", "service_provider"),
        ".webm": ("service_name", "service_provider"),
        ".mp4": ("network", None),
        ".mov": (None, None),
    }
    for suffix, keys in expected.items():
        caplog.clear()
        target = tmp_path / f"out{suffix}"
        upscale_video(clip, target, FrameRepeat())
        values = ("Ünser Kanal", "Die Anstalt")
        names = ("service_name", "service_provider")
        for key, value, name in zip(keys, values, names, strict=True):
            if key:
                assert metadata(target)[key] == value
            assert (name in caplog.text) == (key is None), (suffix, caplog.text)


def test_what_has_no_place_is_named_in_one_warning(tmp_path, caplog):
    two = section(0, 1, struct.pack(">4H", PROGRAM, 0xE020, 2, 0xE021))
    other = struct.pack(">HHBHH", 0xE200, 0xF000, 0x1B, 0xE200, 0xF000)
    clip = broadcast(
        tmp_path / "in.ts",
        packets(0, two, counter=5),
        packets(0x21, section(2, 2, other)),
        packets(SERVICES, service(b"\x1f\1abc")),
        packets(SERVICES, service(b"Other", program=2), counter=1),
        packets(NETWORK, section(0x40, 9, b"\xf0\0\xf0\0")),
        packets(TIME, bytes.fromhex("7070051234567890")),
    )
    target = tmp_path / "out.mkv"
    assert main(["upscale", str(clip), "-o", str(target)]) == 0
    texts = [record.getMessage() for record in caplog.records]
    (line,) = [text for text in texts if "left out " in text]
    for name in (
        "the service name, of an unknown coding",
        "names of other services",
        "the division into 2 programs",
        "the description of the network",
        "the time of the broadcast",
    ):
        assert name in line


def test_the_program_guide_is_named(tmp_path, caplog):
    event = struct.pack(">H5s3sH", 1, bytes(5), b"\0\1\0", 0x8000)
    table = section(0x4E, 1, struct.pack(">HHBB", 1, 1, 0, 0x4E) + event)
    clip = broadcast(tmp_path / "in.ts", packets(EVENTS, table))
    upscale_video(clip, tmp_path / "out.mkv", FrameRepeat())
    assert "(data, program guide) is left out" in caplog.text


@pytest.mark.parametrize("network", [4, 0x7FE0])
def test_texts_of_japan_are_not_read_as_others(tmp_path, network):
    path = tmp_path / "tables.ts"
    table = service(b"\x46\x7c\x4b\x5c", network=network)  # would be "F|K\"
    path.write_bytes(program() + packets(SERVICES, table) + packets(NULL, b""))
    found = read_broadcast(path, PICTURE)
    assert not found.metadata
    assert found.others == {"the service name, of an unknown coding"}


def test_a_channel_of_america(tmp_path, caplog):
    name = "WDØ-HD".encode("utf-16-be").ljust(14, b"\0")
    row = name + bytes(10) + struct.pack(">HHHH", PROGRAM, 0, 1, 0xFC00)
    table = section(0xC8, 1, b"\0\1" + row + b"\xfc\0")
    clip = broadcast(tmp_path / "in.ts", packets(CHANNELS, table))
    upscale_video(clip, tmp_path / "out.mkv", FrameRepeat())
    assert metadata(tmp_path / "out.mkv")["service_name"] == "WDØ-HD"
    assert caplog.text == ""


@pytest.mark.parametrize("damage", ["bit", "missing", "length", "cut"])
def test_a_damaged_table_is_not_used(tmp_path, damage):
    table = bytearray(service(b"Long name " * 20))
    sent = packets(SERVICES, bytes(table))
    if damage == "bit":
        table[-20] ^= 4
        sent = packets(SERVICES, bytes(table))
    elif damage == "missing":  # the second packet
        sent = sent[:188] + sent[376:]
    elif damage == "length":
        inside = service(b"abc")[:-4]
        inside = inside[:-5] + b"\xff" + inside[-4:]
        sent = packets(SERVICES, inside + checksum(inside))
    else:
        sent = sent[:188]
    clip = broadcast(tmp_path / "in.ts", sent)
    found = read_broadcast(clip, PICTURE).metadata
    assert found.get("service_name", "abc") == "abc"
    upscale_video(clip, tmp_path / "out.mkv", FrameRepeat())
    assert "Long" not in str(metadata(tmp_path / "out.mkv"))


def test_bytes_that_are_missing_do_not_hide_what_follows(tmp_path):
    path = tmp_path / "tables.ts"
    late = packets(NULL, b"") * 9 + packets(SERVICES, service(b"Late"))
    begun = program() + packets(NULL, b"") * 4
    path.write_bytes(begun + packets(NULL, b"")[:77] + late + packets(NULL, b""))
    assert read_broadcast(path, PICTURE).metadata["service_name"] == "Late"


def test_noise_costs_no_traceback(tmp_path):
    noise = random.Random(7)
    path = tmp_path / "noise.ts"
    tables = [service(b"a"), section(0xC8, 1, b"\0\xff"), section(0, 1, b"\0\1\xe0")]
    for _ in range(60):
        content = bytearray()
        for _ in range(40):
            body = bytearray(noise.choice(tables)[:-4])
            for _ in range(noise.randrange(4)):
                body[noise.randrange(3, len(body))] = noise.randrange(256)
            number = noise.choice((0, SERVICES, CHANNELS, 0x20))
            whole = bytes(body) + checksum(bytes(body))
            content += packets(number, whole, noise.randrange(16))
        path.write_bytes(content)
        read_broadcast(path, PICTURE)
    path.write_bytes(b"\x47" * 100_000)
    assert not read_broadcast(path, PICTURE).metadata
    path.write_bytes(b"")
    assert not read_broadcast(path, PICTURE).metadata


def test_other_formats_have_no_services(tmp_path, caplog):
    clip = make_clip(tmp_path / "in.mkv", 2)
    upscale_video(clip, tmp_path / "out.mkv", FrameRepeat())
    assert "service" not in str(metadata(tmp_path / "out.mkv"))
    assert caplog.text == ""
