"""Codec × container × B pictures × key frames × kind of group: every frame is the one that is shown, and sound keeps step."""

from itertools import product

import av
import numpy as np
import pytest
import streams
from streams import X264, X265, delays, told

from avfmae.data.sources import open_clip

SOUNDS = {"mp4": "aac", "mov": "pcm_s16le", "mkv": "aac", "avi": "pcm_s16le", "webm": "libopus", "ts": "mp2", "mpg": "mp2",
          "3gp": "aac", "flv": "aac", "wmv": "wmav2"}  # fmt: skip
CODECS = {  # name: (encoder, containers, whether it has B pictures, whether it has open groups)
    "h264": ("libx264", "mp4 mov mkv avi ts mpg 3gp flv wmv", True, True),
    "hevc": ("libx265", "mp4 mov mkv ts mpg flv", True, True),
    "mpeg4": ("mpeg4", "mp4 mov mkv avi ts 3gp wmv", True, True),
    "mpeg2": ("mpeg2video", "mp4 mov mkv avi ts mpg wmv", True, True),
    "vp8": ("libvpx", "mkv avi webm", True, False),
    "vp9": ("libvpx-vp9", "mp4 mkv avi webm flv", True, False),
    "av1": ("libsvtav1", "mp4 mkv avi webm flv wmv", True, True),
    "ffv1": ("ffv1", "mkv avi", False, False),
    "dv": ("dvvideo", "mov avi", False, False),
    "mjpeg": ("mjpeg", "mov mkv avi wmv", False, False),
}
CASES = [
    pytest.param(codec, container, backward, keys, group, id=f"{codec}-{container}-{'b' if backward else 'no b'}-{keys}-{group}")
    for codec, (_, containers, has_b, has_open) in CODECS.items()
    for container, backward, keys, group in product(
        containers.split(), (False, True)[: 1 + has_b], ("one key", "many keys"), ("closed", "open")[: 1 + has_open]
    )
    if not (keys == "one key" and (group == "open" or codec in ("dv", "mjpeg")))
]


def options(codec: str, backward: bool, keys: str, group: str) -> dict[str, str]:
    interval, is_open = 250 if keys == "one key" else 12, int(group == "open")
    if codec == "h264":
        x264 = X264.replace("bframes=3", f"bframes={3 * backward}")
        return {"preset": "ultrafast", "x264-params": f"{x264}:keyint={interval}:open-gop={is_open}"}
    if codec == "hevc":
        x265 = X265.replace("bframes=4", f"bframes={4 * backward}").replace("keyint=12:keyint=12", f"keyint=12:keyint={interval}")
        return {"preset": "ultrafast", "x265-params": f"{x265}:open-gop={is_open}"}
    if codec in ("vp8", "vp9"):
        hidden = {"auto-alt-ref": str(int(backward)), "lag-in-frames": str(16 * backward)}
        return {"g": str(interval), "b": "300k", "cpu-used": "8", **hidden}
    if codec == "av1":
        refresh = 2 - is_open
        shape = f"lp=1:keyint={interval}:irefresh-type={refresh}" + ("" if backward else ":pred-struct=1")
        return {"preset": "12", "crf": "25", "svtav1-params": shape}
    plain = {"g": str(interval), "bf": str(2 * backward), "b": "600k", "sc_threshold": "1000000000"}
    return plain if is_open else plain | {"flags": "+cgop"}


@pytest.mark.parametrize(("codec", "container", "backward", "keys", "group"), CASES)
def test_frames_and_sound_are_those_that_are_shown(codec, container, backward, keys, group, tmp_path):
    encoder, path = CODECS[codec][0], tmp_path / f"clip.{container}"
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {encoder}")
    size = (576, 720) if codec == "dv" else (64, 112)
    how = {} if codec in ("dv", "mjpeg") else options(codec, backward, keys, group)
    streams.write(path, encoder, how, count=40, size=size, sound=SOUNDS[container], strict="-2")
    source = open_clip(path)
    times = source.info.times
    assert len(times) == 40 and np.abs(times - times[0] - np.arange(40) / 25).max() < 0.002
    for numbers in ([*range(40)], [27, 28, 36], [11, 12, 13], [39], [5, 9, 30, 30]):
        assert [told(frame) for frame in source.frames(numbers)] == numbers
    for start in (0.0, 0.7):
        late = delays(source.sound(times[0] + start, times[0] + start + 0.8)) + start
        assert len(late) >= 3 and np.abs(late).max() < 0.010, late
