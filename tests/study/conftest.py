"""Run folders as `fit` leaves them, with figures of our choosing."""

import json
from dataclasses import asdict

import pytest
import yaml
from PIL import Image


@pytest.fixture
def make_run(tmp_path, codec_config, decoder_config):
    """Build a run folder; `images` are rows, or one "cat" is made of psnr and crc32."""

    def make(name="run", psnr=20.0, crc32=7, images=None, role="Teacher", rate=1.0, seed=0, labels=None, settings=None):
        folder = tmp_path / name
        (folder / "reconstructions").mkdir(parents=True)
        cat = {"name": "cat", "height": 8, "width": 16, "crc32": crc32, "bpp_estimate": 0.1, "psnr": psnr}
        images = images or [cat]
        described = ("name", "height", "width", "crc32", "bytes")
        means = {}
        for key in dict.fromkeys(key for row in images for key in row if key not in described):
            column = [row[key] for row in images if key in row]
            means[key] = {"mean": sum(column) / len(column), "images": len(column)}
        figures = {"step": 5, "images": images, "metrics": means, "set_metrics": {}}
        figures["metric_info"] = {name: {"backbone": None, "version": "1", "options": {}} for name in means}
        (folder / "metrics_val.json").write_text(json.dumps(figures))
        record = {"command": f"fit {name}", "git": None, "seed": seed, "versions": {"torch": "2"}}
        (folder / "run.json").write_text(json.dumps(record))
        init_args = {"codec": asdict(codec_config), "decoder": asdict(decoder_config), "loss": {"rate": rate}}
        init_args |= {"labels": labels} | (settings or {})
        model = {"class_path": f"aeic_lightning.systems.{role}System", "init_args": init_args}
        (folder / "config.yaml").write_text(yaml.safe_dump({"model": model}))
        for image in images:
            for file in (image["name"], f"{image['name']}_original"):
                picture = folder / "reconstructions" / f"{file.replace('/', '__')}.png"
                Image.new("RGB", (image["width"], image["height"])).save(picture)
        return folder

    return make
