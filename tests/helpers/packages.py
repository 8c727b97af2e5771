"""Small packages, laid down as an installer does it: their files, and a list of them (RECORD)."""

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

OURS = '''
from dataclasses import dataclass
from pathlib import Path
import grandrounds as gr

Path(__file__).with_suffix(".imported").touch()

@dataclass(frozen=True)
class OurMethod(gr.Method):
    """Each site goes on from its own model, pulled towards the mean."""
    strength: float = 0.1

    def train(self, site: gr.LocalRound) -> gr.Update:
        site.restart(site.kept("personal") or site.first)
        update = site.train(gr.Pull(self.strength, towards=site.start))
        return update.keeping(personal=update.model)
'''
WORD = "our_methods:OurMethod"


def was_imported(folder: Path) -> bool:
    """Tell whether the method that was laid down in a folder was ever imported from there."""
    return (folder / "our_methods.imported").exists()


def lay_down(
    folder: Path,
    name: str = "our-methods",
    version: str = "0.3.1",
    *,
    files: Mapping[str, str] | None = None,
    points: str = "",
) -> Path:
    """Install a package into a folder, by default one with a method of its own."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    written = dict(files if files is not None else {"our_methods.py": OURS})
    written[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if points:
        written[f"{info}/entry_points.txt"] = points
    for path, text in written.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    lines = [*(f"{path},{_of(text)}" for path, text in written.items()), f"{info}/RECORD,,"]
    (folder / info / "RECORD").write_text("\n".join(lines) + "\n")
    return folder


def _of(text: str) -> str:
    digest = urlsafe_b64encode(sha256(text.encode()).digest()).rstrip(b"=").decode()
    return f"sha256={digest},{len(text.encode())}"
