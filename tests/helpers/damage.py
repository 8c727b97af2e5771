"""What a failing disk does to files."""

from pathlib import Path


def flip(path: Path, at: int = -1) -> None:
    """Change one bit of a file: of its last byte, which is a tensor's, or of another one."""
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
