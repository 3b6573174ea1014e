"""Make Transformer language models truly smaller: elastic supernets, subnet search, extraction, OpenVINO."""
