"""Exported files whose convolutions compute in 8-bit whole numbers."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from ssd_lightning.deploy.export import INPUT, METADATA_KEY, quiet, require_packages, with_checksum
from ssd_lightning.run_folder import written_whole

QUANTIZED = ("Conv", "Relu", "Clip", "MaxPool")
"""Operators that get 8-bit inputs. The activations are among them, so that they are merged with their convolutions."""


def quantize_onnx(
    path: Path | str, target: Path | str, images: Iterable[UInt8[Tensor, "batch 3 height width"]]
) -> None:
    """Write an exported file again, with convolutions in 8-bit whole numbers.

    ONNX Runtime's static quantization finds the range of each feature map on some pictures. Weights have a scale for
    each channel. Decoding and suppression stay as they are.

    Args:
        path: a file of :func:`~ssd_lightning.deploy.export.export_onnx`.
        target: file to write.
        images: batches of pictures at the input size, which resemble those that the detector will see.

    Raises:
        ValueError: if a package of the extra ``export`` is missing.
        OSError: if the file cannot be written.
    """
    require_packages("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):
        """The pictures, as the quantizer asks for them."""

        def __init__(self) -> None:
            self.batches: Iterator[Any] = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            """Return the next input, or None after the last one."""
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: np.ascontiguousarray(batch)}

    with TemporaryDirectory() as folder, quiet():
        quantized = Path(folder) / "quantized.onnx"
        quantize_static(
            str(path),
            str(quantized),
            Pictures(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        proto = onnx.load(quantized)
    about = {entry.key: entry.value for entry in proto.metadata_props}
    content = {**json.loads(about[METADATA_KEY]), "int8": True}
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps(content, ensure_ascii=False)})
    with written_whole(Path(target)) as file:
        file.write(with_checksum(proto))
