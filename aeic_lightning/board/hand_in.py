"""A submission from a model of this package: the row of ours goes through the same door as all others."""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from aeic_lightning.board.submission import FILE, MEAN
from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.files import file_name, shipped_models, write_whole
from aeic_lightning.metrics.table import find_metric
from aeic_lightning.study.measurement import Images, Measurement, Sample
from aeic_lightning.study.results import Result

DECODE = """from pathlib import Path

from aeic_lightning import Codec

codec = Codec.from_pretrained({model})
codec.decompress(Path("stream").read_bytes()).save("picture.png")
"""
ENCODE = """from pathlib import Path

from PIL import Image

from aeic_lightning import Codec

codec = Codec.from_pretrained({model})
Path("stream").write_bytes(codec.compress(Image.open("image.png"), bpp={bpp!r}))
"""


def hand_in(model: str, bpp: float, images: Images, measure: Measurement, board: Path) -> Path:
    """Write a submission of a model at a rate into the folder of a board, and return its folder.

    Args:
        model: as `Codec.from_pretrained` takes it; weights of one's own are copied into the decoder.
        bpp: bits per pixel that no file exceeds.
        images: of the board.
        measure: the metrics to claim.
        board: the folder of submissions.

    Raises UserError where the submission exists, or the model cannot be so small.
    """
    shipped = model in shipped_models()
    label = model if shipped else Path(model).stem
    folder = board / file_name(f"{label} at {bpp:g} bpp")
    if folder.exists():
        raise UserError(f"{folder} exists; remove it, or choose another rate")
    codec = Codec.from_pretrained(model)
    streams: dict[str, bytes] = {}

    def samples() -> Iterator[Sample]:
        for name, x in images:
            streams[name] = codec.compress(x.permute(1, 2, 0).numpy(), bpp=bpp)
            x_hat = torch.from_numpy(codec.decompress_array(streams[name])).permute(2, 0, 1).contiguous()
            yield Sample(name, x, x_hat, len(streams[name]))

    result = Result(name=label, kind="checkpoint", labels={}, **measure.of(samples()))
    for name, stream in streams.items():
        write_whole(folder / "streams" / f"{name}.aeic", stream)
    used = json.dumps(model if shipped else "decoder/model")
    if not shipped:
        (folder / "decoder" / "model").mkdir(parents=True)
        codec.write(folder / "decoder" / "model", label, "float32")
    write_whole(folder / "decoder" / "decode.py", DECODE.format(model=used))
    write_whole(folder / "decoder" / "encode.py", ENCODE.format(model=used, bpp=bpp))
    write_whole(folder / "claims.csv", claims_of(result))
    settings = {"name": f"{label} at {bpp:g} bpp", "labels": {"codec": label, "target": bpp}}
    settings |= {"decode": "python decoder/decode.py", "encode": "python decoder/encode.py"}
    write_whole(folder / FILE, yaml.safe_dump(settings, sort_keys=False))
    return folder


def claims_of(result: Result) -> str:
    """`claims.csv` of a result: every figure rounded to the decimals that tables have, and one more."""
    columns = [name for name in result.metrics if find_metric(name)]
    of_set = [name for name, value in result.set_metrics.items() if value["value"] is not None]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "bytes", "bpp", *columns, *of_set])
    for row in result.images:
        figures = [_rounded(name, row[name]) if name in row else "" for name in columns]
        table.writerow([row["name"], row["bytes"], _rounded("bpp", row["bpp"]), *figures, *("" for _ in of_set)])
    size = math.fsum(row["bytes"] for row in result.images) / len(result.images)
    means = [_rounded(name, result.metrics[name]["mean"]) for name in ("bpp", *columns)]
    of_set = [_rounded(name, result.set_metrics[name]["value"]) for name in of_set]
    table.writerow([MEAN, f"{size:.2f}", *means, *of_set])
    return text.getvalue()


def _rounded(name: str, value: float) -> str:
    metric = find_metric(name)
    return f"{value:.{metric.digits + 1 if metric else 5}f}"
