"""AetherNet in VapourSynth, in the manner of vs-mlrt's `vsmlrt.py`."""

from __future__ import annotations

from typing import Any

import vapoursynth as vs

# vs-mlrt cuts so many pixels off the result, not off the clip: at 4x this leaves 16
# pixels of the clip around each part, the context of `aethernet upscale`, at 2x more.
OVERLAP = 64


def AetherNet(  # noqa: N802 - as the functions in vsmlrt.py
    clip: vs.VideoNode,
    network_path: str,
    tilesize: tuple[int, int] | None = None,
    overlap: int | tuple[int, int] = OVERLAP,
    backend: Any = None,
) -> vs.VideoNode:
    """Upscale a clip with an ONNX file that `aethernet export` wrote.

    Args:
        clip: RGB with 32 bits (RGBS); with 16 (RGBH) for a file in float16.
        network_path: of the ONNX file, with free sizes.
        tilesize: width and height of the parts that the network sees at once; None:
            the whole frame.
        overlap: pixels on each side of a part that its neighbours also have; used with
            `tilesize`.
        backend: one of `vsmlrt.Backend`, e.g. `Backend.TRT(fp16=True)`; None: ONNX
            Runtime on the processor, which needs the plugin `ort`, not vsmlrt.

    Returns:
        An RGB clip, as many times as large as the network upscales, not clamped.

    Raises:
        ValueError: when the clip has another format.
    """
    if clip.format is None or clip.format.id not in (vs.RGBS, vs.RGBH):
        raise ValueError("AetherNet: the clip has to be RGBS, or RGBH for float16.")
    around = (overlap, overlap) if isinstance(overlap, int) else overlap
    if tilesize is None:
        tilesize, around = (clip.width, clip.height), (0, 0)
    if backend is None:
        return vs.core.ort.Model(
            [clip],
            network_path=network_path,
            overlap=list(around),
            tilesize=list(tilesize),
            provider="CPU",
        )
    import vsmlrt

    return vsmlrt.inference(
        clip,
        network_path=network_path,
        overlap=around,
        tilesize=tilesize,
        backend=backend,
    )
