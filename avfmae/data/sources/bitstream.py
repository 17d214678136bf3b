"""What coded pictures say of themselves: at which of them decoding can begin, and on which of them no other depends.

A container marks key frames, but its mark promises less than a reader needs. Decoding may begin at one only if
every picture that is *shown* from it on comes out as it does when all of the file is decoded. Pictures shown before it, though
coded after it (leading pictures, of an open group), are never taken from there.
"""

from collections.abc import Iterator

import av

BACKWARD = {"mpeg1video": b"\0\0\1\0", "mpeg2video": b"\0\0\1\0", "mpeg4": b"\0\0\1\xb6"}
"""Codecs whose B pictures are shown before the picture that is coded before them, and the code at which a picture begins."""

IN_ORDER = {"flv1", "vp8", "vp9", "av1", "mjpeg", "prores", "ffv1", "rawvideo", "wmv1", "wmv2", "msmpeg4v2", "msmpeg4v3",
            "png", "huffyuv"}  # fmt: skip
"""Codecs whose packets come in the order of showing, and behind whose key frames nothing refers to what was before."""

SLICE, IDR_SLICE, SUPPLEMENT = 1, 5, 6  # H.264's types of units
RECOVERY_POINT = 6  # H.264's type of supplement
HEVC_ACCESS, HEVC_IDR_ALONE = range(16, 24), 20  # HEVC's types of pictures for random access; the one without leading pictures


def length_size(stream: av.VideoStream) -> int:
    """How many bytes hold the length of each unit of an H.264 or HEVC stream; 0 where units are parted by start codes."""
    codec, setup = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    place = {"h264": 4, "hevc": 21}.get(codec, 0)
    return (setup[place] & 3) + 1 if place and len(setup) > place and setup[0] == 1 else 0


def units(packet: bytes | av.Packet, size: int) -> Iterator[memoryview]:
    """The units of a packet whose lengths take ``size`` bytes each; where ``size`` is 0, start codes part them."""
    if not size:
        yield from map(memoryview, bytes(packet).split(b"\0\0\1")[1:])
        return
    data, at = memoryview(packet), 0
    while at + size < len(data):
        end = at + size + int.from_bytes(data[at : at + size], "big")
        yield data[at + size : end]
        at = end


def is_disposable(packet: bytes | av.Packet, size: int = 4) -> bool:
    """Whether no other frame is predicted from this one: an H.264 picture all of whose slices have nal_ref_idc 0."""
    ranks = [unit[0] >> 5 & 3 for unit in units(packet, size) if len(unit) and unit[0] & 31 in (SLICE, IDR_SLICE)]
    return bool(ranks) and not any(ranks)


def is_backward(packet: av.Packet, codec: str) -> bool:
    """Whether this is a B picture of MPEG-1, 2 or 4."""
    data = bytes(packet)
    at = data.find(BACKWARD[codec]) + 4
    if at < 4 or at + 1 >= len(data):
        return False
    return data[at] >> 6 == 2 if codec == "mpeg4" else data[at + 1] >> 3 & 7 == 3


def is_packed(packet: av.Packet, codec: str) -> bool:
    """Whether a packet of MPEG-4 holds two pictures, as XviD's in AVI may: the order of showing cannot be told from outside."""
    return codec == "mpeg4" and bytes(packet).count(BACKWARD[codec]) > 1


def is_reset(packet: av.Packet, codec: str, size: int) -> bool:
    """Whether nothing that follows this H.264 or HEVC picture, in whatever order, depends on what was before it, nor is shown
    before it."""
    if codec == "hevc":
        return any(unit[0] >> 1 & 63 == HEVC_IDR_ALONE for unit in units(packet, size) if len(unit))
    return any(unit[0] & 31 == IDR_SLICE for unit in units(packet, size) if len(unit))


def begins_anew(packet: av.Packet, codec: str, size: int) -> bool:
    """Whether what is shown from this frame on depends on nothing before it.

    Args:
        codec: its canonical name. size: as :func:`length_size` gives it.
    """
    if not packet.is_keyframe:
        return False
    if codec not in ("h264", "hevc"):
        return codec in IN_ORDER or codec in BACKWARD
    coded = [unit for unit in units(packet, size) if len(unit) > 1]
    if codec == "hevc":
        kinds = [unit[0] >> 1 & 63 for unit in coded]
        return any(kind in HEVC_ACCESS for kind in kinds if kind < 32)
    return is_reset(packet, codec, size) or any(_recovers(bytes(unit)) for unit in coded if unit[0] & 31 == SUPPLEMENT)


def _recovers(unit: bytes) -> bool:
    """Whether a supplement promises that every picture from this one on is exact: a recovery point with recovery_frame_cnt 0."""
    data, at = unit.replace(b"\0\0\3", b"\0\0"), 1
    while at + 2 < len(data):
        numbers = []
        for _ in range(2):  # type and size, each in bytes of 255 and a last one
            number = 0
            while at < len(data) and data[at] == 255:
                number, at = number + 255, at + 1
            numbers.append(number + data[at] if at < len(data) else number)
            at += 1
        kind, length = numbers
        if kind == RECOVERY_POINT:
            return at < len(data) and data[at] & 0b11000000 == 0b11000000  # frame_cnt 0 is one bit; then exact_match_flag
        at += length
    return False
