#!/usr/bin/env python3
"""Fetches the third-party models that the slow tests and the benchmarks use.

Each model comes out of a package on PyPI, named with its version; its SHA-256 is checked
before it is put into testdata/models. Nothing is fetched that is already there.

    python3 testdata/fetch.py            all of them
    python3 testdata/fetch.py NAME ...   only these
"""

import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

# name: (package==version, path inside the package, SHA-256, license)
MODELS = {
    "ppocr_mobile_cls": (
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        "Apache-2.0",
    ),
    "ppocrv4_det": (
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        "Apache-2.0",
    ),
    "ppocrv4_rec": (
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        "Apache-2.0",
    ),
    "magika_v3_3": (
        "magika==1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
        "Apache-2.0",
    ),
    "basic_pitch_nmp": (
        "basic-pitch==0.4.0",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec",
        "Apache-2.0",
    ),
    "silero_vad": (
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad.onnx",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        "MIT",
    ),
    "silero_vad_16k_sequence": (
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_16k_sequence.onnx",
        "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
        "MIT",
    ),
    "brainmaze_spindle_eeg": (
        "brainmaze-eeg-models==0.1.0",
        "brainmaze_eeg_models/spindles/_models/spindle-detector-eeg.onnx",
        "8368ef11554dda32178d65320c5b4690456c5c6cebd207d4ba0e68d3d5179e81",
        "BSD-3-Clause",
    ),
    "brainmaze_seizure_A": (
        "brainmaze-eeg-models==0.1.0",
        "brainmaze_eeg_models/seizure/_models/modelA_paper.onnx",
        "088c815a10b54435432a0bef2629977d59e655a0c60b48a89e744aa52b6d48e3",
        "MIT",
    ),
}

TARGET = pathlib.Path(__file__).resolve().parent / "models"


def fetch(package: str, names: list[str]) -> None:
    """Downloads one package and takes the named models out of it."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package],
            check=True,
        )
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in names:
                _, inner, digest, _ = MODELS[name]
                content = archive.read(inner)
                found = hashlib.sha256(content).hexdigest()
                if found != digest:
                    sys.exit(f"{name}: SHA-256 is {found}, expected {digest}; nothing is written")
                TARGET.mkdir(exist_ok=True)
                (TARGET / f"{name}.onnx").write_bytes(content)
                print(f"{name}: {len(content)} bytes from {package}")


def main() -> None:
    wanted = sys.argv[1:] or list(MODELS)
    unknown = [name for name in wanted if name not in MODELS]
    if unknown:
        sys.exit(f"no such model: {', '.join(unknown)}; there are {', '.join(MODELS)}")
    packages: dict[str, list[str]] = {}
    for name in wanted:
        if not (TARGET / f"{name}.onnx").exists():
            packages.setdefault(MODELS[name][0], []).append(name)
    for package, names in packages.items():
        fetch(package, names)


if __name__ == "__main__":
    main()
