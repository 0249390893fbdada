"""Write the site: page, runtime, graphs and tables.

index.html, page.js, worker.js, codec.js    as they are in this package
ort.wasm.min.mjs, ort-wasm-*.mjs            onnxruntime-web
codec.json                                  manifest, tables, and the files below
*.gz                                        graphs and the runtime, named by their digest
"""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole

RUNTIME, RUNTIME_VERSION = "onnxruntime-web", "1.30.0"
RUNTIME_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
MODULES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs")
BINARY = "ort-wasm-simd-threaded.wasm"
OWN = ("index.html", "page.js", "worker.js", "codec.js")


def write_site(halves: Path, folder: Path, runtime: Path) -> dict[str, int]:
    """Write a site into `folder`; returns the bytes of its packed files by name.

    Args:
        halves: an ONNX export of the model.
        folder: exists.
        runtime: the npm package, as `fetch_runtime` gives it.

    Raises UserError where the runtime is another.
    """
    graphs = {path.stem: path for half in ("receive", "send") for path in sorted((halves / half).glob("*.onnx"))}
    manifest = json.loads((halves / "receive" / "manifest.json").read_text())
    tables = (halves / "send" / "tables.json").read_text()
    golden = json.loads((halves / "golden" / "golden.json").read_text())
    listed: dict[str, bytes] = {}
    for name, content in _runtime_files(runtime).items():
        if name == BINARY:
            listed["runtime"] = content
        else:
            write_whole(folder / name, content)
    listed |= {name: path.read_bytes() for name, path in graphs.items()}
    files = {}
    for name, content in listed.items():
        packed = gzip.compress(content, 6, mtime=0)
        url = f"{name}.{hashlib.sha256(packed).hexdigest()[:16]}.gz"
        write_whole(folder / url, packed)
        files[name] = {"url": url, "bytes": len(packed)}
    kept = {key: manifest.get(key) for key in ("fingerprint", "levels", "tiling")}
    channels = golden["cases"][0]["y_shape"][1]
    document = {"manifest": kept, "tables": json.loads(tables) | {"channels": channels}, "files": files}
    write_whole(folder / "codec.json", json.dumps(document, separators=(",", ":")))
    for name in OWN:
        write_whole(folder / name, Path(__file__).with_name(name).read_bytes())
    return {name: file["bytes"] for name, file in files.items()}


def _runtime_files(runtime: Path) -> dict[str, bytes]:
    check_runtime(runtime)
    with tarfile.open(runtime) as archive:
        members = {name: archive.extractfile(f"package/dist/{name}") for name in (*MODULES, BINARY)}
        return {name: member.read() for name, member in members.items() if member is not None}


def check_runtime(path: Path) -> None:
    """Raise UserError unless the file is the release of onnxruntime-web that is pinned here."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; it is what `npm pack {RUNTIME}@{RUNTIME_VERSION}` writes")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != RUNTIME_SHA256:
            raise UserError(f"{path} is not {RUNTIME} {RUNTIME_VERSION}; fetch it with `npm pack`")


def fetch_runtime() -> Path:
    """The npm package of onnxruntime-web: from the cache, else by `npm pack`. Raises UserError where that fails."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    kept = Path(cache, "aeic_lightning", f"{RUNTIME}-{RUNTIME_VERSION}.tgz")
    if kept.is_file():
        check_runtime(kept)
        return kept
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"the site needs {RUNTIME} {RUNTIME_VERSION} and there is no npm: fetch its package elsewhere with "
            f"`npm pack {RUNTIME}@{RUNTIME_VERSION}`, and name the file with --runtime"
        )
    with tempfile.TemporaryDirectory() as folder:
        words = [npm, "pack", "--silent", f"{RUNTIME}@{RUNTIME_VERSION}"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        made = Path(folder, kept.name)
        if done.returncode or not made.is_file():
            reason = " ".join((done.stderr or done.stdout).split())[:200]
            raise UserError(f"npm cannot fetch {RUNTIME} {RUNTIME_VERSION}: {reason}; or name its package: --runtime")
        check_runtime(made)
        write_whole(kept, made.read_bytes())
    return kept
