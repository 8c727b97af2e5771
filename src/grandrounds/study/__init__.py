"""What a consortium agrees on: the study file, its parts, its checks and its signatures."""
